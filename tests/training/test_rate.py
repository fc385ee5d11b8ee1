"""The rate found from a training's own first batches: for each mask anew, counted; a given one is left alone."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gemminer.core.errors import GemminerError, UsageError
from gemminer.core.model_state import copied
from gemminer.core.progress import Monitor
from gemminer.data import TensorBatches
from gemminer.runs.building import build
from gemminer.training import rate
from gemminer.training.checkpoint import Checkpoint
from gemminer.training.loop import fit
from gemminer.training.rules import Dense, KeepMask
from gemminer.training.settings import Settings
from gemminer.training.task import Task
from tests.helpers import Notes, drawn_ticket, states, tiny_data, tiny_net

AUTO = Settings(epochs=4, lr="auto")
LONG = Settings(epochs=50, lr="auto")


def task_of(model: nn.Module, **fields: Any) -> Task:
    return Task(model, TensorBatches(*tiny_data(), batch_size=16, seed=3), **fields)


def found(task: Task, settings: Settings = AUTO, seed: int = 0) -> tuple[Settings, dict[str, Any]]:
    settled, facts = rate.settled(task, Dense(task.model), settings, seed=seed, phase="train")
    assert facts is not None
    return settled, {**facts, "seconds": 0}


def steep(factor: float) -> nn.Module:
    """A network without norms whose outputs, and so the sharpness of its loss, grow with `factor`."""
    net = tiny_net(norm=False)
    with torch.no_grad():
        for p in net.parameters():
            p.mul_(factor)
    return net


def test_the_same_seed_finds_the_same_and_leaves_everything_as_it_was() -> None:
    net = tiny_net()
    before, streams = copied(net), states()
    first, second = found(task_of(net)), found(task_of(net))
    assert first == second
    assert states() == streams
    assert all(torch.equal(before[name], tensor) for name, tensor in copied(net).items())
    assert all(p.grad is None for p in net.parameters())


def test_a_rate_is_the_highest_halved_a_whole_number_of_times() -> None:
    for factor in (1.0, 4.0, 16.0):
        lr = found(task_of(steep(factor)), LONG)[0].initial_lr
        assert lr in {0.1 / 2**k for k in range(10)}
    assert found(task_of(tiny_net()))[0].initial_lr == 0.1
    assert found(task_of(tiny_net()), Settings(epochs=4, lr="auto", optimiser="adam"))[0].initial_lr <= 8e-3


@pytest.mark.parametrize(("size", "away"), [(6, 0.01), (12, 0.3), (40, 0.01)])
def test_what_diverges_at_the_highest_rate_is_learnt(size: float, away: float) -> None:
    """A linear regression diverges above 2 (1 + momentum) / largest eigenvalue: 0.045, 0.011 and 0.001 here."""
    inputs = size * torch.randn(64, 4, generator=torch.Generator().manual_seed(0))
    weights = torch.tensor([[1.0, -2.0, 0.5, 3.0]])
    data = TensorBatches(inputs, inputs @ weights.T, batch_size=16)

    def trained(lr: Any) -> float:
        net = nn.Linear(4, 1, bias=False)
        with torch.no_grad():
            net.weight.copy_(weights + away)
        task = Task(net, data, loss=lambda output, target: (output - target).square().mean())
        try:
            return float(fit(task, Dense(net), dataclasses.replace(LONG, lr=lr), seed=0)[-1]["loss"])
        except GemminerError:
            return float("inf")

    assert trained("auto") < 0.01
    assert trained(0.1) > 1e3


def test_a_number_is_left_alone_bit_for_bit() -> None:
    settings = Settings(epochs=2, lr=0.1)
    assert rate.settled(task_of(tiny_net()), Dense(tiny_net()), settings, seed=0, phase="train") == (settings, None)
    given, auto = tiny_net(), tiny_net()
    rows = fit(task_of(auto), Dense(auto), dataclasses.replace(settings, lr="auto"), seed=0)
    own = rows[0]["rate"]
    again = dataclasses.replace(settings, lr=own["lr"], max_norm=own["max_norm"])
    assert "rate" not in fit(task_of(given), Dense(given), again, seed=0)[0]
    assert all(torch.equal(a, b) for a, b in zip(given.parameters(), auto.parameters(), strict=True))


def test_a_longer_gradient_is_shortened_and_a_shorter_one_is_not() -> None:
    plain, wide, narrow = tiny_net(), tiny_net(), tiny_net()
    for net, norm in ((plain, None), (wide, 1e9), (narrow, 1e-6)):
        fit(task_of(net), Dense(net), Settings(epochs=1, lr=0.1, weight_decay=0, max_norm=norm), seed=0)
    assert torch.allclose(plain[0].weight, wide[0].weight)
    assert float((narrow[0].weight - tiny_net()[0].weight).detach().abs().max()) < 1e-5


def test_a_ticket_its_check_and_the_dense_network_have_each_their_own() -> None:
    net = tiny_net()
    experiment = build(net, tiny_data(), test=tiny_data(), batch_size=16)
    experiment = dataclasses.replace(experiment, settings=AUTO)
    ticket = drawn_ticket(net, 0.3)
    results = [experiment.train(t, 0, phase) for t, phase in ((ticket, "train:0"), (None, "dense"))]
    assert results[0]["rate"]["max_norm"] != results[1]["rate"]["max_norm"]
    for result in results:
        own = result["rate"]
        assert own["steps"] > 0
        assert 0 < own["seconds"] < result["cost"]["seconds"]
        parts = own["steps"] / len(experiment.task.train)
        passes = 3 * experiment.task.train.examples * experiment.flops.dense
        assert result["cost"]["flops_dense"] == pytest.approx(passes * (4 + parts))
        assert result["cost"]["epochs"] == 4


def test_the_engines_find_the_same_rate() -> None:
    net = tiny_net()
    for asked in ("dense", "sparse"):
        experiment = build(net, tiny_data(), test=tiny_data(), batch_size=16, engine=asked)
        experiment = dataclasses.replace(experiment, settings=AUTO)
        own = experiment.train(drawn_ticket(net, 0.2), 0, "train:0")["rate"]
        if asked == "dense":
            dense = own
    assert own["lr"] == dense["lr"]
    assert own["steps"] == dense["steps"]
    assert [x for _, x in own["tried"]] == pytest.approx([x for _, x in dense["tried"]], rel=1e-3)


class Stop(Monitor):
    def epoch(self, row: dict[str, Any]) -> None:
        if row["epoch"] == 2:
            raise KeyboardInterrupt


def test_a_resumed_training_takes_its_rate_from_the_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, killed = tiny_net(), tiny_net()
    fit(task_of(whole), Dense(whole), AUTO, seed=0)
    checkpoint = Checkpoint(tmp_path / "it", every=0.0)
    with pytest.raises(KeyboardInterrupt):
        fit(task_of(killed, checkpoint=checkpoint, monitor=Stop()), Dense(killed), AUTO, seed=0)
    monkeypatch.setattr(rate, "settled", lambda *_, **__: pytest.fail("looked for again"))
    resumed = tiny_net(seed=5)
    rows = fit(task_of(resumed, checkpoint=checkpoint), Dense(resumed), AUTO, seed=0)
    assert rows[0]["rate"]["lr"] == 0.1
    assert "rate" not in rows[1]
    assert all(torch.equal(a, b) for a, b in zip(resumed.parameters(), whole.parameters(), strict=True))


def test_masked_weights_stay_zero_in_a_trial() -> None:
    net = tiny_net()
    ticket = drawn_ticket(net, 0.2)
    ticket.apply(net)
    seen: list[Tensor] = []
    net[0].register_forward_pre_hook(lambda module, _: seen.append(module.weight.detach().clone()))
    rate.settled(task_of(net), KeepMask(net, ticket.masks), AUTO, seed=0, phase="train")
    assert all((w[~ticket.masks["0.weight"]] == 0).all() for w in seen)
    assert not torch.equal(seen[0], seen[6])


def test_a_norm_that_its_owner_froze_stays_frozen_in_a_trial() -> None:
    net = tiny_net()
    net[1].eval()
    seen: list[bool] = []
    net[1].register_forward_hook(lambda module, *_: seen.append(module.training))
    found(task_of(net))
    assert seen
    assert not any(seen)


def test_a_loss_that_is_no_number_is_said() -> None:
    said = Notes()
    task = task_of(tiny_net(), loss=lambda output, _: output.sum() * float("nan"), monitor=said)
    with pytest.raises(GemminerError, match="no longer finite"):
        fit(task, Dense(task.model), AUTO, seed=0)
    assert "set lr yourself" in said.notes[0]


def test_auto_is_no_number_yet() -> None:
    with pytest.raises(UsageError, match="auto"):
        AUTO.lr_at(0)
    with pytest.raises(UsageError, match="max_norm"):
        Settings(max_norm=0)
