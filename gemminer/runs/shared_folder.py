"""A run's folder of several processes, which the first of them has for all."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from gemminer.runs.folder import Folder, checkpoint_in
from gemminer.training.checkpoint import Checkpoint
from gemminer.training.ranks import Ranks


class SharedFolder:
    """As `Folder`, on every rank: the first reads and writes, and tells the others what there is.

    All ranks must call the same methods in the same order, but for `log` and `forget_after`.
    """

    def __init__(self, make: Callable[[], Folder], ranks: Ranks) -> None:
        self.ranks, self._folder = ranks, None

        def begin() -> tuple[Path, bool, dict[str, dict[str, Any]]]:
            self._folder = made = make()
            return made.path, made.held, made.steps

        self.path, self.held, self.steps = ranks.firsts(begin)
        self.state = self.path / "state"

    _folder: Folder | None

    def finish(self, step: str, result: Mapping[str, Any]) -> dict[str, Any]:
        def work() -> dict[str, Any]:
            assert self._folder is not None
            return self._folder.finish(step, result)

        self.steps[step] = self.ranks.firsts(work)
        return self.steps[step]

    def checkpoint(self, step: str) -> Checkpoint:
        return checkpoint_in(self.state, step, self.ranks)

    def log(self, row: Mapping[str, Any]) -> None:
        if self._folder is not None:
            self._folder.log(row)

    def forget_after(self, phase: str, epoch: int) -> None:
        if self._folder is not None:
            self._folder.forget_after(phase, epoch)


def folder_for(ranks: Ranks | None, make: Callable[[], Folder]) -> Folder | SharedFolder:
    """The folder that `make` makes; of several ranks that of the first."""
    return make() if ranks is None else SharedFolder(make, ranks)
