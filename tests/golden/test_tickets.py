"""Every method finds the tickets it has always found on the conformance models, whatever processor it runs on."""

from __future__ import annotations

import pytest

from tests.conformance.models import MODELS
from tests.golden import pins
from tests.helpers import EXACT

PINNED = pins.load()["tickets"]
CASES = [(label, name) for label in PINNED for name in PINNED[label]]


def test_every_method_and_variant_is_pinned() -> None:
    asked = {method: list(MODELS) for method in EXACT} | {label: ["Plain"] for label in pins.VARIANTS}
    assert {label: list(models) for label, models in PINNED.items()} == asked


@pytest.mark.parametrize(("label", "name"), CASES)
def test_the_ticket_is_the_pinned_one(label: str, name: str) -> None:
    """Batches of 16 (tokens too), 4 epochs, density 0.3, seed 1, float64."""
    assert pins.masks_digest(pins.search(label, name).masks) == PINNED[label][name]


@pytest.mark.parametrize(
    "label", [label for label in PINNED if label not in ("random", "uniform", "erk", "smart-ratio")]
)
def test_rounding_does_not_reach_a_pin(label: str) -> None:
    """Weights disturbed by 1e-9, ten million times what two processors differ by, give the same masks."""
    assert pins.masks_digest(pins.search(label, "Plain", disturbed=1e-9).masks) == PINNED[label]["Plain"]
