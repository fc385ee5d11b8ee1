"""Atomic writes: a file is complete or absent, never half written. What a disk refuses is said in one sentence."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import tempfile
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from gemminer.core.errors import GemminerError, UsageError
from gemminer.core.numbers import shown

_FULL = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "no file may be so large",
}
MARK = ".gemminer-"  # in the names of temporary files: .NAME.gemminer-RANDOM


def cannot_write(path: str | Path, error: BaseException) -> GemminerError:
    """The error of a file that cannot be written, with the system's reason.

    >>> str(cannot_write("gem", OSError(errno.ENOSPC, "No space left on device")))
    'cannot write gem: the disk is full (No space left on device): make room, or choose another place'
    """
    return GemminerError(f"cannot write {path}: {reason(error)}")


def reason(error: BaseException) -> str:
    """The system's reason behind an error, in part of a sentence: a full disk is called so."""
    cause = _system_error(error)
    if cause is None:
        return next(iter(str(error).splitlines()), type(error).__name__)
    if cause.errno in _FULL:
        return f"{_FULL[cause.errno]} ({cause.strerror}): make room, or choose another place"
    return cause.strerror or str(cause)


def _system_error(error: BaseException | None) -> OSError | None:
    """The system's error behind one: PyTorch's writer of archives raises its own while a write fails."""
    while error is not None:
        if isinstance(error, OSError):
            return error
        error = error.__cause__ or error.__context__
    return None


class atomic:
    """A temporary file in the folder of `path` that replaces it at the end, and is removed on an error.

    A full disk or a missing folder raises an error of one sentence; the old file at `path` stays whole, and so does
    what is no file at all (a folder, a device). A process killed while it writes leaves a file named
    `.NAME.gemminer-*`, which the next run removes; so tensors are written as bytes here, since safetensors' own
    `save_file` makes a second temporary file of a name we do not know.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def __enter__(self) -> Path:
        try:
            if self.path.exists() and not self.path.is_file():
                raise GemminerError(f"cannot write {self.path}: {_what(self.path)} is there")
            self.path.parent.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(dir=self.path.parent, prefix=f".{self.path.name[:64]}{MARK}")
        except OSError as error:
            raise cannot_write(self.path, error) from None
        os.close(handle)
        self.temporary = Path(name)
        return self.temporary

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        try:
            if kind is None:
                umask = os.umask(0)
                os.umask(umask)
                self.temporary.chmod(0o666 & ~umask)  # mkstemp makes the file private; a result is for all
                self.temporary.replace(self.path)
        except OSError as failure:
            raise cannot_write(self.path, failure) from None
        finally:
            self.temporary.unlink(missing_ok=True)
        if isinstance(error, (OSError, SafetensorError)) or (isinstance(error, RuntimeError) and _system_error(error)):
            raise cannot_write(self.path, error) from None


def _what(path: Path) -> str:
    return "a folder" if path.is_dir() else "a device"


def as_path(what: str, value: object) -> Path:
    """A path from what a user gives; raises UsageError for anything else."""
    text = os.fspath(value) if isinstance(value, os.PathLike) else value
    if isinstance(text, str) and "\0" not in text:
        return Path(text)
    raise UsageError(f"{what} must be a path, not {shown(value)}")


def regular(path: Path) -> Path:
    """The path, unless it is there and no ordinary file, which may never end; raises OSError then."""
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, f"{_what(path)} is there")
    return path


def read_json(text: str | bytes) -> Any:
    """The value of a JSON text; anything else, what is nested too deeply included, is a ValueError.

    >>> read_json('{"density": 0.05}')
    {'density': 0.05}
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The objects of a file of JSON lines, none if it is missing; a line that a kill cut short is passed over."""
    rows = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else ():
        with contextlib.suppress(ValueError):
            rows.append(read_json(line))
    return [row for row in rows if isinstance(row, dict)]


def save_text(path: str | Path, text: str) -> Path:
    """Write a whole text file, atomically, its lines ended the same on every system.

    Bytes of a name that are no text of this system's (they came in as lone surrogates) are spelled out.
    """
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace", newline="\n")
    return Path(path)


def append_text(path: Path, text: str, *, sync: bool = False) -> None:
    """Add to the end of a text file; with `sync` it is on the disk before this returns."""
    append_bytes(path, text.encode(errors="backslashreplace"), sync=sync)


def append_bytes(path: Path, data: bytes, *, sync: bool = False) -> None:
    """Add to the end of a file, as `append_text`; what a full disk took of it is cut off again."""
    try:
        with path.open("ab", buffering=0) as file:
            before = file.seek(0, os.SEEK_END)
            try:
                left = memoryview(data)
                while left:
                    left = left[file.write(left) :]
            except OSError:
                file.truncate(before)
                raise
            if sync:
                os.fsync(file.fileno())
    except OSError as error:
        raise cannot_write(path, error) from None
