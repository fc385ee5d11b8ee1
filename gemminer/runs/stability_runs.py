"""The instability of a run's ticket, and of its dense network at several steps, in a folder that is gone on with.

A question is a list of steps (begin:NAME, train:NAME:i, line:NAME:pair), each done once, as in a run.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from gemminer.core.errors import GemminerError, UsageError
from gemminer.core.files import atomic, read_json, save_text
from gemminer.core.numbers import whole
from gemminer.core.progress import Monitor, Together
from gemminer.core.ticket import Ticket
from gemminer.data.fingerprint import digest
from gemminer.runs import environment
from gemminer.runs.connectivity import CURVES, STABLE, Instability, Line, begin, checked, line, named
from gemminer.runs.execute import prepare
from gemminer.runs.experiment import Experiment
from gemminer.runs.folder import FILES, INSIDE, Folder
from gemminer.runs.recipe import ALONE, Recipe
from gemminer.runs.steps import Logged, Steps, engine_of, load_weights, save_weights

SCHEMA = "gemminer.instability/1"
NAME = "instability.json"
BARRIERS = "barriers.safetensors"


class StabilityFolder(Folder):
    """The folder of a question: its files, and in state/ what is begun with and trained."""

    FILES = (*FILES, NAME, BARRIERS)
    INSIDE = re.compile(
        rf"{INSIDE.pattern}|(begin|train|line)-[a-z0-9@-]+\.pt|(begin|weights|line)-[a-z0-9@-]+\.safetensors"
    )


def instability_of(
    recipe: Recipe,
    ticket: Path | None,
    at: Sequence[int],
    out: Path,
    *,
    pairs: int = 3,
    points: int = 11,
    statistics: str = "recalibrate",
    monitor: Monitor | None = None,
    **where: Any,
) -> list[Instability]:
    """The instability of the recipe's dense network at each step of `at`, and of a ticket, written in the folder `out`.

    `where` goes to `prepare`. The same call goes on where it was killed; more pairs add to it.
    """
    places = checked(pairs, points, statistics)
    steps = [whole("--at, a step of the dense network,", step, least=0) for step in at]
    prepared = prepare(recipe.changed({**ALONE, "checks": ()}), monitor=monitor, **where)
    experiment = prepared.experiment
    if experiment.task.ranks is not None:
        raise UsageError("an instability is measured by one process: leave out --distributed")
    own = None if ticket is None else Ticket.load(ticket).fitted(experiment.task.model)
    for step in steps:
        experiment.task.position(step, experiment.settings.epochs)
    what = [recipe.changed(ALONE).digest, statistics, points, None if own is None else own.digest]
    folder = StabilityFolder(out, digest(json.dumps(what)), resume=True)
    experiment = experiment.with_task(monitor=Together(Logged(folder), experiment.task.monitor))
    experiment = experiment.with_task(below=engine_of(experiment, folder))
    asked = _Question(Steps(experiment, folder), folder, places, statistics)
    found = []
    for step in steps:
        begun = asked.dense(experiment, prepared.draw, step)
        found.append(asked.measured(named(None, step), begun, pairs))
    if own is not None:
        name = named(own, own.provenance.get("rewind_step") or 0)
        found.append(asked.measured(name, own, pairs))
    _write(out, found, recipe)
    return found


class _Question:
    """What is done once, and kept."""

    def __init__(self, step: Steps, folder: Folder, places: tuple[float, ...], statistics: str) -> None:
        self.step, self.folder, self.places, self.statistics = step, folder, places, statistics

    def _inside(self, kind: str, name: str) -> Path:
        return self.folder.state / f"{kind}-{name.replace(':', '-')}.safetensors"

    def dense(self, experiment: Experiment, draw: Any, step: int) -> Ticket:
        """The dense network at a step, trained so far now or before."""
        path = self._inside("begin", named(None, step))

        def work(lent: Experiment) -> dict[str, Any]:
            begin(lent, draw, step).save(path)
            return {}

        self.step(f"begin:{named(None, step)}", work)
        return Ticket.load(path).fitted(experiment.task.model)

    def measured(self, name: str, begun: Ticket, pairs: int) -> Instability:
        """The lines of so many pairs of trainings from a ticket."""
        lines = tuple(self._line(name, begun, pair) for pair in range(pairs))
        metric = self.step.experiment.task.metric_name
        step = int(begun.provenance.get("rewind_step") or 0)
        return Instability(name, step, self.places, lines, self.statistics, metric)

    def _line(self, name: str, begun: Ticket, pair: int) -> Line:
        path = self._inside("line", f"{name}:{pair}")

        def work(lent: Experiment) -> dict[str, Any]:
            ends = [load_weights(self._trained(name, begun, 2 * pair + i)) for i in (0, 1)]
            found = line(
                lent.with_task(checkpoint=None), (ends[0], ends[1]), self.places, self.statistics, begun.removed
            )
            if found.examples is not None:
                _save(path, {"examples": found.examples})
            for i in (0, 1):  # the ends are as large as the network, and done with
                self._inside("weights", f"{name}:{2 * pair + i}").unlink(missing_ok=True)
            return {curve: list(getattr(found, curve)) for curve in CURVES}

        if f"line:{name}:{pair}" not in self.folder.steps:
            for i in (0, 1):
                self._trained(name, begun, 2 * pair + i)
        found = self.step(f"line:{name}:{pair}", work)
        examples = load_weights(path)["examples"] if path.exists() else None
        return Line.of(found, examples)

    def _trained(self, name: str, begun: Ticket, index: int) -> Path:
        """The weights of a training of the ticket."""
        path, phase = self._inside("weights", f"{name}:{index}"), f"train:{name}:{index}"
        self.step(phase, lambda lent: lent.train(begun, index, phase, lambda net: save_weights(net, path)))
        return path


def _save(path: Path, tensors: Mapping[str, Tensor]) -> None:
    with atomic(path) as temporary:
        temporary.write_bytes(save(dict(tensors), metadata={"gemminer": json.dumps({"format": SCHEMA})}))


def _write(out: Path, found: Sequence[Instability], recipe: Recipe) -> None:
    about = {"schema": SCHEMA, "created": environment.now(), "command": environment.command(), "limit": STABLE}
    about |= {"model": recipe.model, "data": recipe.data, "seed": recipe.seed}
    about |= {"recipe": recipe.model_dump(mode="json", exclude_defaults=True)}
    about |= {"hardware": environment.hardware("cpu", torch.get_num_threads()), "versions": environment.versions()}
    own = {one.name: one.examples.float() for one in found if one.examples is not None}
    if own:
        _save(out / BARRIERS, own)
    save_text(out / NAME, json.dumps({**about, "starts": [one.as_dict() for one in found]}, indent=1) + "\n")


def read(folder: Path | str) -> dict[str, Any]:
    """What instability.json of a folder holds; raises GemminerError with one sentence."""
    path = Path(folder) / NAME
    try:
        found = read_json(path.read_text(encoding="utf-8"))
        if found["schema"] != SCHEMA:
            raise ValueError(f"its schema is {found['schema']!r}")
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise GemminerError(f"{path} holds no instability ({error}): run gemminer instability again") from None
    return dict(found)
