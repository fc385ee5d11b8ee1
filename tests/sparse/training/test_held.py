"""Modules that keep their class: what is removed of their parameters stays zero, also in copies and after loading."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from gemminer.core.ticket import Ticket
from gemminer.sparse.training.convert import densify, sparsify
from gemminer.sparse.training.held import is_held


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
