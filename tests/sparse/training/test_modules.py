"""Layers that stay dense under their mask, and inputs the kernels do not take."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gemminer.core.errors import UsageError
from gemminer.sparse.training.convert import densify, sparsify
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
    with torch.autocast("cpu", torch.float16):
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


def test_a_layer_with_hooks_on_its_gradient_or_itself_stays_dense() -> None:
    model = nn.Sequential(
        nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4), nn.Conv2d(1, 1, 1), nn.Linear(4, 2)
    ).double()
    shapes: list[torch.Size] = []
    model[0].weight.register_hook(lambda g: shapes.append(g.shape))  # type: ignore[operator]
    model[1].weight.register_post_accumulate_grad_hook(lambda p: shapes.append(p.grad.shape))  # type: ignore[operator]
    model[2].forward = lambda x: 2 * nn.functional.linear(x, model[2].weight)  # type: ignore[method-assign, arg-type]
    model[3].register_state_dict_post_hook(lambda *_: None)
    model[4].bias.register_hook(torch.zeros_like)  # type: ignore[operator]
    ticket = ticket_for(model, 0.5)
    sparse = sparsify(model, ticket, engine="sparse")
    kinds = [type(module).__name__ for module in sparse.net]  # type: ignore[union-attr]
    assert kinds == ["Linear", "Linear", "Linear", "Conv2d", "SparseLinear"]
    sparse.net[4](sparse.net[1](sparse.net[0](noise(3, 4)))).sum().backward()
    assert shapes == [(4, 4), (4, 4)]
    assert not sparse.net[4].bias.grad.any()
    assert not sparse.net[1].weight.grad[~ticket.masks["1.weight"]].any()


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_a_sparse_network_is_neither_compiled_nor_exported() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    sparse = sparsify(model, ticket_for(model, 0.5), engine="sparse")
    x = torch.ones(2, 4)
    for make in (
        lambda net: torch.compile(net, backend="eager")(x),
        lambda net: torch.export.export(net, (x,)),
        lambda net: torch.jit.trace(net, x),
        lambda net: torch.onnx.export(net, (x,), io.BytesIO(), dynamo=False),
    ):
        for net in (sparse, nn.Sequential(sparse.net[0])):
            torch._dynamo.reset()
            with pytest.raises(UsageError, match="densify"):
                make(net)


def test_a_layer_keeps_what_a_forward_may_ask_it() -> None:
    model = nn.Sequential(nn.Conv2d(2, 4, 3, stride=2, padding=1))
    model[0].scale = 3  # type: ignore[assignment]
    layer = sparsify(model, ticket_for(model, 0.5), engine="sparse").net[0]  # type: ignore[index, union-attr]
    assert (layer.in_channels, layer.out_channels, layer.kernel_size, layer.stride) == (2, 4, (3, 3), (2, 2))
    assert layer.scale == 3
    assert layer.weight.shape == (4, 2, 3, 3)


class Asks(nn.Module):
    """A forward that goes by its layers' kinds and reads their weights and sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.line = nn.Conv2d(2, 4, 3, padding=1), nn.Conv1d(4, 4, 3, padding=1)
        self.attention, self.head = nn.MultiheadAttention(4, 2, batch_first=True), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.children():
            if isinstance(layer, nn.Conv2d):
                x = layer(x).flatten(2)
            elif isinstance(layer, nn.Conv1d):
                x = F.conv1d(x, layer.weight, layer.bias, padding=layer.padding)
            elif isinstance(layer, nn.MultiheadAttention):
                y = x.transpose(1, 2)
                x = x + layer(y, y, y)[0].transpose(1, 2)
            elif isinstance(layer, nn.Linear):
                x = F.linear(x.mean(2)[:, : layer.in_features], layer.weight, layer.bias)
        return x


@pytest.mark.parametrize("copied", [False, True], ids=["itself", "a copy"])
@pytest.mark.parametrize("engine", ["sparse", "auto"])
def test_a_forward_may_go_by_kinds_and_read_weights(engine: Any, copied: bool) -> None:
    """Found by a forward that loops over its children (a layer was passed by) and by Swin (pruned weights moved)."""
    model = Asks().double()
    ticket = ticket_for(model, 0.5)
    ticket.apply(model)
    sparse = sparsify(model, ticket, engine=engine)
    sparse = copy.deepcopy(sparse) if copied else sparse
    x = noise(3, 2, 4, 4)
    for net in (model, sparse):
        net(x).square().sum().backward()
        with torch.no_grad():
            for p in net.parameters():
                p.sub_(p.grad, alpha=0.1)  # type: ignore[arg-type]
    trained = densify(sparse)
    for name, right in model.state_dict().items():
        torch.testing.assert_close(trained[name], right * ticket.masks.get(name, 1))
