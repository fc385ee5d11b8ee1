"""SNIP against the loss's derivative in the mask."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from gemminer.core.errors import UsageError
from gemminer.methods import snip
from tests.methods.oracles import assert_ranked, first, flat_weights, loss_at, small, task_of, together


@pytest.mark.parametrize("batches", [1, 3])
def test_snip_is_the_losss_derivative_in_the_mask(batches: int) -> None:
    model = small()
    task = task_of(model)
    x, y = together(first(task, batches))
    w = flat_weights(model)
    by_mask = torch.autograd.functional.jacobian(lambda c: loss_at(model, c * w, x, y), torch.ones_like(w))
    assert_ranked("snip", by_mask.abs(), task, snip.Options(batches=batches))


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_snip_scores_in_the_mode_that_is_asked_for(mode: str) -> None:
    """In evaluation mode batch norm divides by the model's own statistics, as at the beginning: by 1."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Dropout(0.0), nn.Linear(5, 3)).double()
    task = task_of(model)
    x, y = first(task, 1)[0]
    plain = copy.deepcopy(model).train(mode == "train")
    weights = [plain[0].weight, plain[4].weight]
    slopes = torch.autograd.grad(nn.functional.cross_entropy(plain(x), y), weights)
    scores = torch.cat([(w * g).abs().detach().reshape(-1) for w, g in zip(weights, slopes, strict=True)])
    assert_ranked("snip", scores, task, snip.Options(mode=mode))
    assert model.training


def test_snip_knows_two_modes() -> None:
    with pytest.raises(UsageError, match="mode"):
        snip.Options(mode="both")
