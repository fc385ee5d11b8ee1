"""Progress of a comparison."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from gemminer.runs.grid import Cell

if TYPE_CHECKING:
    from gemminer.runs.record import Record  # its models take a fiftieth of a second to make, and --help needs none


class Watch:
    """Receives the progress of a comparison; this base class ignores it."""

    def begin(self, cells: Sequence[Cell], done: int, time_left: Callable[[], float | None]) -> None:
        """`done` of the cells were finished before; `time_left` returns the seconds left, or None if not known yet."""

    def started(self, cell: Cell) -> None:
        """A worker started the cell."""

    def told(self, cell: Cell, text: str) -> None:
        """The cell's progress."""

    def finished(self, cell: Cell, record: Record) -> None:
        """The cell is finished, with this record; also called for cells that were finished before."""

    def failed(self, cell: Cell, sentence: str) -> None:
        """The cell failed, with the reason."""

    def close(self) -> None:
        """The comparison is over; called last."""
