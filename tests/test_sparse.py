"""The sparse engine against masked dense modules in float64: outputs, gradients, statistics, training, copies."""

from __future__ import annotations

import copy
import io
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import gemminer
from gemminer import models
from gemminer.core.errors import GemminerError, UsageError
from gemminer.core.model_state import named_state
from gemminer.core.prunable import prunable_weights
from gemminer.core.ticket import Ticket
from gemminer.sparse import memory
from gemminer.sparse.training import crossover, kernels
from gemminer.sparse.training.convert import densify, sparsify
from gemminer.sparse.training.fuse import SparseNetwork
from gemminer.sparse.training.modules import (
    MaskedConv2d,
    MaskedLayer,
    MaskedLinear,
    SparseConv2d,
    SparseLayer,
    SparseLinear,
)
from gemminer.training.rules import KeepMask


def ticket_for(model: nn.Module, density: float, seed: int = 99) -> Ticket:
    """A random ticket of this density, written into the model."""
    source = torch.Generator().manual_seed(seed)
    masks = {n: torch.rand(p.shape, generator=source) < density for n, p in prunable_weights(model).items()}
    next(iter(masks.values())).view(-1)[0] = True
    ticket = Ticket(masks, named_state(model))
    ticket.apply(model)
    return ticket


def noise(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def close(ours: Tensor | None, theirs: Tensor | None, tolerance: float = 1e-10) -> None:
    """Equal up to a fraction of the largest number."""
    assert (ours is None) == (theirs is None)
    if ours is not None and theirs is not None and ours.numel():
        ours, theirs = ours.detach(), theirs.detach()
        assert ours.shape == theirs.shape
        assert (ours - theirs).abs().max() <= tolerance * max(1e-3, float(theirs.abs().max()))


def compare(dense: nn.Module, sparse: nn.Module, ticket: Ticket, x: Tensor, tolerance: float = 1e-10) -> None:
    """One forward and backward of each: output, every gradient, and the state afterwards."""
    xs = [x.detach().clone(memory_format=torch.preserve_format).requires_grad_() for _ in range(2)]
    outs = [net(x) for net, x in zip((dense, sparse), xs, strict=True)]
    close(outs[1], outs[0], tolerance)
    dy = noise(*outs[0].shape, seed=5).to(outs[0].dtype)
    for net, out in zip((dense, sparse), outs, strict=True):
        net.zero_grad()
        out.backward(dy)
    close(xs[1].grad, xs[0].grad, tolerance)
    theirs = dict(dense.named_parameters())
    for name, parameter in sparse.named_parameters():
        name = name.removeprefix("net.")
        if name.endswith("values"):
            name = name.removesuffix("values") + "weight"
            g = theirs[name].grad
            close(parameter.grad, None if g is None else g[ticket.masks[name]], tolerance)
        else:
            close(parameter.grad, theirs[name.replace(".layer.", ".")].grad, tolerance)
    state = densify(sparse)
    assert list(state) == list(dense.state_dict())
    for name, tensor in dense.state_dict().items():
        close(state[name].double(), tensor.double(), tolerance)


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


@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("density", [0.02, 0.3])
def test_norm_residual_and_relu_in_both_modes(affine: bool, momentum: float | None, density: float) -> None:
    model = models.build("resnet20", in_channels=2, image_size=8, width=0.25, norm="affine" if affine else "non-affine")
    model = model.double()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = momentum
    ticket = ticket_for(model, density)
    sparse = sparsify(model, ticket, engine="sparse")
    assert isinstance(sparse, SparseNetwork)
    assert sum(op.kind == "chain" for op in sparse.operations) == 2  # all convolutions in one, the classifier
    for i, training in enumerate([True, True, False]):
        model.train(training)
        sparse.train(training)
        compare(model, sparse, ticket, noise(5, 2, 8, 8, seed=i))


@pytest.mark.parametrize(
    "name", ["lenet-5", "conv-2", "vgg16", "mobilenet-v2", "resnet18", "resnet50", "wideresnet-10-1"]
)
def test_networks_equal_masked_dense(name: str) -> None:
    size = {"resnet18": 33, "resnet50": 33}.get(name, 16)
    width = {"lenet-5": 1.0}.get(name, 0.1)
    model = models.build(name, image_size=size, width=width).double()
    ticket = ticket_for(model, 0.3)
    sparse = sparsify(model, ticket, engine="sparse")
    for training in (True, False):
        model.train(training)
        sparse.train(training)
        compare(model, sparse, ticket, noise(4, 3, size, size), 1e-7)


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


@pytest.mark.parametrize("optimiser", ["sgd", "adamw"])
def test_two_hundred_steps_give_the_same_losses(optimiser: str) -> None:
    model = models.build("resnet20", in_channels=1, image_size=8, width=0.25, norm="affine").double()
    ticket = ticket_for(model, 0.2)
    sparse = sparsify(model, ticket, engine="sparse")
    images, labels = noise(50, 1, 8, 8), torch.arange(50) % 10

    def losses(net: nn.Module, rule: KeepMask | None) -> list[float]:
        parameters = list(net.parameters())
        if optimiser == "sgd":
            optim: torch.optim.Optimizer = torch.optim.SGD(parameters, 0.05, momentum=0.9, weight_decay=1e-3)
        else:
            optim = torch.optim.AdamW(parameters, 1e-3, weight_decay=1e-2)
        out = []
        for step in range(200):
            batch = slice(step % 3 * 20, step % 3 * 20 + 20)  # 20, 20, 10
            optim.zero_grad()
            loss = F.cross_entropy(net(images[batch]), labels[batch])
            loss.backward()
            if rule is not None:
                rule.after_backward()
            optim.step()
            out.append(float(loss.detach()))
        return out

    expected = losses(model, KeepMask(model, ticket.masks))
    np.testing.assert_allclose(losses(sparse, None), expected, atol=1e-3)
    assert expected[-1] < expected[0] / 2
    model.load_state_dict(densify(sparse), strict=True)
    for name, mask in ticket.masks.items():
        assert not model.state_dict()[name][~mask].any()


class Others(nn.Module):
    """Layers the kernels do not know, a shared weight, and a control flow no trace can follow."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3, padding=1)
        self.dilated = nn.Conv2d(4, 4, 3, padding=2, dilation=2)
        self.up = nn.ConvTranspose2d(4, 4, 2, 2)
        self.line = nn.Conv1d(4, 4, 3, padding=1)
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        x = self.up(self.dilated(F.relu(self.conv(x)))).flatten(2)
        x = self.line(x)
        if x.sum() == 12345:
            return x
        x = x.transpose(1, 2)
        out: Tensor = self.second(F.relu(self.first(self.attention(x, x, x, need_weights=False)[0])))
        return out


@pytest.mark.parametrize("optimiser", ["sgd", "adamw"])
def test_other_layers_stay_dense_under_their_mask(optimiser: str) -> None:
    model = Others().double()
    ticket = ticket_for(model, 0.5)
    sparse = sparsify(model, ticket, engine="sparse")
    assert type(sparse) is Others
    assert isinstance(sparse.conv, SparseConv2d)
    assert isinstance(sparse.dilated, MaskedConv2d)
    assert isinstance(sparse.up, MaskedLayer)
    assert sparse.first.values is sparse.second.values
    x = noise(3, 2, 4, 4)
    close(sparse(x), model(x))
    if optimiser == "sgd":
        optim: torch.optim.Optimizer = torch.optim.SGD(sparse.parameters(), 1e-3, momentum=0.9, weight_decay=0.1)
    else:
        optim = torch.optim.AdamW(sparse.parameters(), 0.1, weight_decay=0.1)
    for _ in range(3):
        optim.zero_grad()
        sparse(x).square().sum().backward()
        optim.step()
    state = densify(sparse)
    for name, mask in ticket.masks.items():
        assert not state[name][~mask].any()
        assert state[name][mask].all()
    before = sparse(x)
    model.load_state_dict(state, strict=True)
    close(model(x), before)
    for name, tensor in sparse.state_dict().items():  # zeros are zeros there too, not only behind the mask
        if name in ("dilated.weight", "line.layer.weight"):
            assert not tensor[~ticket.masks[name.replace(".layer", "")]].any()


@pytest.mark.parametrize("sift", [False, True])
def test_nothing_is_read_that_was_not_written(monkeypatch: pytest.MonkeyPatch, sift: bool) -> None:
    """Buffers come with whatever was in them: here NaN. With dead filters and, in a search, filters all off."""

    def poisoned(size: int, dtype: np.dtype[Any]) -> Any:
        return np.full(size, np.nan, dtype)

    monkeypatch.setattr(memory, "_aligned", poisoned)
    model = models.build("resnet20", image_size=8, width=0.25).double()
    ticket = ticket_for(model, 0.1)
    if sift:
        with torch.no_grad():
            for name in ticket.masks:
                model.get_parameter(name)[::2] = 0
    sparse = sparsify(model, ticket, engine="sparse")
    for module in sparse.modules():
        if isinstance(module, SparseLayer):
            module.sift = sift
    assert any(not layer.pattern().alive.all() for layer in sparse.modules() if isinstance(layer, SparseLayer))
    for training in (True, False):
        model.train(training)
        sparse.train(training)
        compare(model, sparse, ticket, noise(5, 3, 8, 8))


def test_large_maps_bypass_the_caches_and_stay_equal() -> None:
    model = models.build("resnet20", image_size=32).double()
    ticket = ticket_for(model, 0.05)
    x = noise(17, 3, 32, 32)  # a full block and a ragged one; the first maps have 278,528 numbers
    assert kernels.LARGE < 17 * 16 * 32 * 32
    compare(model, sparsify(model, ticket, engine="sparse"), ticket, x)


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


def test_copies_pickles_and_state_dicts() -> None:
    model = models.build("resnet20", in_channels=1, image_size=8, width=0.25).double()
    ticket = ticket_for(model, 0.2)
    sparse = sparsify(model, ticket, engine="sparse")
    x = noise(3, 1, 8, 8)
    sparse(x)
    sparse.eval()
    expected = sparse(x)
    file = io.BytesIO()
    torch.save(sparse, file)
    file.seek(0)
    fresh = sparsify(
        models.build("resnet20", in_channels=1, image_size=8, width=0.25).double(), ticket, engine="sparse"
    )
    fresh.load_state_dict(sparse.state_dict())
    for other in (
        copy.deepcopy(sparse),
        pickle.loads(pickle.dumps(sparse)),
        torch.load(file, weights_only=False),
        fresh.eval(),
    ):
        assert torch.equal(other(x), expected)
        assert not {p.data_ptr() for p in other.parameters()} & {p.data_ptr() for p in sparse.parameters()}
    wrong = sparsify(model, ticket_for(model, 0.1), engine="sparse")
    with pytest.raises(GemminerError, match="make the model from the ticket"):
        wrong.load_state_dict(sparse.state_dict())


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


def test_nan_stays_nan() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.BatchNorm2d(2), nn.ReLU(), nn.Conv2d(2, 2, 1))
    sparse = sparsify(model, ticket_for(model, 1.0), engine="sparse")
    x = torch.ones(2, 1, 4, 4)
    x[1, 0, 2, 2] = float("nan")
    assert sparse(x).isnan().all()
    assert sparsify(model[:1], ticket_for(model[:1], 1.0), engine="sparse")(x).isnan().any()


def test_threads_give_the_same_bits_again() -> None:
    model = models.build("resnet20", image_size=16, width=0.5)
    sparse = sparsify(model, ticket_for(model, 0.1), engine="sparse")
    x = noise(40, 3, 16, 16, dtype=torch.float32)
    results = []
    for threads in (1, 2, 2):
        torch.set_num_threads(threads)
        sparse.zero_grad()
        copied = copy.deepcopy(sparse)
        copied(x).sum().backward()
        results.append(torch.cat([p.grad.flatten() for p in copied.parameters()]))
    assert torch.equal(results[1], results[2])
    torch.testing.assert_close(results[0], results[1], rtol=1e-3, atol=1e-5)


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


def test_a_mode_in_the_control_flow_or_a_hook_stops_fusion() -> None:
    class Dropping(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(1, 2, 3)

        def forward(self, x: Tensor) -> Tensor:
            return F.dropout(self.conv(x), 0.5, self.training)

    model = Dropping()
    sparse = sparsify(model, ticket_for(model, 0.5), engine="sparse")
    assert type(sparse) is Dropping
    assert torch.equal(sparse.eval()(torch.ones(1, 1, 4, 4)), sparse(torch.ones(1, 1, 4, 4)))
    hooked = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU())
    ticket = ticket_for(hooked, 0.5)
    seen: list[int] = []
    hooked[1].register_forward_hook(lambda *_: seen.append(1))
    sparsify(hooked, ticket, engine="sparse")(torch.ones(1, 1, 4, 4))
    assert seen


def test_linear_takes_any_leading_dimensions() -> None:
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4)).double()
    ticket = ticket_for(model, 0.4)
    sparse = sparsify(model, ticket, engine="sparse")
    for shape in ((6,), (3, 6), (2, 3, 6), (70, 6)):
        compare(model, sparse, ticket, noise(*shape))
    assert isinstance(sparse.net[0], SparseLinear)


def test_auto_takes_the_cheaper_of_the_two(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(crossover, "_crossover", lambda kind: calls.append(kind) or 0.1)
    crossover.crossovers.cache_clear()
    try:
        model = nn.Sequential(nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 3))
        masks = {f"{i}.weight": torch.zeros(8, 8, 3, 3, dtype=torch.bool) for i in (0, 1)}
        masks["0.weight"].view(-1)[:57] = True  # of 576
        masks["1.weight"].view(-1)[:58] = True
        sparse = sparsify(model, Ticket(masks, model.state_dict()))
        found = [type(m) for m in sparse.modules() if isinstance(m, nn.Conv2d | SparseConv2d)]
        assert found == [SparseConv2d, MaskedConv2d]
        expected = dict.fromkeys(crossover._PROBES, 0.1)
        crossover.crossovers.cache_clear()
        assert crossover.crossovers(torch.get_num_threads()) == expected
        assert len(calls) == len(expected)  # the second time from the file
        for damaged in ("{", '{"conv 16": 0.1}', "[]"):
            next(tmp_path.rglob("crossover-*.json")).write_text(damaged)
            crossover.crossovers.cache_clear()
            assert crossover.crossovers(torch.get_num_threads()) == expected
    finally:
        crossover.crossovers.cache_clear()


@pytest.mark.parametrize(("density", "sparse"), [(0.1, True), (0.9, False)])
def test_a_depthwise_layer_goes_with_those_around_it(
    monkeypatch: pytest.MonkeyPatch, density: float, sparse: bool
) -> None:
    monkeypatch.setattr(crossover, "crossovers", lambda threads: dict.fromkeys(crossover._PROBES, 0.5))
    model = nn.Sequential(nn.Conv2d(4, 8, 1), nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 4, 1))
    found = [type(m) for m in sparsify(model, ticket_for(model, density)).modules() if hasattr(m, "groups")]
    assert found == 3 * [SparseConv2d if sparse else MaskedConv2d]


@pytest.mark.parametrize(("density", "sparse"), [(0.1, True), (0.9, False)])
def test_a_small_linear_layer_goes_with_the_large_ones(
    monkeypatch: pytest.MonkeyPatch, density: float, sparse: bool
) -> None:
    monkeypatch.setattr(crossover, "crossovers", lambda threads: dict.fromkeys(crossover._PROBES, 0.5))
    model = nn.Sequential(nn.Linear(784, 100), nn.ReLU(), nn.Linear(100, 10))
    kind = SparseLinear if sparse else MaskedLinear
    found = sparsify(model, ticket_for(model, density)).modules()
    assert [type(m) for m in found if isinstance(m, SparseLinear | MaskedLinear)] == [kind, kind]
    head = nn.Sequential(nn.Conv2d(4, 4, 1), nn.Flatten(), nn.Linear(4, 2))  # of a convolutional network: alone
    found = sparsify(head, ticket_for(head, 0.1)).modules()
    assert any(isinstance(m, SparseConv2d) for m in found)
    assert not any(isinstance(m, SparseLinear) for m in found)


def test_a_crossover_is_a_density() -> None:
    assert 0 <= crossover._crossover("conv 64") <= 1


def test_bad_input_is_explained() -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    ticket = ticket_for(model, 1.0)
    with pytest.raises(UsageError, match="engine"):
        sparsify(model, ticket, engine="fast")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="another model"):
        sparsify(nn.Sequential(nn.Linear(3, 2)), ticket)


def test_the_package_imports_the_engine_only_when_asked() -> None:
    script = "import gemminer; print(gemminer.sparse.sparsify.__name__)"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout == "sparsify\n"
    with pytest.raises(AttributeError, match="no attribute 'sparze'"):
        _ = gemminer.sparze


def test_the_package_is_light_beside_torch() -> None:
    """What `import gemminer` loads that `import torch` does not: of others' packages these, and nothing else."""
    script = """if True:
        import sys, torch
        before = set(sys.modules)
        import gemminer
        print(*{name.split(".")[0] for name in set(sys.modules) - before} - sys.stdlib_module_names)
        print(*set(sys.modules) - before)
    """
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    packages, modules = (set(line.split()) for line in run.stdout.splitlines())
    light = {"gemminer", "safetensors", "pydantic", "pydantic_core", "annotated_types", "typing_inspection"}
    assert packages <= light | {"torch"}
    assert not {"torch.utils.flop_counter", "torch._dynamo", "torch._inductor", "torch.onnx"} & modules
    assert not {
        name for name in modules if name.startswith(("gemminer.reporting", "gemminer.sparse", "gemminer.bench"))
    }
