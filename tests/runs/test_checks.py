"""Sanity checks that check something: what each destroys, and what it keeps."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import gemminer
from gemminer import methods
from gemminer.core.draw import Draw, kinds
from gemminer.core.errors import UsageError
from gemminer.core.ticket import Ticket
from gemminer.data import TensorBatches
from gemminer.runs import checks
from gemminer.runs.building import build
from gemminer.runs.checks import altered_ticket, reinit, shuffle
from tests.conformance.models import Conv1D
from tests.conformance.models import build as conformance
from tests.helpers import Pair, drawn_ticket, tiny_net

FRESH = ("reinit", "scratch")  # keep the mask and draw other values


def masks_ticket(**masks: list[bool]) -> Ticket:
    tensors = {name: torch.tensor(mask).reshape(-1, 1) for name, mask in masks.items()}
    return Ticket(tensors, {name: torch.ones(mask.shape) for name, mask in tensors.items()})


# --- shuffle ---------------------------------------------------------------------------------------------------


@given(st.lists(st.lists(st.booleans(), min_size=1, max_size=12), min_size=1, max_size=4), st.integers(0, 2**62))
def test_a_shuffle_keeps_the_counts_and_changes_every_partly_filled_layer(layers: list[list[bool]], seed: int) -> None:
    if not any(map(any, layers)):
        return
    ticket = masks_ticket(**{f"layer{i}": layer for i, layer in enumerate(layers)})
    partly = [name for name, m in ticket.masks.items() if 0 < ticket.masks.kept(name) < m.numel()]
    if not partly:
        with pytest.raises(UsageError, match=r"shuffling changes nothing .* empty or full"):
            shuffle(ticket, seed)
        return
    shuffled = shuffle(ticket, seed)
    for name in ticket.masks:
        assert shuffled.masks.kept(name) == ticket.masks.kept(name)
        assert torch.equal(shuffled.masks[name], ticket.masks[name]) == (name not in partly)
    assert shuffled == shuffle(ticket, seed)
    assert all(torch.equal(shuffled.initial[n], t) for n, t in ticket.initial.items())


def test_shuffles_of_all_seeds_differ_and_are_even() -> None:
    ticket = drawn_ticket(tiny_net(), 0.2)
    found = [shuffle(ticket, seed) for seed in range(200)]  # 0 varies like any other
    assert len(set(found) | {ticket}) == 201
    share = torch.stack([t.masks["3.weight"].double() for t in found]).mean(0)
    expected = ticket.per_layer()[1].density
    assert share.sub(expected).abs().max() < 5 * math.sqrt(expected * (1 - expected) / 200)
    assert found[0].provenance["check"] == "shuffle"
    assert found[3].provenance["check_seed"] == 3
    assert found[0].draw == ticket.draw


# --- reinit ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", kinds())
def test_a_reinit_draws_from_the_tickets_own_distribution(kind: str, tmp_path: Path) -> None:
    ticket = drawn_ticket(tiny_net(), 0.2)
    draw = Draw(kind, 11, 0.25)
    shapes = {name: mask.shape for name, mask in ticket.masks.items()}
    ticket = ticket.replace(initial={**ticket.initial, **draw.weights(shapes)}, draw=draw)
    found = [reinit(ticket, seed) for seed in range(40)]
    assert len(set(found) | {ticket}) == 41
    name = "3.weight"
    own, fresh = ticket.initial[name], torch.stack([t.initial[name] for t in found])
    assert found[0].masks["3.weight"].equal(ticket.masks["3.weight"])
    fan = 16 + 12 if kind.startswith("xavier") else 16  # 12 units of 16 inputs
    assert float(fresh.var()) == pytest.approx(2 / (0.25 * fan), rel=0.1)
    if kind == "signed-constant":
        # Signs are new, the one magnitude is the same: the released code drew normals here.
        assert fresh.abs().unique().tolist() == own.abs().unique().tolist()
        assert 0.4 < float((fresh[0] == own).double().mean()) < 0.6
    others = set(ticket.initial) - set(ticket.masks)
    assert all(torch.equal(found[0].initial[n], ticket.initial[n]) for n in others)
    small = found[0].save(tmp_path / "t", weights=False)  # its draw is its own
    assert Ticket.load(small) == found[0]


def test_a_reinit_of_unknown_weights_permutes_them() -> None:
    ticket = drawn_ticket(tiny_net(), 0.2)
    values = {n: torch.randn(m.shape, dtype=torch.float64) for n, m in ticket.masks.items()}
    own = ticket.replace(initial={**ticket.initial, **values})
    first, second = reinit(own, 0), reinit(own, 1)
    assert len({own, first, second}) == 3
    assert first.draw is None
    for name, value in values.items():
        assert first.initial[name].dtype == torch.float64
        assert torch.equal(first.initial[name].reshape(-1).sort().values, value.reshape(-1).sort().values)
        assert not torch.equal(first.initial[name], value)


def test_a_reinit_that_changes_nothing_is_refused() -> None:
    with pytest.raises(UsageError, match="changes nothing"):
        reinit(masks_ticket(a=[True, False, True]), 0)


def test_a_reinit_keeps_the_models_type() -> None:
    ticket = drawn_ticket(tiny_net(), 0.2)
    double = Ticket(ticket.masks, {n: t.double() for n, t in ticket.initial.items()}, {}, ticket.draw)
    assert all(reinit(double, 0).initial[n].dtype == torch.float64 for n in double.masks)


def test_each_check_destroys_one_thing(pair: Pair) -> None:
    net = tiny_net()
    ticket = gemminer.mine(net, pair, 0.2, epochs=4)
    bench = build(net, TensorBatches(*pair, batch_size=32))
    for name in checks.names():
        first, second = (altered_ticket(bench, name, ticket, index) for index in (0, 1))
        assert first != ticket
        assert (first == second) == (name == "invert")
        assert first.kept == ticket.kept  # equal density
        assert first.provenance["check"] == name
        same_masks = all(torch.equal(m, ticket.masks[n]) for n, m in first.masks.items())
        same_start = all(torch.equal(t, ticket.initial[n]) for n, t in first.initial.items())
        assert (same_masks, same_start) == ((True, False) if name in FRESH else (False, True))
    counts = [layer.kept for layer in ticket.per_layer()]
    assert [layer.kept for layer in altered_ticket(bench, "shuffle", ticket, 0).per_layer()] == counts


def test_the_inversion_is_the_tickets_own_search_upside_down(pair: Pair) -> None:
    net, data = tiny_net(), TensorBatches(*pair, batch_size=32)
    bench = build(net, data, seed=3)
    options = methods.gem_miner.Options(epochs=3, lr=0.7)
    found: list[Ticket] = []
    bench.search("gem-miner", 0.2, options, Draw("signed-constant", 3), found.append)
    ticket = found[0]
    inverted = altered_ticket(bench, "invert", ticket, 0)
    upside_down = dataclasses.replace(options, invert=True)
    bench.search("gem-miner", 0.2, upside_down, Draw("signed-constant", 3), found.append)
    assert inverted == found[1]


def test_the_inversion_is_searched_in_the_tickets_own_steps_and_precision(pair: Pair) -> None:
    net, data = tiny_net(), TensorBatches(*pair, batch_size=16)
    how = {"precision": "bf16", "accumulate": 2}
    ticket, upside_down = (
        gemminer.mine(net, pair, 0.2, epochs=6, batch_size=16, invert=invert, **how)  # type: ignore[arg-type]
        for invert in (False, True)
    )
    inverted = altered_ticket(build(net, data), "invert", ticket, 0)
    assert all(torch.equal(mask, upside_down.masks[name]) for name, mask in inverted.masks.items())
    old = ticket.replace(precision="fp32", accumulate=1)
    other = altered_ticket(build(net, data, **how), "invert", old, 0)  # type: ignore[arg-type]
    assert not all(torch.equal(mask, upside_down.masks[name]) for name, mask in other.masks.items())


@pytest.mark.parametrize("name", checks.names())
@pytest.mark.parametrize("kept", [False, True], ids=["within a ticket", "a pruned model's own weights"])
def test_what_a_check_draws_stays_where_the_search_could_go(pair: Pair, name: str, kept: bool, tmp_path: Path) -> None:
    net = tiny_net()
    old = drawn_ticket(net, 0.5, seed=3)
    if kept:
        old.apply(net)
    how = {"initialiser": "keep"} if kept else {"within": old}
    found = gemminer.mine(net, pair, 0.2, method="snip", **how)  # type: ignore[arg-type]
    ticket = Ticket.load(found.save(tmp_path / "t"))
    assert ticket.within is not None
    experiment = build(net, TensorBatches(*pair, batch_size=32))
    other = altered_ticket(experiment, name, ticket, 0)
    assert other.kept == ticket.kept
    assert not any(bool((mask & ~old.masks[n]).any()) for n, mask in other.masks.items())
    if kept:  # a weight that is zero was pruned
        assert all(bool(other.initial[n][mask].all()) for n, mask in other.masks.items())
    changed = (dict(other.masks), dict(ticket.masks)) if name not in FRESH else (other.initial, ticket.initial)
    assert any(not torch.equal(changed[0][n], changed[1][n]) for n in ticket.masks)


def test_an_inversion_needs_a_method(pair: Pair) -> None:
    ticket = Ticket({"0.weight": torch.ones(16, 6).bool()}, tiny_net().state_dict())
    bench = build(tiny_net(), TensorBatches(*pair))
    with pytest.raises(UsageError, match="needs to know the ticket's method, which is None"):
        altered_ticket(bench, "invert", ticket, 0)


# --- tickets that remove layers ----------------------------------------------------------------------------------


def layers_ticket(**options: object) -> tuple[torch.nn.Module, Ticket, Pair]:
    net, data = conformance("Residual"), (torch.randn(48, 1, 4, 4), torch.arange(48) % 3)
    how = {"criterion": "l1", "remove": 2, **options}
    return net, gemminer.mine(net, data, how.pop("density", 1.0), method="layers", **how), data


def test_a_shuffle_removes_others_as_many_of_each_stage() -> None:
    _, ticket, _ = layers_ticket()
    stages = sorted(name.split(".")[0] for name in ticket.removed)
    found = [shuffle(ticket, seed) for seed in range(30)]
    assert all(sorted(name.split(".")[0] for name in other.removed) == stages for other in found)
    assert all(set(other.removed) != set(ticket.removed) for other in found)
    assert all(other.kept == ticket.kept for other in found)
    assert len({frozenset(other.removed) for other in found}) > 1
    assert all(torch.equal(found[0].initial[n], t) for n, t in ticket.initial.items())


def test_a_shuffle_of_a_gem_without_layers_moves_layers_and_weights() -> None:
    _, ticket, _ = layers_ticket(then="random", density=0.2)
    other = shuffle(ticket, 0)
    assert other.kept == ticket.kept
    assert set(other.removed) != set(ticket.removed)
    counts = [sorted(t.masks.kept(n) for n in t.masks) for t in (ticket, other)]
    assert counts[0] == counts[1]
    assert not torch.equal(other.masks["stem.weight"], ticket.masks["stem.weight"])


def test_a_stage_of_which_all_or_nothing_goes_cannot_be_shuffled() -> None:
    _, ticket, _ = layers_ticket(remove=6, least=0)
    with pytest.raises(UsageError, match="shuffling changes nothing"):
        shuffle(ticket, 0)


@pytest.mark.parametrize("then", ["none", "snip"])
def test_every_check_of_a_ticket_that_removes_layers(then: str) -> None:
    """As many layers and weights are left; but erk keeps single weights of the whole network."""
    net, ticket, data = layers_ticket(then=then, **({} if then == "none" else {"density": 0.2}))
    experiment = build(net, TensorBatches(*data, batch_size=16), test=TensorBatches(*data))
    found = {name: altered_ticket(experiment, name, ticket, 0) for name in checks.names()}
    assert all(len(t.removed) == (0 if name == "erk" else 2) for name, t in found.items())
    assert all(t.kept == ticket.kept for t in found.values())
    assert found["reinit"].removed == found["scratch"].removed == ticket.removed
    assert set(found["invert"].removed) != set(ticket.removed)
    uniform = {frozenset(altered_ticket(experiment, "uniform", ticket, i).removed) for i in range(12)}
    assert len({tuple(sorted(n.split(".")[0] for n in names)) for names in uniform}) > 1  # anywhere
    for name, other in found.items():
        assert experiment.train(other, 0, f"check:{name}:0")["test"] >= 0


def test_scratch_draws_every_value_as_the_layers_do() -> None:
    net = conformance("Residual")
    with torch.no_grad():
        for p in net.parameters():
            p.fill_(7.0)
    ticket = drawn_ticket(net, 0.5)
    before = {n: t.clone() for n, t in net.state_dict().items()}
    found = [checks.scratch(ticket, net, seed) for seed in (0, 0, 1)]
    assert found[0] == found[1] != found[2]
    assert all(torch.equal(found[0].masks[n], m) for n, m in ticket.masks.items())
    assert not any((t == 7.0).any() for t in found[0].initial.values())
    assert torch.equal(found[0].initial["wide.0.norm.weight"], torch.ones(4))
    bound = 1 / math.sqrt(16)
    assert bound / 2 < found[0].initial["head.weight"].abs().max() <= bound
    assert all(torch.equal(t, before[n]) for n, t in net.state_dict().items())
    with pytest.raises(UsageError, match="no layer of this model knows how to draw"):
        checks.scratch(drawn_ticket(Bare(), 0.5), Bare(), 0)


class Bare(torch.nn.Module):
    """Its one weight is GPT-2's kind of layer, which has no reset_parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = Conv1D(4, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.layer(x)
        return out
