"""Many recipes side by side: what each cell will cost, the cells run and resumed, their tables and page.

OUT/compare.json       the grid and its cells
OUT/cells/DIGEST/      a cell: the folder of a run, or error.json where it failed
OUT/table.csv, .md     a row a cell: only what a repetition gives again, bit for bit
OUT/summary.csv        a row for each method, density, network and data set: mean and deviation over seeds
OUT/costs.csv          the seconds, and the machine they were measured on
OUT/report.html        the page
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from gemminer import cluster, cost, data, grid, methods, models, record, run, steps, tables
from gemminer import engine as engines
from gemminer.errors import GemminerError, UsageError
from gemminer.files import atomic
from gemminer.grid import Cell, Grid
from gemminer.masking import prunable
from gemminer.methods import imp
from gemminer.progress import Monitor
from gemminer.recipe import Recipe
from gemminer.record import Record
from gemminer.report import report
from gemminer.train import Settings

SCHEMA = "gemminer.compare/1"
INVERT = "invert"  # the one check that searches again


# --- what is asked for -------------------------------------------------------------------------------------------


def plan(fields: Mapping[str, Any]) -> Grid:
    """A grid from plain fields (see `grid.make`); the method "all" stands for every method there is.

    Raises UsageError for an unknown name or an option that cannot be, in any of its cells.
    """
    found = grid.make({grid.PARTS: [_all_methods(part) for part in grid.parts_of(fields)]})
    for part in found.parts:
        for name in part.axes["model"]:
            models.describe(name)
        for name in part.axes["data"]:
            data.describe(name)
    for cell in found.cells():
        steps.check_names(cell.recipe.checks)
        _settings(cell.recipe, 1)
    return found


def _all_methods(fields: dict[str, Any]) -> dict[str, Any]:
    asked = fields.get("method")
    labels = list(asked) if isinstance(asked, (list, tuple)) else [asked]
    if "all" not in labels:
        return fields
    return {**fields, "method": [n for label in labels for n in (methods.names() if label == "all" else [label])]}


def _settings(recipe: Recipe, epochs: int) -> tuple[Any, Settings]:
    """The settings of a recipe's search and of its training, where `epochs` are meant if none are asked for."""
    kind, own = methods.get(recipe.method).options, dict(recipe.options)
    if "epochs" in {f.name for f in dataclasses.fields(kind)}:
        own = {"epochs": recipe.epochs or epochs, **own}
    trained = {"epochs": recipe.train_epochs or recipe.epochs or epochs, **recipe.train}
    return steps.options_of(kind, own, recipe.method), steps.options_of(Settings, trained, "training")


# --- what it will cost -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Facts:
    """Of a network on a data set: training examples, prunable weights, forward FLOPs of an example."""

    examples: int
    prunable: int
    flops: float


@dataclass(frozen=True)
class Estimate:
    """Epochs of a cell before it is run, and the dense FLOPs of them all.

    `search` is the method's, `training` that of the ticket and of its checks, `checks` that of inverted searches.
    Methods that score a few batches count as no epochs.
    """

    search: float
    training: int
    checks: float
    flops: float

    @property
    def epochs(self) -> float:
        return self.search + self.training + self.checks


def facts(recipe: Recipe, **where: Any) -> Facts:
    """What a cell's cost depends on, from one forward pass of a batch; `where` goes to `run.prepare`."""
    bare = recipe.with_(method="uniform", density=1.0, options={}, checks=())
    bench, _, _ = run.prepare(bare, device="cpu", **where)
    parameters = prunable(bench.task.model, exclude=recipe.exclude, embeddings=recipe.embeddings)
    flops = cost.count(bench.task, parameters).dense
    return Facts(bench.task.train.examples, sum(p.numel() for p in parameters.values()), flops)


def estimate(recipe: Recipe, known: Facts) -> Estimate:
    """search = epochs (IMP: of each round), training = epochs * seeds * (1 + checks), and the search upside down."""
    options, settings = _settings(recipe, steps.default_epochs(known.examples))
    search = float(getattr(options, "epochs", 0))
    if isinstance(options, imp.Options):
        search *= len(imp.round_counts(known.prunable, recipe.density, options.rate))
    trained = settings.epochs * (recipe.check_seeds if recipe.checks else 1) * (1 + len(recipe.checks))
    again = search if INVERT in recipe.checks else 0.0
    return Estimate(
        search, trained, again, (search + trained + again) * cost.TRAINING_PASSES * known.examples * known.flops
    )


