"""How far a comparison is, for a person: a live board on a terminal, plain lines elsewhere."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Sequence
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from gemminer.compare import Forecast, Watch
from gemminer.grid import Cell
from gemminer.tables import row


class Board(Watch):
    """A line for each cell that ends; `emit`, if given, is passed an object for it too."""

    def __init__(self, console: Console, emit: Callable[[dict[str, Any]], None] | None = None) -> None:
        self.console, self.emit = console, emit
        self.done = self.total = 0
        self.running: dict[str, tuple[Cell, str]] = {}
        self._forecast: Forecast | None = None
        self._kept = 0

    def begin(self, cells: Sequence[Cell], done: int, forecast: Forecast) -> None:
        self.total, self._kept, self._forecast = len(cells), done, forecast
        if done:
            self._line(f"{done} of {len(cells)} cells were finished before")

    def started(self, cell: Cell) -> None:
        self.running[cell.digest] = (cell, "begins")

    def told(self, cell: Cell, text: str) -> None:
        self.running[cell.digest] = (cell, text)

    def finished(self, cell: Cell, line: dict[str, Any]) -> None:
        old = self.done < self._kept
        self._end(cell, {**line, "status": "skipped" if old else "finished"})
        if not old:
            numbers = ", ".join(f"{k} {line[k]:.4f}" for k in ("before", "after") if line[k] is not None)
            self._line(f"[{self.done}/{self.total}] {cell}: {numbers}{self._left(', ')}")

    def failed(self, cell: Cell, sentence: str) -> None:
        self._end(cell, {**row(cell, None, "failed"), "error": sentence})
        self._line(f"[{self.done}/{self.total}] {cell}: failed: {sentence}")

    def _end(self, cell: Cell, line: dict[str, Any]) -> None:
        self.running.pop(cell.digest, None)
        self.done += 1
        if self.emit:
            self.emit(line)

    def _left(self, before: str = "") -> str:
        seconds = self._forecast.seconds() if self._forecast and self.done < self.total else None
        return "" if seconds is None else f"{before}about {datetime.timedelta(seconds=round(seconds))} left"

    def _line(self, text: str) -> None:
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)


class LiveBoard(Board):
    """The same, above a bar and the cells that are running."""

    def __init__(self, console: Console, emit: Callable[[dict[str, Any]], None] | None = None) -> None:
        super().__init__(console, emit)
        self._live = Live(get_renderable=self.render, console=console, refresh_per_second=2, transient=True)

    def begin(self, cells: Sequence[Cell], done: int, forecast: Forecast) -> None:
        super().begin(cells, done, forecast)
        self._live.start()

    def render(self) -> RenderableType:
        bar = Table.grid(padding=(0, 2))
        words = Text(f"{self.done}/{self.total} cells  {self._left() or 'time left not known yet'}")
        bar.add_row(ProgressBar(total=max(1, self.total), completed=self.done, width=40), words)
        cells = Table.grid(padding=(0, 2))
        for cell, text in list(self.running.values()):
            cells.add_row(Text(f"  {cell}"), Text(text))
        return Group(bar, cells)

    def close(self) -> None:
        self._live.stop()


def board_for(console: Console, emit: Callable[[dict[str, Any]], None] | None = None) -> Board:
    """Live on a terminal, plain lines elsewhere."""
    return LiveBoard(console, emit) if console.is_terminal else Board(console, emit)
