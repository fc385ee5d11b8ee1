"""The monitor that tells nobody."""

from __future__ import annotations

from gemminer.core.progress import Monitor


def test_nobody_need_be_told() -> None:
    monitor = Monitor()
    monitor.begin("search", 0, 1)
    monitor.step("search", 1, 1)
    monitor.epoch({})
    monitor.note("")
    monitor.close()
