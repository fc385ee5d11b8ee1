"""Progress as plain lines and as a bar."""

from __future__ import annotations

import io
from typing import Any

from rich.console import Console

from gemminer.reporting.terminal import PlainMonitor, RichMonitor, monitor_for


def row(epoch: int, **more: Any) -> dict[str, Any]:
    return {"phase": "search", "epoch": epoch, "loss": 0.5, "validation": None, **more}


def test_plain_lines() -> None:
    text = io.StringIO()
    monitor = PlainMonitor(Console(file=text, width=40), every=1e9)
    monitor.begin("search", 2, 5)
    monitor.epoch(row(3))
    monitor.step("search", 1, 2)
    monitor.epoch(row(5, validation=0.75, kept=0.5, live=0.25))
    monitor.close()
    assert text.getvalue().splitlines() == [
        "search: resumed after epoch 2 of 5",
        "search epoch 5, loss 0.5000, validation accuracy 0.7500, kept 50.000%, live 25.000%",
    ]


def test_a_terminal_has_a_bar() -> None:
    text = io.StringIO()
    monitor = monitor_for(Console(file=text, force_terminal=True, width=120))
    assert isinstance(monitor, RichMonitor)
    monitor.step("search", 0, 4)  # before anything has begun
    monitor.epoch(row(1))
    for phase in ("search", "train:0"):
        monitor.begin(phase, 0, 2)
        monitor.step(phase, 1, 2)
        monitor.epoch(row(1))
        monitor.epoch(row(2))
    monitor.note("a remark with [brackets]")
    monitor.close()
    assert "a remark with [brackets]" in text.getvalue()
    assert text.getvalue().count("search epoch 2, loss 0.5000") == 2
    assert type(monitor_for(Console(file=text))) is PlainMonitor
