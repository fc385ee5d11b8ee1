"""Magnitude keeps the largest weights."""

from __future__ import annotations

from gemminer import methods
from tests.methods.oracles import assert_ranked, flat_weights, small, task_of


def test_magnitude_is_the_largest_weights() -> None:
    model = small()
    assert_ranked("magnitude", flat_weights(model).abs(), task_of(model), methods.get("magnitude").options())
