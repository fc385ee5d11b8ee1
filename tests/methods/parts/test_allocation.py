"""Counts by layer, exact and capped, and random masks that keep them."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gemminer.core.errors import UsageError
from gemminer.methods.parts.allocation import allocate, random_masks


@given(
    st.lists(st.tuples(st.integers(1, 1000), st.sampled_from([0.0, 1e-9, 0.3, 1.0, 7.0, 1e6])), min_size=1, max_size=8),
    st.data(),
)
def test_allocate_is_exact_and_capped(layers: list[tuple[int, float]], data: st.DataObject) -> None:
    sizes = {f"layer{i}": size for i, (size, _) in enumerate(layers)}
    ratios = {f"layer{i}": ratio for i, (_, ratio) in enumerate(layers)}
    total = data.draw(st.integers(1, sum(sizes.values())))
    counts = allocate(sizes, ratios, total)
    assert sum(counts.values()) == total
    assert list(counts) == list(sizes)
    assert all(0 <= counts[n] <= sizes[n] for n in sizes)
    partly = {n: counts[n] / ratios[n] / sizes[n] for n in sizes if ratios[n] and 0 < counts[n] < sizes[n]}
    for n, c in partly.items():  # one c for all that are not full, up to rounding of one weight
        for m, other in partly.items():
            assert abs(c - other) <= 1.001 / (ratios[n] * sizes[n]) + 1.001 / (ratios[m] * sizes[m])


def test_allocate_by_hand() -> None:
    # c * 4 > 1 for a, so a is full and b takes the other 45.
    assert allocate({"a": 10, "b": 100}, {"a": 4.0, "b": 1.0}, 55) == {"a": 10, "b": 45}
    # 10/3 each: the two remainders of 1/3 and... all tie, so the first layer gets the weight that is left.
    assert allocate({"a": 5, "b": 5, "c": 5}, {"a": 1.0, "b": 1.0, "c": 1.0}, 10) == {"a": 4, "b": 3, "c": 3}
    for total in (0, 16):
        with pytest.raises(UsageError, match=f"cannot keep {total} of 15"):
            allocate({"a": 15}, {"a": 1.0}, total)


def test_random_masks_keep_their_counts_and_vary_with_the_seed() -> None:
    shapes = {"a": torch.Size([5, 4]), "b": torch.Size([3, 2, 2])}
    first, second = (random_masks(shapes, {"a": 7, "b": 12}, seed) for seed in (0, 1))
    assert [int(m.sum()) for m in first.values()] == [7, 12]
    assert not torch.equal(first["a"], second["a"])
    assert torch.equal(first["a"], random_masks(shapes, {"a": 7, "b": 12}, 0)["a"])
