"""Convolutions of every shape against masked dense ones."""

from __future__ import annotations

import copy
import importlib.util
from pathlib import Path

import numba
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from gemminer import models
from gemminer.core.ticket import Ticket
from gemminer.sparse.training import kernels, vectors
from gemminer.sparse.training.convert import sparsify
from gemminer.sparse.training.patterns import Pattern
from tests.sparse.training.helpers import compare, noise, ticket_for


@settings(max_examples=40, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_a_convolution_equals_masked_dense(data: st.DataObject) -> None:
    _convolution(data)


@settings(max_examples=60, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_so_does_one_whose_planes_are_a_window(data: st.DataObject) -> None:
    """With a cache so small that a window is of one to three rows."""
    with pytest.MonkeyPatch.context() as patch:
        tile = data.draw(st.integers(1, 3))
        patch.setattr(Pattern, "_tile", staticmethod(lambda rows, *rest: min(rows, tile)))
        _convolution(data)


def _convolution(data: st.DataObject) -> None:
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
    assert kernels.LARGE < 8 * 17 * 16 * 32 * 32
    compare(model, sparsify(model, ticket, engine="sparse"), ticket, x)


def _exact(x: Tensor) -> Tensor:
    """Numbers of bfloat16 in double precision."""
    return x.bfloat16().double()


def _half_a_place(ours: Tensor, exact: Tensor) -> None:
    """Equal but for rounding to bfloat16, and for what float32 loses in a sum."""
    assert ((ours.double() - exact).abs() <= 2**-8 * exact.abs() + 1e-5 * exact.abs().max()).all()


@settings(max_examples=25, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_in_bfloat16_only_what_is_stored_is_rounded(data: st.DataObject) -> None:
    """Outputs and input gradients to the nearest place, weight gradients not at all."""
    draw = data.draw
    kernel, stride = draw(st.sampled_from([1, 2, 3, 5])), draw(st.sampled_from([1, 1, 2]))
    groups = draw(st.integers(1, 2))
    height, width, batch = draw(st.integers(1, 9)), draw(st.integers(1, 9)), draw(st.sampled_from([1, 2, 5, 16, 37]))
    padding = draw(st.integers(0, kernel - 1))
    assume(min(height, width) + 2 * padding >= kernel)
    channels = 2 * groups
    layer: nn.Module = nn.Conv2d(
        channels, draw(st.integers(1, 3)) * groups, kernel, stride, padding, groups=groups, bias=False
    )
    if draw(st.booleans()):
        layer = nn.Linear(channels, 5, bias=False)
    model = nn.Sequential(layer)
    ticket = ticket_for(model, draw(st.sampled_from([0.05, 0.3, 1.0])), draw(st.integers(0, 99)))
    shape = (batch, channels) if isinstance(layer, nn.Linear) else (batch, channels, height, width)
    x = noise(*shape, dtype=torch.float32)
    if draw(st.booleans()):
        x = x.bfloat16()
    exact = copy.deepcopy(model).double()
    theirs, ours = _exact(x).requires_grad_(), x.clone().requires_grad_()
    sparse = sparsify(model, ticket, engine="sparse")
    with torch.autocast("cpu", torch.bfloat16):
        out = sparse(ours)
    assert out.dtype is torch.bfloat16
    y = exact(theirs)
    _half_a_place(out, y)
    dy = noise(*y.shape, seed=5).bfloat16()
    y.backward(dy.double())
    out.backward(dy)
    assert ours.grad is not None
    assert theirs.grad is not None
    assert ours.grad.dtype is x.dtype
    _half_a_place(ours.grad, theirs.grad)
    values = next(p for name, p in sparse.named_parameters() if name.endswith("values"))
    kept = exact[0].weight.grad[ticket.masks["0.weight"]]  # type: ignore[index, union-attr]
    assert values.grad is not None
    assert values.grad.dtype is torch.float32
    assert (values.grad - kept).abs().max() <= 1e-5 * max(1e-3, float(kept.abs().max())) * batch


def test_a_network_in_bfloat16_is_no_further_from_the_exact_one_than_pytorchs() -> None:
    net = models.build("resnet20", image_size=16, width=0.5)
    errors = [_errors_in_bfloat16(net, seed) for seed in range(5)]
    for which in range(2):  # outputs, weight gradients
        assert np.median([ours[which] / theirs[which] for ours, theirs in errors]) < 1.5


def _errors_in_bfloat16(model: nn.Module, seed: int) -> list[tuple[float, float]]:
    """Relative errors of outputs and of weight gradients: of the engine, of PyTorch under autocast."""
    model = copy.deepcopy(model)
    ticket = ticket_for(model, 0.1, seed)
    x = noise(33, 3, 16, 16, seed=seed, dtype=torch.float32)
    exact = _step(copy.deepcopy(model).double(), x.double(), ticket)
    with torch.autocast("cpu", torch.bfloat16):
        found = [_step(net, x, ticket) for net in (sparsify(model, ticket, engine="sparse"), model)]
    return [
        (float((y - exact[0]).norm() / exact[0].norm()), float((g - exact[1]).norm() / exact[1].norm()))
        for y, g in found
    ]


def _step(net: nn.Module, x: Tensor, ticket: Ticket) -> tuple[Tensor, Tensor]:
    """Outputs and the gradient of all kept weights."""
    y = net(x)
    y.float().square().mean().backward() if x.dtype == torch.float32 else y.square().mean().backward()
    named = {name.removeprefix("net."): p.grad for name, p in net.named_parameters()}
    found = []
    for name, mask in ticket.masks.items():
        values = named.get(name.removesuffix("weight") + "values")
        whole = named.get(name)
        found.append(values if values is not None else whole[mask])  # type: ignore[index]
    return y.detach().double(), torch.cat([g.double() for g in found if g is not None])


def test_nan_stays_nan() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.BatchNorm2d(2), nn.ReLU(), nn.Conv2d(2, 2, 1))
    sparse = sparsify(model, ticket_for(model, 1.0), engine="sparse")
    x = torch.ones(2, 1, 4, 4)
    x[1, 0, 2, 2] = float("nan")
    assert sparse(x).isnan().all()
    assert sparsify(model[:1], ticket_for(model[:1], 1.0), engine="sparse")(x).isnan().any()


def test_another_edition_of_the_vectors_is_compiled_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Numba's own cache knows the file of a kernel only, and would go on with the vectors of before."""
    other = tmp_path / "vectors.py"
    other.write_text(Path(vectors.__file__).read_text() + "# edited\n")
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path / "cache"))

    def came_from_cache(file: str | Path) -> bool:
        monkeypatch.setattr(vectors, "__file__", str(file))
        spec = importlib.util.spec_from_file_location("kernels_again", kernels.__file__)
        assert spec
        assert spec.loader
        again = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(again)
        again._advance.compile("int64(int64, int64)")
        hits, misses = (sum(getattr(again._advance.stats, name).values()) for name in ("cache_hits", "cache_misses"))
        assert hits + misses == 1
        return bool(hits)

    own = vectors.__file__
    assert [came_from_cache(file) for file in (own, own, other, other, own)] == [False, True, False, True, False]
    cached = [found for found in vars(kernels).values() if isinstance(found, numba.core.dispatcher.Dispatcher)]
    assert len(cached) > 20
    assert all(found._cache._cache_file._source_stamp[1] == kernels._VECTORS for found in cached)
