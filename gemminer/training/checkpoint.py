"""Checkpoints, from which a killed training loop is resumed."""

from __future__ import annotations

import math
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from gemminer.core.errors import GemminerError, UsageError
from gemminer.core.files import atomic


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
    """A loop's checkpoint file, written at most every `every` seconds."""

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
