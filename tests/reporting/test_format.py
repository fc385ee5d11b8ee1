"""Numbers as people read them."""

from __future__ import annotations

import pytest

from gemminer.reporting import format


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (format.density(0.005898), "0.59%"),
        (format.density(1581 / 268048), "0.59%"),
        (format.density(1.0), "100%"),
        (format.density(0.00031), "0.031%"),
        (format.density(0.13344), "13.3%"),
        (format.density(None), "–"),
        (format.value(0.97134, "accuracy"), "97.1%"),
        (format.value(-0.0142, "accuracy", True), "−1.4"),
        (format.value(float("nan"), "accuracy"), "–"),
        (format.flops(1.2e13), "12 TFLOP"),
        (format.flops(512), "512 FLOP"),
        (format.flops(0), "0 FLOP"),
        (format.duration(9.13), "9.1 s"),
        (format.duration(151), "2 min 31 s"),
        (format.duration(3 * 3600 + 299), "3 h 04 min"),
    ],
)
def test_numbers_as_people_read_them(shown: str, expected: str) -> None:
    assert shown == expected
