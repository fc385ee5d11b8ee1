"""A run's folder, held by one process at a time.

ticket.safetensors     the ticket
trained.safetensors    the trained weights of the ticket (first training seed)
scores.safetensors     the scores of the training examples, where the run computed them
examples.safetensors   the indices of the examples of a pre-training, where they are not all
record.json            the result, schema `record.Record`
metrics.jsonl          an object a line for each epoch of each phase
report.html            the page
state/                 checkpoints and finished steps, for --resume
"""

from __future__ import annotations

import errno
import json
import os
import re
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from gemminer.core.errors import GemminerError, UsageError
from gemminer.core.files import MARK, append_text, read_rows, reason, save_text
from gemminer.core.ownership import is_there, ours, refuse_foreign
from gemminer.training.checkpoint import Checkpoint
from gemminer.training.ranks import Ranks

if TYPE_CHECKING:
    from filelock import FileLock

FILES = ("record.json", "metrics.jsonl", "report.html", "ticket.safetensors", "trained.safetensors")
DIET = ("scores.safetensors", "examples.safetensors")  # of a run with a pre-training on some of the examples
# What a run writes in its state/: finished steps, checkpoints of steps, the ticket that a check searches for.
INSIDE = re.compile(
    r"steps\.jsonl|(inverted|pretrained)\.safetensors|"
    r"(budget|score|pretrain|search|before|dense|train-\d+|check-[a-z0-9_-]+)\.pt"
)
PYTHON = "python"  # in place of a recipe's digest: what mine, train and check of Python keep
_MARKER = "gemminer.run/1 "  # and the recipe's digest, in state/recipe
# Errors of a file system without locks, or without its lock server.
_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL, errno.EIO)


class Busy(UsageError):
    """Another process runs in the folder."""


def _locked(folder: Path, flag: str, wait: float = 3.0) -> FileLock:
    """The lock of a run's folder; `wait` seconds are for a process that was killed and is still going.

    A process has one lock for each file, which every Folder acquires and releases once more, so that it does not lock
    itself out; the system releases it when the process ends, however it ends. On a file system without locks there is
    no waiting.
    """
    from filelock import FileLock, Timeout  # here, for only a run in a folder needs it

    path = (folder / "state" / "lock").resolve()
    lock = FileLock(path, timeout=wait, thread_local=False, is_singleton=True, fallback_to_soft=False)
    try:
        lock.acquire()
    except Timeout:
        raise Busy(f"another process is running in {folder}: wait for it, or give another folder with {flag}") from None
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
    return lock


