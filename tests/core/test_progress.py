"""The monitor that tells nobody, and the one that tells several."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from gemminer.core.progress import Monitor, Silent, Together
from tests.helpers import Notes


def test_nobody_need_be_told() -> None:
    monitor = Monitor()
    monitor.begin("search", 0, 1)
    monitor.step("search", 1, 1)
    monitor.epoch({})
    monitor.note("")
    monitor.close()


def test_several_are_told_of_everything(caplog: pytest.LogCaptureFixture) -> None:
    class All(Monitor):
        def __init__(self) -> None:
            self.told: list[Any] = []

        def begin(self, phase: str, start: int, stop: int) -> None:
            self.told.append((phase, start, stop))

        def step(self, phase: str, step: int, steps: int) -> None:
            self.told.append((phase, step, steps))

        def epoch(self, row: dict[str, Any]) -> None:
            self.told.append(row)

        def close(self) -> None:
            self.told.append("closed")

    one, other, notes = All(), All(), Notes()
    for monitors, said in (((one, notes), 0), ((other, Monitor()), 1), ((Silent(),), 0), ((Silent(), Monitor()), 1)):
        together = Together(*monitors)
        together.begin("search", 0, 2)
        together.step("search", 1, 4)
        together.epoch({"epoch": 1})
        caplog.clear()
        with caplog.at_level(logging.WARNING, logger="gemminer"):
            together.note("a remark")
        assert len(caplog.records) == said  # by the logger only where nobody says it in a way of one's own, and once
        together.close()
    assert one.told == other.told == [("search", 0, 2), ("search", 1, 4), {"epoch": 1}, "closed"]
    assert notes.notes == ["a remark"]