def estimates(cells: Sequence[Cell], **where: Any) -> dict[str, Estimate]:
    """By cell's digest, without the cells that cannot be estimated, as they will say when they are run.

    Raises the error of the first where there is none that can.
    """
    known: dict[tuple[str, str], Facts | GemminerError] = {}
    found, errors = {}, []
    for cell in cells:
        key = (cell.recipe.data, cell.recipe.model)
        try:
            if key not in known:
                known[key] = facts(cell.recipe, **where)
        except GemminerError as error:
            known[key] = error
        fact = known[key]
        try:
            if isinstance(fact, GemminerError):
                raise fact
            found[cell.digest] = estimate(cell.recipe, fact)
        except GemminerError as error:
            errors.append(error)
    if errors and not found:
        raise errors[0]
    return found


class Forecast:
    """The time left, from the FLOPs a second of the finished cells: those of the same network and data, if any."""

    def __init__(self, cells: Sequence[Cell], expected: Mapping[str, Estimate], workers: int) -> None:
        self.left = {c.digest: expected[c.digest].flops for c in cells if c.digest in expected}
        self.kinds = {c.digest: (c.recipe.data, c.recipe.model) for c in cells}
        self.begun: dict[str, float] = {}
        self.workers = max(1, workers)
        self._speeds: dict[tuple[str, str], list[float]] = {}

    def start(self, digest: str) -> None:
        self.begun[digest] = time.monotonic()

    def finish(self, digest: str, result: Record | None) -> None:
        self.left.pop(digest, None)
        self.begun.pop(digest, None)
        if result is not None:
            speed = self._speeds.setdefault(self.kinds[digest], [0.0, 0.0])
            speed[0] += sum(c.flops_dense for c in result.cost.values())
            speed[1] += sum(c.seconds for c in result.cost.values())

    def seconds(self) -> float | None:
        """None before the first cell is finished."""
        every = [sum(part) for part in zip(*self._speeds.values(), strict=True)] if self._speeds else [0.0, 0.0]
        if every[0] <= 0 or every[1] <= 0:
            return None
        ends = []
        for digest, flops in self.left.items():
            done, seconds = self._speeds.get(self.kinds[digest], every)
            passed = time.monotonic() - self.begun[digest] if digest in self.begun else 0.0
            ends.append(max(0.0, flops * seconds / (done or flops or 1.0) - passed))
        return max(sum(ends) / self.workers, *ends, 0.0) if ends else 0.0


# --- a cell ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Job:
    """A cell for a worker: everything it needs, picklable."""

    recipe: Recipe
    folder: Path
    threads: int
    device: str
    engine: str
    root: Path | None


class _Telling(Monitor):
    """Tells the parent the phase and epoch, at most twice a second."""

    def __init__(self, tell: cluster.Tell) -> None:
        self.tell, self.stop, self.last = tell, 0, 0.0

    def begin(self, phase: str, start: int, stop: int) -> None:
        self.stop = stop

    def epoch(self, row: dict[str, Any]) -> None:
        if time.monotonic() - self.last > 0.5:
            self.last = time.monotonic()
            self.tell(f"{row['phase']} {row['epoch']}/{self.stop}")


def run_cell(job: Job, tell: cluster.Tell) -> None:
    """Run or resume a cell in its folder; its record is what is left of it."""
    before = torch.get_num_threads()
    torch.set_num_threads(job.threads)
    try:
        run.execute(
            job.recipe,
            job.folder,
            resume=True,
            device=job.device,
            engine=job.engine,
            root=job.root,
            monitor=_Telling(tell),
            page=False,
        )
    finally:
        torch.set_num_threads(before)


def finished(cell: Cell, folder: Path) -> Record | None:
    """The record of a cell that is done, or None."""
    try:
        found = record.read(folder / "record.json")
    except GemminerError:
        return None
    return found if found.recipe_hash == cell.digest else None


# --- all of them -------------------------------------------------------------------------------------------------


class Watch:
    """Told how a comparison goes; this one keeps it to itself."""

    def begin(self, cells: Sequence[Cell], done: int, forecast: Forecast) -> None:
        """`done` of the cells were finished before; `forecast` knows the time left from now on."""

    def started(self, cell: Cell) -> None:
        """A worker has taken it."""

    def told(self, cell: Cell, text: str) -> None:
        """How far it is."""

    def finished(self, cell: Cell, line: dict[str, Any]) -> None:
        """It is done, with this row of the table; also told of cells that were done before."""

    def failed(self, cell: Cell, sentence: str) -> None:
        """It is not, and why."""

    def close(self) -> None:
        """Nothing follows."""


@dataclass
class Outcome:
    """What a comparison came to: records by digest, and a sentence for each cell that has none."""

    out: Path
    cells: list[Cell]
    records: dict[str, Record]
    failures: dict[str, str] = field(default_factory=dict)

    def summary(self) -> list[dict[str, Any]]:
        """Means over seeds, with n and the deviation in words, for a person."""
        rows = tables.summary(self.cells, self.records)
        return [{**row, **{name: tables.spread(row, name) for name in ("before", "after")}} for row in rows]

    def sentence(self) -> str:
        """How many cells there are of each kind, and what to do about the failed."""
        text = f"{len(self.records)} of {len(self.cells)} cells are finished"
        if not self.failures:
            return text
        first = next(iter(self.failures.values()))
        return f"{text}, {len(self.failures)} failed (the first: {first}): the same command tries them again"


