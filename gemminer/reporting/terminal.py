"""What a terminal shows: how far a run or a comparison is, and what came of it."""

from __future__ import annotations

import contextlib
import datetime
import importlib.util
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.live import Live
from rich.markup import escape
from rich.measure import Measurement
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TextColumn, TimeRemainingColumn
from rich.progress_bar import ProgressBar
from rich.table import Column, Table
from rich.text import Text

from gemminer.core import left_dense
from gemminer.core.overlap import Overlap
from gemminer.core.progress import Monitor, Silent, Together, checked
from gemminer.core.ticket import Ticket
from gemminer.runs.grid import Cell
from gemminer.runs.watch import Watch

if TYPE_CHECKING:
    from gemminer.runs.estimate import Estimate
    from gemminer.runs.record import Record


def _numbers(row: dict[str, Any], metric: str) -> tuple[str, ...]:
    """What an epoch came to, the first what matters most."""
    parts = [f"loss {row['loss']:.4f}"]
    if row.get("validation") is not None:
        parts.append(f"validation {row.get('metric', metric)} {row['validation']:.4f}")
    if found := row.get("rate"):
        parts.append(f"lr {found['lr']:g} found in {found['seconds']:.1f} s")
    if "kept" in row:
        parts += [f"kept {row['kept']:.3%}", f"live {row['live']:.3%}"]
    return tuple(parts)


def _sentence(row: dict[str, Any], metric: str) -> str:
    return ", ".join([f"{row['phase']} epoch {row['epoch']}", *_numbers(row, metric)])


class PlainMonitor(Monitor):
    """A line at the end of a phase, and at most one every `every` seconds in between; a line an epoch if that is 0."""

    def __init__(self, console: Console, metric: str = "accuracy", every: float = 5.0) -> None:
        self.console, self.metric, self.every = console, metric, every
        self._last, self._stop = time.monotonic(), 0

    def begin(self, phase: str, start: int, stop: int) -> None:
        self._last, self._stop = time.monotonic(), stop
        if start:
            self.note(f"{phase}: goes on after epoch {start} of {stop}")

    def epoch(self, row: dict[str, Any]) -> None:
        if row["epoch"] == self._stop or row.get("rate") or time.monotonic() - self._last >= self.every:
            self._last = time.monotonic()
            self.note(_sentence(row, self.metric))

    def note(self, text: str) -> None:
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)


class _Parts:
    """As many of the parts, from the first, as there is room for: numbers give way before anything else does."""

    def __init__(self, parts: Sequence[str]) -> None:
        self.parts = parts

    def fitting(self, width: int) -> str:
        text = ""
        for part in self.parts:
            longer = f"{text}, {part}" if text else part
            if len(longer) > width:
                break
            text = longer
        return text

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement(0, min(len(", ".join(self.parts)), options.max_width))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield Text(self.fitting(options.max_width), no_wrap=True)


class _Numbers(ProgressColumn):
    """The numbers of the last epoch; the one column that may be narrower than what it holds."""

    def render(self, task: Task) -> RenderableType:
        return _Parts(task.fields["numbers"])


BAR = 20  # characters: beside it stay the phase, the percentage, the time left and, at 80 columns, two numbers


class RichMonitor(PlainMonitor):
    """A live bar with the time left for each phase; remarks scroll above it."""

    def __init__(self, console: Console, metric: str = "accuracy", every: float = math.inf) -> None:
        super().__init__(console, metric, every)

        def fixed() -> Column:
            return Column(no_wrap=True)

        self._bar = Progress(
            TextColumn("{task.description:<16}", table_column=fixed()),
            BarColumn(BAR, table_column=fixed()),
            TextColumn("{task.percentage:>3.0f}%", table_column=fixed()),
            TimeRemainingColumn(table_column=fixed()),
            _Numbers(),
            console=console,
            transient=True,
        )
        self._task: TaskID | None = None
        self._bar.start()

    def begin(self, phase: str, start: int, stop: int) -> None:
        super().begin(phase, start, stop)
        if self._task is not None:
            self._bar.remove_task(self._task)
        self._task = self._bar.add_task(phase, total=None, numbers=())

    def step(self, phase: str, step: int, steps: int) -> None:
        if self._task is not None:
            self._bar.update(self._task, completed=step, total=steps)

    def epoch(self, row: dict[str, Any]) -> None:
        if self._task is not None:
            self._bar.update(self._task, numbers=_numbers(row, self.metric))
        super().epoch(row)

    def render(self) -> RenderableType:
        """The bar as it stands."""
        return self._bar.get_renderable()

    def close(self) -> None:
        self._bar.stop()


