"""Who is told how a comparison goes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from gemminer.runs.grid import Cell
from gemminer.runs.record import Record


class Watch:
    """Told how a comparison goes; this one keeps it to itself."""

    def begin(self, cells: Sequence[Cell], done: int, time_left: Callable[[], float | None]) -> None:
        """`done` of the cells were finished before; `time_left` gives the seconds left, as soon as they are known."""

    def started(self, cell: Cell) -> None:
        """A worker has taken it."""

    def told(self, cell: Cell, text: str) -> None:
        """How far it is."""

    def finished(self, cell: Cell, record: Record) -> None:
        """It is done, with this record; also told of cells that were done before."""

    def failed(self, cell: Cell, sentence: str) -> None:
        """It is not, and why."""

    def close(self) -> None:
        """Nothing follows."""
