"""Many recipes side by side: the cells of a grid, run and resumed.

OUT/compare.json       the grid and its cells
OUT/cells/DIGEST/      a cell: the folder of a run, or error.json where it failed
OUT/records.jsonl.gz   the records of all cells, from which the tables and the page are drawn
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from gemminer import data, methods, models
from gemminer.core.errors import GemminerError, UsageError
from gemminer.core.files import MARK, atomic, read_json, save_text
from gemminer.core.numbers import whole
from gemminer.core.ownership import is_there, refuse_foreign
from gemminer.core.progress import Silent
from gemminer.runs import archive, checks, environment, execute, grid, record
from gemminer.runs.estimate import Forecast, estimates
from gemminer.runs.folder import DIET, Busy
from gemminer.runs.grid import Cell, Grid, make
from gemminer.runs.recipe import Recipe
from gemminer.runs.record import Record
from gemminer.runs.settings import checked_threads, device_of, resolve_recipe
from gemminer.runs.watch import Watch
from gemminer.runs.workers import Event, Failure, Tell, run_all, share
from gemminer.training import engine as engines

SCHEMA = "gemminer.compare/1"


# --- the grid ----------------------------------------------------------------------------------------------------


def plan(fields: Mapping[str, Any]) -> Grid:
    """A grid from plain fields (see `grid.make`); the method "all" stands for all that reach any density.

    Raises UsageError for an unknown name or an option that cannot be, in any of its cells.
    """
    found = grid.make({grid.PARTS: [_all_methods(part) for part in grid.parts_of(fields)]})
    for part in found.parts:
        for name in part.axes["model"]:
            models.describe(name)
        for name in part.axes["data"]:
            data.describe(name)
    for cell in found.cells():
        checks.check_names(cell.recipe.checks)
        resolve_recipe(cell.recipe, 1)
    return found


def _all_methods(fields: dict[str, Any]) -> dict[str, Any]:
    asked = fields.get("method")
    labels = list(asked) if isinstance(asked, (list, tuple)) else [asked]
    if "all" not in labels:
        return fields
    every = [name for name in methods.names() if methods.get(name).exact]
    return {**fields, "method": [n for label in labels for n in (every if label == "all" else [label])]}


# --- a cell ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Job:
    """A cell with all that a worker needs to run it, picklable."""

    recipe: Recipe
    folder: Path
    threads: int
    device: str
    engine: str
    root: Path | None


@dataclass(frozen=True)
class Where:
    """Where cells are run, and where their data is."""

    device: str = "auto"
    engine: str = "auto"
    root: Path | None = None
    download: bool = False


# The files of a finished cell, in their order: the record is last, which says that the others are there.
RESULTS = (*DIET, "ticket.safetensors", "trained.safetensors", "metrics.jsonl", "record.json")


class _Telling(Silent):
    """A monitor that tells the parent process the phase and epoch, at most twice a second."""

    def __init__(self, tell: Tell) -> None:
        self.tell, self.stop, self.last = tell, 0, 0.0

    def begin(self, phase: str, start: int, stop: int) -> None:
        self.stop = stop

    def epoch(self, row: dict[str, Any]) -> None:
        if time.monotonic() - self.last > 0.5:
            self.last = time.monotonic()
            self.tell(f"{row['phase']} {row['epoch']}/{self.stop}")


def run_cell(job: Job, tell: Tell) -> None:
    """Run or resume a cell in its folder, which then holds its record."""
    before = torch.get_num_threads()
    torch.set_num_threads(job.threads)
    try:
        execute.run_recipe(
            job.recipe,
            job.folder,
            resume=True,
            device=job.device,
            engine=job.engine,
            root=job.root,
            monitor=_Telling(tell),
        )
    finally:
        torch.set_num_threads(before)


def run_cell_apart(job: Job, tell: Tell) -> dict[str, bytes]:
    """Run or resume a cell in a folder of the machine that this is on, and return the files of its result.

    The folder that the comparison is in need not be there.
    """
    import ray

    here = Path(tempfile.gettempdir()) / "gemminer-cells" / ray.get_runtime_context().get_node_id()
    folder = here / job.folder.name
    run_cell(dataclasses.replace(job, folder=folder), tell)
    files = {name: file.read_bytes() for name in RESULTS if (file := folder / name).is_file()}
    shutil.rmtree(folder)
    return files


def part_of(text: str) -> tuple[int, int]:
    """Which part, from 0, and of how many.

    >>> part_of("3/10")
    (2, 10)
    """
    part, _, parts = str(text).partition("/")
    if not (part.isdecimal() and parts.isdecimal() and 1 <= int(part) <= int(parts)):
        raise UsageError(f"a part is a number of how many, as 3/10, not {text!r}")
    return int(part) - 1, int(parts)


def finished(cell: Cell, folder: Path) -> Record | None:
    """The record of a cell that is done, or None."""
    try:
        found = record.read(folder / "record.json")
    except GemminerError:
        return None
    return found if found.recipe_hash == cell.digest else None


@dataclass
class Outcome:
    """The result of a comparison: records by digest, and a sentence for each cell that failed."""

    out: Path
    cells: list[Cell]
    records: dict[str, Record]
    failures: dict[str, str] = field(default_factory=dict)

    def entry(self, cell: Cell) -> archive.Entry:
        """A cell's record or failure, as an entry of the file of records."""
        return archive.Entry(cell.digest, cell.label, self.records.get(cell.digest), self.failures.get(cell.digest, ""))

    def folder(self, cell: Cell) -> Path:
        """The folder of a cell."""
        return self.out / "cells" / cell.digest

    def sentence(self) -> str:
        """How many cells are finished and failed, and what to do about the failed ones."""
        text = f"{len(self.records)} of {len(self.cells)} cells are finished"
        if not self.failures:
            return text
        first = next(iter(self.failures.values()))
        return f"{text}, {len(self.failures)} failed (the first: {first}): the same command tries them again"


