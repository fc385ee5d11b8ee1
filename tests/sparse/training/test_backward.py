"""Gradients against finite differences, and autograd's own rules."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from gemminer.sparse.training.convert import sparsify
from tests.sparse.training.helpers import close, noise, ticket_for


def test_gradcheck() -> None:
    model = nn.Sequential(
        nn.Conv2d(2, 3, 3, 2, 1), nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 2, 3, padding=1)
    ).double()
    sparse = sparsify(model, ticket_for(model, 0.5), engine="sparse")
    for module in sparse.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.0  # or each call would change the next
    parameters = tuple(sparse.parameters())
    x = noise(3, 2, 5, 5).requires_grad_()
    assert torch.autograd.gradcheck(lambda x, *_: sparse(x), (x, *parameters))


def test_no_grad_a_kept_graph_and_weights_changed_in_between() -> None:
    model = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU()).double()
    sparse = sparsify(model, ticket_for(model, 0.5), engine="sparse")
    x = noise(4, 2, 5, 5)
    with torch.no_grad():
        assert not sparse(x).requires_grad
    values = sparse.net[0].values
    y = sparse(x).square().sum()
    y.backward(retain_graph=True)
    once = values.grad.clone()
    y.backward()
    close(values.grad, 2 * once)
    with pytest.raises(RuntimeError, match="second time"):
        y.backward()
    y = sparse(x).sum()
    with torch.no_grad():
        values.add_(1)
    with pytest.raises(RuntimeError, match="inplace"):
        y.backward()
