"""Exact counts: how many weights a density keeps, and which."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from gemminer.core.errors import UsageError
from gemminer.core.selection import keep_highest, kth_highest, lowest, target
from tests.helpers import Elsewhere

# Few values, so that most scores tie, as scores clipped to 0 and 1 do.
CLIPPED = st.lists(st.sampled_from([0.0, 0.0, 0.25, 0.5, 1.0, 1.0]), min_size=1, max_size=60)


@given(st.floats(1e-6, 1.0), st.integers(1, 10**9))
def test_target_is_the_nearest_whole_number(density: float, total: int) -> None:
    exact = Fraction(density) * total
    if round(density * total) == 0:
        with pytest.raises(UsageError, match=f"keeps none of {total} weights"):
            target(density, total)
    else:
        assert abs(target(density, total) - exact) <= Fraction(1, 2) + Fraction(total, 2**52)


@given(st.integers(1, 10**12), st.data())
def test_a_realised_density_keeps_as_many_again(total: int, data: st.DataObject) -> None:
    kept = data.draw(st.integers(1, total))
    assert target(kept / total, total) == kept


@pytest.mark.parametrize("density", [0, -0.1, 1.0001, 2, math.nan, math.inf, "0.1", None])
def test_densities_that_cannot_be(density: Any) -> None:
    with pytest.raises(UsageError, match="density is the fraction of weights kept, above 0 and at most 1"):
        target(density, 100)


@given(CLIPPED, st.integers(-2, 70))
def test_lowest_takes_exactly_so_many_and_ties_by_index(values: list[float], count: int) -> None:
    expected = sorted(range(len(values)), key=lambda i: (values[i], i))[: max(count, 0)]
    assert sorted(lowest(torch.tensor(values), count).tolist()) == sorted(expected)


@given(CLIPPED, st.integers(-2, 70))
def test_lowest_takes_the_last_of_the_ties_if_asked(values: list[float], count: int) -> None:
    expected = sorted(range(len(values)), key=lambda i: (values[i], -i))[: max(count, 0)]
    assert sorted(lowest(torch.tensor(values), count, last=True).tolist()) == sorted(expected)


@given(st.lists(st.floats(allow_nan=False, width=32), min_size=1, max_size=60), st.integers(0, 60))
def test_lowest_of_any_numbers(values: list[float], count: int) -> None:
    chosen = lowest(torch.tensor(values), count).tolist()
    rest = [values[i] for i in range(len(values)) if i not in chosen]
    assert len(set(chosen)) == min(count, len(values))
    assert not chosen or not rest or max(values[i] for i in chosen) <= min(rest)


@given(CLIPPED, st.integers(1, 59), st.booleans())
def test_a_gpus_lowest_is_the_cpus(values: list[float], count: int, last: bool) -> None:
    assume(count < len(values))
    scores = torch.tensor(values)
    elsewhere = scores.as_subclass(Elsewhere)
    assert sorted(lowest(elsewhere, count, last=last).tolist()) == sorted(lowest(scores, count, last=last).tolist())


@given(st.lists(CLIPPED, min_size=1, max_size=4), st.data())
def test_keep_highest_keeps_exactly_so_many_over_all_layers(layers: list[list[float]], data: st.DataObject) -> None:
    scores = {f"layer{i}": torch.tensor(layer).reshape(-1, 1) for i, layer in enumerate(layers)}
    flat = [value for layer in layers for value in layer]
    count = data.draw(st.integers(0, len(flat)))
    masks = keep_highest(scores, count)
    expected = sorted(range(len(flat)), key=lambda i: (-flat[i], i))[:count]
    kept = torch.cat([masks[name].reshape(-1) for name in scores]).nonzero().flatten().tolist()
    assert kept == sorted(expected)
    assert all(masks[name].shape == score.shape and masks[name].dtype == torch.bool for name, score in scores.items())


def test_keep_highest_refuses() -> None:
    with pytest.raises(UsageError, match="cannot keep 3 of 2"):
        keep_highest({"a": torch.zeros(2)}, 3)
    with pytest.raises(UsageError, match="cannot keep -1 of 2"):
        keep_highest({"a": torch.zeros(2)}, -1)
    with pytest.raises(UsageError, match="scores are NaN"):
        keep_highest({"a": torch.tensor([0.0, math.nan])}, 1)
    for flag in (None, torch.tensor(False)):
        with pytest.raises(UsageError, match="scores are NaN"):
            keep_highest({"a": torch.tensor([math.inf, math.nan, -math.inf])}, 1, flag)
    assert keep_highest({"a": torch.tensor([math.inf, -math.inf])}, 1)["a"].tolist() == [True, False]  # sum to NaN


def test_a_flag_is_set_where_a_device_would_have_to_be_waited_for() -> None:
    flag, sound = torch.tensor(False), torch.tensor([0.0, 1.0, -math.inf]).as_subclass(Elsewhere)
    assert keep_highest({"a": sound}, 1, flag)["a"].tolist() == [False, True, False]
    assert not flag
    keep_highest({"a": torch.tensor([0.0, math.nan]).as_subclass(Elsewhere)}, 1, flag)
    keep_highest({"a": sound}, 1, flag)
    assert flag
    with pytest.raises(UsageError, match="scores are NaN"):  # without one the device is waited for
        keep_highest({"a": torch.tensor([0.0, math.nan]).as_subclass(Elsewhere)}, 1)


@given(data=st.data())
def test_the_kth_highest_is_that_of_a_sort(data: st.DataObject) -> None:
    values = data.draw(st.lists(st.sampled_from([0.0, 0.25, 0.5, 0.5625, 0.75, 1.0]), min_size=1, max_size=30))
    among = data.draw(st.none() | st.lists(st.booleans(), min_size=len(values), max_size=len(values)))
    count = data.draw(st.integers(0, 30))
    reach = sorted((v for i, v in enumerate(values) if v >= 0.5 and (among is None or among[i])), reverse=True)
    expected = 0.5 if len(reach) <= count else reach[max(count, 1) - 1]
    if count:
        mask = None if among is None else torch.tensor(among)
        assert float(kth_highest(torch.tensor(values), mask, count, 0.5)) == expected
        assert float(kth_highest(torch.tensor(values).as_subclass(Elsewhere), mask, count, 0.5)) == expected


@pytest.mark.parametrize("surplus", [1, 40, 3000, 60_000])
@pytest.mark.parametrize("order", ["random", "ascending", "descending"])
def test_the_kth_highest_of_many_is_that_of_a_sort(surplus: int, order: str) -> None:
    """Also where a sample of every so many scores says nothing about the others."""
    values = torch.rand(200_000, generator=torch.Generator().manual_seed(0))
    if order != "random":
        values = values.sort(descending=order == "descending").values
    values[::32] = 0.75
    reached = values[values >= 0.5].sort().values
    among = torch.ones(values.numel(), dtype=torch.bool)
    for mask in (None, among):
        assert kth_highest(values, mask, reached.numel() - surplus, 0.5) == reached[surplus]
