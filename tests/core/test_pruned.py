"""torch.nn.utils.prune and back, exactly."""

from __future__ import annotations

import copy
import re
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

import gemminer
from gemminer.core.errors import UsageError
from gemminer.core.model_state import named_state
from gemminer.core.prunable import prunable_weights
from gemminer.core.ticket import Ticket
from tests.helpers import tiny_data, tiny_net


def ticket_of(model: nn.Module, **given: bool) -> Ticket:
    source = torch.Generator().manual_seed(0)
    masks = {name: torch.rand(p.shape, generator=source) < 0.3 for name, p in prunable_weights(model, **given).items()}
    return Ticket(masks, named_state(model))


class Tied(nn.Module):
    """Two layers with one weight, and a third beside them."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.head = nn.Linear(5, 5), nn.Linear(5, 5), nn.Linear(5, 2)
        self.two.weight = self.one.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.head(self.two(self.one(x).relu()).relu())
        return y


def test_there_and_back_is_exact() -> None:
    model = tiny_net()
    ticket = ticket_of(model)
    inputs, targets = tiny_data()
    plain = ticket.apply(copy.deepcopy(model)).eval()
    pruned = ticket.to_prune(copy.deepcopy(model)).eval()
    assert prune.is_pruned(pruned)
    assert torch.equal(pruned(inputs), plain(inputs))
    assert Ticket.from_prune(pruned) == ticket  # masks and all initial values, those under the masks too
    optimiser = torch.optim.AdamW(pruned.parameters(), lr=0.1)
    for _ in range(3):
        optimiser.zero_grad()
        nn.functional.cross_entropy(pruned(inputs), targets).backward()
        optimiser.step()
    again = Ticket.from_prune(pruned)
    assert all(torch.equal(again.masks[name], mask) for name, mask in ticket.masks.items())
    output = pruned(inputs)
    assert torch.equal(again.apply(tiny_net(seed=1)).eval()(inputs), output)
    for name in ("0", "3", "5"):
        prune.remove(pruned.get_submodule(name), "weight")
    assert torch.equal(pruned(inputs), output)
    again.check_fits(pruned)


def test_a_model_that_others_have_pruned_comes_back_tensor_by_tensor() -> None:
    model = tiny_net()
    prune.l1_unstructured(model[0], "weight", 0.7)
    prune.l1_unstructured(model[0], "weight", 0.5)  # a second time: prune keeps one mask of both
    prune.ln_structured(model[3], "weight", 0.5, n=2, dim=0)
    ticket = Ticket.from_prune(model)
    assert set(ticket.masks) == {"0.weight", "3.weight"}
    assert ticket.provenance["exclude"] == ["5.weight"]  # which nobody pruned: it stays dense
    again = ticket.to_prune(tiny_net(seed=3)).state_dict()
    assert all(torch.equal(again[name], tensor) for name, tensor in model.state_dict().items())
    assert again.keys() == model.state_dict().keys()


def test_what_others_have_pruned_is_trained_and_checked() -> None:
    model = tiny_net()
    inputs, targets = tiny_data()
    parts = [(model[0], "weight"), (model[3], "weight")]
    prune.global_unstructured(parts, prune.L1Unstructured, amount=0.8)  # type: ignore[arg-type]
    ticket = Ticket.from_prune(model)
    assert ticket.density == pytest.approx(0.2, abs=2e-3)
    plain = tiny_net(seed=2)
    result = gemminer.train(plain, ticket, (inputs, targets), (inputs, targets), epochs=2)
    assert result["test"] is not None
    assert all(plain.get_parameter(n)[~mask].count_nonzero() == 0 for n, mask in ticket.masks.items())
    given = {"seeds": 1, "names": ["shuffle", "erk"], "epochs": 1}
    verdict = gemminer.check(plain, ticket, (inputs, targets), (inputs, targets), **given)
    assert set(verdict.checks) == {"shuffle", "erk"}


def test_a_shared_weight_is_masked_in_every_layer_that_has_it() -> None:
    torch.manual_seed(0)
    model, x = Tied(), torch.randn(4, 5)
    ticket = ticket_of(model)
    assert set(ticket.masks) == {"one.weight", "head.weight"}
    pruned = ticket.to_prune(copy.deepcopy(model))
    assert torch.equal(pruned(x), ticket.apply(copy.deepcopy(model))(x))
    assert Ticket.from_prune(pruned) == ticket
    pruned.two.weight_mask.zero_()
    with pytest.raises(UsageError, match=r"'one\.weight' and 'two\.weight' are one weight with two masks"):
        Ticket.from_prune(pruned)


def test_axes_are_read_as_a_search_reads_them() -> None:
    model = nn.Sequential(nn.ConvTranspose2d(2, 3, 3), nn.Flatten(), nn.Linear(27, 2))
    prune.random_unstructured(model[0], "weight", 0.5)
    found = Ticket.from_prune(model)
    assert found.per_layer()[0].filters == 3  # its first axis holds inputs
    other = nn.Sequential(nn.LayerNorm(4))  # nothing that a search would prune
    prune.random_unstructured(other[0], "weight", 2)
    assert Ticket.from_prune(other).kept == 2


def test_wrappers_are_looked_through() -> None:
    model = tiny_net()
    ticket = ticket_of(model)
    wrapped = torch.nn.DataParallel(copy.deepcopy(model))
    assert Ticket.from_prune(ticket.to_prune(wrapped)) == ticket
    assert prune.is_pruned(wrapped.module)


def test_what_is_not_pruned_is_refused() -> None:
    with pytest.raises(UsageError, match=r"not pruned by torch\.nn\.utils\.prune"):
        Ticket.from_prune(tiny_net())
    with pytest.raises(UsageError, match="model must be a torch"):
        Ticket.from_prune("a model")  # type: ignore[arg-type]
    net = nn.Linear(2, 2)
    with pytest.raises(UsageError, match="another model"):
        ticket_of(tiny_net()).to_prune(net)
    assert not prune.is_pruned(net)


def weight_normed(layer: nn.Linear) -> nn.Module:
    return nn.utils.parametrizations.weight_norm(layer)


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda layer: prune.identity(layer, "weight"), r"made by torch\.nn\.utils\.prune: prune\.remove it first"),
        (weight_normed, "made by weight_norm from other parameters: remove that first"),
        (nn.utils.spectral_norm, "made by spectral_norm from other parameters: remove that first"),
    ],
)
@pytest.mark.parametrize("wrap", [lambda net: net, nn.DataParallel])
def test_what_needs_the_plain_model_says_how_to_get_it(make: Any, told: str, wrap: Any) -> None:
    """As `mine` does: the weight that a ticket masks is made anew in each pass."""
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    ticket = ticket_of(model)
    make(model[2])
    around = wrap(model)
    for call in (
        lambda: gemminer.hold(around, ticket),
        lambda: gemminer.hold(around, {"2.weight": torch.ones(2, 6).bool()}),
        lambda: gemminer.compact(around, ticket, torch.randn(3, 4)),
        lambda: ticket.apply(around),
    ):
        with pytest.raises(UsageError, match=f"'2.weight'.*{told}"):
            call()
    small = gemminer.compact(around, None, torch.randn(3, 4))
    assert re.match(told, small.removed.left["2"])


def test_of_one_layer_too() -> None:
    layer = prune.identity(nn.Linear(4, 6), "weight")
    assert "prune.remove" in gemminer.compact(layer, None, torch.randn(3, 4)).removed.left[""]
