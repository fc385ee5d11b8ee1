"""A call from Python: what it gives as an experiment, and the folder that it may keep everything in."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gemminer import methods
from gemminer.core.draw import Draw
from gemminer.core.errors import GemminerError, UsageError
from gemminer.core.files import as_path
from gemminer.core.model_state import borrowed, copied, gradients, named_state
from gemminer.core.ownership import is_there
from gemminer.core.progress import Monitor, Together
from gemminer.core.statistics import overall
from gemminer.core.ticket import Ticket
from gemminer.data import parts_of
from gemminer.runs import identity
from gemminer.runs.building import build
from gemminer.runs.checks import CheckResult, judge
from gemminer.runs.diet import Begun
from gemminer.runs.experiment import Experiment, Start
from gemminer.runs.folder import PYTHON, Folder
from gemminer.runs.settings import default_epochs, options_of
from gemminer.runs.shared_folder import folder_for
from gemminer.runs.steps import Logged, Steps, engine_of, load_weights, of_first, save_weights, ticket_kept
from gemminer.training.checkpoint import Checkpoint, difference
from gemminer.training.losses import Metric
from gemminer.training.pretrain import Pretrain
from gemminer.training.ranks import Distributed, alone, ranks_of
from gemminer.training.scores import Scores
from gemminer.training.settings import Settings


def experiment_of(
    model: nn.Module,
    train_data: Any,
    *,
    metric: Metric | None,
    monitor: Monitor | None,
    checkpoint: str | Path | None = None,
    validation: Any = None,
    test: Any = None,
    tested: bool = False,
    distributed: Distributed = None,
    **given: Any,
) -> Experiment:
    """The experiment of a call."""
    ranks = ranks_of(distributed)
    model = alone(model, ranks)
    file = None if checkpoint is None else Checkpoint(as_path("checkpoint", checkpoint), ranks=ranks)
    if file is not None:
        file.load()  # a file that is no checkpoint is refused before anything else
    train_data, validation, test = parts_of(train_data, validation, test, tested=tested)
    return build(
        model,
        train_data,
        validation=validation,
        test=test,
        metric=metric,
        monitor=monitor or Monitor(),
        checkpoint=file,
        ranks=ranks,
        **given,
    )


def for_ticket(
    ticket: Ticket, model: nn.Module, train_data: Any, epochs: int | None, settings: dict[str, Any], **given: Any
) -> Experiment:
    """The experiment in which a ticket is trained: prunable is what it says, and the settings are checked."""
    facts = ticket.provenance
    prunes: dict[str, Any] = {key: tuple(facts.get(key, ())) for key in ("include", "exclude")}
    prunes["embeddings"] = facts.get("embeddings", False)
    experiment = experiment_of(model, train_data, tested=True, **prunes, **given)
    settings["epochs"] = default_epochs(experiment.task.train.examples) if epochs is None else epochs
    ticket.check_fits(model)
    return dataclasses.replace(experiment, settings=options_of(Settings, settings, "training"))


class Call:
    """One call of `mine`, `train` or `check`, its steps kept in the folder `out` if there is one.

    A folder is of one ticket: what was mined in it, or what was trained or checked in it first. Calls that repeat what
    is there get it from there, and calls with other arguments are refused. With a folder the record is written anew at
    the end of each call.

    Raises UsageError where the folder holds something else, or `out` and a checkpoint are both given.
    """

    def __init__(self, experiment: Experiment, out: str | Path | None) -> None:
        self.experiment, self.folder = experiment, None
        if out is None:
            return
        if experiment.task.checkpoint is not None:
            raise UsageError("a run's folder has checkpoints of its own: give out or checkpoint, not both")
        path = as_path("out, the folder,", out)
        self.folder = folder_for(experiment.task.ranks, lambda: Folder(path, PYTHON, resume=True))
        self.experiment = experiment.with_task(monitor=Together(Logged(self.folder), experiment.task.monitor))

    def search(
        self,
        method: str,
        density: float,
        options: Any,
        draw: Draw | None,
        seconds: float | None = None,
        pretrain: Pretrain | None = None,
    ) -> Ticket:
        """The ticket, found now or by an earlier call in the folder."""
        found: list[Ticket] = []

        def keep(ticket: Ticket) -> None:
            found.append(ticket)
            if self.folder is not None and self.experiment.writes:
                ticket.save(self.folder.path / "ticket.safetensors")

        of: dict[str, str] = {}
        if self.folder is not None:
            path = self.folder.path / "ticket.safetensors"
            if "search" not in self.folder.steps and of_first(self.folder, lambda: is_there(path)):
                raise UsageError(
                    f"{self.folder.path} holds a ticket that was found elsewhere: give another folder with out="
                )
        start = None if pretrain is None else self._start(pretrain, draw)
        if self.folder is not None:
            of = self.experiment.what_search(method, density, options, draw, seconds, start)
            if methods.get(method).trains:
                self._choose_engine()
        searched = self._step(
            "search", of, lambda lent: lent.search(method, density, options, draw, keep, seconds, start)
        )
        if self.folder is None:
            return found[0]
        ticket = ticket_kept(self.folder, searched["digest"])
        self._record(ticket)
        return ticket

    def _start(self, asked: Pretrain, draw: Draw | None) -> Start:
        """The weights that a pre-training comes to, now or by an earlier call in the folder."""
        scores = "none" if asked.scores is None else Scores.given(asked.scores).checksum
        own = {"the pre-training": asked.text, "the scores": scores, "its settings": repr(dict(asked.train))}
        with self.experiment.drawn(draw):
            of = (
                {}
                if self.folder is None
                else {**own, **identity.of_weights(self.experiment.task, self.experiment.seed)}
            )
        folder = None if self.folder is None else self.folder.path
        # A checkpoint is the search's: what goes before it is done again, to the same bits.
        plain = self.experiment.with_task(checkpoint=None)

        def step(name: str, work: Callable[[Experiment], dict[str, Any]]) -> dict[str, Any]:
            return work(plain) if self.folder is None else self._step(name, of, work)

        return Begun(step, folder).start(self.experiment, asked, draw, {})

    def train(self, ticket: Ticket) -> dict[str, Any]:
        """Train; afterwards the model holds the trained weights, however it ends, once there are any."""
        trained: dict[str, Tensor] = {}
        of = self._begin(ticket)
        phase = "train" if self.folder is None else "train:0"
        try:
            result = self._step(
                phase, of, lambda lent: lent.train(ticket, 0, phase, lambda net: self._keep(net, ticket, trained))
            )
            if self.folder is not None and not trained:
                path = self.folder.path / "trained.safetensors"
                trained.update(of_first(self.folder, lambda: load_weights(path)))
        except GemminerError as error:
            if trained:
                raise type(error)(f"{error}; the trained weights are in the model") from error.__cause__
            raise
        finally:
            if trained:
                with torch.no_grad():
                    for name, tensor in named_state(self.experiment.task.model).items():
                        tensor.copy_(trained[name])
        self._record(ticket)
        return {name: value for name, value in result.items() if name not in ("notes", "of")}

    def check(self, ticket: Ticket, seeds: int, names: Sequence[str]) -> CheckResult:
        """Train the ticket and what each check leaves of it, over as many seeds."""
        of = self._begin(ticket)
        state = None if self.folder is None else self.folder.state
        if self.folder is None:
            self.experiment = self.experiment.with_engine()  # chosen once for all trainings
        with gradients(), borrowed(self.experiment.task.model):
            own = [
                self._step(f"train:{i}", of, functools.partial(self._own, ticket=ticket, index=i))["test"]
                for i in range(seeds)
            ]
            result = judge(self.experiment, ticket, own, names, lambda name, work: self._step(name, of, work), state)
        self._record(ticket, result)
        return result

    def _own(self, lent: Experiment, ticket: Ticket, index: int) -> dict[str, Any]:
        keep = (lambda net: self._keep(net, ticket, {})) if self.folder is not None and index == 0 else None
        return lent.train(ticket, index, f"train:{index}", keep)

    def _keep(self, net: nn.Module, ticket: Ticket, trained: dict[str, Tensor]) -> None:
        trained.update(copied(net))
        if self.folder is not None and self.experiment.writes:
            save_weights(net, self.folder.path / "trained.safetensors", ticket)

    def _begin(self, ticket: Ticket) -> dict[str, str]:
        """Make the folder, if there is one, this ticket's, and measure it before it is trained.

        Returns what its trainings are of.
        """
        if self.folder is None:
            return {}
        path = self.folder.path / "ticket.safetensors"

        def kept() -> str:
            if not is_there(path):
                ticket.save(path)
            return Ticket.load(path).digest

        if of_first(self.folder, kept) != ticket.digest:
            raise UsageError(f"{self.folder.path} holds another ticket: give another folder with out=")
        self._choose_engine()
        of = self.experiment.what_training(ticket)
        if self.experiment.test is not None:
            names = ("the metric", "the test data", "rows of the test data", "precision")
            measured = {name: of[name] for name in names if name in of}
            self._step("before", measured, lambda lent: {"test": lent.before(ticket)})
        return of

    def _choose_engine(self) -> None:
        assert self.folder is not None
        self.experiment = self.experiment.with_task(below=engine_of(self.experiment, self.folder))

    def _step(self, name: str, of: Mapping[str, str], work: Callable[[Experiment], dict[str, Any]]) -> dict[str, Any]:
        """The result of a piece of work that is of this: computed now, or by an earlier call in the folder."""
        if self.folder is None:
            result = work(self.experiment)
            if self.experiment.task.checkpoint is not None:
                self.experiment.task.checkpoint.clear()
            return result
        if (known := self.folder.steps.get(name)) and (differs := difference(of, known["of"], free={"the engine"})):
            raise UsageError(
                f"{self.folder.path} holds {name} of another call ({differs}): give another folder with out="
            )
        return Steps(self.experiment, self.folder)(name, lambda lent: {**work(lent), "of": dict(of)})

    def _record(self, ticket: Ticket, result: CheckResult | None = None) -> None:
        """Write the record of all that is in the folder; checks that an earlier call ran stay in it."""
        if self.folder is None or not self.experiment.writes:
            return
        from gemminer.runs import record  # here, for its models take a twentieth of a second to make
        from gemminer.runs.recording import record_of

        path, facts, task = self.folder.path / "record.json", ticket.provenance, self.experiment.task
        checks = record.read(path).checks if path.exists() else {}
        if result is not None:
            checks = {**checks, **result.checks}
        record_of(
            self.experiment,
            ticket,
            self.folder.steps,
            verdict=CheckResult(overall(list(checks.values())), checks) if checks else None,
            asked=facts.get("asked", ticket.density),
            method=facts.get("method", "unknown"),
            model=type(task.model).__name__,
            data=f"{task.train.examples:,} examples",
            seed=facts.get("seed", self.experiment.seed),
        ).save(path)
