"""timm's optimisers, those that wrap another too, and its average of weights keep zeros zero under a hold."""

from __future__ import annotations

import copy

import pytest
import torch
from timm.optim import create_optimizer_v2, list_optimizers
from timm.utils import ModelEmaV3
from torch import nn

import gemminer
from gemminer.core.ticket import Ticket
from tests.helpers import drawn_ticket, tiny_data, tiny_net

# Without those that need a GPU, second derivatives or opt_einsum.
LEFT_OUT = ("adahessian", "bnb", "fused", "kron")
OPTIMISERS = [name for name in list_optimizers() if not name.startswith(LEFT_OUT)] + [
    "lookahead_adamw",
    "lookahead_sgd",
]


def moved(model: nn.Module, ticket: Ticket) -> int:
    return sum(int(model.get_parameter(n).detach()[~mask].count_nonzero()) for n, mask in ticket.masks.items())


def steps(net: nn.Module, optimiser: torch.optim.Optimizer, average: ModelEmaV3 | None = None) -> None:
    inputs, targets = tiny_data()
    for _ in range(8):  # Lookahead writes its slow weights every sixth step
        optimiser.zero_grad()
        nn.functional.cross_entropy(net(inputs), targets).backward()
        optimiser.step()
        if average is not None:
            average.update(net)


@pytest.mark.parametrize("name", OPTIMISERS)
def test_zeros_stay_zero_with_optimisers_of_timm(name: str) -> None:
    ticket = drawn_ticket(tiny_net(), 0.2)
    net = ticket.apply(tiny_net())
    optimiser = create_optimizer_v2(net, opt=name, lr=0.01, weight_decay=0.05)
    average = ModelEmaV3(net, decay=0.5)
    with gemminer.hold(net, ticket, optimiser) as held:
        steps(net, optimiser, average)
        assert held.violations() == 0
    assert moved(average.module, ticket) == 0
    assert any(not torch.equal(net.get_parameter(n)[m], ticket.initial[n][m]) for n, m in ticket.masks.items())


def test_slow_weights_of_before_are_zero_too() -> None:
    """Lookahead's slow weights, moved before the hold or loaded within it, do not bring pruned weights back."""
    ticket = drawn_ticket(tiny_net(), 0.2)
    net = ticket.apply(tiny_net())
    optimiser = create_optimizer_v2(net, opt="lookahead_sgd", lr=0.1)
    steps(net, optimiser)
    assert moved(net, ticket) > 200
    before = copy.deepcopy(optimiser.state_dict())
    with gemminer.hold(net, ticket, optimiser) as held:
        steps(net, optimiser)
        assert held.violations() == 0
        optimiser.load_state_dict(before)
        steps(net, optimiser)
        assert held.violations() == 0
