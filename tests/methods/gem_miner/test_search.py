"""The search as a whole: exact counts, a model left alone, the same bits when resumed."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from gemminer.core.errors import UsageError
from gemminer.core.progress import Monitor
from gemminer.core.prunable import prunable_weights
from gemminer.data import TensorBatches
from gemminer.methods.gem_miner import GemMinerRule, Options, find
from gemminer.training.checkpoint import Checkpoint
from gemminer.training.loop import fit
from gemminer.training.task import Task
from tests.helpers import mined, tiny_data, tiny_net
from tests.methods.gem_miner.helpers import fixed, options_for_fit


def rule_size(model: nn.Module) -> int:
    return sum(p.numel() for p in prunable_weights(model).values())


# --- schedules -------------------------------------------------------------------------------------------------


@given(
    density=st.floats(0.02, 1.0),
    every=st.sampled_from([0, 1, 2]),
    epochs=st.integers(3, 6),
    seed=st.integers(0, 10**6),
    scores=st.sampled_from(["uniform", "bernoulli", "beta"]),
)
@hypothesis_settings(max_examples=20)
def test_a_search_hits_every_count_of_its_schedule(
    density: float, every: int, epochs: int, seed: int, scores: str
) -> None:
    """Bernoulli scores tie at 0 and 1 from the beginning; a huge rate clips nearly all of them."""
    options = fixed(epochs=epochs, freeze_every=every, lr=50.0, scores=scores)  # type: ignore[arg-type]
    model, data = tiny_net(), TensorBatches(*tiny_data(24), batch_size=12)
    schedule = options.freeze_schedule(2, density, 324)
    seen: dict[int, int] = {}

    class Watched(GemMinerRule):
        def after_step(self, step: int) -> None:
            super().after_step(step)
            if step in self.schedule:
                seen[step] = int(self.q.sum())
            assert self.remaining == int(self.q.sum())
            assert torch.equal(self.kept_initial, self.initial * self.q)
            assert all(p.grad is None or not p.grad.count_nonzero() for p in self.weights)  # cleared

    rule = Watched(prunable_weights(model), options, schedule, seed)
    fit(Task(model, data), rule, options_for_fit(options), seed=seed)
    assert seen == schedule
    exact = Fraction(density) * 324
    assert abs(int(rule.q.sum()) - exact) <= Fraction(1, 2) + Fraction(1, 2**40)


# --- find ------------------------------------------------------------------------------------------------------


def task(model: nn.Module, **changes: Any) -> Task:
    return Task(model, TensorBatches(*tiny_data(), batch_size=16), **changes)


def test_find_leaves_the_model_as_it_was_and_keeps_the_exact_count(
    net: nn.Sequential, snapshot: Callable[[nn.Module], object]
) -> None:
    net[0].bias.requires_grad_(False)
    net.eval()
    before, generators = snapshot(net), torch.get_rng_state()
    ticket = mined(find, task(net), 0.1, Options(epochs=4), 0)
    assert snapshot(net) == before
    assert torch.equal(torch.get_rng_state(), generators)
    assert ticket.kept == 32 == round(0.1 * 324)
    assert all(torch.equal(ticket.initial[n], t) for n, t in net.state_dict().items())
    assert len(ticket.provenance["rows"]) == 4
    assert 0 < ticket.provenance["live"] <= 0.1


class Stop(nn.Module):
    """Passes its input on, and raises at the given call."""

    def __init__(self, at: int, error: BaseException) -> None:
        super().__init__()
        self.calls, self.at, self.error = 0, at, error

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        if self.calls == self.at:
            raise self.error
        return x


@pytest.mark.parametrize("at", [1, 5, 11])
@pytest.mark.parametrize("error", [RuntimeError("broken"), KeyboardInterrupt()], ids=repr)
def test_an_interrupted_search_gives_the_weights_back(
    net: nn.Sequential, snapshot: Callable[[nn.Module], object], error: BaseException, at: int
) -> None:
    model = nn.Sequential(net, Stop(at, error))
    before, generators = snapshot(model), torch.get_rng_state()
    with pytest.raises(type(error)):
        mined(find, task(model), 0.1, Options(epochs=4), 0)
    assert snapshot(model) == before
    assert torch.equal(torch.get_rng_state(), generators)


def test_gradients_of_before_do_not_leak_into_the_search() -> None:
    fresh, used = tiny_net(), tiny_net()
    inputs, targets = tiny_data()
    (1000 * F.cross_entropy(used(inputs), targets)).backward()
    used[1].reset_running_stats()
    ours, theirs = (mined(find, task(model), 0.2, Options(epochs=3), 0).masks for model in (fresh, used))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_only_scores_move_during_a_search(net: nn.Sequential) -> None:
    """No weight decay on effective weights, biases and norms where they were, whatever the optimiser."""
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    seen: list[dict[str, Tensor]] = []

    class Watching(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            seen.append({name: p.detach().clone() for name, p in net.named_parameters()})
            return x

    mined(
        find,
        task(nn.Sequential(net, Watching()), engine="dense"),
        0.1,
        Options(epochs=3, weight_decay=0.1, ridge=0.1),
        0,
    )
    assert len(seen) == 18
    for state in seen:
        for name, value in state.items():
            same = value == before[name]
            if name in ("0.weight", "3.weight", "5.weight"):
                same |= value == 0
            assert bool(same.all()), name


def test_seeds_and_options_vary_the_ticket() -> None:
    first, again, other = (mined(find, task(tiny_net()), 0.2, Options(epochs=2), seed) for seed in (0, 0, 1))
    assert first == again
    assert first != other
    inverted = mined(find, task(tiny_net()), 0.2, Options(epochs=2, invert=True), 0)
    assert inverted.kept == first.kept
    assert inverted != first


def test_a_live_mask_may_keep_fewer_and_says_so() -> None:
    ticket = mined(find, task(tiny_net()), 0.5, Options(epochs=6, mask="live", ridge=3e-2, lr=0.5), 0)
    assert ticket.kept < 162
    assert ticket.provenance["live"] == ticket.density


def test_other_types_are_mined_too() -> None:
    inputs, targets = tiny_data()
    double = tiny_net().double()
    data = TensorBatches(inputs.double(), targets, batch_size=16)
    assert mined(find, Task(double, data), 0.1, Options(epochs=2), 0).kept == 32
    mixed = tiny_net(norm=False)
    mixed[5].to(torch.bfloat16)

    class Cast(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.bfloat16()

    mixed.insert(5, Cast())
    before = mixed[6].weight.detach().clone()
    ticket = mined(find, task(mixed), 0.1, Options(epochs=3, lr=1.0), 0)
    assert ticket.kept == 32
    assert 0 < ticket.masks.kept("6.weight") < 36
    assert torch.equal(mixed[6].weight, before)
    assert mixed[6].weight.dtype == torch.bfloat16


def test_a_floor_above_the_asked_count_is_refused() -> None:
    """Three layers of 50 each are more than the 32 weights that density 0.1 keeps."""
    with pytest.raises(UsageError, match="floor"):
        mined(find, task(tiny_net()), 0.1, Options(epochs=2, floor=50), 0)


# --- lambda solved for -----------------------------------------------------------------------------------------


def test_the_search_does_not_depend_on_the_scale_of_the_loss() -> None:
    """A power of two rounds nothing: the same ticket from a loss 1,024 times as large."""
    masks = [
        mined(find, task(tiny_net(), loss=lambda x, y, c=c: c * F.cross_entropy(x, y)), 0.1, Options(epochs=4), 0).masks
        for c in (1.0, 1024.0)
    ]
    assert all(torch.equal(masks[0][name], masks[1][name]) for name in masks[0])


# Adam makes a full step of what rounding leaves of a zero gradient, so without a ridge the two part company.
@pytest.mark.parametrize(("ridge", "optimiser"), [(None, "sgd"), (1e-3, "sgd"), (1e-3, "adam")])
def test_kept_weights_only_give_the_search_of_all_weights(ridge: float | None, optimiser: str) -> None:
    """In double precision, the same scores at every step and the same ticket; the rows agree."""
    model = nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6), nn.ReLU(),
        nn.Conv2d(6, 6, 3, 2, 1), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(96, 10),
    ).double()  # fmt: skip
    source = torch.Generator().manual_seed(0)
    inputs = torch.randn(40, 1, 8, 8, generator=source, dtype=torch.float64)
    data = TensorBatches(inputs, torch.arange(40) % 10, batch_size=16)
    options = Options(epochs=12, ridge=ridge, optimiser=optimiser, lr=0.2 if optimiser == "sgd" else 0.02)  # type: ignore[arg-type]
    found = [mined(find, Task(model, data, data, engine=engine), 0.05, options, 0) for engine in ("dense", "sparse")]
    dense, sparse = (ticket.provenance["rows"] for ticket in found)
    for ours, theirs in zip(sparse, dense, strict=True):
        assert ours["layers_kept"] == theirs["layers_kept"]
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-6)
        assert ours["live"] == theirs["live"]
    assert all(torch.equal(found[0].masks[name], found[1].masks[name]) for name in found[0].masks)


@pytest.mark.parametrize("killed", [2, 7])  # with vectors of all weights, and with shorter ones
def test_a_search_on_kept_weights_is_resumed_bit_for_bit(tmp_path: Path, killed: int) -> None:
    model, data = tiny_net(), TensorBatches(*tiny_data(), batch_size=16)
    options = Options(epochs=8)
    whole = mined(find, Task(model, data, engine="sparse"), 0.1, options, 0)

    class Killed(Monitor):
        def epoch(self, row: dict[str, Any]) -> None:
            if row["epoch"] == killed:
                raise KeyboardInterrupt

    checkpoint = Checkpoint(tmp_path / "state", 0.0)
    with pytest.raises(KeyboardInterrupt):
        mined(find, Task(model, data, engine="sparse", checkpoint=checkpoint, monitor=Killed()), 0.1, options, 0)
    state = checkpoint.load()
    assert state is not None
    assert len(state["rule"]["vectors"]) == 3
    assert (len(state["rule"]["index"]) == rule_size(model)) == (killed == 2)
    again = mined(find, Task(model, data, engine="sparse", checkpoint=checkpoint), 0.1, options, 0)
    assert all(torch.equal(again.masks[name], whole.masks[name]) for name in whole.masks)
    losses = [[row["loss"] for row in ticket.provenance["rows"]] for ticket in (again, whole)]
    assert losses[0] == losses[1]


def test_a_layer_that_let_go_of_its_frozen_weights_stays_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights that are off may come back, so a layer that was worth computing sparse may later not be."""
    seen: list[set[str]] = []

    def worth(model: nn.Module, masks: dict[str, Tensor], *_: Any) -> set[str]:
        seen.append(set(list(masks)[len(seen) % 2 :: 2]))  # first and third layer, then the second, ...
        return seen[-1]

    monkeypatch.setattr("gemminer.training.engine.layers_worth_sparse", worth)
    data = TensorBatches(*tiny_data(), batch_size=16)
    ticket = mined(find, Task(tiny_net(), data, engine="sparse"), 0.1, Options(epochs=8), 0)
    assert len(seen) > 2
    assert seen[0] - seen[1]
    assert ticket.kept == round(0.1 * ticket.prunable)