def monitor_for(console: Console, metric: str = "accuracy", *, quiet: bool = False, verbose: bool = False) -> Monitor:
    """A bar on a terminal, plain lines elsewhere, with `verbose` a line an epoch on both; nothing if `quiet`."""
    if quiet:
        return Silent()
    every = {"every": 0.0} if verbose else {}
    # In a notebook rich draws what moves with the help of ipywidgets.
    moves = console.is_terminal or (console.is_jupyter and importlib.util.find_spec("ipywidgets") is not None)
    return RichMonitor(console, metric, **every) if moves else PlainMonitor(console, metric, **every)


@contextlib.contextmanager
def beside(monitor: Monitor | None) -> Iterator[Monitor]:
    """A monitor that shows the progress on stderr, or in the notebook, and tells this one too, which stays open."""
    shown = monitor_for(Console(stderr=True))
    try:
        yield shown if monitor is None else Together(checked(monitor), shown)
    finally:
        shown.close()


def _row(cell: Cell, record: Record | None, status: str = "finished") -> dict[str, Any]:
    from gemminer.reporting.tables import row  # 0.06 s that `gemminer --help` need not wait

    return row(cell, record, status)


Emit = Callable[[dict[str, Any]], None]


class Board(Watch):
    """A line for each cell that ends; `emit`, if given, is passed an object for it too.

    With `verbose` there is a line for each cell that begins, too; `quiet` prints none.
    """

    def __init__(
        self, console: Console, emit: Emit | None = None, *, quiet: bool = False, verbose: bool = False
    ) -> None:
        self.console, self.emit, self.quiet, self.verbose = console, emit, quiet, verbose
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
        if self.verbose:
            self._line(f"{cell}: begins")

    def told(self, cell: Cell, text: str) -> None:
        self.running[cell.digest] = (cell, text)

    def finished(self, cell: Cell, record: Record) -> None:
        old, line = self.done < self._kept, _row(cell, record)
        self._end(cell, {**line, "status": "skipped" if old else "finished"})
        if not old:
            numbers = ", ".join(f"{k} {line[k]:.4f}" for k in ("before", "after") if line[k] is not None)
            self._line(f"[{self.done}/{self.total}] {cell}: {numbers}{self._left(', ')}")

    def failed(self, cell: Cell, sentence: str) -> None:
        self._end(cell, {**_row(cell, None, "failed"), "error": sentence})
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
        if not self.quiet:
            self.console.print(text, highlight=False, markup=False, soft_wrap=True)


class LiveBoard(Board):
    """The same, above a bar and the cells that are running."""

    def __init__(self, console: Console, emit: Emit | None = None, *, verbose: bool = False) -> None:
        super().__init__(console, emit, verbose=verbose)
        self._live = Live(get_renderable=self.render, console=console, refresh_per_second=2, transient=True)

    def begin(self, cells: Sequence[Cell], done: int, time_left: Callable[[], float | None]) -> None:
        super().begin(cells, done, time_left)
        self._live.start()

    def render(self) -> RenderableType:
        total = max(1, self.total)
        bar = Table.grid(padding=(0, 2))
        words = f"{self.done}/{self.total} cells  {self.done / total:.0%}  {self._left() or 'time left not known yet'}"
        bar.add_row(ProgressBar(total=total, completed=self.done, width=BAR), Text(words, no_wrap=True))
        cells = Table.grid(padding=(0, 2))
        for cell, text in list(self.running.values()):
            name = Text(f"  {cell}", no_wrap=True, overflow="ellipsis")
            cells.add_row(name, Text(text, no_wrap=True, overflow="ellipsis"))
        return Group(bar, cells)

    def close(self) -> None:
        self._live.stop()


def board_for(console: Console, emit: Emit | None = None, *, quiet: bool = False, verbose: bool = False) -> Board:
    """Live on a terminal, plain lines elsewhere; nothing if `quiet`."""
    if console.is_terminal and not quiet:
        return LiveBoard(console, emit, verbose=verbose)
    return Board(console, emit, quiet=quiet, verbose=verbose)


def print_summary(console: Console, record: Mapping[str, Any], folder: Path) -> None:
    """What a person wants to know of a run, in a dozen lines."""
    density, accuracy, metric = record["density"], record["accuracy"], record["metric"]
    console.print(
        f"{record['method']} on {record['model']}, {record['data']}, seed {record['seed']}: "
        f"{density['kept']} of {density['prunable']} weights kept (density {density['realised']:.4%})",
        soft_wrap=True,
    )
    spread = f" +- {accuracy['after_std']:.4f} (n={accuracy['n']})" if accuracy["n"] > 1 else ""
    moved = record.get("start")  # by a pre-training, or by a training that was rewound
    first = "masked, of weights that were trained before" if moved else "before training any weight"
    console.print(f"test {metric} {first}  {accuracy['before']:.4f}")
    console.print(f"test {metric} after training             {accuracy['after']:.4f}{spread}")
    if accuracy["dense"] is not None:
        console.print(f"test {metric} of the dense network        {accuracy['dense']:.4f}")
    if record["checks"]:
        console.print(check_table(record["checks"]))
        console.print(f"sanity checks: {record['verdict']}")
    for note in record["notes"]:
        console.print(note, markup=False, soft_wrap=True)
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