class Folder:
    """A run's folder: finished steps, checkpoints and epoch rows, all of which outlive the process.

    What gemminer did not write is never touched. Raises UsageError where the folder holds anything but a run, a file of
    somebody's in the place of one of a run's, another recipe's run, or a run at all and neither `resume` nor
    `overwrite` is asked for; Busy, a UsageError, where another process is running in it. `held` says whether there was
    a run. The folder of something else than a run has other `FILES`, and other names `INSIDE` its state/.
    """

    FILES: tuple[str, ...] = (*FILES, *DIET)
    INSIDE: re.Pattern[str] = INSIDE

    def __init__(
        self, path: Path, recipe_hash: str, *, resume: bool = False, overwrite: bool = False, flag: str = ""
    ) -> None:
        self.path, self.state = path, path / "state"
        self._flag = flag or ("out=" if recipe_hash == PYTHON else "--out")
        self._steps_file, self._metrics_file = self.state / "steps.jsonl", path / "metrics.jsonl"
        try:
            self._look(recipe_hash, resume, overwrite)  # nothing is made where there is nothing to do
            self.state.mkdir(parents=True, exist_ok=True)
            weakref.finalize(self, _locked(path, self._flag).release)
            self.held = self._look(recipe_hash, resume, overwrite)  # another run may have come in between
            if self.held and overwrite:
                self._wipe()
            for stale in self._temporary():
                stale.unlink(missing_ok=True)  # left by a process that was killed in an atomic write
            self._mark(recipe_hash)
        except OSError as error:
            raise GemminerError(f"cannot use the folder {path}: {reason(error)}") from None
        self.steps: dict[str, dict[str, Any]] = {
            str(row["step"]): row["result"]
            for row in read_rows(self._steps_file)
            if "step" in row and isinstance(row.get("result"), dict)
        }

    def _look(self, recipe_hash: str, resume: bool, overwrite: bool) -> bool:
        """Whether the folder holds a run; raises UsageError unless this one may be in it."""
        path = self.path
        if path.exists() and not path.is_dir():
            raise UsageError(f"{path} is a file: give another folder with {self._flag}")
        self._refuse_foreign()
        found = self._recipe()
        held = found is not None or ours(path / "record.json")
        if not held:
            return False
        if not overwrite:
            if not resume:
                raise UsageError(
                    f"{path} holds a run already: add --resume to go on with it, --overwrite to begin anew, or "
                    "--out FOLDER for another place"
                )
            if found != recipe_hash and PYTHON in (found, recipe_hash):
                where = "from Python" if found == PYTHON else "by the command line"
                raise UsageError(f"{path} holds a run that was made {where}: give another folder with {self._flag}")
            if found != recipe_hash:
                raise UsageError(
                    f"{path} holds a run of another recipe ({found or 'unknown'}, not {recipe_hash}), or of a version "
                    "with other defaults: resume with the same options, or give another folder with --out"
                )
        return True

    def _refuse_foreign(self) -> None:
        """Raise UsageError where something stands that no run wrote, in a run's place or in a folder without a run."""
        path, state, lock = self.path, self.state, self.state / "lock"
        if state.is_symlink() or (is_there(state) and not state.is_dir()):
            raise UsageError(f"{state} was not written by gemminer: give another folder with {self._flag}")
        if is_there(lock) and (lock.is_symlink() or not lock.is_file() or lock.stat().st_size):
            raise UsageError(f"{lock} was not written by gemminer: give another folder with {self._flag}")
        if self._recipe() is None and not ours(path / "record.json"):
            beside = [f for f in path.iterdir() if f != state and f.name != "error.json"] if path.is_dir() else []
            inside = [f for f in state.iterdir() if f != lock] if state.is_dir() else []
            passing = set(self._temporary())
            for other in sorted([*beside, *inside]):
                if other not in passing:
                    raise UsageError(
                        f"{path} is not a run's folder (it holds {other.relative_to(path)}): give a new or an empty "
                        f"folder with {self._flag}"
                    )
        recipe = state / "recipe"
        if is_there(recipe) and self._recipe() is None:
            raise UsageError(f"{recipe} was not written by gemminer: give another folder with {self._flag}")
        unmarked = {"trained.safetensors"} if _unmarked_weights(path) else set()
        refuse_foreign(path / name for name in (*self.FILES, "error.json") if name not in unmarked)
        refuse_foreign(f for f in (state.iterdir() if state.is_dir() else ()) if self.INSIDE.fullmatch(f.name))

    def _recipe(self) -> str | None:
        """The digest of the recipe whose run is here, by the mark that a run leaves."""
        file = self.state / "recipe"
        if file.is_symlink() or not file.is_file() or file.stat().st_size > 200:
            return None
        text = file.read_text(encoding="utf-8", errors="replace").strip()
        if text.startswith(_MARKER) or re.fullmatch(r"[0-9a-f]{12}", text):  # without the mark: an older run's
            return text.removeprefix(_MARKER)
        return None

    def _mark(self, recipe_hash: str) -> None:
        """Make the folder this recipe's; of two processes on a file system without locks one is refused."""
        recipe = self.state / "recipe"
        if self._recipe() is not None:
            return
        mine = self.state / f".recipe{MARK}{os.getpid():08d}"
        try:
            mine.write_text(_MARKER + recipe_hash + "\n")
            os.link(mine, recipe)
        except FileExistsError:
            raise UsageError(f"another run has come to {self.path}: give another folder with {self._flag}") from None
        except OSError:  # a file system without hard links
            save_text(recipe, _MARKER + recipe_hash + "\n")
        finally:
            mine.unlink(missing_ok=True)

    def _temporary(self) -> list[Path]:
        """Files that a process leaves which is killed in an atomic write."""
        names = [
            *((self.path, name) for name in (*self.FILES, "error.json")),
            (self.state, "recipe"),
            (self.state, "steps.jsonl"),
        ]
        found = [file for folder, name in names for file in folder.glob(f".{name}{MARK}????????")]
        for file in self.state.glob(f".*{MARK}????????"):
            if self.INSIDE.fullmatch(file.name[1:].rpartition(MARK)[0]):
                found.append(file)
        return [file for file in found if not file.is_symlink() and file.is_file()]

    def _wipe(self) -> None:
        """Remove a run's own files; `_look` has seen that they are."""
        inside = [file for file in self.state.iterdir() if self.INSIDE.fullmatch(file.name)]
        for file in [*inside, *(self.path / name for name in self.FILES), self.state / "recipe"]:
            file.unlink(missing_ok=True)

    def finish(self, step: str, result: Mapping[str, Any]) -> dict[str, Any]:
        """Record a step as done: one appended line, on the disk before this returns."""
        _append(self._steps_file, {"step": step, "result": dict(result)}, sync=True)
        self.steps[step] = dict(result)
        return self.steps[step]

    def checkpoint(self, step: str) -> Checkpoint:
        """The checkpoint of a step while it runs."""
        return checkpoint_in(self.state, step)

    def log(self, row: Mapping[str, Any]) -> None:
        _append(self._metrics_file, row)

    def forget_after(self, phase: str, epoch: int) -> None:
        """Drop rows of `phase` after `epoch`, which a resumed run writes again."""
        rows = read_rows(self._metrics_file)
        kept = [row for row in rows if not (row.get("phase") == phase and row.get("epoch", 0) > epoch)]
        if len(kept) < len(rows) or not _whole(self._metrics_file):
            save_text(self._metrics_file, "".join(json.dumps(row) + "\n" for row in kept))


