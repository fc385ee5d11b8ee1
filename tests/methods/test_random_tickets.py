"""ERK's densities by hand."""

from __future__ import annotations

import pytest
import torch

from gemminer.methods.random_tickets import erk_ratio
from tests.methods.oracles import Layers, kept


def test_erk_of_a_convolution_by_hand() -> None:
    assert erk_ratio(torch.Size([16, 8, 3, 3])) == (8 + 16 + 3 + 3) / (8 * 16 * 3 * 3)
    assert erk_ratio(torch.Size([10, 20])) == 30 / 200


def test_erk_by_hand() -> None:
    """Relative densities (1+2+6)/18, (2+4+6)/72, (4+10+6)/360, (10+10)/100, so weights go as 9 : 12 : 20 : 20."""
    ratios = [erk_ratio(p.shape) for p in Layers().parameters() if p.dim() > 1]
    assert ratios == pytest.approx([1 / 2, 1 / 6, 1 / 18, 1 / 5])
    assert kept("erk", 61 / 550) == [9, 12, 20, 20]
    # 161 would ask 23.8 of the first 18: it is full, and 143 go as 12 : 20 : 20 to the others.
    assert kept("erk", 161 / 550) == [18, 33, 55, 55]