def run_cells(
    asked: Grid,
    out: Path,
    *,
    workers: int = 1,
    threads: int | None = None,
    backend: str = "local",
    part: str | None = None,
    watch: Watch | None = None,
    **where: Any,
) -> Outcome:
    """Run every cell of a grid that is not finished yet, in the folder `out`; `api.compare` also writes the tables.

    A cell is its recipe: the same one is never run twice in a folder, whatever grid it came with, and one that was
    killed goes on from its own checkpoints. One that fails leaves error.json, and is tried again the next time.

    Args:
        workers: processes of this machine, or tasks of a Ray cluster; 0 runs the cells in this process.
        threads: CPU threads of each cell; by default those the folder's first comparison was given, at first the
            cores shared out among the workers. The last bits of a result depend on them, and not on `workers`.
        backend: as for `gemminer.runs.workers.run_all`. A cell on Ray runs in a folder of its own machine, and its
            files come back through Ray: no folder is shared.
        part: "3/10" runs every tenth cell from the third on and leaves the file of records alone, so that many of
            these can run at once in one folder; a call without it takes what is there.
        watch: receives the comparison's progress.
        where: device, engine, root and download, as for `gemminer.runs.execute.prepare`.

    Raises:
        UsageError: what cannot be in any cell; nothing has been run.
        GemminerError: the disk, or the data of every cell.
    """
    cells, workers = asked.cells(), whole("workers", workers, least=0)
    place, ray = Where(**where), backend != "local"
    here = device_of("cpu" if ray else place.device)
    engines.checked(place.engine, here)
    which, parts = part_of(part) if part is not None else (0, 1)
    out = out.absolute()
    _refuse_foreign(out)
    expected = estimates(cells, root=place.root, download=place.download)
    threads = _threads(out, threads, workers)
    _save(out / "compare.json", _description(asked, cells, threads))

    outcome, watch = Outcome(out, cells, {}), watch or Watch()
    records = outcome.records
    records |= {c.digest: r for c in cells if (r := finished(c, outcome.folder(c))) is not None}
    entries = {c.digest: outcome.entry(c) for c in cells if c.digest in records}
    head = archive.Archive(environment.command(), asked.as_fields(), threads, entries)
    keeper = archive.Keeper(out / archive.NAME, head) if part is None else None
    own = cells[which::parts]
    forecast, todo = Forecast(own, expected, workers), [c for c in own if c.digest not in records]
    for cell in own:
        if cell.digest in records:
            forecast.finish(cell.digest, records[cell.digest])
    root = place.root and place.root.absolute()
    jobs = [Job(c.recipe, outcome.folder(c), threads, place.device, place.engine, root) for c in todo]
    watch.begin(own, len(own) - len(todo), forecast.seconds)
    gpus = int(place.device.startswith("cuda"))
    try:
        for cell in own:
            if cell.digest in records:
                watch.finished(cell, records[cell.digest])
        work = run_cell_apart if ray else run_cell
        events = run_all(jobs, work, workers, backend=backend, threads=threads, gpus=gpus)
        with contextlib.closing(events):
            for event in events:
                _note(event, todo[event.index], outcome, forecast, watch, keeper)
    finally:
        watch.close()
    return outcome


