"""Between two logs no step waits for a device: none reads a number from a tensor."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, distributed, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from gemminer import methods
from gemminer.core import selection
from gemminer.core.errors import Diverged, UsageError
from gemminer.core.prunable import prunable_weights
from gemminer.data import TensorBatches
from gemminer.methods import edge_popup
from gemminer.methods.gem_miner import rule as gem_miner_rule
from gemminer.training import loop, rate
from gemminer.training import task as tasks
from gemminer.training.loop import fit
from gemminer.training.ranks import ranks_of
from gemminer.training.rules import Dense, KeepMask, Rule
from gemminer.training.settings import Settings
from gemminer.training.shards import Shard
from gemminer.training.task import Task
from tests.helpers import Elsewhere, tiny_data, tiny_net
from tests.processes import together

# What reads a number, or whose result has a size that only the numbers tell; an index of booleans becomes `nonzero`.
ASKS = {"_local_scalar_dense", "nonzero", "masked_select", "_unique2", "equal", "is_nonzero"}


class Asked(TorchDispatchMode):
    """Counts the operations for which the host would wait."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name.startswith("index") and isinstance(args[1], (list, tuple)):
            name = "nonzero" if any(i is not None and i.dtype == torch.bool for i in args[1]) else name
        if name in ASKS:
            self.counts[name] += 1
        return func(*args, **(kwargs or {}))


def kept(model: nn.Module) -> Rule:
    half = {name: torch.arange(p.numel()).reshape(p.shape) % 2 == 0 for name, p in prunable_weights(model).items()}
    return KeepMask(model, half)


TRAININGS: dict[str, tuple[Callable[[nn.Module], Rule], dict[str, Any]]] = {
    "dense": (Dense, {}),
    "dense, adam": (Dense, {"optimiser": "adam", "lr": 0.001}),
    "dense, adamw": (Dense, {"optimiser": "adamw", "lr": 0.001}),
    "dense, clipped": (Dense, {"max_norm": 1.0}),
    "ticket": (kept, {}),
    "ticket, clipped": (kept, {"max_norm": 1.0}),
}
SEARCHES: dict[str, tuple[str, dict[str, Any]]] = {
    "gem-miner": ("gem-miner", {}),
    "gem-miner by epochs": ("gem-miner", {"freeze_every": 1}),
    "gem-miner, adam": ("gem-miner", {"optimiser": "adam"}),
    "gem-miner, floor": ("gem-miner", {"floor": 1, "invert": True}),
    "gem-miner, fixed lambda": ("gem-miner", {"ridge": 1e-4}),
    "gem-miner, fixed lambda, by epochs": ("gem-miner", {"ridge": 1e-4, "scale": True, "freeze_every": 1}),
    "gem-miner, clipped": ("gem-miner", {"max_norm": 1.0}),
    **{f"edge-popup {rung}": ("edge-popup", {"rung": rung, "clip": 1.0}) for rung in edge_popup.RUNGS},
    "edge-popup by epochs": ("edge-popup", {"rung": "ridge", "freeze_every": 1}),
}
ROUNDS = {f"imp {rewind}": ("imp", {"rewind": rewind, "lr": 0.1}) for rewind in ("cold", "warm", "lr")}


def asked(run: Callable[[Task], Any], steps: int, **fields: Any) -> Counter[str]:
    """What is asked by a run of so many steps an epoch."""
    ranks = ranks_of(distributed.is_initialized())
    data = TensorBatches(*tiny_data(8 * steps * (ranks.world if ranks else 1)), batch_size=8)
    if ranks is not None:
        fields |= {"ranks": ranks, "train": Shard(data, ranks.rank, ranks.world)}
    fields = {"train": data, "validation": TensorBatches(*tiny_data(16)), "engine": "dense", **fields}
    task = Task(tiny_net(), **fields)
    with Asked() as mode:
        run(task)
    return mode.counts


