"""The interface through which a search or a training reports its progress; `reporting.terminal` prints it."""

from __future__ import annotations

import logging
from typing import Any

from gemminer.core.errors import UsageError
from gemminer.core.numbers import shown


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


class Together(Monitor):
    """Tells several monitors, one after the other."""

    def __init__(self, *monitors: Monitor) -> None:
        self.monitors = monitors

    def begin(self, phase: str, start: int, stop: int) -> None:
        for monitor in self.monitors:
            monitor.begin(phase, start, stop)

    def step(self, phase: str, step: int, steps: int) -> None:
        for monitor in self.monitors:
            monitor.step(phase, step, steps)

    def epoch(self, row: dict[str, Any]) -> None:
        for monitor in self.monitors:
            monitor.epoch(row)

    def note(self, text: str) -> None:
        # The base class's way to say something is for where nobody has another; Silent has none.
        ways = {id(monitor): type(monitor).note for monitor in self.monitors}
        own = [monitor for monitor in self.monitors if ways[id(monitor)] not in (Monitor.note, Silent.note)]
        usual = [monitor for monitor in self.monitors if ways[id(monitor)] is Monitor.note]
        for monitor in own or usual[:1]:
            monitor.note(text)

    def close(self) -> None:
        for monitor in self.monitors:
            monitor.close()


def checked(monitor: Any) -> Monitor:
    """The same; raises UsageError for what is no monitor."""
    if isinstance(monitor, type) or not all(callable(getattr(monitor, n, None)) for n in ("begin", "epoch", "note")):
        raise UsageError(f"monitor must be a gemminer.Monitor, not {shown(monitor)}")
    return monitor  # type: ignore[no-any-return]
