"""Scores of examples against the published definitions, written out."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gemminer.core.errors import UsageError
from gemminer.core.model_state import borrowed
from gemminer.core.randomness import mixed
from gemminer.data import TensorBatches, as_wholes
from gemminer.data.picked import Picked
from gemminer.training import scoring
from gemminer.training.evaluate import recalibrate
from gemminer.training.settings import Settings
from gemminer.training.task import Task
from tests.helpers import tiny_data, tiny_net

SETTINGS = Settings(epochs=3, lr=0.05, schedule="constant")
SEED = 4


def task_of(model: nn.Module | None = None, **fields: Any) -> Task:
    return Task(model or tiny_net(), TensorBatches(*tiny_data(), batch_size=16), **fields)


def reference(kind: str) -> Tensor:
    """Plain loops: torch's SGD, an example at a time."""
    model, (inputs, targets) = tiny_net(), tiny_data()
    batches = Picked(TensorBatches(inputs, targets, batch_size=16), seed=mixed(SEED, "scores", 2))
    optimiser = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-4)
    right, forgotten = dict.fromkeys(range(96), False), dict.fromkeys(range(96), 0.0)
    ever: set[int] = set()
    model.train()
    for epoch in range(3):
        for numbers, x, y in batches.numbered(epoch):
            output = model(x)
            for number, row, label in zip(numbers.tolist(), output, y, strict=True):
                now = bool(row.argmax() == label)
                forgotten[number] += right[number] and not now
                right[number] = now
                ever |= {number} if now else set()
            optimiser.zero_grad()
            F.cross_entropy(output, y).backward()
            optimiser.step()
    if kind == "forgetting":
        return torch.tensor([forgotten[i] if i in ever else torch.inf for i in range(96)])
    recalibrate(task_of(model))
    model.eval()
    scores = []
    for x, y in zip(inputs, targets, strict=True):
        output = model(x[None])[0].detach()
        wanted = torch.zeros(3)
        wanted[y] = 1.0
        error = output.softmax(0) - wanted
        scores.append(float((error**2).sum().sqrt()) if kind == "el2n" else float(F.cross_entropy(output, y)))
    return torch.tensor(scores)


@pytest.mark.parametrize("kind", ["el2n", "forgetting", "loss"])
def test_a_score_is_the_published_one(kind: str) -> None:
    task = task_of()
    with borrowed(task.model):
        classes = scoring.classes_for(task, kind)
        found, epochs = scoring.scored_once(task, kind, classes, SETTINGS, SEED, 2)
    torch.testing.assert_close(found, reference(kind), rtol=1e-4, atol=1e-5)
    assert epochs == 3
    assert found.unique().numel() > 1
    if kind == "el2n":
        assert 0 <= float(found.min()) <= float(found.max()) <= 2**0.5


def test_the_trials_of_a_rate_are_no_training() -> None:
    task = task_of()
    with borrowed(task.model):
        classes = scoring.classes_for(task, "forgetting")
        auto = dataclasses.replace(SETTINGS, lr="auto")
        found, epochs = scoring.scored_once(task, "forgetting", classes, auto, SEED, 0)
    assert epochs > 3
    assert float(found[found.isfinite()].max()) <= 1  # from right to wrong needs two epochs: at most once in three


def test_any_loss_can_score_an_example_at_a_time() -> None:
    inputs, targets = tiny_data()
    wanted = F.one_hot(targets, 3).float()
    for task in (
        Task(tiny_net(), TensorBatches(inputs, wanted, batch_size=16), loss=F.mse_loss),
        Task(
            tiny_net(),
            as_wholes((inputs, wanted), batch_size=16),
            step=lambda model, batch: F.mse_loss(model(batch[0]), batch[1]),
        ),
    ):
        with borrowed(task.model) as model:
            assert scoring.classes_for(task, "loss") is None
            found, _ = scoring.scored_once(task, "loss", None, SETTINGS, SEED, 0)
            recalibrate(Task(model, TensorBatches(inputs, targets, batch_size=16)))
            model.eval()
            own = ((model(inputs) - wanted) ** 2).mean(1).detach()
        torch.testing.assert_close(found, own, rtol=1e-4, atol=1e-6)
        for kind in ("el2n", "forgetting"):
            with pytest.raises(UsageError, match="give kind='loss'"):
                scoring.classes_for(task, kind)


def test_statistics_that_lag_do_not_decide() -> None:
    """After a few steps those of the loop are the initial ones still: the same network would score otherwise."""
    task, far = task_of(), tiny_net()
    with torch.no_grad():
        far[1].running_mean += 50
    for model in (task.model, far):
        model[1].momentum = 1e-4  # type: ignore[index]
    found = []
    for one in (task, dataclasses.replace(task, model=far)):
        with borrowed(one.model):
            classes = scoring.classes_for(one, "el2n")
            found.append(scoring.scored_once(one, "el2n", classes, SETTINGS, SEED, 0)[0])
    torch.testing.assert_close(found[0], found[1])


def test_labels_that_are_no_classes_of_one_row_each_are_refused() -> None:
    inputs, targets = tiny_data()
    for task in (
        Task(tiny_net(), TensorBatches(inputs, torch.where(targets == 0, -100, targets), batch_size=16)),
        Task(tiny_net(), TensorBatches(inputs, targets + 1, batch_size=16)),  # three outputs, a class 3
    ):
        with pytest.raises(UsageError, match="one class number for each example"):
            scoring.classes_for(task, "el2n")


@pytest.mark.parametrize(
    ("kind", "runs", "epochs", "word"),
    [
        ("grand", 1, 1, "el2n"),
        ("el2n", 0, 1, "runs"),
        ("el2n", 1, 0, "untrained networks follow the norm of the input"),
        ("forgetting", 1, -1, "epochs"),
    ],
)
def test_scores_that_there_are_not(kind: str, runs: int, epochs: int, word: str) -> None:
    with pytest.raises(UsageError, match=word):
        scoring.checked_kind(kind, runs, epochs)
