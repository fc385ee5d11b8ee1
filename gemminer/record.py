"""What happened: a run's folder, the record in it, and the machine it was made on.

ticket.safetensors     the ticket
trained.safetensors    the trained weights of the ticket (first training seed)
record.json            the result, schema `Record`
metrics.jsonl          an object a line for each epoch of each phase
report.html            the page
state/                 checkpoints and finished steps, for --resume
"""

from __future__ import annotations

import datetime
import json
import os
import platform
import subprocess
import sys
import time
import weakref
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from gemminer.errors import GemminerError, UsageError
from gemminer.files import Checkpoint, atomic

SCHEMA = "gemminer.record/1"
FILES = ("record.json", "metrics.jsonl", "report.html", "ticket.safetensors", "trained.safetensors")


class Density(BaseModel):
    """asked: as requested; realised = kept / prunable; live: the part of all weights that is also switched on."""

    asked: float
    realised: float
    kept: int
    prunable: int
    live: float | None = None


class LayerRow(BaseModel):
    """One masked parameter; a dead filter is an output unit with no kept weight."""

    name: str
    shape: tuple[int, ...]
    prunable: int
    kept: int
    density: float
    filters: int
    dead_filters: int


class Accuracy(BaseModel):
    """The metric on the test set (accuracy: a fraction of 1). `after` is the mean over `n` training seeds."""

    before: float | None = None
    after: float | None = None
    after_std: float | None = None
    after_values: tuple[float, ...] = ()
    n: int = 0
    dense: float | None = None
    validation: float | None = Field(None, description="of the ticket after training, first seed")


class PerClass(BaseModel):
    """The metric after training over the test examples of each class; None for a class without any."""

    after: tuple[float | None, ...]
    names: tuple[str, ...] = Field((), description="of the classes, where the data set names them")


class CheckRow(BaseModel):
    """A sanity check over n paired seeds; `difference` is ticket minus check."""

    mean: float
    std: float
    n: int
    difference: float
    difference_std: float
    verdict: Literal["pass", "fail", "not decided"]
    values: tuple[float, ...]
    ticket_values: tuple[float, ...]


class Cost(BaseModel):
    """Of one search or one training: FLOPs of all its steps, dense and counting zeros."""

    epochs: float
    seconds: float
    flops_dense: float
    flops_sparse: float


class Record(BaseModel):
    """The result of a run. Versioned: readers refuse a `schema` they do not know."""

    model_config = ConfigDict(populate_by_name=True)

    schema_: str = Field(SCHEMA, alias="schema")
    created: str
    command: str
    method: str
    options: dict[str, Any]
    model: str
    model_options: dict[str, Any]
    data: str
    data_options: dict[str, Any]
    seed: int
    recipe: dict[str, Any]
    recipe_hash: str
    metric: str
    density: Density
    layers: list[LayerRow]
    accuracy: Accuracy
    per_class: PerClass | None = None
    verdict: str | None = None
    checks: dict[str, CheckRow]
    cost: dict[str, Cost]
    notes: list[str] = Field(default_factory=list)
    hardware: dict[str, Any]
    versions: dict[str, str]
    git: str | None

    def to_json(self) -> str:
        return self.model_dump_json(by_alias=True, indent=1) + "\n"

    def save(self, path: Path) -> Path:
        """Write the record, atomically."""
        with atomic(path) as temporary:
            temporary.write_text(self.to_json(), encoding="utf-8")
        return path


def read(path: str | Path) -> Record:
    """Read a record.json, or a run's folder; raises GemminerError with one sentence."""
    path = Path(path)
    path = path / "record.json" if path.is_dir() else path
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        if fields.get("schema") != SCHEMA:
            raise GemminerError(f"{path} has schema {fields.get('schema')!r}; this version reads {SCHEMA!r}")
        return Record(**fields)
    except OSError as error:
        raise GemminerError(f"cannot read the record {path}: {error.strerror}") from None
    except (ValueError, TypeError, AttributeError) as error:
        raise GemminerError(f"{path} is not a gemminer record: {str(error).splitlines()[0]}") from None


class Busy(UsageError):
    """Another process runs in the folder."""


class _Lock:
    """A file that one process holds at a time; the system lets go of it when the process ends, however it ends."""

    def __init__(self, path: Path) -> None:
        self.file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        self.release = weakref.finalize(self, os.close, self.file)

    def take(self) -> bool:
        """Whether the file is ours now; also where the file system knows no locks."""
        try:
            if sys.platform == "win32":
                import msvcrt

                msvcrt.locking(self.file, msvcrt.LK_NBLCK, 1)
            else:
                import fcntl

                fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            return False
        except OSError:
            return True
        return True


# By file, as long as a Folder holds it: a process does not lock itself out.
_LOCKS: weakref.WeakValueDictionary[Path, _Lock] = weakref.WeakValueDictionary()


def _locked(folder: Path, wait: float = 3.0) -> _Lock:
    """The lock of a run's folder; `wait` seconds are for a process that was killed and is still going."""
    path = (folder / "state" / "lock").resolve()
    if (held := _LOCKS.get(path)) is not None:
        return held
    lock, last = _Lock(path), time.monotonic() + wait
    while not lock.take():
        if time.monotonic() > last:
            lock.release()
            raise Busy(f"another process is running in {folder}: wait for it, or give another folder with --out")
        time.sleep(0.05)
    _LOCKS[path] = lock
    return lock


