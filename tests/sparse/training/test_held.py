"""Modules that keep their class: what is removed of their parameters stays zero, also in copies and after loading."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from gemminer.core.model_state import borrowed
from gemminer.core.ticket import Ticket
from gemminer.sparse.training.convert import converted, densify, sparsify
from gemminer.sparse.training.held import is_held
from gemminer.training.engine import write_back
from tests.helpers import drawn_ticket


class Experts(nn.Module):
    """A list of matrices, whose forward nobody calls, and a matrix of a module that has layers of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.list = nn.ParameterList([nn.Parameter(torch.randn(4, 3)) for _ in range(2)])
        self.fused, self.head = nn.Parameter(torch.randn(2, 3, 5)), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        parts = [(x @ one) @ two for one, two in zip(self.list, self.fused, strict=True)]
        out: Tensor = self.head(torch.stack(parts).sum(0).tanh())
        return out


class Memory(nn.Module):
    """nn.LSTM keeps its weights in a list of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(4, 3, 2, batch_first=True, bidirectional=True), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.lstm(x[:, None])[0][:, -1])
        return out


class Translator(nn.Module):
    """nn.Transformer's layers read the attributes of their attention."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.head = nn.Transformer(4, 2, 1, 1, 6, dropout=0.0, batch_first=True), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.net(x[:, None], x[:, None]).mean(1))
        return out


def ticket_of(model: nn.Module) -> Ticket:
    source = torch.Generator().manual_seed(0)
    masks = {n: torch.rand(p.shape, generator=source) < 0.5 for n, p in model.named_parameters() if p.dim() > 1}
    return Ticket(masks, model.state_dict())


@pytest.mark.parametrize("kind", [Experts, Memory, Translator])
def test_zeros_stay_in_the_module_its_copies_and_after_loading(kind: Callable[[], nn.Module]) -> None:
    model = kind()
    state = copy.deepcopy(model.state_dict())
    ticket = ticket_of(model)
    ticket.apply(model)
    x = torch.randn(8, 4)
    first = sparsify(model, ticket, engine="sparse")
    assert any(map(is_held, first.modules()))
    for net in (first, copy.deepcopy(first), pickle.loads(pickle.dumps(first))):
        assert torch.allclose(net(x), model(x), atol=1e-5)
        optimiser = torch.optim.AdamW(net.parameters(), lr=0.1)
        for _ in range(2):
            optimiser.zero_grad()
            net(x).square().sum().backward()
            optimiser.step()
        trained = densify(net)
        assert all(not trained[n][~m].any() for n, m in ticket.masks.items())
        assert any(not torch.equal(trained[n], ticket.initial[n] * m) for n, m in ticket.masks.items())
        other = kind()
        other.load_state_dict(trained)
        assert torch.allclose(other(x), net(x), atol=1e-5)
    if kind is Experts:  # nothing is in a vector but the head
        first.load_state_dict({n: state["fused"] if n.endswith("fused") else t for n, t in first.state_dict().items()})
        fused = next(p for n, p in first.named_parameters() if n.endswith("fused"))
        assert fused.any()
        assert not fused[~ticket.masks["fused"]].any()


def assigned(net: nn.Module) -> None:
    net.load_state_dict(copy.deepcopy(net.state_dict()), assign=True)


def replaced(net: nn.Module) -> None:
    for module in list(net.modules()):
        for name, p in list(module._parameters.items()):
            if p is not None:
                setattr(module, name, nn.Parameter(p.detach().clone()))


def frozen_at_first(net: nn.Module) -> None:
    net.requires_grad_(True)


def doubled(net: nn.Module) -> None:
    net.double()