def checkpoint_in(state: Path, step: str, ranks: Ranks | None = None) -> Checkpoint:
    """The checkpoint of a step in a run's state/."""
    # --resume may ask for another engine: what was begun with the other starts over, and says so. Nobody else's call
    # can be in a folder of this recipe, so there is nothing to say before the first epoch.
    path = state / f"{step.replace(':', '-')}.pt"
    return Checkpoint(path, free=frozenset({"the engine"}), early=False, ranks=ranks)


def _unmarked_weights(path: Path) -> bool:
    """Whether the trained weights are an older run's, without a mark: those of the ticket beside them."""
    weights, ticket = path / "trained.safetensors", path / "ticket.safetensors"
    if weights.is_symlink() or not weights.is_file() or not ours(ticket):
        return False
    try:
        with safe_open(weights, framework="np") as found, safe_open(ticket, framework="np") as known:
            start = {name.removeprefix("initial/") for name in known.keys() if name.startswith("initial/")}  # noqa: SIM118
            return set(found.keys()) == start
    except (OSError, SafetensorError):
        return False


def _append(path: Path, row: Mapping[str, Any], *, sync: bool = False) -> None:
    # A line cut short by a kill must not swallow this one.
    prefix = "" if _whole(path) else "\n"
    append_text(path, f"{prefix}{json.dumps(row)}\n", sync=sync)


def _whole(path: Path) -> bool:
    """Whether the file ends with a newline (or is empty or absent)."""
    try:
        with path.open("rb") as file:
            file.seek(-1, os.SEEK_END)
            return file.read(1) == b"\n"
    except OSError:
        return True
