"""Whatever a network's forward does, its sparse network does: each kind of thing a replay would lose."""

from __future__ import annotations

import copy
import random
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from gemminer.sparse.training.convert import densify, sparsify
from gemminer.sparse.training.fuse import SparseNetwork
from tests.sparse.training.helpers import close, compare, noise, ticket_for


class Net(nn.Module):
    """Two convolutions with norms, and a head, for a forward to be written with."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.m = nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.b, self.n = nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.out = nn.Linear(4, 3)
        self.register_buffer("mean", torch.zeros(4))
        self.register_buffer("calls", torch.zeros(()))
        self.steps, self.kept, self.seen = 0, [], []  # type: ignore[var-annotated]

    def head(self, h: Tensor) -> Tensor:
        result: Tensor = self.out(h.mean((2, 3)))
        return result


class Double(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return 2 * x

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Tensor:
        return 2 * dy


def plain(s: Net, x: Tensor) -> Tensor:
    return s.head(F.relu(s.n(s.b(F.relu(s.m(s.a(x)))))))


def gradients_off_for_a_part(s: Net, x: Tensor) -> Tensor:
    with torch.no_grad():
        h = F.relu(s.m(s.a(x)))
    return s.head(s.n(s.b(h)) + h)


def gradients_off_behind_a_layer(s: Net, x: Tensor) -> Tensor:
    h = s.a(x)
    with torch.no_grad():
        g = F.relu(s.m(h))
    return s.head(h * g)


def each_operation_where_gradients_go_off(s: Net, x: Tensor) -> Tensor:
    behind: list[Callable[[Tensor], Tensor]] = [
        *(s.m, nn.ReLU(), nn.ReLU(inplace=True), torch.relu, F.relu_, lambda h: h + 1, lambda h: h + h.detach()),
        *(lambda h: h.add_(s.a(x)), lambda h: h[:, :, ::2, ::2], lambda h: F.pad(h[:, :, ::1, ::1], (0,) * 5 + (1,))),
    ]
    total = s.head(s.a(x))
    for operation in behind:
        h = s.a(x)
        with torch.no_grad():
            total = total + operation(h).mean()
        total = total + h.mean()
    return total


def detached_twin(s: Net, x: Tensor) -> Tensor:
    h = s.m(s.a(x))
    return s.head(F.relu(h) + h.detach().relu())


def number_drawn(s: Net, x: Tensor) -> Tensor:
    h = F.relu(s.m(s.a(x)))
    if random.random() < 0.5:
        h = h + s.b(h)
    if np.random.random() < 0.5:  # noqa: NPY002 - what users do
        h = h + s.b(h).relu()
    if float(torch.rand([])) < 0.5:
        h = s.n(h)
    return s.head(h)


def buffers_and_counters(s: Net, x: Tensor) -> Tensor:
    h = s.m(s.a(x))
    if s.training:
        s.mean = 0.9 * s.mean + 0.1 * h.detach().mean((0, 2, 3))
    s.calls += 1
    s.steps += 1
    return s.head(F.relu(s.b(h) + s.mean.view(1, 4, 1, 1)))


def another_path_at_the_third_pass(s: Net, x: Tensor) -> Tensor:
    s.steps += 1
    h = F.relu(s.m(s.a(x)))
    return s.head(s.n(s.b(h)) if s.steps >= 3 else h)


def control_flow_on_data(s: Net, x: Tensor) -> Tensor:
    h = s.a(x)
    h = s.m(h) if h.sum() > 0 else s.m(-h)
    return s.head(F.relu(s.b(h)) if h.abs().max() > 1e-3 else h)


def in_place_everywhere(s: Net, x: Tensor) -> Tensor:
    h = F.silu(s.a(x), inplace=True)
    h = F.leaky_relu(s.n(s.b(h)), 0.1, inplace=True)
    h = F.elu(s.b(h), inplace=True)
    h = F.relu(s.m(s.b(h)), inplace=True)
    g = s.b(h)
    g += h
    g[:, 0] = 0
    g.view(-1)[::3] *= 2
    return s.head(F.hardswish(g.add_(1), inplace=True))


def in_place_on_what_was_read(s: Net, x: Tensor) -> Tensor:
    y = x.detach().clone()
    with torch.no_grad():
        h = s.b(F.relu(s.a(y)))
        y.view(-1).zero_()
        g = s.a(y.add(1))
    return s.head(s.m(s.a(x)) + h + g)


def activations_kept(s: Net, x: Tensor) -> Tensor:
    h = s.a(x)
    g = s.m(h)
    s.kept = [h, {"g": g}, F.relu(g)]
    y: Tensor = s.head(s.b(s.kept[2]))
    return y + sum(t.mean() for t in (h, g))


def used_before_and_after_its_norm(s: Net, x: Tensor) -> Tensor:
    h = s.a(x)
    first = F.relu(s.m(h))
    second = s.n(s.b(first)) + h
    pooled = F.avg_pool2d(second, 2)
    return s.head(pooled) + s.head(h) + first.mean()


def statistics_read(s: Net, x: Tensor) -> Tensor:
    h = s.m(s.a(x))
    assert s.m.running_mean is not None
    shift = s.m.running_mean.sum() + s.m.running_mean.view(-1)[0]
    return s.head(s.b(h)) + shift.detach()


def one_norm_twice(s: Net, x: Tensor) -> Tensor:
    return s.head(s.m(s.b(F.relu(s.m(s.a(x))))))


def own_function(s: Net, x: Tensor) -> Tensor:
    h: Tensor = Double.apply(s.m(s.a(x)))  # type: ignore[no-untyped-call]
    return s.head(s.b(F.relu(h)))


def checkpointed(s: Net, x: Tensor) -> Tensor:
    h = s.a(x)
    h = checkpoint(lambda z: F.relu(s.b(z)), h, use_reentrant=False)
    h = checkpoint(lambda z: F.relu(s.b(z)), s.a(x) + h, use_reentrant=True)
    return s.head(s.m(h))


def saved_elsewhere(s: Net, x: Tensor) -> Tensor:
    h = F.relu(s.a(x))
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (s.seen.append(1), t)[1], lambda t: t):
        h = F.relu(s.n(s.b(h)))
    return s.head(h)


def transformed_inside(s: Net, x: Tensor) -> Tensor:
    h = s.m(s.a(x))
    s.eval()
    g = torch.func.vmap(lambda z: F.relu(s.b(z[None]))[0])(h)
    s.train()
    return s.head(g + h)


def weakly_held(s: Net, x: Tensor) -> Tensor:
    h = s.a(x)
    s.seen = [weakref.ref(h)]
    g: Tensor = s.b(F.relu(s.m(h)))
    return s.head(g * h.sigmoid())


def shortcut_of_slices(s: Net, x: Tensor) -> Tensor:
    h = s.m(s.a(x))
    part = h[:, :, ::2, ::2]
    padded = F.pad(part, (0, 0, 0, 0, 0, 0))
    h.mul_(2)
    return s.head(padded + part) + s.head(h)


def hook_on_an_activation(s: Net, x: Tensor) -> Tensor:
    h = s.a(x)
    if h.requires_grad:
        h.register_hook(lambda g: g * 0.5)
    return s.head(F.relu(s.m(h)))


SMALL = ("bias", "m.weight", "n.weight")
KINDS = [
    *(
        plain,
        gradients_off_for_a_part,
        gradients_off_behind_a_layer,
        detached_twin,
        each_operation_where_gradients_go_off,
        number_drawn,
        buffers_and_counters,
    ),
    *(another_path_at_the_third_pass, control_flow_on_data, in_place_everywhere, in_place_on_what_was_read),
    *(activations_kept, used_before_and_after_its_norm, statistics_read, one_norm_twice, own_function, checkpointed),
    *(saved_elsewhere, weakly_held, shortcut_of_slices, hook_on_an_activation),
]


def of(forward: Callable[[Net, Tensor], Tensor]) -> Net:
    torch.manual_seed(1)
    return type("Made", (Net,), {"forward": forward})().double()  # type: ignore[no-any-return]


def seeded(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    torch.manual_seed(seed)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_a_pass_is_the_modules_own(kind: Callable[[Net, Tensor], Tensor]) -> None:
    model = of(kind)
    ticket = ticket_for(model, 0.5)
    sparse = sparsify(model, ticket, engine="sparse")
    assert isinstance(sparse, SparseNetwork)
    for i in range(6):
        training = i != 4
        model.train(training)
        sparse.train(training)
        x = noise(5, 2, 4, 4, seed=i)
        results = []
        for net in (model, sparse):  # not `compare`: both must draw the same numbers
            seeded(i)
            own = x.clone().requires_grad_()
            out = net(own)
            out.square().sum().backward()
            results.append((out, own.grad))
        for ours, theirs in zip(results[1], results[0], strict=True):
            close(ours, theirs)
        seeded(9 + i)
        compare_state(model, sparse)
    assert model.steps == sparse.net.steps
    assert len(model.seen) == len(sparse.net.seen)
    assert not any(type(t).__name__ == "Deferred" for t in flat(vars(sparse.net)))


def flat(value: Any) -> list[Any]:
    if isinstance(value, dict | list | tuple):
        return [x for part in (value.values() if isinstance(value, dict) else value) for x in flat(part)]
    return [value]


def compare_state(model: nn.Module, sparse: nn.Module) -> None:
    state = densify(sparse)
    for name, tensor in model.state_dict().items():
        close(state[name].double(), tensor.double())
    for ours, theirs in zip(flat(sparse.net.kept), flat(model.kept), strict=True):  # type: ignore[union-attr]
        close(ours, theirs)


def test_gradients_of_parameters_in_every_kind() -> None:
    for kind in KINDS:
        if kind not in (number_drawn, transformed_inside):
            model = of(kind)
            ticket = ticket_for(model, 0.5)
            compare(model, sparsify(model, ticket, engine="sparse"), ticket, noise(5, 2, 4, 4))


def test_autocast_inside_is_autocast() -> None:
    def mixed(s: Net, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            h = F.relu(s.m(s.a(x)))
        return s.head(s.b(h.float()))

    model = of(mixed).float()
    ticket = ticket_for(model, 0.5)
    sparse = sparsify(model, ticket, engine="sparse")
    x = noise(5, 2, 4, 4, dtype=torch.float32)
    close(sparse(x), model(x), 0.02)
    assert [[unit.relu for unit in chain.links.units] for chain in sparse.chains] == [[True], [False], [False]]


def test_what_is_put_off_before_autocast_is_of_the_type_of_its_call() -> None:
    """Layers inside see a tensor of float32, those behind one of bfloat16, as PyTorch's own do."""

    def mixed(s: Net, x: Tensor) -> Tensor:
        before = s.a(x)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            inside = F.relu(s.m(before)) + s.a(x)
            seen.append((before.dtype, inside.dtype))
        return s.head(s.b(inside.float()))

    model = of(mixed).float()
    ticket = ticket_for(model, 0.5)
    sparse = sparsify(model, ticket, engine="sparse")
    x, seen = noise(5, 2, 4, 4, dtype=torch.float32), []
    close(sparse(x), model(x), 0.02)
    assert seen == [(torch.float32, torch.float32)] * 2