class Summed(nn.Module):
    """Two matrices whose gradient is one tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Parameter(torch.randn(4, 4)), nn.Parameter(torch.randn(4, 4))
        self.passes = 0

    def forward(self, x: Tensor) -> Tensor:
        self.passes += 1
        return x @ (self.first + self.second)


KINDS: dict[str, Callable[[], nn.Module]] = {
    "transposed": lambda: nn.Sequential(nn.Unflatten(1, (2, 2)), nn.ConvTranspose1d(2, 3, 2), nn.Flatten()),
    "dilated": lambda: nn.Sequential(nn.Unflatten(1, (1, 2, 2)), nn.Conv2d(1, 3, 2, padding=1, dilation=2)),
    "experts": Experts,
    "memory": Memory,
    "translator": Translator,
    "summed": Summed,
}


@pytest.mark.parametrize("change", [assigned, replaced, frozen_at_first, doubled])
@pytest.mark.parametrize("kind", KINDS)
def test_zeros_stay_where_a_parameter_becomes_another(kind: str, change: Callable[[nn.Module], None]) -> None:
    model = KINDS[kind]()
    ticket = ticket_of(model)
    model.requires_grad_(change is not frozen_at_first)
    net = sparsify(model, ticket, engine="sparse")
    change(net)
    optimiser = torch.optim.AdamW(net.parameters(), lr=0.1)
    for _ in range(2):
        optimiser.zero_grad()
        net(torch.randn(8, 4, dtype=next(net.parameters()).dtype)).square().sum().backward()
        optimiser.step()
    trained = densify(net)
    assert all(not trained[n][~m].any() for n, m in ticket.masks.items())
    assert any((trained[n] != ticket.initial[n])[m].any() for n, m in ticket.masks.items())


def test_what_a_held_modules_passes_leave_is_carried_back() -> None:
    model = nn.Sequential(Summed(), nn.Linear(4, 4))
    net = sparsify(model, ticket_of(model), engine="sparse")
    net(torch.randn(8, 4))
    write_back(net, model)
    assert model[0].passes == 1


class Adapted(nn.Module):
    """A layer whose weight is summed with others', as adapters do: one gradient for all of them."""

    def __init__(self, kind: type[nn.Module]) -> None:
        super().__init__()
        self.body = nn.Linear(4, 4) if kind is nn.Linear else nn.Conv2d(4, 4, 1)
        self.delta = nn.Parameter(torch.randn(self.body.weight.shape))

    def forward(self, x: Tensor) -> Tensor:
        weight = self.body.weight + self.delta
        return x @ weight if weight.dim() == 2 else nn.functional.conv2d(x[..., None, None], weight)


@pytest.mark.parametrize("kind", [nn.Linear, nn.Conv2d])
def test_a_gradient_that_others_share_is_not_masked_for_them(kind: type[nn.Module]) -> None:
    model = Adapted(kind)
    mask = torch.rand(model.body.weight.shape) < 0.5
    ticket = Ticket({"body.weight": mask}, model.state_dict())
    ticket.apply(model)
    net, x = converted(model, dict(ticket.masks), "auto", below={}), torch.randn(8, 4)
    for each in (model, net):
        each(x).square().sum().backward()
    (own, delta), (theirs, full) = ([m.body.weight.grad, m.delta.grad] for m in (net, model))  # type: ignore[union-attr]
    assert torch.allclose(delta, full)  # type: ignore[arg-type]
    assert torch.allclose(own, theirs * mask)  # type: ignore[arg-type, operator]


def test_the_network_stays_held_while_it_is_borrowed_and_is_held_at_its_last_ticket_alone() -> None:
    """As the trials of learning rates borrow it; and a network made of another ticket's keeps no more of that."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Unflatten(1, (2, 3)), nn.ConvTranspose1d(2, 3, 2), nn.Flatten(1))
    first, second = (drawn_ticket(model, 0.4, seed=seed) for seed in range(2))
    net, mask = sparsify(sparsify(model, first), second), second.masks["1.weight"]
    x = torch.randn(8, 6)

    def moved() -> Tensor:
        optimiser = torch.optim.SGD(net.parameters(), lr=0.1)
        for _ in range(3):
            optimiser.zero_grad()
            (net(x) - 1).square().sum().backward()
            optimiser.step()
        return net.get_parameter("1.weight") != 0

    with borrowed(net):
        assert torch.equal(moved(), mask)
    assert torch.equal(moved(), mask)
