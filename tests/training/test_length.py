"""A training whose validation metric still rises at its end is said to be short."""

from __future__ import annotations

import pytest

from gemminer.training.length import short


def rows(*values: float | None) -> list[dict[str, float | None]]:
    return [{"validation": v} for v in values]


def test_a_rise_in_the_last_quarter_is_said() -> None:
    said = short(rows(0.5, 0.6, 0.7, 0.7, 0.7, 0.71, 0.73, 0.74), "accuracy")
    assert said is not None
    assert "rose by 3.0 points in the last quarter of 8 epochs" in said
    assert short(rows(-9.0, -5.0, -3.0, -2.5), "negative loss") is not None


@pytest.mark.parametrize(
    "values",
    [
        (0.5, 0.7, 0.74, 0.74, 0.74, 0.74, 0.74, 0.74),  # flat
        (0.5, 0.7, 0.74, 0.74, 0.74, 0.74, 0.744, 0.743),  # less than half a point
        (0.1, 0.5, 0.9, 0.93, 0.95, 0.96, 0.966, 0.967),  # little of the whole rise
        (0.5, 0.9),
        (None, None, None, None, None),
    ],
)
def test_a_training_that_came_to_rest_is_not(values: tuple[float | None, ...]) -> None:
    assert short(rows(*values), "accuracy") is None