def compare(
    asked: Grid,
    out: Path,
    *,
    workers: int = 1,
    threads: int | None = None,
    device: str = "auto",
    engine: str = "auto",
    root: Path | None = None,
    download: bool = False,
    backend: str = "local",
    watch: Watch | None = None,
) -> Outcome:
    """Run every cell of a grid that is not finished yet, then write the tables and the page in the folder `out`.

    A cell is its recipe: the same one is never run twice in a folder, whatever grid it came with, and one that was
    killed goes on from its own checkpoints. One that fails leaves error.json, and is tried again the next time.

    Args:
        workers: processes of this machine, or tasks of a Ray cluster; 0 runs the cells in this process.
        threads: CPU threads of each cell; by default those the folder's first comparison was given, at first the
            cores shared out among the workers. The last bits of a result depend on them, and not on `workers`.
        root, download: of the data sets, as for `gemminer.data.load`.
        watch: told how it goes.

    Raises:
        UsageError: what cannot be in any cell; nothing has been run.
        GemminerError: the disk, or the data of every cell.
    """
    cells = asked.cells()
    engines.checked(engine, steps.device_of(device if backend == "local" else "cpu"))
    expected = estimates(cells, root=root, download=download)
    out = out.absolute()
    threads = _threads(out, threads, workers)
    _save(out / "compare.json", _description(asked, cells, threads))

    folders = {cell.digest: out / "cells" / cell.digest for cell in cells}
    records = {c.digest: r for c in cells if (r := finished(c, folders[c.digest])) is not None}
    outcome, watch = Outcome(out, cells, records), watch or Watch()
    forecast, todo = Forecast(cells, expected, workers), [c for c in cells if c.digest not in records]
    for digest, result in records.items():
        forecast.finish(digest, result)
    jobs = [Job(c.recipe, folders[c.digest], threads, device, engine, root and root.absolute()) for c in todo]
    watch.begin(cells, len(records), forecast)
    try:
        for cell in cells:
            if cell.digest in records:
                watch.finished(cell, tables.row(cell, records[cell.digest]))
        with contextlib.closing(cluster.run_all(jobs, run_cell, workers, backend=backend, threads=threads)) as events:
            for event in events:
                _note(event, todo[event.index], outcome, forecast, watch)
    finally:
        watch.close()
    tables.write(out, cells, records, outcome.failures)
    if records:
        # All of them: the page names those that failed or are missing.
        report([folders[c.digest] for c in cells], out / "report.html", beside=tables.BESIDE)
    return outcome


def _note(event: cluster.Event, cell: Cell, outcome: Outcome, forecast: Forecast, watch: Watch) -> None:
    """Take in what happened to a cell."""
    folder, failure = outcome.out / "cells" / cell.digest, event.value
    if event.kind == "started":
        forecast.start(cell.digest)
        return watch.started(cell)
    if event.kind == "told":
        return watch.told(cell, event.value)
    result = finished(cell, folder) if event.kind == "done" else None
    forecast.finish(cell.digest, result)
    if result is not None:
        (folder / "error.json").unlink(missing_ok=True)
        outcome.records[cell.digest] = result
        return watch.finished(cell, tables.row(cell, result))
    if event.kind == "done":
        failure = cluster.Failure(f"there is no record in {folder} on this machine", "NoRecord")
    outcome.failures[cell.digest] = failure.sentence
    if failure.kind != record.Busy.__name__:  # the folder is another process's
        error = {"cell": str(cell), "error": failure.sentence, "kind": failure.kind, "traceback": failure.trace}
        _save(folder / "error.json", {"schema": "gemminer.error/1", "when": record.now(), **error})
    return watch.failed(cell, failure.sentence)


def _threads(out: Path, asked: int | None, workers: int) -> int:
    """Threads of a cell: as asked, else as before in this folder, else a share of the cores."""
    if asked is not None:
        if asked < 1:
            raise UsageError(f"threads must be 1 or more, not {asked}")
        return asked
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        return int(json.loads((out / "compare.json").read_text(encoding="utf-8"))["threads"])
    return cluster.share(workers)


def _description(asked: Grid, cells: Sequence[Cell], threads: int) -> dict[str, Any]:
    rows = [
        {"cell": c.digest, "label": c.label, "recipe": c.recipe.model_dump(mode="json", exclude_defaults=True)}
        for c in cells
    ]
    return {"schema": SCHEMA, "grid": asked.as_fields(), "threads": threads, "cells": rows}


def _save(path: Path, value: Mapping[str, Any]) -> None:
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
