"""The pictures of an instability."""

from __future__ import annotations

from typing import Any

import pytest

from gemminer.reporting import instability_page


def start(name: str, *highest: float) -> dict[str, Any]:
    lines = [{"test_error": [0.1, 0.1 + e, 0.1]} for e in highest]
    verdict = "stable" if sum(highest) / len(highest) < 0.02 else "unstable"
    found = {"name": name, "step": int(name.split("@")[1]), "verdict": verdict, "metric": "accuracy"}
    return {**found, "points": [0, 0.5, 1], "lines": lines, "barriers": {"test_error": list(highest)}}


STARTS = [start("dense@200", 0.01, 0.02), start("dense@0", 0.2, 0.3), start("ticket@200", 0.04)]


def test_a_line_for_each_and_the_barrier_by_step() -> None:
    figure = instability_page.lines(STARTS)
    assert figure is not None
    assert [trace["name"] for trace in figure["data"]] == ["dense@200", "dense@0", "ticket@200"]
    assert figure["data"][1]["y"] == pytest.approx([0.1, 0.35, 0.1])
    by_step = instability_page.barriers(STARTS, 0.02)
    assert by_step is not None
    means = {trace["name"]: (trace["x"], trace["y"]) for trace in by_step["data"] if "mean" in trace["name"]}
    assert means == {"dense, mean": ([0, 200], [0.25, 0.015]), "ticket, mean": ([200], [0.04])}
    assert instability_page.lines([]) is instability_page.barriers([], 0.02) is None


def test_the_headline_says_which_is_stable() -> None:
    assert instability_page.headline(STARTS) == "Stable: dense@200; not stable: dense@0, ticket@200"
    assert instability_page.headline(STARTS[1:]) == "None is stable: dense@0, ticket@200"
    assert instability_page.headline(STARTS[:1]) == "Stable: dense@200"
    assert instability_page.spread([0.01, 0.02]) == "1.50 ± 0.71"
    assert instability_page.spread([0.01]) == "1.00"