def print_ticket(console: Console, ticket: Ticket) -> None:
    """What a ticket keeps of each layer, and where it came from."""
    table = Table("layer", "shape", box=None, pad_edge=False)
    for name in ("weights", "kept", "density", "filters", "dead"):
        table.add_column(name, justify="right")
    for layer in ticket.per_layer():
        numbers = (layer.prunable, layer.kept, f"{layer.density:.4%}", layer.filters, layer.dead_filters)
        table.add_row(layer.name, "x".join(map(str, layer.shape)), *map(str, numbers))
    table.add_row("all", "", str(ticket.prunable), str(ticket.kept), f"{ticket.density:.4%}", "", "")
    console.print(table)
    for line in left_dense.lines(ticket.left_dense, ticket.prunable):
        console.print(line, markup=False, soft_wrap=True)
    if ticket.removed:
        console.print(f"removed layers: {', '.join(ticket.removed)}", markup=False, soft_wrap=True)
    facts = ticket.provenance
    draw = f"{ticket.draw.kind}, seed {ticket.draw.seed}" if ticket.draw else "the model's own"
    method = facts.get("method", "an unknown method")
    console.print(f"found by {method}, seed {facts.get('seed')}; initial weights: {draw}")


def print_overlap(console: Console, rows: Sequence[Overlap]) -> None:
    """What two tickets have in common."""
    table = Table("layer", box=None, pad_edge=False)
    for name in ("weights", "first", "second", "both", "by chance", "both / either"):
        table.add_column(name, justify="right")
    for row in rows:
        numbers = (row.size, row.kept, row.other, row.both, f"{row.by_chance:.1f}", f"{row.jaccard:.4f}")
        table.add_row(row.name, *map(str, numbers))
    console.print(table)


def print_list(console: Console, rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> None:
    """Rows under the names of their columns; the last column is broken over lines where it is too long."""
    table = Table(Column(columns[0], no_wrap=True), *columns[1:], box=None, pad_edge=False)
    for line in rows:
        table.add_row(*(escape(str(line[c])) for c in columns))
    console.print(table)


def print_aside(console: Console, pairs: Sequence[tuple[str, str]]) -> None:
    """Names with a text beside each, broken over lines on a terminal; elsewhere a line each, for grep."""
    width = max((len(name) for name, _ in pairs), default=0)
    table = Table.grid(padding=(0, 2))
    for name, text in pairs:
        table.add_row(Text(f"  {name}", no_wrap=True), Text(text))
        if not console.is_terminal:
            console.print(f"  {name:<{width}}  {text}", markup=False, soft_wrap=True)
    if console.is_terminal:
        console.print(table)


def print_aligned(console: Console, rows: list[dict[str, Any]], columns: list[str]) -> None:
    """Columns as wide as they need to be, on a narrow screen or none."""
    table = [columns, *([str(row[c]) for c in columns] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for line in table:
        text = "  ".join(word.ljust(width) for word, width in zip(line, widths, strict=True))
        console.print(text.rstrip(), markup=False, soft_wrap=True)


def print_estimates(console: Console, rows: list[dict[str, Any]]) -> None:
    """The rows of `estimate_rows`, and their sum."""
    formats = {
        "search": "g",
        "training": "g",
        "checks": "g",
        "rates": ".3g",
        "epochs": ".4g",
        "density": "g",
        "flops": ".3g",
    }
    formats["share"] = ".1%"
    texts = [{k: "?" if v is None else format(v, formats.get(k, "")) for k, v in row.items()} for row in rows]
    print_aligned(console, texts, list(rows[0]))
    epochs, flops = (sum(row[key] or 0 for row in rows) for key in ("epochs", "flops"))
    console.print(f"{len(rows)} cells, {epochs:.4g} epochs, {flops:.3g} FLOPs; nothing was run", soft_wrap=True)


def estimate_rows(cells: Sequence[Cell], expected: Mapping[str, Estimate]) -> list[dict[str, Any]]:
    """What each cell of a comparison will cost, in epochs and FLOPs, and its share of them all; None if not known."""
    whole = sum(e.flops for e in expected.values()) or 1.0
    rows = []
    for cell in cells:
        r, e = cell.recipe, expected.get(cell.digest)
        asked = {"cell": cell.digest, "method": cell.label, "model": r.model, "data": r.data}
        costs = {k: getattr(e, k, None) for k in ("search", "training", "checks", "rates", "epochs", "flops")}
        share = e.flops / whole if e else None
        rows.append({**asked, "density": r.density, "seed": r.seed, **costs, "share": share})
    return rows
