"""The one loop: the same bits as a plain loop, and the same again after it was killed."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, TensorDataset

from gemminer.core.errors import GemminerError
from gemminer.core.progress import Monitor
from gemminer.core.prunable import prunable_weights
from gemminer.core.randomness import mixed
from gemminer.data import LoaderBatches, TensorBatches
from gemminer.methods.gem_miner import GemMinerRule, Options
from gemminer.training.checkpoint import Checkpoint
from gemminer.training.loop import fit
from gemminer.training.rules import Dense
from gemminer.training.settings import Settings
from gemminer.training.task import Task
from tests.helpers import states, tiny_data, tiny_net

# --- one loop --------------------------------------------------------------------------------------------------


def dropout_net() -> nn.Module:
    net = tiny_net()
    net.insert(3, nn.Dropout(0.5))
    return net


class Noisy(Dataset[tuple[Tensor, int]]):
    """A user's augmentation that draws from every global generator there is."""

    def __init__(self) -> None:
        self.inputs, self.targets = tiny_data(48)

    def __len__(self) -> int:
        return 48

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        noise = torch.randn(6) + float(np.random.rand()) + random.random()  # noqa: NPY002
        return self.inputs[index] + 0.1 * noise, int(self.targets[index])


def test_the_loop_is_a_plain_loop_bit_for_bit() -> None:
    data = TensorBatches(*tiny_data(40), batch_size=16, seed=4)  # 3 steps, the last one ragged
    settings = Settings(epochs=4, lr=0.1, weight_decay=0.01)
    ours, plain = dropout_net(), dropout_net()
    rows = fit(Task(ours, data, validation=data), Dense(ours), settings, seed=9, phase="here")

    optimiser = torch.optim.SGD(plain.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01, fused=True)
    losses = []
    with torch.random.fork_rng(devices=[]):
        for epoch in range(4):
            torch.manual_seed(mixed(9, "here", epoch))
            plain.train()
            for step, (inputs, targets) in enumerate(data.epoch(epoch)):
                optimiser.param_groups[0]["lr"] = 0.05 * (1 + math.cos(math.pi * (epoch + step / 3) / 4))
                optimiser.zero_grad()
                loss = F.cross_entropy(plain(inputs), targets)
                loss.backward()
                optimiser.step()
                losses.append(float(loss.detach()))
    for (name, a), b in zip(ours.state_dict().items(), plain.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    assert [row["loss"] for row in rows] == [sum(losses[i : i + 3]) / 3 for i in (0, 3, 6, 9)]
    assert [row["epoch"] for row in rows] == [1, 2, 3, 4]
    assert [row["step"] for row in rows] == [3, 6, 9, 12]
    assert {row["phase"] for row in rows} == {"here"}
    assert rows[-1]["lr"] == pytest.approx(0.05 * (1 + math.cos(math.pi * (3 + 2 / 3) / 4)))
    assert rows[-1]["validation"] > 0.9
    seconds = [row["seconds"] for row in rows]
    assert seconds == sorted(seconds)
    assert seconds[0] > 0


def test_no_global_generator_moves_and_none_matters() -> None:
    def once() -> Tensor:
        model = dropout_net()
        loader = DataLoader(Noisy(), batch_size=16, shuffle=True)
        before = states()
        fit(Task(model, LoaderBatches(loader, 3)), Dense(model), Settings(epochs=2), seed=0)
        assert states() == before
        return torch.cat([p.detach().reshape(-1) for p in model.parameters()])

    first = once()
    torch.rand(7), np.random.rand(3), random.random()  # noqa: NPY002
    assert torch.equal(once(), first)


def test_seeds_vary_a_training_and_zero_is_one_of_them() -> None:
    def trained(seed: int) -> Tensor:
        model = dropout_net()
        fit(Task(model, TensorBatches(*tiny_data(32))), Dense(model), Settings(epochs=2), seed=seed)
        return model[0].weight.detach()

    results = [trained(seed) for seed in (0, 1, 2, 0)]
    assert torch.equal(results[0], results[3])
    assert len({r.numpy().tobytes() for r in results}) == 3


class Killed(BaseException):
    """What ends the loop without a chance to tidy up."""


class KillAt(Monitor):
    """Ends the process, so to say, in the given step or right after the given epoch was told of."""

    def __init__(self, step: int = -1, epoch: int = -1) -> None:
        self.at_step, self.at_epoch = step, epoch
        self.begun: list[tuple[str, int, int]] = []
        self.steps: list[tuple[int, int]] = []

    def begin(self, phase: str, start: int, stop: int) -> None:
        self.begun.append((phase, start, stop))

    def step(self, phase: str, step: int, steps: int) -> None:
        self.steps.append((step, steps))
        if step == self.at_step:
            raise Killed

    def epoch(self, row: dict[str, Any]) -> None:
        if row["epoch"] == self.at_epoch:
            raise Killed


@pytest.mark.parametrize("kind", ["sgd", "adam", "search"])
@pytest.mark.parametrize("kill", [{"step": 1}, {"step": 4}, {"epoch": 1}, {"epoch": 3}, {"step": 11}, {"epoch": 5}])
def test_an_interrupted_loop_ends_with_the_same_bits(tmp_path: Path, kind: str, kill: dict[str, int]) -> None:
    def run(checkpoint: Checkpoint | None, monitor: Monitor) -> tuple[nn.Module, list[dict[str, Any]], Any]:
        model = dropout_net()
        loader = LoaderBatches(DataLoader(Noisy(), batch_size=16, shuffle=True), seed=2)
        task = Task(model, loader, checkpoint=checkpoint, monitor=monitor)
        if kind == "search":
            options = Options(epochs=5, lr=1.0)
            settings: Settings = options
            rule: Any = GemMinerRule(prunable_weights(model), options, options.freeze_schedule(3, 0.1, 324), 0)
        else:
            settings = Settings(epochs=5, optimiser=kind, lr=0.01)  # type: ignore[arg-type]
            rule = Dense(model)
        return model, fit(task, rule, settings, seed=0), rule

    straight, rows, rule = run(None, Monitor())
    checkpoint = Checkpoint(tmp_path / "c.pt", every=0.0)
    killer = KillAt(**kill)
    with pytest.raises(Killed):
        run(checkpoint, killer)
    resumed_by = KillAt()
    resumed, again, other = run(checkpoint, resumed_by)
    for (name, a), b in zip(straight.state_dict().items(), resumed.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    for a, b in zip(rule.state_dict().values(), other.state_dict().values(), strict=True):
        assert torch.equal(a, b) if isinstance(a, Tensor) else a == b
    drop = {"seconds"}
    assert [{k: v for k, v in r.items() if k not in drop} for r in rows] == [
        {k: v for k, v in r.items() if k not in drop} for r in again
    ]
    epochs_done = kill.get("epoch", 0) - 1 if "epoch" in kill else (kill["step"] - 1) // 3
    assert resumed_by.begun == [("train", epochs_done, 5)]  # it went on, it did not begin anew
    assert [s for s, _ in resumed_by.steps] == list(range(3 * epochs_done + 1, 16))
    # And once it is done, resuming does nothing more.
    last = KillAt(step=16)
    done, _, _ = run(checkpoint, last)
    assert last.begun == [("train", 5, 5)]
    assert torch.equal(done[0].weight, straight[0].weight)


def test_another_phases_checkpoint_is_not_taken(tmp_path: Path) -> None:
    checkpoint, model = Checkpoint(tmp_path / "c.pt"), tiny_net()
    task = Task(model, TensorBatches(*tiny_data()), checkpoint=checkpoint)
    fit(task, Dense(model), Settings(epochs=1), seed=0, phase="search")
    rows = fit(task, Dense(model), Settings(epochs=2), seed=0, phase="train")
    assert [(r["phase"], r["epoch"]) for r in rows] == [("train", 1), ("train", 2)]


def test_checkpoints_are_throttled_but_the_last_epoch_has_one(tmp_path: Path) -> None:
    class Counting(Checkpoint):
        saved: list[int] = []  # noqa: RUF012

        def save(self, state: dict[str, Any]) -> None:
            self.saved.append(state["epoch"])
            super().save(state)

    checkpoint, model = Counting(tmp_path / "c.pt", every=1e9, last=1e12), tiny_net()
    fit(Task(model, TensorBatches(*tiny_data()), checkpoint=checkpoint), Dense(model), Settings(epochs=3), seed=0)
    assert checkpoint.saved == [3]


def test_a_part_of_the_schedule() -> None:
    """Two parts with the optimiser started anew: what rewinding does."""
    model = tiny_net()
    task = Task(model, TensorBatches(*tiny_data(), batch_size=32))
    settings = Settings(epochs=4, schedule="multistep", milestones=(2,), momentum=0.0)
    first = fit(task, Dense(model), settings, seed=0, last_epoch=2)
    second = fit(task, Dense(model), settings, seed=0, first_epoch=2)
    whole = tiny_net()
    fit(Task(whole, TensorBatches(*tiny_data(), batch_size=32)), Dense(whole), settings, seed=0)
    assert [r["epoch"] for r in first + second] == [1, 2, 3, 4]
    assert [r["lr"] for r in first + second] == pytest.approx([0.1, 0.1, 0.01, 0.01])
    assert torch.equal(model[0].weight, whole[0].weight)


# --- what goes wrong -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("steps", "bad"), [(2, 1), (70, 5), (70, 69)])
def test_a_loss_that_is_not_finite_stops_the_run(steps: int, bad: int) -> None:
    model, calls = tiny_net(), [0]

    def loss(output: Tensor, target: Tensor) -> Tensor:
        calls[0] += 1
        return F.cross_entropy(output, target) * (math.nan if calls[0] - 1 == bad else 1.0)

    task = Task(model, TensorBatches(*tiny_data(2 * steps), batch_size=2), loss=loss)
    with pytest.raises(GemminerError, match=r"no longer finite in epoch 1 of 'train': lower the learning rate \(lr"):
        fit(task, Dense(model), Settings(epochs=2, lr=0.1), seed=0)
    assert calls[0] <= bad + 32  # not long after


def test_what_was_done_before_stays_on_the_disk(tmp_path: Path) -> None:
    checkpoint, model, calls = Checkpoint(tmp_path / "c.pt", every=0.0), tiny_net(), [0]

    def loss(output: Tensor, target: Tensor) -> Tensor:
        calls[0] += 1
        return F.cross_entropy(output, target) * (math.nan if calls[0] > 6 else 1.0)

    task = Task(model, TensorBatches(*tiny_data(), batch_size=32), loss=loss, checkpoint=checkpoint)
    with pytest.raises(GemminerError, match="in epoch 3"):
        fit(task, Dense(model), Settings(epochs=4, lr=0.1), seed=0)
    state = checkpoint.load()
    assert state is not None
    assert state["epoch"] == 2


def test_data_that_dries_up() -> None:
    class Dry:
        examples = 10

        def __len__(self) -> int:
            return 2

        def epoch(self, index: int) -> Iterator[tuple[Tensor, Tensor]]:
            return iter(())

    model = tiny_net()
    with pytest.raises(GemminerError, match="nothing to train on"):
        fit(Task(model, Dry()), Dense(model), Settings(), seed=0)


def test_any_batches_will_do() -> None:
    model, pair = tiny_net(), tiny_data(24)
    for data in (LoaderBatches(DataLoader(TensorDataset(*pair), batch_size=8)), TensorBatches(*pair, batch_size=8)):
        assert len(fit(Task(model, data), Dense(model), Settings(epochs=1), seed=0)) == 1


# --- an epoch that begins in the middle ------------------------------------------------------------------------


class _Seen(Dense):
    """Each step's number, learning rate and batch."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.steps: list[int] = []
        self.rates: list[float] = []
        self.batches: list[Tensor] = []
        model.register_forward_pre_hook(lambda _, inputs: self.batches.append(inputs[0].clone()))

    def begin(self, optimiser: torch.optim.Optimizer) -> None:
        self.optimiser = optimiser

    def after_step(self, step: int) -> None:
        super().after_step(step)
        self.steps.append(step)
        self.rates.append(self.optimiser.param_groups[0]["lr"])


class _Stop(Monitor):
    """Ctrl-C at the end of the second epoch that is trained: the first is in the checkpoint."""

    epochs = 0

    def epoch(self, row: dict[str, Any]) -> None:
        self.epochs += 1
        if self.epochs == 2:
            raise KeyboardInterrupt


@pytest.mark.parametrize(
    "settings",
    [
        Settings(epochs=4, lr=0.1),
        Settings(epochs=4, lr=0.1, schedule="cosine-by-epoch"),
        Settings(epochs=4, lr=0.1, schedule="multistep", milestones=(1, 3)),
        Settings(epochs=4, lr=0.1, schedule="constant", optimiser="adam"),
    ],
    ids=lambda settings: settings.schedule,
)
@pytest.mark.parametrize("start", [0, 5, 10, 17, 39])
def test_a_training_may_begin_at_any_step(settings: Settings, start: int, tmp_path: Path) -> None:
    """Ten steps an epoch: the batches, the numbers and the rates are those of a whole training from that step on."""

    def train(first: int, **fields: Any) -> tuple[_Seen, list[dict[str, Any]], nn.Module]:
        net = tiny_net()
        seen = _Seen(net)
        task = Task(net, TensorBatches(*tiny_data(40), batch_size=4), **fields)
        return seen, fit(task, seen, settings, seed=1, first_epoch=first // 10, first_step=first % 10), net

    whole, part = train(0)[0], train(start)
    assert part[0].steps == list(range(start, 40))
    assert part[0].rates == whole.rates[start:]
    assert all(torch.equal(a, b) for a, b in zip(part[0].batches, whole.batches[start:], strict=True))
    if settings.schedule == "cosine" and start == 5:
        assert round(part[0].rates[0], 4) == 0.0962
    assert [row["epoch"] for row in part[1]] == list(range(start // 10 + 1, 5))
    assert [row["step"] for row in part[1]] == list(range((start // 10 + 1) * 10, 41, 10))

    if start < 30:
        with pytest.raises(KeyboardInterrupt):
            train(start, checkpoint=Checkpoint(tmp_path / "c.pt", every=0.0), monitor=_Stop())
        seen, rows, net = train(start, checkpoint=Checkpoint(tmp_path / "c.pt", every=0.0))
        assert seen.steps == list(range(rows[0]["step"], 40))
        assert all(
            torch.equal(a, b) for a, b in zip(net.state_dict().values(), part[2].state_dict().values(), strict=True)
        )
