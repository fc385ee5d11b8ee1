"""A search in somebody else's loop finds what ours finds."""

from __future__ import annotations

import gc
import io
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.optimizer import _global_optimizer_post_hooks as EVERY
from torch.utils.data import DataLoader, TensorDataset

import gemminer
from gemminer.core.errors import UsageError
from gemminer.core.model_state import named_state
from gemminer.runs.search_object import Search
from tests.helpers import drawn_ticket, tiny_data, tiny_net

EPOCHS, SEED, DENSITY = 4, 3, 0.2
KINDS: dict[str, dict[str, Any]] = {
    "gem-miner": {},
    "gem-miner, published": {"ridge": 0.01, "lr": 2.0, "freeze_every": 1, "optimiser": "adam", "floor": 1},
    "gem-miner, no floor": {"floor": 1, "max_norm": 0.01},
    "edge-popup": {"lr": 0.5},
    "edge-popup, ridge": {"rung": "ridge", "freeze_every": 2},
}


def whole_data() -> tuple[Tensor, Tensor]:
    inputs, targets = tiny_data()
    return inputs.double(), targets


def batches() -> list[tuple[Tensor, Tensor]]:
    return list(zip(*(t.split(20) for t in whole_data()), strict=True))


def net(seed: int = 0) -> nn.Module:
    return tiny_net(seed).double()


def passes() -> Iterator[tuple[Tensor, Tensor]]:
    for _ in range(EPOCHS):
        yield from batches()


def made(kind: str, model: nn.Module, **more: Any) -> tuple[Search, torch.optim.Optimizer]:
    search = Search(model, DENSITY, method=kind.split(",")[0], seed=SEED, **{**KINDS[kind], **more})
    model.train()
    return search, search.begin(EPOCHS * len(batches()), EPOCHS)


def step(model: nn.Module, search: Search, optimiser: torch.optim.Optimizer, x: Tensor, y: Tensor, parts: int) -> None:
    optimiser.zero_grad()
    for own, wanted in zip(x.chunk(parts), y.chunk(parts), strict=True):
        (nn.functional.cross_entropy(model(own), wanted) / parts).backward()
    search.after_backward()
    optimiser.step()
    search.after_step()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("initialiser", ["default", "keep"])
def test_a_loop_by_hand_finds_the_packages_masks(kind: str, initialiser: str) -> None:
    model = net()
    before = {name: t.clone() for name, t in named_state(model).items()}
    data = DataLoader(TensorDataset(*whole_data()), batch_size=20)
    how: dict[str, Any] = {"method": kind.split(",")[0], "seed": SEED, "initialiser": initialiser, **KINDS[kind]}
    own = gemminer.mine(model, data, DENSITY, epochs=EPOCHS, engine="dense", **how)
    search, optimiser = made(kind, model, initialiser=initialiser)
    for x, y in passes():
        step(model, search, optimiser, x, y, 1)
    ticket = search.finish()
    assert all(torch.equal(ticket.masks[name], mask) for name, mask in own.masks.items())
    assert ticket.digest == own.digest
    assert ticket.provenance["epochs"] == EPOCHS
    assert all(torch.equal(t, before[name]) for name, t in named_state(model).items())
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_one_that_is_killed_and_goes_on_ends_in_the_same_masks(kind: str) -> None:
    model = net()
    search, optimiser = made(kind, model)
    for x, y in passes():
        step(model, search, optimiser, x, y, 1)
    whole = search.finish()
    search, optimiser = made(kind, model)
    for i, (x, y) in enumerate(passes()):
        step(model, search, optimiser, x, y, 1)
        if i == 6:  # in the middle of an epoch
            file = io.BytesIO()
            torch.save({"search": search.state_dict(), "model": model.state_dict()}, file)
            search.end()
            file.seek(0)
            state = torch.load(file, weights_only=True)
            model = net(seed=5)
            search, optimiser = made(kind, model)
            model.load_state_dict(state["model"])  # as a framework does
            search.load_state_dict(state["search"])
            assert all(torch.equal(t, state["model"][name]) for name, t in model.state_dict().items())
    assert search.finish().digest == whole.digest


def test_accumulated_gradients_are_those_of_the_whole_batch() -> None:
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3)).double()
    found = []
    for parts in (1, 2):
        search, optimiser = made("gem-miner", model)
        for x, y in passes():
            step(model, search, optimiser, x, y, parts)
        found.append(search.finish())
    assert found[0].masks.keys() == found[1].masks.keys()
    assert all(torch.equal(found[0].masks[n], found[1].masks[n]) for n in found[0].masks)


def test_a_loop_that_ends_early_says_so_and_the_count_is_exact() -> None:
    model = net()
    search, optimiser = made("gem-miner", model)
    for i, (x, y) in enumerate(passes()):
        if i == 5:
            break
        step(model, search, optimiser, x, y, 1)
    with pytest.warns(UserWarning, match="and had 5"):
        ticket = search.finish()
    assert ticket.kept == round(DENSITY * ticket.prunable)
    assert "and had 5" in ticket.provenance["notes"][0]