def _note(
    event: Event, cell: Cell, outcome: Outcome, forecast: Forecast, watch: Watch, keeper: archive.Keeper | None
) -> None:
    """Record an event of a cell, and pass it on to `watch`."""
    folder, failure = outcome.folder(cell), event.value
    if event.kind == "started":
        forecast.start(cell.digest)
        return watch.started(cell)
    if event.kind == "told":
        return watch.told(cell, event.value)
    if event.kind == "done" and isinstance(event.value, dict):  # the files of a cell that ran elsewhere
        for name, content in event.value.items():
            with atomic(folder / name) as temporary:
                temporary.write_bytes(content)
    result = finished(cell, folder) if event.kind == "done" else None
    forecast.finish(cell.digest, result)
    if result is not None:
        (folder / "error.json").unlink(missing_ok=True)
        outcome.records[cell.digest] = result
        if keeper is not None:
            keeper.keep(outcome.entry(cell))
        return watch.finished(cell, result)
    if event.kind == "done":
        failure = Failure(f"there is no record in {folder} on this machine", "NoRecord")
    outcome.failures[cell.digest] = failure.sentence
    if failure.kind != Busy.__name__:  # the folder is another process's
        error = {"cell": str(cell), "error": failure.sentence, "kind": failure.kind, "traceback": failure.trace}
        if keeper is not None:
            keeper.keep(outcome.entry(cell))
        _save(folder / "error.json", {"schema": "gemminer.error/1", "when": environment.now(), **error})
    return watch.failed(cell, failure.sentence)


def gathered(out: Path) -> Path:
    """The file of records of a comparison's folder, after the records of all cells that are there have gone in.

    Raises GemminerError where the folder is no comparison's.
    """
    try:
        fields = read_json((out / "compare.json").read_text(encoding="utf-8"))
        asked, threads = make(fields["grid"]), int(fields["threads"])
    except (OSError, ValueError, LookupError, TypeError):
        raise GemminerError(f"{out} is not a comparison's folder: it has no usable compare.json") from None
    outcome = Outcome(out, asked.cells(), {})
    outcome.records |= {c.digest: r for c in outcome.cells if (r := finished(c, outcome.folder(c))) is not None}
    entries = {c.digest: outcome.entry(c) for c in outcome.cells if c.digest in outcome.records}
    head = archive.Archive(environment.command(), asked.as_fields(), threads, entries)
    return archive.Keeper(out / archive.NAME, head).path


# What a comparison writes in its folder, beside cells/; the last five are of reporting.
FILES = ("compare.json", archive.NAME, "table.csv", "table.md", "summary.csv", "costs.csv", "report.html")


def _refuse_foreign(out: Path) -> None:
    """Raise UsageError where a comparison would replace a file that gemminer did not write, or is in no such folder."""
    if is_there(out) and not out.is_dir():
        raise UsageError(f"{out} is a file: give another folder with --out")
    refuse_foreign(out / name for name in FILES)
    if not is_there(out / "compare.json"):
        for other in sorted(out.iterdir()) if out.is_dir() else ():
            if other.name not in FILES and not other.name.startswith(tuple(f".{name}{MARK}" for name in FILES)):
                what = f"{out} is not a comparison's folder (it holds {other.name})"
                raise UsageError(f"{what}: give a new or an empty folder with --out")


def _threads(out: Path, asked: int | None, workers: int) -> int:
    """Threads of a cell: as asked, else as before in this folder, else a share of the cores."""
    if asked is not None:
        return checked_threads(asked)
    with contextlib.suppress(OSError, ValueError, LookupError, TypeError):
        return checked_threads(int(read_json((out / "compare.json").read_text(encoding="utf-8"))["threads"]))
    return share(workers)


def _description(asked: Grid, cells: Sequence[Cell], threads: int) -> dict[str, Any]:
    rows = [
        {"cell": c.digest, "label": c.label, "recipe": c.recipe.model_dump(mode="json", exclude_defaults=True)}
        for c in cells
    ]
    return {"schema": SCHEMA, "grid": asked.as_fields(), "threads": threads, "cells": rows}


def _save(path: Path, value: Mapping[str, Any]) -> None:
    save_text(path, json.dumps(value, indent=1) + "\n")
