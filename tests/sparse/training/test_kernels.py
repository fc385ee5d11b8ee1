"""Convolutions of every shape against masked dense ones."""

from __future__ import annotations

import copy

import numpy as np
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from gemminer import models
from gemminer.sparse.training import kernels
from gemminer.sparse.training.convert import sparsify
from tests.sparse.training.helpers import compare, noise, ticket_for


@settings(max_examples=40, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_a_convolution_equals_masked_dense(data: st.DataObject) -> None:
    draw = data.draw
    groups = draw(st.sampled_from([1, 1, 1, 2, 4]))
    per_in, per_out = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    kernel = (draw(st.sampled_from([1, 2, 3, 5, 7])), draw(st.sampled_from([1, 3, 5])))
    padding = tuple(draw(st.integers(0, k - 1)) for k in kernel)
    stride = draw(st.sampled_from([1, 1, 2, 3]))
    height, width, batch = draw(st.integers(1, 9)), draw(st.integers(1, 9)), draw(st.sampled_from([1, 2, 5, 16, 21]))
    assume(height + 2 * padding[0] >= kernel[0] and width + 2 * padding[1] >= kernel[1])
    conv = nn.Conv2d(
        per_in * groups, per_out * groups, kernel, stride, padding, groups=groups, bias=draw(st.booleans())
    )
    model = nn.Sequential(conv).double()
    ticket = ticket_for(model, draw(st.sampled_from([0.05, 0.3, 1.0])), draw(st.integers(0, 99)))
    sparse = sparsify(model, ticket, engine="sparse")
    x = noise(batch, per_in * groups, height, width)
    layout = draw(st.sampled_from(["plain", "channels last", "a view"]))
    if layout == "channels last":
        x = x.contiguous(memory_format=torch.channels_last)
    elif layout == "a view":
        x = x.transpose(2, 3).contiguous().transpose(2, 3)
    compare(model, sparse, ticket, x)


def test_single_precision_is_within_a_hundred_thousandth_of_double() -> None:
    """A unit within 1e-5; twenty of them, each normalising, no further away than PyTorch's own single precision is."""
    unit = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1))
    assert max(_error(unit, seed, 8)[0] for seed in range(5)) < 1e-5
    net = models.build("resnet20", image_size=16, width=0.5)
    errors = [_error(net, seed, 3) for seed in range(5)]
    assert np.median([ours for ours, _ in errors]) < 1e-5
    assert np.median([ours / theirs for ours, theirs in errors]) < 2


def _error(model: nn.Module, seed: int, channels: int) -> tuple[float, float]:
    """The largest error of outputs and weight gradients, as a fraction of the largest: of the engine, of PyTorch."""
    model = copy.deepcopy(model)
    ticket = ticket_for(model, 0.1, seed)
    sparse, exact = sparsify(model, ticket, engine="sparse"), copy.deepcopy(model).double()
    x = noise(8, channels, 16, 16, dtype=torch.float32, seed=seed)
    outs = [net(x.to(next(net.parameters()).dtype)) for net in (exact, sparse, model)]
    dy = noise(*outs[0].shape, seed=1, dtype=torch.float32)
    for out in outs:
        out.backward(dy.to(out.dtype))
    gradients = {n: p.grad for net in (sparse,) for n, p in net.named_parameters()}
    errors = [_relative(out, outs[0]) for out in outs[1:]]
    for name, p in exact.named_parameters():
        if name in ticket.masks and ticket.masks[name].any() and p.grad is not None:
            mask = ticket.masks[name]
            ours = gradients[f"net.{name.removesuffix('weight')}values"]
            theirs = dict(model.named_parameters())[name].grad
            assert ours is not None
            assert theirs is not None
            errors[0] = max(errors[0], _relative(ours, p.grad[mask]))
            errors[1] = max(errors[1], _relative(theirs[mask], p.grad[mask]))
    return errors[0], errors[1]


def _relative(ours: Tensor, exact: Tensor) -> float:
    return float((ours.detach() - exact.detach()).abs().max() / exact.detach().abs().max().clamp(min=1e-3))


def test_large_maps_bypass_the_caches_and_stay_equal() -> None:
    model = models.build("resnet20", image_size=32).double()
    ticket = ticket_for(model, 0.05)
    x = noise(17, 3, 32, 32)  # a full block and a ragged one; the first maps have 278,528 numbers
    assert kernels.LARGE < 17 * 16 * 32 * 32
    compare(model, sparsify(model, ticket, engine="sparse"), ticket, x)


def test_nan_stays_nan() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.BatchNorm2d(2), nn.ReLU(), nn.Conv2d(2, 2, 1))
    sparse = sparsify(model, ticket_for(model, 1.0), engine="sparse")
    x = torch.ones(2, 1, 4, 4)
    x[1, 0, 2, 2] = float("nan")
    assert sparse(x).isnan().all()
    assert sparsify(model[:1], ticket_for(model[:1], 1.0), engine="sparse")(x).isnan().any()
