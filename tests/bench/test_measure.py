"""Ratios by hand, turns taken, and outputs that differ."""

from __future__ import annotations

import pytest
import torch

from gemminer import sparse
from gemminer.bench import BENCHES
from gemminer.bench.measure import OURS, Setup, against_each, alternate, measurement, require_equal
from gemminer.core.errors import GemminerError, UsageError


def test_the_ratio_is_the_baselines_time_over_ours() -> None:
    found = measurement("search", Setup("x", 0.1, 8), "dense", ([3.0, 4.0, 9.0], [1.0, 2.0, 3.0]))
    assert (found.ratio, found.low, found.high) == (3.0, 2.0, 3.0)
    assert (found.baseline_ms, found.ours_ms) == (4000.0, 2000.0)


def test_the_last_line_is_against_the_fastest_rival() -> None:
    times = {"a": [6.0, 6.0], "b": [4.0, 4.0], "c": [1.0, 1.0], OURS: [2.0, 2.0]}
    *_, last = against_each("infer", Setup("x"), times, ("a", "b", "absent"), {"b": "said of b"})
    assert (last.baseline, last.fastest, last.ratio, last.note) == ("fastest of a and b", "b", 2.0, "said of b")


def test_calls_take_turns() -> None:
    calls: list[str] = []
    times = alternate({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, runs=3, seconds=1e-9)
    assert {name: len(found) for name, found in times.items()} == {"a": 3, "b": 3}
    assert "".join(calls[-12:]) == "aabb" + "bbaa" + "aabb"  # each block after one call that is not timed


def test_outputs_that_differ_stop_a_benchmark(monkeypatch: pytest.MonkeyPatch) -> None:
    one = torch.ones(2, 3)
    require_equal({"x": one, "y": one * (1 + 5e-5)}, "x")
    for wrong in (one * (1 + 2e-4), one * torch.nan):
        with pytest.raises(GemminerError, match="y and x compute different things"):
            require_equal({"x": one, "y": wrong}, "x")
    whole = sparse.compile
    monkeypatch.setattr(sparse, "compile", lambda model, images: lambda x: 1.001 * whole(model, images)(x))
    with pytest.raises(GemminerError, match="ours and PyTorch eager NCHW compute different things"):
        list(BENCHES["infer"](Setup("lenet-300-100", batch=2, runs=1, compile=False)))


def test_a_setup_is_checked() -> None:
    with pytest.raises(UsageError, match="examples must be 1 or more"):
        Setup("resnet20", examples=0)
