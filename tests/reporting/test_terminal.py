"""Progress as plain lines and as a bar, at any width; lists and options."""

from __future__ import annotations

import io
import re
from typing import Any

import pytest
from rich.console import Console

from gemminer.reporting.terminal import (
    LiveBoard,
    PlainMonitor,
    RichMonitor,
    board_for,
    monitor_for,
    print_aside,
    print_list,
)
from gemminer.runs import grid


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
        "search: goes on after epoch 2 of 5",
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


@pytest.mark.parametrize(("widgets", "kind"), [(True, RichMonitor), (False, PlainMonitor)])
def test_a_notebook_has_a_bar_where_it_can_move(
    widgets: bool, kind: type[PlainMonitor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: widgets or None)
    monkeypatch.setattr(RichMonitor, "__init__", lambda self, console, metric: None)  # rich would need ipywidgets
    assert type(monitor_for(Console(force_jupyter=True))) is kind


@pytest.mark.parametrize("width", [60, 80, 120])
def test_bar_percentage_and_time_left_stay_and_the_numbers_give_way(width: int) -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=width, color_system=None)
    monitor = RichMonitor(console)
    monitor.begin("check:uniform:0", 0, 40)
    monitor.step("check:uniform:0", 120, 480)
    monitor.epoch(row(1, validation=0.98765, kept=0.0144, live=0.0144))
    monitor.close()
    shown = Console(file=io.StringIO(), width=width, color_system=None)
    shown.print(monitor.render())
    (line,) = shown.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert len(line.rstrip()) <= width
    assert re.match(r"check:uniform:0 +[━╸╺ ]{20} +25% (-:--:--|\d:\d\d:\d\d)", line), line
    numbers = ["loss 0.5000", "validation accuracy 0.9877", "kept 1.440%", "live 1.440%"]
    seen = [number for number in numbers if number in line]
    assert seen == numbers[: {60: 0, 80: 1, 120: 4}[width]]
    assert line.rstrip().endswith(seen[-1] if seen else line.rstrip()[-1])  # whole numbers or none


def test_quiet_and_verbose_monitors() -> None:
    for terminal in (True, False):
        text = io.StringIO()
        console = Console(file=text, force_terminal=terminal, width=120)
        silent = monitor_for(console, quiet=True)
        silent.note("a remark")
        silent.epoch(row(1))
        assert text.getvalue() == ""
        monitor = monitor_for(console, verbose=True)
        monitor.begin("search", 0, 3)
        for epoch in (1, 2, 3):
            monitor.epoch(row(epoch))
        monitor.close()
        assert [text.getvalue().count(f"search epoch {epoch}, loss 0.5000") for epoch in (1, 2, 3)] == [1, 1, 1]


@pytest.mark.parametrize("width", [60, 80, 120])
def test_a_comparisons_bar_percentage_and_time_left_stay(width: int) -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=width, color_system=None)
    board = LiveBoard(console)
    cells = grid.make(
        {"density": [0.1, 0.05], "dense": False, "model": "wideresnet-28-2", "data": "fashion-mnist"}
    ).cells()
    board.begin(cells, 0, lambda: 3725.0)
    for cell in cells:
        board.started(cell)
        board.told(cell, "check:uniform:0 12/40")
    board.done = 1
    board.close()
    shown = Console(file=io.StringIO(), width=width, color_system=None)
    shown.print(board.render())
    bar, *running = shown.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert re.match(r"[━╸╺ ]{20}  1/2 cells  50%  about 1:02:05 left", bar), bar
    assert len(running) == 2
    assert all(len(line) <= width for line in running)


def test_boards_say_more_or_nothing() -> None:
    (cell,) = grid.make({"dense": False}).cells()
    for quiet, verbose, lines in ((True, False, []), (False, True, [f"{cell}: begins", f"[1/1] {cell}: failed: why"])):
        text, emitted = io.StringIO(), []
        board = board_for(Console(file=text), emitted.append, quiet=quiet, verbose=verbose)
        board.begin([cell], 0, lambda: None)
        board.started(cell)
        board.failed(cell, "why")
        board.close()
        assert text.getvalue().splitlines() == lines
        assert [line["error"] for line in emitted] == ["why"]


def test_names_with_a_text_beside_them() -> None:
    pairs = [("lr", "The learning rate. [0.1; above 0]"), ("milestones", "Epochs at which the rate drops. " * 4)]
    plain, terminal = io.StringIO(), io.StringIO()
    print_aside(Console(file=plain, width=60), pairs)
    assert len(plain.getvalue().splitlines()) == 2  # for grep
    print_aside(Console(file=terminal, width=60, force_terminal=True, color_system=None), pairs)
    lines = terminal.getvalue().splitlines()
    assert len(lines) > 3
    assert all(len(line) <= 60 for line in lines)
    assert lines[2].startswith(" " * 14)


def test_a_list_never_cuts_a_name() -> None:
    text = io.StringIO()
    print_list(Console(file=text, width=40), [{"name": "n" * 30, "text": "[a] word " * 9}], ["name", "text"])
    assert "n" * 30 in text.getvalue()
    assert "[a]" in text.getvalue()
