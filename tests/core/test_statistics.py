"""Paired comparisons against numbers by hand and scipy's own test."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from gemminer.core.errors import UsageError
from gemminer.core.statistics import Check, margin_test, overall, paired_test


def test_a_verdict_by_hand() -> None:
    # Differences 0.07, 0.05, 0.08: mean 0.2 / 3, deviation sqrt(((0.01/3)^2 + (0.05/3)^2 + (0.04/3)^2) / 2).
    # One-sided t at 95% with 2 degrees of freedom is 2.920: reach = 2.920 * 0.015275 / sqrt(3) = 0.02575.
    found = paired_test([0.97, 0.96, 0.98], [0.90, 0.91, 0.90])
    assert found.verdict == "pass"
    assert found.mean == pytest.approx(2.71 / 3)
    assert found.std == pytest.approx(math.sqrt((2 * (0.01 / 3) ** 2 + (0.02 / 3) ** 2) / 2))
    assert found.difference == pytest.approx(0.2 / 3)
    assert found.difference_std == pytest.approx(0.0152753, rel=1e-4)
    assert found.values == (0.90, 0.91, 0.90)
    assert found.ticket_values == (0.97, 0.96, 0.98)
    assert found.n == 3


@pytest.mark.parametrize(
    ("ticket", "check", "verdict"),
    [
        ([0.9], [0.1], "not decided"),  # one seed decides nothing
        ([0.9, 0.9], [0.9, 0.9], "fail"),  # no gain at all
        ([0.9, 0.9], [0.8, 0.8], "pass"),
        ([0.90, 0.91, 0.90], [0.97, 0.96, 0.98], "fail"),  # worse
        ([0.90, 0.80, 0.95], [0.85, 0.88, 0.86], "not decided"),  # scattered around zero
        ([0.951, 0.951, 0.951], [0.950, 0.950, 0.950], "pass"),  # a certain gain is a gain, however small
        ([0.9500, 0.9510, 0.9505], [0.9500, 0.9501, 0.9502], "fail"),  # below half a point for sure, not above 0
        ([0.9, math.nan], [0.8, 0.8], "not decided"),
        # Differences m - s, m, m + s: t = m * sqrt(3) / s against 2.920 (2.353 would be 3 degrees of freedom).
        ([0.51, 0.53, 0.55], [0.5, 0.5, 0.5], "not decided"),  # t = 2.598
        ([0.5125, 0.53, 0.5475], [0.5, 0.5, 0.5], "pass"),  # t = 2.969
        ([0.4475, 0.47, 0.4925], [0.5, 0.5, 0.5], "not decided"),  # -0.03 + 0.0379 = 0.0079, above the margin
        ([0.45, 0.47, 0.49], [0.5, 0.5, 0.5], "fail"),  # -0.03 + 0.0337 = 0.0037
        ([-0.1, -0.2], [-0.5, -0.6], "pass"),  # any metric of which more is better
    ],
)
def test_verdicts(ticket: list[float], check: list[float], verdict: str) -> None:
    assert paired_test(ticket, check).verdict == verdict


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=2, max_size=6))
def test_a_pass_is_a_one_sided_paired_t_test(pairs: list[tuple[float, float]]) -> None:
    ticket, check = [a for a, _ in pairs], [b for _, b in pairs]
    differences = [a - b for a, b in pairs]
    if max(differences) - min(differences) < 1e-6:
        return
    p = stats.ttest_rel(ticket, check, alternative="greater").pvalue
    if abs(p - 0.05) > 1e-6:
        assert (paired_test(ticket, check).verdict == "pass") == (p < 0.05)


def test_pairs_are_needed() -> None:
    for ticket, check in (([0.9], [0.8, 0.7]), ([], [])):
        with pytest.raises(UsageError, match="paired values are needed"):
            paired_test(ticket, check)


@pytest.mark.parametrize(
    ("verdicts", "expected"),
    [
        (["pass", "pass"], "pass"),
        (["pass", "not decided"], "not decided"),
        (["pass", "not decided", "fail"], "fail"),
        ([], "not decided"),
    ],
)
def test_overall(verdicts: list[str], expected: str) -> None:
    rows = [Check(0.0, 0.0, 1, 0.0, 0.0, v, (), ()) for v in verdicts]  # type: ignore[arg-type]
    assert overall(rows) == expected


@pytest.mark.parametrize(
    ("ticket", "dense", "verdict"),
    [
        ([0.970], [0.970], "undecided"),  # one seed decides nothing
        ([0.970, 0.970], [0.975, 0.975], "within"),  # exactly the margin is not more than it
        ([0.970, 0.970], [0.976, 0.976], "not within"),
        ([0.970, 0.972, 0.971], [0.973, 0.974, 0.974], "within"),
        ([0.960, 0.961, 0.960], [0.973, 0.974, 0.974], "not within"),
        ([0.970, 0.960, 0.975], [0.973, 0.974, 0.974], "undecided"),
    ],
)
def test_a_margin_by_cases(ticket: list[float], dense: list[float], verdict: str) -> None:
    assert margin_test(ticket, dense, 0.005).verdict == verdict


def test_a_margin_by_hand() -> None:
    # Differences -0.003, -0.002, -0.003: mean -0.008/3, deviation 0.000577; reach = 2.920 * 0.000577 / sqrt(3).
    found = margin_test([0.970, 0.972, 0.971], [0.973, 0.974, 0.974], 0.005)
    assert found.difference == pytest.approx(-0.008 / 3)
    assert found.low == pytest.approx(-0.008 / 3 - 0.000973, abs=1e-6)
    assert found.high == pytest.approx(-0.008 / 3 + 0.000973, abs=1e-6)
    assert found.looks(0.005)
    assert not found.looks(0.002)
    assert margin_test([0.9], [0.8], 0.0).low is None
