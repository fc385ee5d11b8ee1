"""Atomic writes: a file is complete or absent, never half written."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from safetensors import SafetensorError

from gemminer.core.errors import GemminerError


class atomic:
    """A temporary file in the folder of `path` that replaces it at the end, and is removed on an error.

    A full disk or a missing folder raises an error of one sentence; the old file at `path` stays whole. A process
    killed while it writes leaves a file named `.NAME.*`, which the next run removes; so tensors are written as
    bytes here, since safetensors' own `save_file` makes a second temporary file of a name we do not know.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def __enter__(self) -> Path:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(dir=self.path.parent, prefix=f".{self.path.name}.")
        except OSError as error:
            raise GemminerError(f"cannot write {self.path}: {error.strerror or error}") from None
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
            raise GemminerError(f"cannot write {self.path}: {failure.strerror or failure}") from None
        finally:
            self.temporary.unlink(missing_ok=True)
        if isinstance(error, (OSError, SafetensorError)):
            raise GemminerError(f"cannot write {self.path}: {error}") from None


def save_text(path: str | Path, text: str) -> Path:
    """Write a whole text file, atomically, its lines ended the same on every system."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")
    return Path(path)
