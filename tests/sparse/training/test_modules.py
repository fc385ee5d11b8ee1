"""Layers that stay dense under their mask, and inputs the kernels do not take."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

from gemminer.sparse.training.convert import sparsify
from gemminer.sparse.training.modules import SparseLinear
from tests.sparse.training.helpers import close, compare, noise, ticket_for


def test_a_layer_that_stays_dense_holds_its_mask_through_copies_and_loading() -> None:
    plain = nn.Sequential(nn.Conv2d(2, 4, 3, padding=2, dilation=2)).double()
    whole = copy.deepcopy(plain.state_dict())
    ticket = ticket_for(plain, 0.5)
    masked = sparsify(plain, ticket, engine="sparse")
    masked.load_state_dict(whole)
    x = noise(5, 2, 4, 4)
    dropped = ~ticket.masks["0.weight"]
    masked(x).sum().backward()
    for net in (masked, copy.deepcopy(masked), pickle.loads(pickle.dumps(masked))):
        assert not net[0].weight[dropped].any(), "loading a plain state dict does not bring pruned weights back"
        for _ in range(2):  # what is registered once acts once
            net.zero_grad()
            net(x).square().sum().backward()
            assert not net[0].weight.grad[dropped].any()
            assert net[0].weight.grad[~dropped].all()
        (gradient,) = torch.autograd.grad(net(x).square().sum(), [net[0].weight], create_graph=True)
        assert not gradient[dropped].any()
        assert gradient.requires_grad
    net[0].weight.requires_grad_(False)
    assert net(x).isfinite().all()


def test_what_the_kernels_cannot_take_pytorch_computes() -> None:
    model = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU()).eval()
    sparse = sparsify(model, ticket_for(model, 0.5), engine="sparse")
    x = noise(4, 2, 5, 5, dtype=torch.float32)
    half_model, half = copy.deepcopy(model).bfloat16(), copy.deepcopy(sparse).bfloat16()
    close(half(x.bfloat16()), half_model(x.bfloat16()), 1e-6)
    with torch.autocast("cpu"):
        close(sparse(x), model(x), 1e-6)
    with pytest.raises(RuntimeError):
        sparse(x.double())
    sparse.train()
    with pytest.raises(ValueError, match="more than 1 value"):
        sparse(torch.ones(1, 2, 1, 1))
    assert sparse(torch.ones(0, 2, 5, 5)).shape == (0, 3, 5, 5)


def test_linear_takes_any_leading_dimensions() -> None:
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4)).double()
    ticket = ticket_for(model, 0.4)
    sparse = sparsify(model, ticket, engine="sparse")
    for shape in ((6,), (3, 6), (2, 3, 6), (70, 6)):
        compare(model, sparse, ticket, noise(*shape))
    assert isinstance(sparse.net[0], SparseLinear)
