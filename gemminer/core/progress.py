"""The interface through which a search or a training reports its progress; `reporting.terminal` prints it."""

from __future__ import annotations

import logging
from typing import Any


class Monitor:
    """Receives every phase, step, epoch and remark of a search or training.

    This base class ignores all but remarks, which go to the logger "gemminer" as warnings (to stderr, unless logging is
    set up otherwise).

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
        logging.getLogger("gemminer").warning(text)

    def close(self) -> None:
        """Called last."""


class Silent(Monitor):
    """Passes remarks over, as they stand in a record."""

    def note(self, text: str) -> None: ...
