"""Axes of weights: fans, matrices and units, worked out by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from gemminer.core.errors import GemminerError
from gemminer.core.layout import Layout


@pytest.mark.parametrize(
    ("layout", "shape", "fans", "matrix"),
    [
        (Layout(), (5, 3), (3, 5), (5, 3)),
        (Layout(), (8, 2, 3, 3), (18, 72), (8, 2, 3, 3)),  # a convolution of 2 groups: PyTorch's own fans
        (Layout(1, 0), (3, 5), (3, 5), (5, 3)),
        (Layout(1, 0), (4, 8, 3, 3), (36, 72), (8, 4, 3, 3)),  # transposed: 4 inputs reach an output, 9 times
        (Layout(1, 0, groups=2), (4, 4, 3, 3), (18, 72), (8, 2, 3, 3)),  # in groups: 2 of 4 do
        (Layout(gates=4), (24, 3), (3, 6), (6, 3)),
        (Layout(output=2, input=1, matrices=0), (4, 6, 8), (6, 8), (8, 6)),
        (Layout(), (5, 3, 2), (6, 10), (5, 3, 2)),  # nn.Bilinear: pairs of inputs
    ],
)
def test_fans_and_matrices(
    layout: Layout, shape: tuple[int, ...], fans: tuple[int, int], matrix: tuple[int, ...]
) -> None:
    assert layout.fans(shape) == fans
    assert layout.matrix(shape) == matrix


def test_units_are_the_outputs() -> None:
    mask = torch.zeros(3, 4, dtype=torch.bool)
    mask[1, 2] = mask[2, 2] = True
    assert Layout().units(mask).tolist() == [False, True, True]
    assert Layout(1, 0).units(mask).tolist() == [False, False, True, False]
    experts = torch.stack([mask, ~mask])
    own = [False, False, True, False, True, True, True, True]
    assert Layout(output=2, input=1, matrices=0).units(experts).tolist() == own
    # (4 inputs, 3 outputs a group, kernel 1) in two groups: inputs 0 and 1 reach outputs 0 to 2, the others 3 to 5.
    grouped = torch.zeros(4, 3, 1, dtype=torch.bool)
    grouped[1, 2] = grouped[2, 0] = True
    assert Layout(1, 0, groups=2).units(grouped).tolist() == [False, False, True, True, False, False]
    assert Layout().units(torch.tensor([True, False])).tolist() == [True, False]


@pytest.mark.parametrize("layout", [Layout(), Layout(1, 0, groups=2), Layout(gates=4), Layout(2, 1, 0)])
def test_json_round_trip(layout: Layout) -> None:
    assert Layout.from_json(layout.as_json(), (8, 8, 8)) == layout


@pytest.mark.parametrize(
    "given",
    [
        *[[], {"axis": 1}, {"output": 1}, {"output": 5}, {"output": -1}, {"gates": 3}, {"gates": 0}, {"groups": "2"}],
        *[{"output": True}, {"matrices": 1}, {"gates": 10**30}],
    ],
)
def test_what_a_file_cannot_say(given: Any) -> None:
    with pytest.raises(GemminerError, match="layout that a weight of shape"):
        Layout.from_json(given, (8, 8))
