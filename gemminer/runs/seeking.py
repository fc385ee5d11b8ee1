"""The smallest ticket that is good enough: which densities are searched, what is trained, what is written.

A search for it is a list of steps (dense:i, search:D, train:D:i, program:D, test:D:i), each done once and kept in a
folder, as in a run. The experiment that chooses has no test data; another one measures the answer when it stands.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import re
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Unpack

import torch
from torch import Tensor, nn

from gemminer import methods
from gemminer.core import numbers
from gemminer.core.draw import Draw
from gemminer.core.errors import UsageError
from gemminer.core.files import as_path
from gemminer.core.model_state import borrowed, copied
from gemminer.core.progress import Silent, Together
from gemminer.core.statistics import Margin, margin_test, mean_std
from gemminer.core.ticket import Ticket
from gemminer.runs import answer, environment, identity, ladder, saying, shipping
from gemminer.runs.answer import Probe, Question, Smallest, Spread
from gemminer.runs.called import experiment_of
from gemminer.runs.execute import asked_fields, prepare
from gemminer.runs.experiment import BATCH_SIZE, Experiment, require_test
from gemminer.runs.folder import FILES, INSIDE, Folder
from gemminer.runs.keywords import takes
from gemminer.runs.recipe import Recipe
from gemminer.runs.recording import record_of
from gemminer.runs.settings import Resolved, draw_of, resolve
from gemminer.runs.steps import Logged, Steps, engine_of, load_weights, save_weights, ticket_kept
from gemminer.runs.typed import SmallestOptions
from gemminer.training.checkpoint import difference
from gemminer.training.evaluate import mean_metric
from gemminer.training.ranks import launched

_ELSEWHERE = "give another folder"
MARK = "smallest"  # in place of a recipe's digest


class AnswerFolder(Folder):
    """The folder of an answer: its files, and in state/ every ticket, trained network and program on the way."""

    FILES = (*FILES, *shipping.FORMATS, "smallest.json")
    INSIDE = re.compile(
        rf"{INSIDE.pattern}|(search|train|dense)-[0-9.e-]+\.pt|(ticket|weights|program)-[a-z0-9.e-]+\.safetensors"
    )


@dataclass(frozen=True)
class Way:
    """How each density is searched: all of a call of `mine` but the density.

    Args:
        facts: the fields of a record that say what was asked for, of a density.
    """

    method: str
    resolved: Resolved
    initialiser: str | None
    seed: int
    facts: Callable[[float], dict[str, Any]]

    def draw(self, density: float) -> Draw | None:
        """The draw of the initial weights."""
        return draw_of(self.initialiser, methods.get(self.method), density, self.seed)


@takes("gemminer.smallest", lambda _: ("", SmallestOptions.__annotations__))
def smallest(
    model: nn.Module,
    train_data: Any,
    *,
    validation_data: Any = None,
    test_data: Any = None,
    out: str | Path,
    within: float | None = None,
    size: str | int | None = None,
    seeds: int = 3,
    method: str = "gem-miner",
    **how: Unpack[SmallestOptions],
) -> Smallest:
    """Find the sparsest ticket whose trained network stays within so much of the dense one; the model stays as it was.

    Densities are a ladder from 50% down, each 0.71 of the one before. It is bisected, as if accuracy fell with density:
    a search and one training each. The candidate and the dense network are then trained over `seeds`, paired, and

        within     mean - t s / sqrt(n) >= -within    one-sided, 95%: it is the answer
        not        mean + t s / sqrt(n) < -within     or a mean below -within: the next denser one is asked
        undecided  otherwise                          it is the answer, and said to be undecided

    Args:
        model: as in `mine`.
        train_data: as in `mine`.
        validation_data: what the choice is made on; needed, unless `train_data` is a DataModule that has it.
        test_data: measured once, for the answer and the dense network; it chooses nothing.
        out: the folder of the answer: ticket, trained weights, compiled program, record, page. The same call goes on
            where it was killed, or returns what is there; more `seeds` add to it; another question is refused.
        within: what may be lost to the dense network, in points of an accuracy, else in units of the metric. By default
            0.5 points where no size is given.
        size: bytes of the compiled program, or "60KB". Alone: the densest ticket that fits. With `within`: the
            sparsest within must fit.
        seeds: trainings of the candidate and of the dense network; 1 decides nothing.
        method: a name from `gemminer.methods.names()`.
        how: as in `mine`, also `train_epochs`, `options` of the method and `train`, settings of the training, by name.

    Returns:
        The answer: verdict, sentence, density, ticket, a row for each density looked at, and the files to ship.

    Raises:
        UsageError: no validation data, a question that cannot be, another question's folder.

    >>> import gemminer, tempfile, torch
    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 16), torch.nn.ReLU(), torch.nn.Linear(16, 2))
    >>> data = (x := torch.randn(64, 4), (x[:, 0] > 0).long())
    >>> found = gemminer.smallest(net, data, validation_data=data, within=50, epochs=2, out=tempfile.mkdtemp())
    >>> found.verdict, found.density < 0.1
    ('within', True)
    """
    asked, folder = answer.question(within, size, seeds), as_path("out, the folder,", out)
    given: dict[str, Any] = {"batch_size": BATCH_SIZE, "seed": 0, "monitor": None, "metric": None, **how}
    lengths = {name: given.pop(name, None) for name in ("epochs", "train_epochs", "options", "train")}
    initialiser, seed = given.pop("initialiser", "default"), numbers.seed_of(given["seed"])
    given.pop("progress", None)
    given["distributed"] = _alone(given.get("distributed"))
    for name in ("include", "exclude"):
        given[name] = numbers.strings(name, given.get(name, ()))
    experiment = experiment_of(model, train_data, validation=validation_data, test=test_data, **given)
    resolved = resolve(method, experiment.task.train.examples, **lengths)
    experiment = dataclasses.replace(experiment, settings=resolved.settings)
    named = {"method": method, "seed": seed, "model": type(model).__name__}
    named["data"] = f"{experiment.task.train.examples:,} examples"
    way = Way(method, resolved, initialiser, seed, lambda density: {"asked": density, **named})
    return Seeking(experiment, way, asked, lambda: AnswerFolder(folder, MARK, resume=True, flag="out=")).find()


def smallest_of(
    recipe: Recipe, asked: Question, out: Path, *, resume: bool = False, overwrite: bool = False, **where: Any
) -> Smallest:
    """The same of a recipe, whose density, checks and dense reference are passed over; `where` goes to `prepare`."""
    prepared = prepare(recipe, distributed=_alone(None), **where)
    initialiser = recipe.initialiser or ("keep" if recipe.model_options.get("pretrained", False) else "default")

    def facts(density: float) -> dict[str, Any]:
        return asked_fields(recipe.replace(density=density, checks=(), check_seeds=asked.seeds))

    way = Way(recipe.method, prepared.resolved, initialiser, recipe.seed, facts)
    folder = functools.partial(AnswerFolder, out, MARK, resume=resume, overwrite=overwrite)
    return Seeking(prepared.experiment, way, asked, folder).find()


class Seeking:
    """One search for the smallest ticket, in its folder.

    Raises UsageError, before anything is computed, for what cannot be: no validation data, a metric without points, a
    folder of another question.
    """

    def __init__(self, experiment: Experiment, way: Way, asked: Question, folder: Callable[[], AnswerFolder]) -> None:
        task = experiment.task
        if task.validation is None:
            raise UsageError(
                "the choice is made on validation data, and there is none: give validation_data (--validation 0.2), "
                "examples that are neither trained nor tested on"
            )
        if asked.within is None and asked.size is None:
            if not answer.is_share(task.metric_name):
                raise UsageError(f"say with within what may be lost, in units of the metric ({task.metric_name})")
            asked = asked.model_copy(update={"within": answer.POINTS})
        self.way, self.asked = way, asked
        table = task.prunable()
        self.prunable = sum(p.numel() for p in table.values())
        self.ladder = ladder.rungs(self.prunable, len(table))
        experiment.check_density(self.ladder[0])
        if asked.within is not None and asked.within > 100 and answer.is_share(task.metric_name):
            raise UsageError(f"within is points of {task.metric_name}, of which there are 100, not {asked.within:g}")
        if asked.size is not None:
            self._require_room(experiment, asked.size)
        of = self._what(experiment)
        self.folder = folder()
        experiment = experiment.with_task(monitor=Together(Logged(self.folder), task.monitor))
        question = self.folder.steps.get("question")
        if question and (differs := difference(of, question["of"], free={"the engine"})):
            raise UsageError(f"{self.folder.path} holds the answer to another question ({differs}): {_ELSEWHERE}")
        if not question:
            self.folder.finish("question", {"of": of})
        experiment = experiment.with_task(below=engine_of(experiment, self.folder))
        self.tester = experiment
        self.chooser = dataclasses.replace(experiment, test=None)  # what chooses has no test data to look at
        self.step = Steps(self.chooser, self.folder)
        self.margin = asked.margin(task.metric_name)

    def _what(self, experiment: Experiment) -> dict[str, str]:
        """What the question is of, in texts by name; more seeds are the same question."""
        way, task = self.way, experiment.task
        density = self.ladder[0]
        of = experiment.what_search(way.method, density, way.resolved.options, way.draw(density), way.resolved.seconds)
        of |= {"the call": MARK, "the density": f"{self.ladder[0]:g} to {self.ladder[-1]:g}"}
        of |= {"what may be lost": _shown(self.asked.within), "the size": _shown(self.asked.size)}
        of |= {f"{name} of the training": repr(v) for name, v in dataclasses.asdict(experiment.settings).items()}
        of |= identity.data_of(task.validation, "the validation data") | {"the metric": identity.called(task.metric)}
        return of | identity.data_of(experiment.test, "the test data")

    # --- what is measured, each once ---

    def dense(self) -> list[float]:
        """The dense network's validation metric, by training seed."""
        return [self._train("dense", None, i) for i in range(self.asked.seeds)]

    def ticket(self, rung: int) -> Ticket:
        """The ticket of a rung."""
        density, way = self.ladder[rung], self.way
        path = self._inside("ticket", f"{density:g}")

        def search(lent: Experiment) -> dict[str, Any]:
            lent = lent.with_task(phase=f"search:{density:g}")
            keep = functools.partial(Ticket.save, path=path)
            return lent.search(way.method, density, way.resolved.options, way.draw(density), keep, way.resolved.seconds)

        return ticket_kept(self.folder, self.step(f"search:{density:g}", search)["digest"], path)

    def trained(self, rung: int, seed: int) -> float:
        """The validation metric of a rung's ticket after training with this seed."""
        return self._train(f"train:{self.ladder[rung]:g}", functools.partial(self.ticket, rung), seed)

    def _train(self, what: str, ticket: Callable[[], Ticket] | None, seed: int) -> float:
        name = f"{what}:{seed}"
        path = self._inside("weights", name)

        def work(lent: Experiment) -> dict[str, Any]:
            return lent.train(ticket and ticket(), seed, name, lambda net: save_weights(net, path))

        return float(self.step(name, work)["validation"])

    def program(self, rung: int) -> int | None:
        """The size of the program of a rung's first trained network; None, its step says why, where there is none."""
        name = f"program:{self.ladder[rung]:g}"

        def work(lent: Experiment) -> dict[str, Any]:
            try:
                found = shipping.compiled(lent.task, self._weights(rung))
            except UsageError as error:
                return {"left_out": str(error)}
            return {"bytes": found.save(self._inside("program", f"{self.ladder[rung]:g}")).stat().st_size}

        self.trained(rung, 0)
        size: int | None = self.step(name, work).get("bytes")
        return size

    def latencies(self) -> dict[str, float]:
        """The time of one example in every program there is, by density, and in the dense network: measured together.

        They are measured again when another density has been looked at.
        """
        found = [f"{self.ladder[rung]:g}" for rung in self._looked() if self.program(rung) is not None]
        known = self.folder.steps.get("latency", {})
        if known.get("of") != found:
            files = {density: self._inside("program", density) for density in found}
            times = shipping.latencies(self.chooser.task, files) if files else {}
            known = self.folder.finish("latency", {"of": found, "seconds": times})
        seconds: dict[str, float] = known["seconds"]
        return seconds

    def margin_of(self, rung: int, seeds: int) -> Margin:
        """How far a rung is from the dense network, over so many seeds."""
        values = [self.trained(rung, i) for i in range(seeds)]
        dense = self.dense()
        # One training is held against the mean of the dense network's: a guess, but the best there is.
        return margin_test(values, dense if seeds > 1 else [mean_std(dense)[0]], self.margin)

    def guess(self, rung: int) -> float:
        """The size of a rung's program if its ticket is a random one, which no search is needed for."""
        return self._guessed(self.chooser, rung, self.folder.state / "program-guess.safetensors")

    def _guessed(self, chooser: Experiment, rung: int, path: Path) -> float:
        density, found = self.ladder[rung], list[Ticket]()
        way = resolve("erk", chooser.task.train.examples)
        quiet = chooser.with_task(notes=[], monitor=Silent())
        quiet.search("erk", density, way.options, draw_of(None, methods.get("erk"), density, 0), found.append)
        with borrowed(quiet.task.model) as model:
            found[0].fitted(model).apply(model)
            weights = copied(model)
        return float(shipping.compiled(quiet.task, weights).save(path).stat().st_size)

    def _require_room(self, experiment: Experiment, size: int) -> None:
        """Raise UsageError for a size that is less than a third of what a random ticket's sparsest program takes."""
        least = 0.0  # a network without a program is refused where one is first asked for
        with tempfile.TemporaryDirectory() as place, contextlib.suppress(UsageError):
            least = self._guessed(experiment, len(self.ladder) - 1, Path(place) / "program.safetensors")
        if size < least / 3:
            taken = f"the sparsest, {self.ladder[-1]:.3g} of the weights, takes about {answer.in_bytes(least)}"
            raise UsageError(f"no program is as small as {size:,} bytes: {taken} (60KB is 60,000 bytes)")

    # --- the search ---

    def find(self) -> Smallest:
        """The answer, written into the folder with all that is shipped."""
        asked, denser = self.asked, None
        rung: int | None
        verdict: str
        if asked.within is None:
            assert asked.size is not None
            rung, denser = ladder.densest(len(self.ladder), functools.cache(self.guess), self._size, asked.size)
            verdict = "none" if rung is None else "fits"
            if rung is not None:
                self._judged(rung)
        else:
            start = ladder.sparsest(len(self.ladder), self._looks)
            rung, verdict = ladder.confirmed(start or 0, self._judged)
            if verdict == "not within":
                verdict = "none"
            elif asked.size is not None and self._size(rung) > asked.size:
                verdict = "too large"
        found = self._answer(rung, verdict, denser)
        found.save(self.folder.path / "smallest.json")
        return found.at(self.folder.path)

    def _looks(self, rung: int) -> bool:
        found = self.margin_of(rung, 1)
        self._note(rung, found)
        return found.looks(self.margin)

    def _judged(self, rung: int) -> tuple[ladder.Verdict, bool]:
        found = self.margin_of(rung, self.asked.seeds)
        self._note(rung, found)
        return found.verdict, found.looks(self.margin)

    def _note(self, rung: int, found: Margin) -> None:
        self.chooser.task.monitor.note(saying.progress(self.ladder[rung], found, self.margin, self._metric))

    def _size(self, rung: int) -> float:
        size = self.program(rung)
        if size is None:
            why = self.folder.steps[f"program:{self.ladder[rung]:g}"]["left_out"]
            raise UsageError(f"there is no compiled program, so no size to ask for: {why}")
        return size

    # --- the answer ---

    def _answer(self, rung: int | None, verdict: str, denser: float | None) -> Smallest:
        """All that was found, and the files to ship, which are written first."""
        asked, task, metric = self.asked, self.chooser.task, self._metric
        given = verdict in ("within", "fits", "undecided")
        dense = _spread(self.dense())
        times = self.latencies()
        probes = [self._probe(i, rung if given else None, times) for i in self._looked()]
        about = probes[-1] if rung is None else next(p for p in probes if p.density == self.ladder[rung])
        last = about.density == self.ladder[-1]
        said = saying.sentence(verdict, asked, about, metric=metric, last=last, denser=denser)
        found = Smallest(
            created=environment.now(),
            command=environment.command(),
            question=asked,
            verdict=verdict if given else "none",
            sentence=said,
            evidence=saying.evidence(verdict, about, dense=dense, metric=metric),
            metric=metric,
            prunable=self.prunable,
            probes=probes,
            ladder=self.ladder,
            dense=dense,
            dense_latency=times.get("dense"),
            validation_examples=task.validation.examples if task.validation else 0,
            seconds=math.fsum(done.get("cost", {}).get("seconds", 0.0) for done in self.folder.steps.values()),
            hardware=environment.hardware(str(task.device), torch.get_num_threads()),
            versions=environment.versions(),
            git=environment.git_revision(),
            **self._named(self.ladder[0]),
        )
        if given and rung is not None:
            found.files, found.left_out = self._ship(rung)
            found.density, found.kept = self.ladder[rung], about.kept
            if self.tester.test is not None:
                found.test, found.dense_test = self._tested(f"train:{about.density:g}"), self._tested("dense")
            self._record(rung, found)
        notes = [note for done in self.folder.steps.values() for note in done.get("notes", ())]
        notes += filter(None, [saying.resolution(found.validation_examples, asked, metric)])
        found.notes = list(dict.fromkeys(notes))
        return found

    def _looked(self) -> list[int]:
        """The rungs of which a network has been trained, from the densest."""
        return [i for i, d in enumerate(self.ladder) if f"train:{d:g}:0" in self.folder.steps]

    def _probe(self, rung: int, chosen: int | None, times: Mapping[str, float]) -> Probe:
        """What a rung came to, over as many seeds as it was trained with."""
        density, steps = self.ladder[rung], self.folder.steps
        n = next(
            i for i in range(self.asked.seeds + 1) if i == self.asked.seeds or f"train:{density:g}:{i}" not in steps
        )
        n = self.asked.seeds if n == self.asked.seeds else 1
        far, values = self.margin_of(rung, n), [self.trained(rung, i) for i in range(n)]
        size = self.program(rung)
        if self.asked.within is None:
            fits = size is not None and size <= (self.asked.size or 0)
            verdict = "fits" if fits else "too large"
        elif n == 1:
            verdict = "looks within" if far.looks(self.margin) else "looks not within"
        else:
            verdict = far.verdict
        spent = [steps[name]["cost"]["seconds"] for name in (f"search:{density:g}", f"train:{density:g}:0")]
        return Probe(
            density=density,
            kept=self.ticket(rung).kept,
            validation=_spread(values),
            difference=far.difference,
            std=far.std,
            low=far.low,
            high=far.high,
            verdict=verdict,
            chosen=rung == chosen,
            bytes=size,
            latency=times.get(f"{density:g}"),
            seconds=math.fsum(spent),
        )

    def _ship(self, rung: int) -> tuple[dict[str, int], dict[str, str]]:
        """Write the files to ship; returns their sizes, and what could not be made, and why."""
        path, left_out = self.folder.path, dict[str, str]()
        weights, task, ticket = self._weights(rung), self.chooser.task, self.ticket(rung)
        ticket.save(path / "ticket.safetensors")
        with borrowed(task.model) as model:
            shipping.place(task, weights)
            save_weights(model, path / "trained.safetensors", ticket)
        for name, write in shipping.FORMATS.items():
            try:
                write(task, weights, ticket, path / name)
            except UsageError as error:
                left_out[name] = str(error)
                (path / name).unlink(missing_ok=True)  # an answer of fewer seeds may have left one
        names = [*(n for n in shipping.FORMATS if n not in left_out), "ticket.safetensors", "trained.safetensors"]
        return {name: (path / name).stat().st_size for name in names}, left_out

    def _tested(self, what: str) -> Spread:
        """The test metric of networks that are trained already, by seed."""

        def work(_: Experiment, name: str) -> dict[str, Any]:
            task = self.tester.task
            with borrowed(task.model):
                shipping.place(task, load_weights(self._inside("weights", name)))
                return {"test": mean_metric(task, require_test(self.tester.test))}

        names = [f"{what}:{i}" for i in range(self.asked.seeds)]
        return _spread([self.step(f"test:{name}", functools.partial(work, name=name))["test"] for name in names])

    def _record(self, rung: int, found: Smallest) -> None:
        """Write the record of the answer's ticket, so that `check`, `train` and `report` take the folder as a run."""
        density, steps = f"{self.ladder[rung]:g}", self.folder.steps
        own = {"search": steps[f"search:{density}"]}
        for i in range(self.asked.seeds):
            test = steps.get(f"test:train:{density}:{i}", {"test": None})["test"]
            own[f"train:{i}"] = {**steps[f"train:{density}:{i}"], "test": test}
        dense = found.dense_test.mean if found.dense_test else None
        facts = self.way.facts(self.ladder[rung])
        record_of(self.tester, self.ticket(rung), own, dense=dense, **facts).save(self.folder.path / "record.json")

    def _named(self, density: float) -> dict[str, Any]:
        """How the answer calls what it is of."""
        facts = self.way.facts(density)
        return {name: facts[name] for name in ("method", "model", "data", "seed")}

    @property
    def _metric(self) -> str:
        return self.chooser.task.metric_name

    def _weights(self, rung: int) -> dict[str, Tensor]:
        """The weights of a rung's first training."""
        return load_weights(self._inside("weights", f"train:{self.ladder[rung]:g}:0"))

    def _inside(self, kind: str, name: str) -> Path:
        return self.folder.state / f"{kind}-{name.replace(':', '-')}.safetensors"


def _alone(distributed: Any) -> bool:
    """False, what one process is told; raises UsageError where several are to search together."""
    if distributed or (distributed is None and launched() > 1):
        raise UsageError(
            "smallest works in one process: start it once, or say distributed=False for each alone, in its own folder"
        )
    return False


def _shown(number: float | None) -> str:
    return "not asked" if number is None else f"{number:.10g}"


def _spread(values: list[float]) -> Spread:
    mean, std = mean_std(values)
    return Spread(values=tuple(values), mean=mean, std=std)
