"""Who is told how far the work is: nobody, a terminal (rich) or a log (plain lines). No numbers are made here."""

from __future__ import annotations

import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn


class Monitor:
    """Told of every phase, step, epoch and remark; this one keeps it to itself."""

    def begin(self, phase: str, start: int, stop: int) -> None:
        """Epochs `start` to `stop` of `phase` follow."""

    def step(self, phase: str, step: int, steps: int) -> None:
        """`step` of `steps` is done."""

    def epoch(self, row: dict[str, Any]) -> None:
        """An epoch is done; `row` is what is logged of it."""

    def note(self, text: str) -> None:
        """Something a person should read."""

    def close(self) -> None:
        """Nothing follows."""


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
