"""torch.nn.utils.prune and back, exactly."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

import gemminer
from gemminer.core.errors import UsageError
from gemminer.core.model_state import named_state
from gemminer.core.prunable import prunable_weights
from gemminer.core.ticket import Ticket
from gemminer.integrations.pruned import from_prune, to_prune
from tests.helpers import tiny_data, tiny_net


def ticket_of(model: nn.Module) -> Ticket:
    source = torch.Generator().manual_seed(0)
    masks = {name: torch.rand(p.shape, generator=source) < 0.3 for name, p in prunable_weights(model).items()}
    return Ticket(masks, named_state(model))


def test_there_and_back_is_exact() -> None:
    model = tiny_net()
    ticket = ticket_of(model)
    inputs, targets = tiny_data()
    plain = ticket.apply(copy.deepcopy(model)).eval()
    pruned = to_prune(copy.deepcopy(model), ticket).eval()
    assert prune.is_pruned(pruned)
    assert torch.equal(pruned(inputs), plain(inputs))
    optimiser = torch.optim.AdamW(pruned.parameters(), lr=0.1)
    for _ in range(3):
        optimiser.zero_grad()
        nn.functional.cross_entropy(pruned(inputs), targets).backward()
        optimiser.step()
    again = from_prune(pruned)
    assert all(torch.equal(again.masks[name], mask) for name, mask in ticket.masks.items())
    assert again.kept == ticket.kept
    output = pruned(inputs)
    assert torch.equal(again.apply(tiny_net(seed=1)).eval()(inputs), output)
    for name in ("0", "3", "5"):
        prune.remove(pruned.get_submodule(name), "weight")
    assert torch.equal(pruned(inputs), output)
    again.check_fits(pruned)


def test_what_others_have_pruned_is_checked_and_trained() -> None:
    model = tiny_net()
    inputs, targets = tiny_data()
    prune.global_unstructured(
        [(model[0], "weight"), (model[3], "weight")],  # type: ignore[index]
        prune.L1Unstructured,
        amount=0.8,
    )
    ticket = from_prune(model)
    assert set(ticket.masks) == {"0.weight", "3.weight", "5.weight"}
    assert bool(ticket.masks["5.weight"].all())  # which nobody pruned
    plain = tiny_net(seed=2)
    result = gemminer.train(plain, ticket, (inputs, targets), (inputs, targets), epochs=2)
    assert result["test"] is not None
    assert all(plain.get_parameter(n)[~mask].count_nonzero() == 0 for n, mask in ticket.masks.items())


def test_what_is_not_pruned_is_refused() -> None:
    with pytest.raises(UsageError, match=r"not pruned by torch\.nn\.utils\.prune"):
        from_prune(tiny_net())
    with pytest.raises(UsageError, match="another model"):
        to_prune(nn.Linear(2, 2), ticket_of(tiny_net()))
