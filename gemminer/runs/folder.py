"""A run's folder, held by one process at a time.

ticket.safetensors     the ticket
trained.safetensors    the trained weights of the ticket (first training seed)
record.json            the result, schema `record.Record`
metrics.jsonl          an object a line for each epoch of each phase
report.html            the page
state/                 checkpoints and finished steps, for --resume
"""

from __future__ import annotations

import errno
import json
import os
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from gemminer.core.errors import GemminerError, UsageError
from gemminer.core.files import save_text
from gemminer.training.checkpoint import Checkpoint

FILES = ("record.json", "metrics.jsonl", "report.html", "ticket.safetensors", "trained.safetensors")
# Errors of a file system without locks, or without its lock server.
_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL, errno.EIO)


class Busy(UsageError):
    """Another process runs in the folder."""


def _locked(folder: Path, wait: float = 3.0) -> FileLock:
    """The lock of a run's folder; `wait` seconds are for a process that was killed and is still going.

    A process has one lock for each file, which every Folder acquires and releases once more, so that it does not lock
    itself out; the system releases it when the process ends, however it ends. On a file system without locks there is
    no waiting.
    """
    path = (folder / "state" / "lock").resolve()
    lock = FileLock(path, timeout=wait, thread_local=False, is_singleton=True, fallback_to_soft=False)
    try:
        lock.acquire()
    except Timeout:
        raise Busy(f"another process is running in {folder}: wait for it, or give another folder with --out") from None
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
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
            weakref.finalize(self, _locked(path).release)
            if held and overwrite:
                self._wipe()
            for stale in [*self.state.glob(".*"), *(f for name in FILES for f in path.glob(f".{name}.*"))]:
                stale.unlink()  # left by a process that was killed in an atomic write
        except OSError as error:
            raise GemminerError(f"cannot use the folder {path}: {error.strerror}") from None
        save_text(existing, recipe_hash)
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
        """The checkpoint of a step while it runs."""
        # --resume may ask for another engine: what was begun with the other starts over, and says so. Nobody else's
        # call can be in a folder of this recipe, so there is nothing to say before the first epoch.
        path = self.state / f"{step.replace(':', '-')}.pt"
        return Checkpoint(path, free=frozenset({"the engine"}), early=False)

    def log(self, row: Mapping[str, Any]) -> None:
        _append(self._metrics_file, row)

    def forget_after(self, phase: str, epoch: int) -> None:
        """Drop rows of `phase` after `epoch`, which a resumed run writes again."""
        rows = _lines(self._metrics_file)
        kept = [row for row in rows if not (row.get("phase") == phase and row.get("epoch", 0) > epoch)]
        if len(kept) < len(rows) or not _whole(self._metrics_file):
            save_text(self._metrics_file, "".join(json.dumps(row) + "\n" for row in kept))


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