class Folder:
    """A run's folder: finished steps, checkpoints and epoch rows, all of which outlive the process.

    Raises UsageError where the folder holds another recipe's run, or a run at all and neither `resume` nor
    `overwrite` is asked for; Busy, a UsageError, where another process is running in it.
    """

    def __init__(self, path: Path, recipe_hash: str, *, resume: bool = False, overwrite: bool = False) -> None:
        self.path, self.state = path, path / "state"
        self._steps_file, self._metrics_file = self.state / "steps.jsonl", path / "metrics.jsonl"
        existing = self.state / "recipe"
        try:
            if path.exists() and not path.is_dir():
                raise UsageError(f"{path} is a file: give another folder with --out")
            held = existing.exists() or (path / "record.json").exists()
            if held and not overwrite:
                if not resume:
                    raise UsageError(
                        f"{path} holds a run already: add --resume to go on with it, --overwrite to begin anew, or "
                        "--out FOLDER for another place"
                    )
                if (found := existing.read_text().strip() if existing.exists() else "") != recipe_hash:
                    raise UsageError(
                        f"{path} holds a run of another recipe ({found or 'unknown'}, not {recipe_hash}): "
                        "resume with the same options, or give another folder with --out"
                    )
            self.state.mkdir(parents=True, exist_ok=True)
            self._lock = _locked(path)
            if held and overwrite:
                self._wipe()
            for stale in [*self.state.glob(".*"), *(f for name in FILES for f in path.glob(f".{name}.*"))]:
                stale.unlink()  # what a kill left of an atomic write
        except OSError as error:
            raise GemminerError(f"cannot use the folder {path}: {error.strerror}") from None
        with atomic(existing) as temporary:
            temporary.write_text(recipe_hash)
        self.steps: dict[str, dict[str, Any]] = {
            row["step"]: row["result"] for row in _lines(self._steps_file) if "step" in row
        }

    def _wipe(self) -> None:
        ours = [file for file in self.state.glob("*") if file.name != "lock"]
        for file in [*ours, *(self.path / name for name in FILES)]:
            file.unlink(missing_ok=True)

    def finish(self, step: str, result: Mapping[str, Any]) -> dict[str, Any]:
        """Record a step as done: one appended line, on the disk before this returns."""
        _append(self._steps_file, {"step": step, "result": dict(result)}, sync=True)
        self.steps[step] = dict(result)
        return self.steps[step]

    def checkpoint(self, step: str) -> Checkpoint:
        """Where `step` keeps its state while it runs."""
        return Checkpoint(self.state / f"{step.replace(':', '-')}.pt")

    def log(self, row: Mapping[str, Any]) -> None:
        _append(self._metrics_file, row)

    def forget_after(self, phase: str, epoch: int) -> None:
        """Drop rows of `phase` behind `epoch`: a resumed run writes them again."""
        rows = _lines(self._metrics_file)
        kept = [row for row in rows if not (row.get("phase") == phase and row.get("epoch", 0) > epoch)]
        if len(kept) < len(rows) or not _whole(self._metrics_file):
            with atomic(self._metrics_file) as temporary:
                temporary.write_text("".join(json.dumps(row) + "\n" for row in kept))


def _append(path: Path, row: Mapping[str, Any], *, sync: bool = False) -> None:
    try:
        # A line cut short by a kill must not swallow this one.
        prefix = "" if _whole(path) else "\n"
        with path.open("a", encoding="utf-8") as file:
            file.write(f"{prefix}{json.dumps(row)}\n")
            if sync:
                file.flush()
                os.fsync(file.fileno())
    except OSError as error:
        raise GemminerError(f"cannot write {path}: {error.strerror}") from None


def _whole(path: Path) -> bool:
    """Whether the file ends with a newline (or is empty or absent)."""
    try:
        with path.open("rb") as file:
            file.seek(-1, os.SEEK_END)
            return file.read(1) == b"\n"
    except OSError:
        return True


def _lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSON-lines file; a line that a kill cut short is passed over."""
    rows = []
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                rows.append(json.loads(line))
            except ValueError:
                continue
    return rows


def versions() -> dict[str, str]:
    """Versions of what a result depends on."""
    found = {"python": platform.python_version()}
    for package in ("gemminer", "torch", "torchvision", "numpy", "scikit-learn", "numba"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def hardware(device: str = "cpu", threads: int = 1) -> dict[str, Any]:
    """The machine, as far as it tells."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        named = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        cpu = named[0].split(":", 1)[1].strip() if named else cpu
    memory = None
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        memory = round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    return {"cpu": cpu, "cores": os.cpu_count(), "threads": threads, "device": device, "memory_gib": memory}


def git_revision() -> str | None:
    """The commit of the checkout this runs in, with '+' where it has changes; None outside one."""
    try:
        run = subprocess.run(
            ["git", "describe", "--always", "--dirty=+", "--abbrev=12"],
            capture_output=True,
            text=True,
            timeout=5,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return run.stdout.strip() if run.returncode == 0 else None


def now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def command() -> str:
    """The command line of this process, without the path of the program."""
    return " ".join([Path(sys.argv[0]).name, *sys.argv[1:]])