def training(name: str) -> Callable[[Task], Any]:
    rule, options = TRAININGS[name]
    return lambda task: fit(task, rule(task.model), Settings(**{"epochs": 2, "lr": 0.1, **options}), seed=0)


def search(name: str) -> Callable[[Task], Any]:
    method, options = {**SEARCHES, **ROUNDS}[name]
    row = methods.get(method)
    return lambda task: row.find(task, 0.5 if method == "imp" else 0.1, row.options(**{"epochs": 2, **options}), 0)


@pytest.mark.parametrize("name", [*TRAININGS, *SEARCHES, *ROUNDS])
def test_twice_the_steps_ask_as_often(name: str) -> None:
    run = training(name) if name in TRAININGS else search(name)
    steps = 35 if name in TRAININGS else 10  # more than 32; more than statistics are taken from
    once, twice = asked(run, steps), asked(run, 2 * steps)
    assert once == twice
    assert set(once) == {"_local_scalar_dense"}  # the logs' numbers are counted


def on_ranks() -> dict[str, tuple[Counter[str], Counter[str]]]:
    names = ["dense", "ticket, clipped", "gem-miner"]
    runs = {name: training(name) if name in TRAININGS else search(name) for name in names}
    found = {name: (asked(run, 35), asked(run, 70)) for name, run in runs.items()}
    return {**found, "accumulated": (asked(runs["dense"], 40, accumulate=2), asked(runs["dense"], 80, accumulate=2))}


def test_twice_the_steps_ask_as_often_on_two_ranks(tmp_path: Path) -> None:
    for rank in together(on_ranks, tmp_path):
        for name, (once, twice) in rank.items():
            assert once == twice, name


def test_accumulated_batches_with_ignored_labels_ask_as_often() -> None:
    run = training("dense")
    assert asked(run, 40, accumulate=2) == asked(run, 80, accumulate=2)


def test_trials_of_a_rate_ask_as_often() -> None:
    def run(task: Task) -> None:
        rate.settled(task, Dense(task.model), Settings(epochs=2), seed=0, phase="train")

    assert rate.length(2 * 400) < rate.length(2 * 800)
    assert asked(run, 400) == asked(run, 800)


@pytest.mark.parametrize("name", [*TRAININGS, *SEARCHES])
def test_steps_run_on_a_device_that_no_number_can_be_read_from(name: str) -> None:
    model = tiny_net().to("meta")
    task = Task(model, TensorBatches(*tiny_data()), engine="dense")
    batch = [(torch.empty(8, 6, device="meta"), torch.empty(8, dtype=torch.long, device="meta"))]
    if name in TRAININGS:
        make, options = TRAININGS[name]
        rule, settings = make(model), Settings(**{"epochs": 2, "lr": 0.1, **options})
    else:
        method, options = SEARCHES[name]
        row = methods.get(method)
        assert row.drive is not None
        driven = row.drive(task.table(), 0.1, row.options(**{"epochs": 2, **options}), 0, 10, task)
        rule, settings = driven.rule, driven.settings
    optimiser = settings.build(rule.parameters())
    rule.begin(optimiser)
    for step in range(20):
        loop.step(task, rule, optimiser, batch, step, settings.max_norm)
    with pytest.raises(Exception, match="meta"):  # a number would be refused
        bool(next(model.parameters()).sum())


# --- a device's way is the host's ------------------------------------------------------------------------------