def test_calls_out_of_order_are_refused() -> None:
    model = net()
    before = {name: t.clone() for name, t in named_state(model).items()}
    search = Search(model, DENSITY)
    for call in (search.after_backward, search.after_step, search.finish, search.state_dict):
        with pytest.raises(UsageError, match="out of order: next comes begin"):
            call()
    optimiser = search.begin(1)
    for call in (search.after_step, lambda: search.begin(1)):
        with pytest.raises(UsageError, match="out of order: next comes after_backward"):
            call()
    model(batches()[0][0]).sum().backward()
    search.after_backward()
    for again in (search.after_backward, search.finish, search.state_dict, lambda: search.load_state_dict({})):
        with pytest.raises(UsageError, match="out of order: next comes after_step"):
            again()
    optimiser.step()
    search.after_step()
    with pytest.raises(UsageError, match="told of 1 steps, and this is one more"):
        search.after_backward()
    search.finish()
    for call in (search.after_backward, search.finish):
        with pytest.raises(UsageError, match="the search is over"):
            call()
    search.end()
    assert all(torch.equal(t, before[name]) for name, t in named_state(model).items())


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_ones_own_optimiser_in_place_of_the_searchs_is_refused_at_its_first_step(momentum: float) -> None:
    model = net()
    before = {name: t.clone() for name, t in named_state(model).items()}
    with Search(model, DENSITY) as search:
        search.begin(4)
        own = torch.optim.SGD(model.parameters(), lr=0.1, momentum=momentum)
        with pytest.raises(UsageError, match=r"another optimiser has moved .* the optimiser that `begin` returned"):
            step(model, search, own, *batches()[0], 1)
    assert all(torch.equal(t, before[name]) for name, t in named_state(model).items())


def test_a_search_whose_scores_never_moved_gives_no_ticket() -> None:
    """As with an optimiser of a copy, or with none."""
    for strange in (torch.optim.SGD(net().parameters(), lr=0.1), torch.optim.SGD([nn.Parameter(torch.ones(1))])):
        model = net()
        with Search(model, DENSITY) as search:
            search.begin(2)
            for x, y in batches()[:2]:
                step(model, search, strange, x, y, 1)
            with pytest.raises(UsageError, match=r"no score has moved in 2 steps.*that `begin` returned"):
                search.finish()


def test_a_step_that_is_skipped_and_one_of_another_part_are_none_of_the_searchs() -> None:
    """GradScaler skips steps; a loop may move other weights too, and with its own optimiser those of a wider model."""
    model, head = net(), nn.Linear(2, 2)
    others = [torch.optim.SGD([*head.parameters(), *m], lr=0.1) for m in ([], list(model.parameters()))]
    with Search(model, DENSITY) as search:
        optimiser = search.begin(3)
        for skipped, (x, y) in zip((True, False, False), batches(), strict=False):
            nn.functional.cross_entropy(model(x), y).backward()
            search.after_backward()
            others[skipped is False].step()
            if not skipped:
                optimiser.step()
            search.after_step()
        assert search.finish().kept


def test_after_a_search_optimisers_are_not_watched() -> None:
    gc.collect()
    before = len(EVERY)
    search, _ = made("gem-miner", net())
    assert len(EVERY) == before + 1
    search.end()
    made("gem-miner", net())  # given up without an end
    gc.collect()
    assert len(EVERY) == before


def test_a_block_that_fails_puts_the_model_back() -> None:
    model = net()
    before = {name: t.clone() for name, t in named_state(model).items()}

    def fails() -> None:
        with Search(model, DENSITY) as search:
            search.begin(3)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fails()
    assert all(torch.equal(t, before[name]) for name, t in named_state(model).items())


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: Search(net(), DENSITY, method="snip"), "no loop can drive it; these are: gem-miner, edge-popup"),
        (lambda: Search(net(), DENSITY, method="gem-minor"), "gem-miner"),
        (lambda: Search(net(), 2.0), "density is the fraction"),
        (lambda: Search(net(), 1e-9), "keep"),
        (lambda: Search(net(), DENSITY, lamda=3), "lamda"),
        (lambda: Search(nn.ReLU(), DENSITY), "nothing to prune"),
        (lambda: Search(net(), DENSITY, exclude=["nothing.*"]), "matches no prunable weight"),
        (lambda: Search(net(), DENSITY).begin(0), "steps must be a whole number"),
        (lambda: Search(net(), DENSITY).begin(10, 3), "not 3 epochs of equal length"),
        (lambda: Search(net(), DENSITY, freeze_every=2).begin(10), "leave no time to freeze"),
    ],
)
def test_what_cannot_be_is_said_in_one_sentence(call: Callable[[], Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        call()


def test_the_state_of_another_search_is_refused() -> None:
    search = Search(net(), DENSITY)
    search.begin(4)
    state = search.state_dict()
    for other, said in (
        ({"density": 0.5}, "its density is 0.2, not 0.5"),
        ({"density": DENSITY, "seed": 1}, "its seed is 0, not 1"),
        ({"density": DENSITY, "slack": 2.0}, "its model and options is"),
    ):
        another = Search(net(), **other)  # type: ignore[arg-type]
        another.begin(4)
        with pytest.raises(UsageError, match=said):
            another.load_state_dict(state)
        with pytest.raises(UsageError, match="not the state of a gemminer search"):
            another.load_state_dict({"model": 1})


def test_a_search_of_a_held_model_is_that_of_a_free_one() -> None:
    """Its weights are the search's until it ends; then they are held again."""
    model, found = net(), []
    ticket = drawn_ticket(model, 0.3)
    for holds in (False, True):
        held = gemminer.hold(model, ticket) if holds else None
        search, optimiser = made("gem-miner", model)
        for x, y in passes():
            step(model, search, optimiser, x, y, 1)
        found.append(search.finish())
        if held is not None:
            assert held.violations() == 0
            nn.functional.cross_entropy(model(whole_data()[0]), whole_data()[1]).backward()
            gradient = model.get_parameter("0.weight").grad
            assert gradient is not None
            assert int(gradient[~ticket.masks["0.weight"]].count_nonzero()) == 0
    assert all(torch.equal(found[1].masks[name], mask) for name, mask in found[0].masks.items())
