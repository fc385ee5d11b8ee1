"""A monitor is told how far a search or a training is; those that print it are in `reporting.terminal`."""

from __future__ import annotations

from typing import Any


class Monitor:
    """Told of every phase, step, epoch and remark; this one keeps it to itself."""

    def begin(self, phase: str, start: int, stop: int) -> None:
        """Epochs `start` to `stop` of `phase` follow."""

    def step(self, phase: str, step: int, steps: int) -> None:
        """`step` of `steps` is done."""

    def epoch(self, row: dict[str, Any]) -> None:
        """An epoch is done; `row` is what is logged of it."""

    def note(self, text: str) -> None:
        """Something a person should read."""

    def close(self) -> None:
        """Nothing follows."""
