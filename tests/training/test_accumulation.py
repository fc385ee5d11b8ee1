"""Several batches to a step: the gradient, the schedules and the weights are those of the joined batches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import gemminer
from gemminer import methods, sparse
from gemminer.core.progress import Monitor
from gemminer.data import TensorBatches
from gemminer.training.accumulation import grouped, shares, step_loss
from gemminer.training.checkpoint import Checkpoint
from gemminer.training.loop import fit
from gemminer.training.losses import Loss
from gemminer.training.rules import Dense
from gemminer.training.settings import Settings
from gemminer.training.task import Task
from tests.helpers import EXACT, Notes, drawn_ticket, tiny_data, tiny_net

BATCHES = (2, 16), (1, 32)  # accumulate, batch size


def net() -> nn.Module:
    """In double precision, where two orders of adding up differ by 1e-16, and without batch norm."""
    return tiny_net(norm=False).double()


def data(examples: int = 72) -> tuple[Tensor, Tensor]:
    """Of 72 examples batches of 16 leave 8 for a step of their own, as batches of 32 do."""
    inputs, targets = tiny_data(examples)
    return inputs.double(), targets


def gradients(model: nn.Module) -> list[Tensor]:
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


# --- one step --------------------------------------------------------------------------------------------------


def labels(*rows: list[int]) -> list[tuple[Tensor, Tensor]]:
    return [(torch.linspace(-1, 1, 6 * len(r)).view(-1, 6).double(), torch.tensor(r)) for r in rows]


@pytest.mark.parametrize(
    ("loss", "rows", "parts"),
    [
        (nn.CrossEntropyLoss(), ([0, 1, 2], [1]), [3 / 4, 1 / 4]),
        (nn.CrossEntropyLoss(), ([0, -100, -100], [1, 2]), [1 / 3, 2 / 3]),  # labels that are not ignored
        (nn.CrossEntropyLoss(ignore_index=0), ([0, 0], [1, 2]), [0, 1]),
        (lambda out, target: F.mse_loss(out[:, 0], target.double()), ([0, 1, 2], [1]), [3 / 4, 1 / 4]),
    ],
)
def test_the_gradient_is_that_of_the_joined_batch(loss: Loss, rows: Any, parts: list[float]) -> None:
    model, group = net(), labels(*rows)
    task = Task(model, TensorBatches(*data()), loss=loss)
    assert [float(part) for part in shares(task, group)[0]] == pytest.approx(parts)
    ours = step_loss(task, group, backward=True)
    own = gradients(model)
    model.zero_grad()
    whole = task.loss_of(torch.cat([x for x, _ in group]), torch.cat([y for _, y in group]))
    whole.backward()
    torch.testing.assert_close(own, gradients(model), rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(ours, whole.detach(), rtol=1e-6, atol=1e-9)


def test_labels_that_are_all_ignored_move_nothing() -> None:
    model = net()
    loss = step_loss(Task(model, TensorBatches(*data())), labels([-100], [-100, -100]), backward=True)
    assert float(loss) == 0
    assert all(not g.any() for g in gradients(model))


def test_one_batch_is_a_step_as_before() -> None:
    one = labels([0, 1, 2])
    task = Task(net(), TensorBatches(*data()))
    assert shares(task, one)[0] == [1.0]
    assert torch.equal(step_loss(task, one), task.loss_of(*one[0]).detach())


def test_kept_weights_only_add_up_too() -> None:
    """The sparse engine leaves gradients to the end of a backward pass; there may be several before a step."""
    found = []
    for accumulate, size in BATCHES:
        model = tiny_net(norm=False)
        ticket = drawn_ticket(model)
        vectors = sparse.sparsify(ticket.apply(model), ticket, engine="sparse")
        task = Task(vectors, TensorBatches(*tiny_data(32), batch_size=size, shuffle=False), accumulate=accumulate)
        step_loss(task, list(task.train.epoch(0)), backward=True)
        found.append(gradients(vectors))
    torch.testing.assert_close(*found)


# --- a training ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [
        Settings(epochs=3, lr=0.1),
        Settings(epochs=3, lr=0.01, optimiser="adam", schedule="multistep", milestones=(1,)),
        Settings(epochs=3, lr=0.1, max_norm=0.05),
        Settings(epochs=10),  # the rate is looked for in a tenth of the steps
    ],
)
def test_a_training_is_that_of_the_joined_batches(settings: Settings) -> None:
    found = []
    for accumulate, size in BATCHES:
        model = net()
        batches = TensorBatches(*data(), batch_size=size, seed=3)
        task = Task(model, batches, accumulate=accumulate)
        rows = fit(task, Dense(model), settings, seed=1)
        assert [row["step"] for row in rows] == [3 * (epoch + 1) for epoch in range(settings.epochs)]
        found.append((rows, model))
    torch.testing.assert_close(*(dict(model.named_parameters()) for _, model in found), rtol=1e-6, atol=1e-9)
    for ours, plain in zip(*(rows for rows, _ in found), strict=True):
        assert ours["loss"] == pytest.approx(plain["loss"], rel=1e-6)
        assert ours["lr"] == plain["lr"]
        if "rate" in plain:
            assert all(ours["rate"][name] == plain["rate"][name] for name in ("lr", "max_norm", "steps"))


class Killed(Exception):
    """The machine went down."""


class Killing(Monitor):
    def epoch(self, row: dict[str, Any]) -> None:
        if row["epoch"] == 3:
            raise Killed


def test_a_resumed_training_is_one_that_was_not_killed(tmp_path: Path) -> None:
    def trained(path: Path, monitor: Monitor) -> nn.Module:
        model = tiny_net()
        batches = TensorBatches(*tiny_data(72), batch_size=16, seed=3)
        task = Task(model, batches, accumulate=2, checkpoint=Checkpoint(path, every=0), monitor=monitor)
        fit(task, Dense(model), Settings(epochs=4, lr=0.1), seed=1)
        return model

    with pytest.raises(Killed):
        trained(tmp_path / "c", Killing())
    again, whole = trained(tmp_path / "c", Monitor()), trained(tmp_path / "d", Monitor())
    assert all(torch.equal(a, b) for a, b in zip(again.state_dict().values(), whole.state_dict().values(), strict=True))


def test_a_checkpoint_knows_the_batches_of_a_step(tmp_path: Path) -> None:
    def mine(accumulate: int, monitor: Monitor) -> gemminer.Ticket:
        file, of = tmp_path / "c", tiny_data()
        return gemminer.mine(
            tiny_net(), of, 0.3, epochs=4, batch_size=16, accumulate=accumulate, checkpoint=file, monitor=monitor
        )

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GEMMINER_CHECKPOINT_SECONDS", "0")
        with pytest.raises(Killed):
            mine(2, Killing())
        with pytest.raises(gemminer.UsageError, match=r"another call \(accumulate: 2 there, 3 here\)"):
            mine(3, Monitor())
        assert mine(2, Monitor()).provenance["accumulate"] == 2


def test_what_did_not_come_is_said_in_steps() -> None:
    class Short(TensorBatches):
        def __len__(self) -> int:
            return 7

    monitor, model = Notes(), net()
    task = Task(model, Short(*data(), batch_size=16), accumulate=2, monitor=monitor)
    fit(task, Dense(model), Settings(epochs=2, lr=0.1), seed=0)
    (note,) = monitor.notes
    assert "the data gave 2 of 8 steps of 2 batches less than its length promised" in note
    assert "follow the steps that came" in note


def test_groups_of_an_epoch() -> None:
    assert [len(group) for group in grouped([(0, 0)] * 7, 3)] == [3, 3, 1]
    assert Task(net(), TensorBatches(*data(), batch_size=16), accumulate=2).steps == 3


# --- a search --------------------------------------------------------------------------------------------------

SEARCHES = {
    "gem-miner": {},
    "gem-miner, published": {"ridge": 1e-3, "freeze_every": 2, "lr": 2.0},
    "gem-miner, clipped": {"max_norm": 0.05},
    "gem-miner, kept weights only": {"engine": "sparse"},
    "gem-miner, adam": {"optimiser": "adam", "lr": 0.02},
    "edge-popup": {},
    "edge-popup, gradual": {"rung": "gradual", "max_norm": 0.01},
    "imp": {"lr": 0.1},
    "imp, warm": {"rewind": "warm", "rewind_steps": 2},
    "imp, warm at a part of the steps": {"rewind": "warm", "epochs": 40},
}


@pytest.mark.parametrize("label", list(SEARCHES))
def test_a_search_is_that_of_the_joined_batches(label: str) -> None:
    found = []
    for accumulate, size in BATCHES:
        how: dict[str, Any] = {"epochs": 6, **SEARCHES[label]}
        ticket = gemminer.mine(
            net(), data(), 0.2, method=label.split(",")[0], batch_size=size, accumulate=accumulate, **how
        )
        found.append(ticket)
    ours, plain = found
    assert all(torch.equal(ours.masks[name], plain.masks[name]) for name in plain.masks)
    for fact in ("epochs", "rewind_step"):
        assert ours.provenance.get(fact) == plain.provenance.get(fact)


def test_a_longest_gradient_changes_a_search() -> None:
    """None sets no limit."""
    masks = [gemminer.mine(net(), data(), 0.2, epochs=6, max_norm=norm).masks for norm in (None, 1e9, 1e-3)]
    same = [all(torch.equal(masks[0][n], other[n]) for n in other) for other in masks]
    assert same == [True, True, False]


def test_costs_count_examples() -> None:
    """As many as without: finding a rate in steps of two batches takes twice the batches."""
    costs = []
    for accumulate, size in BATCHES:
        model = net()
        of, given = data(), {"epochs": 3, "batch_size": size, "accumulate": accumulate}
        result = gemminer.train(model, drawn_ticket(model), of, of, **given)  # type: ignore[arg-type]
        costs.append({**result.cost, "seconds": 0})
    assert costs[0] == costs[1]


# --- what cannot be ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("accumulate", [0, -1, 1.5, "2", None, True])
def test_a_number_of_batches_that_cannot_be(accumulate: Any) -> None:
    with pytest.raises(gemminer.UsageError, match="accumulate, batches of a step, ") as caught:
        gemminer.mine(tiny_net(), tiny_data(), 0.3, accumulate=accumulate)
    assert str(caught.value).count(". ") == 0


@pytest.mark.parametrize("name", [name for name in EXACT if not methods.get(name).trains])
def test_a_method_without_steps_takes_none(name: str) -> None:
    with pytest.raises(gemminer.UsageError, match=f"'{name}' takes no optimiser steps to accumulate for"):
        gemminer.mine(tiny_net(), tiny_data(), 0.3, method=name, accumulate=2)