@pytest.mark.parametrize("where", ["m", "layers"])
def test_hooks_of_modules_are_called_with_their_tensors(where: str) -> None:
    class Hooked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.m = nn.BatchNorm2d(4)
            self.layers = nn.Sequential(nn.Conv2d(2, 4, 3), self.m, nn.ReLU(), nn.Conv2d(4, 3, 2))
            self.seen: list[Tensor] = []

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.layers(x)
            return y.mean((2, 3))

    model = Hooked().double()
    seen: list[Tensor] = []
    module = model.get_submodule(where)
    module.register_forward_hook(lambda m, x, y: seen.append(y.detach().clone()))
    module.register_forward_pre_hook(lambda m, x: seen.append(x[0].detach().clone()))
    module.register_full_backward_hook(lambda m, gx, gy: seen.append(gy[0].clone()))
    ticket = ticket_for(model, 0.5)
    compare(model, sparsify(model, ticket, engine="sparse"), ticket, noise(5, 2, 5, 5))
    assert len(seen) == 6  # before, after, before, after, then the gradients
    for i, j in ((0, 2), (1, 3), (4, 5)):
        close(seen[j], seen[i])


def test_second_derivatives_are_those_of_the_dense_network() -> None:
    for kind in (plain, used_before_and_after_its_norm, one_norm_twice, in_place_everywhere):
        model = of(kind)
        ticket = ticket_for(model, 0.5)
        sparse = sparsify(model, ticket, engine="sparse")
        for training in (True, False):
            results = []
            for net in (model.train(training), sparse.train(training)):
                x = noise(5, 2, 4, 4).requires_grad_()
                net.zero_grad()
                (g,) = torch.autograd.grad(net(x).square().sum(), [x], create_graph=True)
                (g.square().sum() + net(x).sum()).backward()
                results.append(
                    [g, x.grad, *(p.grad for n, p in net.named_parameters() if n[-4:] in ("bias", "n.weight"))]
                )
            for ours, theirs in zip(results[1], results[0], strict=True):
                close(ours, theirs)
            kept = ticket.masks["b.weight"]
            assert model.b.weight.grad is not None
            close(sparse.net.b.values.grad, model.b.weight.grad[kept])


def test_one_layer_alone_has_second_derivatives_and_takes_changes_in_place() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    ticket = ticket_for(model, 0.6)
    sparse = sparsify(model, ticket, engine="sparse")
    for net in (sparse, copy.deepcopy(sparse).net):  # with a pass that puts off, and without
        x = noise(3, 4).requires_grad_()
        grads = []
        for each in (model, net):
            (g,) = torch.autograd.grad(each(x).sum(), [x], create_graph=True)
            grads.append(torch.autograd.grad(g.square().sum(), [x])[0])
        close(grads[1], grads[0])
        y = net(x)
        y += 1
        y.sum().backward()
