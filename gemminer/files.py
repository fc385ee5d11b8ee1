"""Files that are whole or not there: atomic writes and checkpoints."""

from __future__ import annotations

import math
import os
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from gemminer.errors import GemminerError, UsageError


class atomic:
    """A temporary path beside `path` that takes its place at the end, or vanishes on an error.

    A full disk or a missing folder becomes one sentence; what was at `path` before stays whole. What is killed
    while it writes leaves a file of a known name, `.NAME.*`, that the next run removes; so tensors are written as
    bytes here, for safetensors' own `save_file` makes a second temporary file of a name we do not know.
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


def checkpoint_seconds() -> float:
    """GEMMINER_CHECKPOINT_SECONDS, the least time between two checkpoints: 2 by default, 0 for one every epoch."""
    text = os.environ.get("GEMMINER_CHECKPOINT_SECONDS", "2")
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not seconds >= 0:
        raise UsageError(f"the environment variable GEMMINER_CHECKPOINT_SECONDS must be 0 or more, not {text!r}")
    return seconds


@dataclass
class Checkpoint:
    """Where a loop keeps its state, and how often (seconds) it may spend time on it."""

    path: Path
    every: float = field(default_factory=checkpoint_seconds)
    last: float = 0.0

    def due(self) -> bool:
        return time.monotonic() - self.last >= self.every

    def save(self, state: dict[str, Any]) -> None:
        with atomic(self.path) as temporary:
            try:
                torch.save(state, temporary)
            except RuntimeError as error:  # torch's own word for a full disk
                raise GemminerError(f"cannot write {self.path}: {str(error).splitlines()[0]}") from None
        self.last = time.monotonic()

    def load(self) -> dict[str, Any] | None:
        """The saved state, or None where there is none."""
        if not self.path.exists():
            return None
        try:
            state = torch.load(self.path, weights_only=True)
        except Exception as error:
            reason = str(error).splitlines()[0].rstrip(".") if str(error) else type(error).__name__
            raise GemminerError(f"the checkpoint {self.path} is damaged ({reason}): delete it to begin anew") from None
        return dict(state)

    def clear(self) -> None:
        self.path.unlink(missing_ok=True)
