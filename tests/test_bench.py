"""The benchmarks print what machines need; their figures are not judged here."""

from __future__ import annotations

import json

import pytest

from gemminer.bench import alternate, measurement
from gemminer.cli import main

FIELDS = {"bench", "model", "density", "batch", "baseline", "ratio", "low", "high", "runs", "device", "versions"}


@pytest.mark.parametrize("what", ["search", "train"])
def test_a_benchmark_prints_an_object_a_line(what: str, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["bench", what, "--model", "lenet-300-100", "--batch-size", "8", "--runs", "2", "--json"]
    assert main(argv) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found) >= FIELDS
    assert (found["bench"], found["model"], found["batch"], found["runs"]) == (what, "lenet-300-100", 8, 2)
    assert 0 < found["low"] <= found["ratio"] <= found["high"]


def test_the_ratio_is_the_baselines_time_over_ours() -> None:
    found = measurement("search", "x", 0.1, 8, "dense", ([3.0, 4.0, 9.0], [1.0, 2.0, 3.0]))
    assert (found.ratio, found.low, found.high) == (3.0, 2.0, 3.0)
    assert (found.baseline_ms, found.ours_ms) == (4000.0, 2000.0)


def test_both_calls_are_made_equally_often() -> None:
    calls: list[str] = []
    times = alternate(lambda: calls.append("a"), lambda: calls.append("b"), runs=3, seconds=1e-9)
    assert len(times[0]) == len(times[1]) == 3
    assert calls.count("a") == calls.count("b") + 1  # one more, to size the blocks


def test_an_unknown_benchmark_and_network(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "serch"]) == 2
    assert "did you mean 'search'" in capsys.readouterr().err
    assert main(["bench", "search", "--model", "conv-2"]) == 2
    assert "no benchmark of 'conv-2'" in capsys.readouterr().err
