"""The steps of a run, each done once: results, checkpoints, epochs and weights are in the run's folder."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor, nn

from gemminer.core.errors import Diverged, GemminerError, in_words
from gemminer.core.files import atomic, read_json
from gemminer.core.model_state import copied
from gemminer.core.progress import Silent
from gemminer.core.ticket import Ticket
from gemminer.runs.experiment import Experiment
from gemminer.runs.folder import Folder
from gemminer.runs.shared_folder import SharedFolder
from gemminer.training import engine as engines

T = TypeVar("T")
WEIGHTS = "gemminer.weights/1"


def save_weights(model: nn.Module, path: Path, ticket: Ticket | None = None) -> None:
    """Write all of the model's parameters and buffers, by name, and the digest of the ticket they are trained from."""
    about = {"format": WEIGHTS, **({} if ticket is None else {"ticket": ticket.digest})}
    weights = {name: tensor.contiguous() for name, tensor in copied(model).items()}
    with atomic(path) as temporary:
        temporary.write_bytes(save(weights, metadata={"gemminer": json.dumps(about)}))


def load_weights(path: Path) -> dict[str, Tensor]:
    """The tensors that `save_weights` wrote."""
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise GemminerError(
            f"cannot read the trained weights {path}: {in_words(error)}; train in a new folder"
        ) from None


def digest_of(path: Path) -> str | None:
    """The digest of the ticket that weights are trained from; None where their file does not say it."""
    with safe_open(path, framework="pt") as file:
        text = (file.metadata() or {}).get("gemminer")
    try:
        digest: str | None = read_json(text or "{}").get("ticket")
    except (ValueError, AttributeError):
        return None
    return digest


def of_first(folder: Folder | SharedFolder, work: Callable[[], T]) -> T:
    """What the process that has the folder does with a file there, for all."""
    return work() if isinstance(folder, Folder) else folder.ranks.firsts(work)


def ticket_kept(folder: Folder | SharedFolder, digest: str, path: Path | None = None) -> Ticket:
    """The ticket in a run's folder, or in a file of it, which must be that of its search."""
    file = path or folder.path / "ticket.safetensors"
    ticket = of_first(folder, lambda: Ticket.load(file))
    if ticket.digest != digest:
        raise GemminerError(f"{file} is not the ticket this run found: begin anew, with --overwrite or in a new folder")
    return ticket


class Logged(Silent):
    """Writes each epoch to the run's metrics.jsonl."""

    def __init__(self, folder: Folder | SharedFolder) -> None:
        self.folder = folder

    def begin(self, phase: str, start: int, stop: int) -> None:
        self.folder.forget_after(phase, start)

    def epoch(self, row: dict[str, Any]) -> None:
        self.folder.log(row)


class Steps:
    """Runs each step of a run once: its result is kept in the folder, and its checkpoint while it runs."""

    def __init__(self, experiment: Experiment, folder: Folder | SharedFolder) -> None:
        self.experiment, self.folder = experiment, folder

    def __call__(self, name: str, work: Callable[[Experiment], dict[str, Any]]) -> dict[str, Any]:
        """The step's result: computed now, or read from an earlier run."""
        checkpoint = self.folder.checkpoint(name)
        if name not in self.folder.steps:
            noted = len(self.experiment.notes)
            try:
                found = work(self.experiment.with_task(checkpoint=checkpoint))
            except Diverged:  # nothing can go on from there, and another call may have a better rate
                checkpoint.clear()
                raise
            self.folder.finish(name, {**found, "notes": self.experiment.notes[noted:]})
        checkpoint.clear()  # also where a kill came before it was
        return self.folder.steps[name]


def engine_of(experiment: Experiment, folder: Folder | SharedFolder) -> Mapping[str, float]:
    """The density below which each layer computes kept weights only: the resumed run's choice, or a new one.

    A choice made for another engine is dropped, since a resumed run may ask for another.
    """
    before = folder.steps.get("engine", {})
    if before.get("asked") != experiment.task.engine:
        noted = len(experiment.notes)
        chosen = engines.choose(experiment.task, experiment.flops)
        facts = {"asked": experiment.task.engine, "below": chosen, "notes": experiment.notes[noted:]}
        before = folder.finish("engine", facts)
    below: Mapping[str, float] = before["below"]
    return below
