"""A look at the first batch: what a loss or a metric would do silently is said."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import gemminer
from gemminer.core.errors import GemminerError
from tests.helpers import Notes

X = torch.randn(32, 4, generator=torch.Generator().manual_seed(0))
Y = X[:, 0]


def network(flat: bool = False) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1), *([nn.Flatten(0)] if flat else []))


def squares(output: Tensor, target: Tensor) -> Tensor:
    return (output - target).square().mean()


def safe(output: Tensor, target: Tensor) -> Tensor:
    return squares(output.reshape(-1), target.reshape(-1))


def said(flat: bool, targets: Tensor, **given: Any) -> list[str]:
    notes = Notes()
    gemminer.mine(network(flat), (X, targets), 0.5, epochs=1, monitor=notes, validation_data=(X, targets), **given)
    return [note for note in notes.notes if "broadcasts" in note]


@pytest.mark.filterwarnings("ignore:Using a target size")  # PyTorch's own, of its own losses alone
@pytest.mark.parametrize("loss", [squares, F.mse_loss, nn.L1Loss(), lambda o, t: (o - t).abs().mean()])
def test_a_loss_that_broadcasts_is_said_once(loss: Any) -> None:
    assert said(False, Y, loss=loss) == [
        "warning: the loss broadcasts outputs of shape (32, 1) and targets of shape (32,), so that each output is "
        "measured against every target: give targets.unsqueeze(-1), or the model's output.squeeze(-1)"
    ]
    [other] = said(True, Y[:, None], loss=loss)
    assert "outputs of shape (32,) and targets of shape (32, 1)" in other
    assert other.endswith("give targets.squeeze(-1), or the model's output.unsqueeze(-1)")
    assert said(False, Y[:, None], loss=loss) == said(True, Y, loss=loss) == []


def test_a_loss_that_minds_the_shapes_itself_is_not() -> None:
    assert said(False, Y, loss=safe) == said(True, Y[:, None], loss=safe) == []


def test_so_is_a_metric() -> None:
    [note] = said(False, Y, loss=safe, metric=lambda output, target: -squares(output, target))
    assert note.startswith("warning: the metric broadcasts")


def test_a_loss_that_refuses_the_shapes_says_what_to_give() -> None:
    with pytest.raises(GemminerError, match=r"the loss does not fit .*; give targets.unsqueeze\(-1\), or the model's"):
        said(False, (Y > 0).float(), loss=F.binary_cross_entropy_with_logits)
    with pytest.raises(GemminerError, match="out of bounds") as caught:
        said(False, (Y > 0).long())
    assert "unsqueeze" not in str(caught.value)