def test_a_search_that_waits_for_no_device_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    def found() -> Any:
        task = Task(tiny_net(), TensorBatches(*tiny_data(), batch_size=16), engine="dense")
        return methods.get("gem-miner").find(task, 0.1, methods.get("gem-miner").options(epochs=4), 0)

    def kth(scores: Tensor, *rest: Any) -> Tensor:
        return selection.kth_highest(scores.as_subclass(Elsewhere), *rest).as_subclass(Tensor)

    def lowest(scores: Tensor, count: int) -> Tensor:
        return selection.lowest(scores.as_subclass(Elsewhere), count).as_subclass(Tensor)

    on_host = found()
    monkeypatch.setattr(gem_miner_rule, "kth_highest", kth)
    monkeypatch.setattr(gem_miner_rule, "lowest", lowest)
    elsewhere = found()
    assert all(torch.equal(mask, elsewhere.masks[name]) for name, mask in on_host.masks.items())
    assert [{**row, "seconds": 0} for row in on_host.rows] == [{**row, "seconds": 0} for row in elsewhere.rows]


def unread(value: Tensor) -> None:
    """What `at_hand` says of a tensor on a GPU."""


@pytest.mark.parametrize("loss", [F.cross_entropy, nn.CrossEntropyLoss(label_smoothing=0.1), nn.NLLLoss()])
def test_a_batch_without_labels_has_the_loss_and_gradient_zero(monkeypatch: pytest.MonkeyPatch, loss: Any) -> None:
    inputs, targets = tiny_data(8)
    model = tiny_net()
    task = Task(model, TensorBatches(inputs, targets), loss=loss)

    def computed(labels: Tensor) -> list[Tensor]:
        model.zero_grad()
        found = task.loss_of(inputs, labels)
        found.backward()
        return [found.detach(), *(p.grad for p in model.parameters() if p.grad is not None)]

    before = computed(targets)
    monkeypatch.setattr(tasks, "at_hand", unread)
    assert all(torch.equal(a, b) for a, b in zip(before, computed(targets), strict=True))
    assert all(not value.any() for value in computed(torch.full_like(targets, -100)))


def bad_from(call: int) -> Callable[[Tensor, Tensor], Tensor]:
    """Cross-entropy that is NaN in one call, and right again afterwards."""
    calls = [0]

    def loss(output: Tensor, target: Tensor) -> Tensor:
        calls[0] += 1
        return F.cross_entropy(output, target) * (math.nan if calls[0] - 1 == call else 1.0)

    return loss


def test_a_device_tells_of_a_loss_that_is_not_finite_at_the_end_of_the_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "at_hand", unread)
    model = tiny_net()
    task = Task(model, TensorBatches(*tiny_data(140), batch_size=2), loss=bad_from(75))
    with pytest.raises(Diverged, match=r"no longer finite in epoch 2 of 'train': lower the learning rate \(lr"):
        fit(task, Dense(model), Settings(epochs=3, lr=0.1), seed=0)


def test_a_device_tells_of_scores_that_are_nan_at_the_end_of_the_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    parameters = prunable_weights(tiny_net())
    rule = edge_popup.Popup(parameters, edge_popup.Options(epochs=4, rung="global"), {}, 32, seed=0)
    monkeypatch.setattr(selection, "at_hand", unread)
    with torch.no_grad():
        next(iter(rule.scores.values()))[0] = math.nan
    rule.after_step(0)
    rule.after_step(1)
    for told in (lambda: rule.after_epoch(1, False), lambda: rule.found(())):
        with pytest.raises(UsageError, match="some scores are NaN: check the data and the loss"):
            told()


def test_a_trial_that_waits_for_no_device_finds_the_same_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    def found(loss: Any) -> list[list[float | None]]:
        model = tiny_net()
        task = Task(model, TensorBatches(*tiny_data(), batch_size=8), loss=loss)
        settings = Settings(epochs=30)
        known = rate.settled(task, Dense(model), settings, seed=0, phase="train")[1]
        assert known is not None
        tried: list[list[float | None]] = known["tried"]
        return tried

    first = rate.HELD  # the losses before any step
    host = [found(F.cross_entropy), found(bad_from(first + 3))]
    monkeypatch.setattr(rate, "at_hand", unread)
    assert [found(F.cross_entropy), found(bad_from(first + 3))] == host
    assert host[1][0][1] is None  # the trial with the NaN
