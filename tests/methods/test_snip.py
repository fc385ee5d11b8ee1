"""SNIP against the loss's derivative in the mask."""

from __future__ import annotations

import pytest
import torch

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
