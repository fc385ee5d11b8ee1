"""What a terminal shows: how far a run or a comparison is, and what came of it."""

from __future__ import annotations

import datetime
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from gemminer.core.progress import Monitor
from gemminer.reporting.tables import row
from gemminer.runs.grid import Cell
from gemminer.runs.record import Record
from gemminer.runs.watch import Watch


def _sentence(row: dict[str, Any], metric: str) -> str:
    parts = [f"{row['phase']} epoch {row['epoch']}", f"loss {row['loss']:.4f}"]
    if row.get("validation") is not None:
        parts.append(f"validation {metric} {row['validation']:.4f}")
    if "kept" in row:
        parts.append(f"kept {row['kept']:.3%}, live {row['live']:.3%}")
    return ", ".join(parts)


class PlainMonitor(Monitor):
    """A line at the end of a phase, and at most one every `every` seconds in between."""

    def __init__(self, console: Console, metric: str = "accuracy", every: float = 5.0) -> None:
        self.console, self.metric, self.every = console, metric, every
        self._last = time.monotonic()
        self._stop = 0

    def begin(self, phase: str, start: int, stop: int) -> None:
        self._stop = stop
        if start:
            self.note(f"{phase}: resumed after epoch {start} of {stop}")

    def epoch(self, row: dict[str, Any]) -> None:
        if row["epoch"] == self._stop or time.monotonic() - self._last >= self.every:
            self._last = time.monotonic()
            self.note(_sentence(row, self.metric))

    def note(self, text: str) -> None:
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)


class RichMonitor(PlainMonitor):
    """A live bar with the time left for each phase; remarks scroll above it."""

    def __init__(self, console: Console, metric: str = "accuracy") -> None:
        super().__init__(console, metric)
        self._bar = Progress(
            TextColumn("{task.description:<18}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f}%"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[numbers]}"),
            console=console,
            transient=True,
        )
        self._task: TaskID | None = None
        self._bar.start()

    def begin(self, phase: str, start: int, stop: int) -> None:
        super().begin(phase, start, stop)
        if self._task is not None:
            self._bar.remove_task(self._task)
        self._task = self._bar.add_task(phase, total=None, numbers="")

    def step(self, phase: str, step: int, steps: int) -> None:
        if self._task is not None:
            self._bar.update(self._task, completed=step, total=steps)

    def epoch(self, row: dict[str, Any]) -> None:
        if self._task is not None:
            self._bar.update(self._task, numbers=_sentence(row, self.metric).split(", ", 1)[1])
        if row["epoch"] == self._stop:
            self.note(_sentence(row, self.metric))

    def close(self) -> None:
        self._bar.stop()


def monitor_for(console: Console, metric: str = "accuracy") -> Monitor:
    """Rich on a terminal, plain lines elsewhere."""
    return RichMonitor(console, metric) if console.is_terminal else PlainMonitor(console, metric)


class Board(Watch):
    """A line for each cell that ends; `emit`, if given, is passed an object for it too."""

    def __init__(self, console: Console, emit: Callable[[dict[str, Any]], None] | None = None) -> None:
        self.console, self.emit = console, emit
        self.done = self.total = 0
        self.running: dict[str, tuple[Cell, str]] = {}
        self._time_left: Callable[[], float | None] | None = None
        self._kept = 0

    def begin(self, cells: Sequence[Cell], done: int, time_left: Callable[[], float | None]) -> None:
        self.total, self._kept, self._time_left = len(cells), done, time_left
        if done:
            self._line(f"{done} of {len(cells)} cells were finished before")

    def started(self, cell: Cell) -> None:
        self.running[cell.digest] = (cell, "begins")

    def told(self, cell: Cell, text: str) -> None:
        self.running[cell.digest] = (cell, text)

    def finished(self, cell: Cell, record: Record) -> None:
        old, line = self.done < self._kept, row(cell, record)
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
        seconds = self._time_left() if self._time_left and self.done < self.total else None
        return "" if seconds is None else f"{before}about {datetime.timedelta(seconds=round(seconds))} left"

    def _line(self, text: str) -> None:
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)


class LiveBoard(Board):
    """The same, above a bar and the cells that are running."""

    def __init__(self, console: Console, emit: Callable[[dict[str, Any]], None] | None = None) -> None:
        super().__init__(console, emit)
        self._live = Live(get_renderable=self.render, console=console, refresh_per_second=2, transient=True)

    def begin(self, cells: Sequence[Cell], done: int, time_left: Callable[[], float | None]) -> None:
        super().begin(cells, done, time_left)
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


def print_summary(console: Console, record: Mapping[str, Any], folder: Path) -> None:
    """What a person wants to know of a run, in a dozen lines."""
    density, accuracy, metric = record["density"], record["accuracy"], record["metric"]
    console.print(
        f"\n{record['method']} on {record['model']}, {record['data']}, seed {record['seed']}: "
        f"{density['kept']} of {density['prunable']} weights kept (density {density['realised']:.4%})"
    )
    spread = f" +- {accuracy['after_std']:.4f} (n={accuracy['n']})" if accuracy["n"] > 1 else ""
    console.print(f"test {metric} before training any weight  {accuracy['before']:.4f}")
    console.print(f"test {metric} after training             {accuracy['after']:.4f}{spread}")
    if accuracy["dense"] is not None:
        console.print(f"test {metric} of the dense network        {accuracy['dense']:.4f}")
    if record["checks"]:
        console.print(check_table(record["checks"]))
        console.print(f"sanity checks: {record['verdict']}")
    for note in record["notes"]:
        console.print(note)
    console.print(f"{folder / 'ticket.safetensors'}, record.json, metrics.jsonl, report.html", soft_wrap=True)


def check_table(checks: Mapping[str, Mapping[str, Any]]) -> Table:
    """A row a sanity check."""
    table = Table("check", "mean", "std", "n", "ticket better by", "verdict", box=None, pad_edge=False)
    for name, c in checks.items():
        table.add_row(
            name,
            f"{c['mean']:.4f}",
            f"{c['std']:.4f}",
            str(c["n"]),
            f"{c['difference']:+.4f} +- {c['difference_std']:.4f}",
            c["verdict"],
        )
    return table


def print_aligned(console: Console, rows: list[dict[str, Any]], columns: list[str]) -> None:
    """Columns as wide as they need to be, on a narrow screen or none."""
    table = [columns, *([str(row[c]) for c in columns] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for line in table:
        text = "  ".join(word.ljust(width) for word, width in zip(line, widths, strict=True))
        console.print(text.rstrip(), markup=False, soft_wrap=True)
