"""Searches inside a mask: every method keeps a part of it, the count exact."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import nn

import gemminer
from gemminer import methods
from gemminer.core.errors import UsageError
from gemminer.core.model_state import borrowed, named_state
from gemminer.core.ticket import Ticket
from gemminer.methods.inside import find_inside
from tests.conformance.models import build, options_of, task_of
from tests.helpers import EXACT, Notes, drawn_ticket, tiny_data, tiny_net


def inside(found: dict[str, Any], within: dict[str, Any]) -> bool:
    return found.keys() == within.keys() and not any(bool((m & ~within[n]).any()) for n, m in found.items())


@pytest.mark.parametrize("method", EXACT)
@pytest.mark.parametrize("name", ["Plain", "Awkward", "Recurrent"])
def test_every_method_keeps_a_part_of_the_mask(method: str, name: str) -> None:
    model = build(name)
    within = dict(drawn_ticket(model, 0.5, seed=1).masks)
    small = min(within, key=lambda n: within[n].numel())
    within[small] = torch.zeros_like(within[small])  # a layer of which nothing is left
    before = [(n, id(p), p.detach().clone()) for n, p in model.named_parameters()]
    task = dataclasses.replace(task_of(model), within=within)
    total = sum(m.numel() for m in within.values())
    with borrowed(model):
        found = find_inside(methods.get(method), task, 0.2, options_of(method), 0)
    masks = dict(found.masks)
    assert sum(int(m.sum()) for m in masks.values()) == round(0.2 * total)
    assert inside(masks, within)
    after = dict(model.named_parameters())
    assert all(i == id(after[n]) and torch.equal(v, after[n]) for n, i, v in before)
    assert found.start is None or {n: t.shape for n, t in found.start.items()} == {
        n: t.shape for n, t in named_state(model).items()
    }


def test_mine_within_a_ticket_and_its_errors() -> None:
    net, data = tiny_net(), tiny_data()
    old = drawn_ticket(net, 0.3)
    ticket = gemminer.mine(net, data, 0.1, epochs=2, within=old)
    assert ticket.kept == round(0.1 * 324)
    assert inside(dict(ticket.masks), dict(old.masks))
    assert ticket.provenance["within"] == old.kept
    everything = gemminer.mine(net, data, old.density, method="snip", within=dict(old.masks))
    assert all(torch.equal(m, old.masks[n]) for n, m in everything.masks.items())
    with pytest.raises(UsageError, match=r"density 0.4 keeps 130 of 324 weights, and within has 97: lower the density"):
        gemminer.mine(net, data, 0.4, method="snip", within=old)
    with pytest.raises(UsageError, match=r"within has no mask for the prunable weight '0.weight'"):
        gemminer.mine(net, data, 0.1, method="snip", within={n: m for n, m in old.masks.items() if n != "0.weight"})
    with pytest.raises(UsageError, match=r"a mask for what is not prunable here, '0.weight'"):
        gemminer.mine(net, data, 0.1, method="snip", within=old, exclude="0.*")


@pytest.mark.parametrize("method", EXACT)
def test_zeros_of_a_pruned_model_that_is_kept_stay_zero(method: str) -> None:
    net, data, notes = tiny_net(), tiny_data(), Notes()
    old = drawn_ticket(net, 0.5)
    old.apply(net)
    epochs = {"epochs": 2} if methods.get(method).trains else {}
    ticket = gemminer.mine(net, data, 0.1, method=method, initialiser="keep", monitor=notes, **epochs)
    assert ticket.kept == 32
    assert inside(dict(ticket.masks), dict(old.masks))
    assert any("162 prunable weights of the model are exactly zero and stay so" in note for note in notes.notes)


def test_zeros_that_are_initial_values_are_weights_like_others() -> None:
    net, data, notes = tiny_net(), tiny_data(), Notes()
    nn.init.zeros_(net[5].weight)
    ticket = gemminer.mine(net, data, 0.9, method="random", initialiser="keep", monitor=notes)
    assert ticket.masks.kept("5.weight") > 0
    assert notes.notes == []


@pytest.mark.parametrize("method", ["random", "snip"])
def test_a_density_above_a_pruned_models_is_said_to_keep_zeros(method: str) -> None:
    net, data, notes = tiny_net(), tiny_data(), Notes()
    drawn_ticket(net, 0.5).apply(net)
    ticket = gemminer.mine(net, data, 0.9, method=method, initialiser="keep", monitor=notes)
    assert (ticket.kept, ticket.within) == (292, None)
    assert notes.notes == [
        "162 prunable weights of the model are exactly zero, and density 0.9 keeps 292 of 324: "
        "it is searched among the zeros too"
    ]
    gemminer.mine(net, data, 0.5, method=method, initialiser="keep", monitor=(exact := Notes()))
    assert "stay so" in exact.notes[0]


def test_a_ticket_that_starts_elsewhere_has_the_whole_state() -> None:
    net, data = tiny_net(), tiny_data()
    old = drawn_ticket(net, 0.5)
    for rewind in ("warm", "lr"):
        ticket = gemminer.mine(net, data, 0.2, method="imp", epochs=2, rewind=rewind, within=old)
        assert isinstance(ticket, Ticket)
        assert inside(dict(ticket.masks), dict(old.masks))
        ticket.apply(net)
