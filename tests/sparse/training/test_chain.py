"""Whole networks in chains of layers, on any number of threads."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from gemminer import models
from gemminer.sparse.training.convert import sparsify
from gemminer.sparse.training.patterns import Pattern
from tests.sparse.training.helpers import compare, noise, ticket_for


@pytest.mark.parametrize(
    "name", ["lenet-5", "conv-2", "vgg16", "mobilenet-v2", "resnet18", "resnet50", "wideresnet-10-1"]
)
def test_networks_equal_masked_dense(name: str) -> None:
    _equals_masked_dense(name)


@pytest.mark.parametrize(("name", "tile"), [("vgg16", 1), ("mobilenet-v2", 3), ("resnet18", 2), ("resnet20", 5)])
def test_so_do_networks_whose_planes_are_windows(name: str, tile: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Pattern, "_tile", staticmethod(lambda rows, *rest: min(rows, tile)))
    _equals_masked_dense(name)


def _equals_masked_dense(name: str) -> None:
    size = {"resnet18": 33, "resnet50": 33}.get(name, 16)
    width = {"lenet-5": 1.0}.get(name, 0.1)
    model = models.build(name, image_size=size, width=width).double()
    ticket = ticket_for(model, 0.3)
    sparse = sparsify(model, ticket, engine="sparse")
    for training in (True, False):
        model.train(training)
        sparse.train(training)
        compare(model, sparse, ticket, noise(4, 3, size, size), 1e-7)


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


class Around(nn.Module):
    """Layers around a pool or a shortcut; `also` is what else reads what it reads."""

    def __init__(self, between: nn.Module, also: str = "", norm: bool = True, relu: bool = True) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(2, 4, 3, padding=1, bias=not norm), nn.Conv2d(4, 3, 1)
        self.norm, self.relu = nn.BatchNorm2d(4) if norm else nn.Identity(), relu
        for p in self.norm.parameters():
            nn.init.uniform_(p, 0.5, 1)
        self.between, self.also = between, also

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(self.first(x))
        h = F.relu(h) if self.relu else h
        y: Tensor = self.last(self.between(h))
        if self.also == "twice":
            y = y + self.last(F.relu(self.between(h)))
        if self.also == "layer":
            y = y.sum((2, 3)) + self.last(h).sum((2, 3))
        if self.also == "outside":
            y = y.sum((2, 3)) + h.sum()
        return y


@settings(max_examples=25, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_a_max_pool_is_pytorchs(data: st.DataObject) -> None:
    """In one chain with the layers around it, also where its windows overlap, leave gaps or reach over the border."""
    draw = data.draw
    kernel = (draw(st.integers(1, 4)), draw(st.integers(1, 4)))
    stride = draw(st.sampled_from([None, 1, 2, (1, 3), (5, 2)]))
    padding = tuple(draw(st.integers(0, k // 2)) for k in kernel)
    also = draw(st.sampled_from(["", "twice", "layer", "outside"]))
    model = Around(nn.MaxPool2d(kernel, stride, padding), also, draw(st.booleans()), draw(st.booleans())).double()
    height, width, batch = draw(st.integers(1, 9)), draw(st.integers(1, 9)), draw(st.sampled_from([1, 2, 7, 37]))
    assume(height + 2 * padding[0] >= kernel[0])
    assume(width + 2 * padding[1] >= kernel[1])
    assume(batch * height * width > 1)
    ticket = ticket_for(model, draw(st.sampled_from([0.1, 0.4, 1.0])), draw(st.integers(0, 99)))
    sparse = sparsify(model, ticket, engine="sparse")
    compare(model, sparse, ticket, noise(batch, 2, height, width))
    if also == "":
        assert [len(chain.links.units) for chain in sparse.chains] == [3]


@pytest.mark.parametrize("batch", [5, 37])  # by number and by vector
def test_of_equal_numbers_the_first_is_the_largest_and_nan_is_larger(batch: int) -> None:
    model = Around(nn.MaxPool2d(2), norm=False, relu=False)
    ticket = ticket_for(model, 1.0)
    x = torch.randint(0, 2, (batch, 2, 6, 6), generator=torch.Generator().manual_seed(0)).float()
    with torch.no_grad():
        model.first.weight.round_()
    sparse = sparsify(model, ticket, engine="sparse")
    compare(model, sparse, ticket, x, 1e-6)
    x[0, 0, 0, 0] = float("nan")
    assert sparse(x).isnan().equal(model(x).isnan())


@pytest.mark.parametrize("how", [{"ceil_mode": True}, {"dilation": 2}, {"return_indices": True}])
def test_a_pool_of_another_form_is_left_to_pytorch(how: dict[str, object]) -> None:
    class First(nn.MaxPool2d):
        def forward(self, x: Tensor) -> Tensor:
            y = super().forward(x)
            return y[0] if isinstance(y, tuple) else y

    model = Around(First(2, **how)).double()  # type: ignore[arg-type]
    ticket = ticket_for(model, 0.5)
    sparse = sparsify(model, ticket, engine="sparse")
    compare(model, sparse, ticket, noise(3, 2, 7, 7))
    assert [len(chain.links.units) for chain in sparse.chains] == [1, 1]


class Part(nn.Module):
    """Every second pixel, between channels of zeros."""

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 0, 0))


@pytest.mark.parametrize("between", [Part(), nn.MaxPool2d(2)])
@pytest.mark.parametrize("also", ["", "twice", "layer", "outside"])
def test_what_a_layer_reads_of_a_shortcut_or_pool_has_a_gradient(between: nn.Module, also: str) -> None:
    model = Around(between, also).double()
    ticket = ticket_for(model, 0.5)
    sparse = sparsify(model, ticket, engine="sparse")
    compare(model, sparse, ticket, noise(5, 2, 8, 8))
    x = noise(5, 2, 8, 8).requires_grad_()
    for net in (model, sparse):  # second derivatives
        (g,) = torch.autograd.grad(net(x).square().sum(), x, create_graph=True)
        net.zero_grad()
        g.square().sum().backward()
    ours, theirs = sparse.net.first.values.grad, model.first.weight.grad  # type: ignore[union-attr]
    assert theirs is not None
    assert (ours - theirs[ticket.masks["first.weight"]]).abs().max() <= 1e-9 * theirs.abs().max()


def test_a_pool_in_bfloat16_takes_what_pytorchs_takes() -> None:
    model = Around(nn.MaxPool2d(3, 2, 1))
    sparse = sparsify(model, ticket_for(model, 0.5), engine="sparse")
    x = noise(33, 2, 9, 9, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        ours, theirs = sparse(x), model(x)
    assert ours.dtype is torch.bfloat16
    assert (ours - theirs).abs().max() <= 0.02 * theirs.abs().max()
    for y in (ours, theirs):
        y.float().square().mean().backward()
    ours_, theirs_ = sparse.net.norm.weight.grad, model.norm.weight.grad  # type: ignore[union-attr]
    assert (ours_ - theirs_).abs().max() <= 0.05 * theirs_.abs().max()  # type: ignore[operator, union-attr]
