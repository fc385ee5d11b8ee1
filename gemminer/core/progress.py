"""The interface through which a search or a training reports its progress; `reporting.terminal` prints it."""

from __future__ import annotations

from typing import Any


class Monitor:
    """Receives every phase, step, epoch and remark of a search or training; this base class ignores them.

    Subclass it to show progress, to log, or to stop early by raising.
    """

    def begin(self, phase: str, start: int, stop: int) -> None:
        """Epochs `start` to `stop` of `phase` follow."""

    def step(self, phase: str, step: int, steps: int) -> None:
        """Step number `step` of the phase's `steps` is done."""

    def epoch(self, row: dict[str, Any]) -> None:
        """An epoch is done; `row` is what is logged of it."""

    def note(self, text: str) -> None:
        """A warning or remark for people."""

    def close(self) -> None:
        """Called last."""
