"""Evaluation and batch-norm statistics."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gemminer.core.errors import GemminerError
from gemminer.data import TensorBatches
from gemminer.training.evaluate import mean_metric, measure, recalibrate
from gemminer.training.task import Task
from tests.helpers import tiny_data


class Lists:
    """Batches that are given."""

    def __init__(self, *batches: Any) -> None:
        self.batches = batches
        self.examples = sum(len(targets) for _, targets in batches)

    def __len__(self) -> int:
        return len(self.batches)

    def epoch(self, index: int) -> Iterator[Any]:
        return iter(self.batches)


def test_evaluation_weighs_examples_not_batches() -> None:
    model = nn.Sequential(nn.Identity(), nn.Dropout(0.9), nn.Linear(1, 1))
    ragged = Lists((torch.ones(3, 1), torch.ones(3)), (torch.zeros(1, 1), torch.zeros(1)))
    each = Task(nn.Linear(1, 1), ragged, metric=lambda output, target: target)
    assert mean_metric(each, ragged) == 3 / 4
    mean = Task(nn.Linear(1, 1), ragged, metric=lambda output, target: target.mean())
    assert mean_metric(mean, ragged) == 3 / 4
    model[0].eval()
    flags = [m.training for m in model.modules()]
    task = Task(model, ragged, metric=lambda output, target: output[:, 0])
    assert mean_metric(task, ragged) == mean_metric(task, ragged)  # no dropout
    assert [m.training for m in model.modules()] == flags
    with pytest.raises(GemminerError, match="nothing to evaluate on"):
        mean_metric(task, Lists())


def test_accuracy_by_class_is_of_each_class_s_examples() -> None:
    chances = torch.eye(4)  # predicts its input
    task = Task(nn.Embedding.from_pretrained(chances), Lists())
    batches = Lists((torch.tensor([0, 0, 3]), torch.tensor([0, 1, 3])), (torch.tensor([3]), torch.tensor([1])))
    assert measure(task, batches) == (2 / 4, [1.0, 0.0, None, 1.0])
    # A metric of the whole batch, regression and token targets have no classes; ignored labels do not count.
    mean = Task(task.model, Lists(), metric=lambda output, target: (output.argmax(1) == target).double().mean())
    assert measure(mean, batches) == (2 / 4, None)
    real = Task(task.model, Lists(), metric=lambda output, target: output[:, 0] * target)
    assert measure(real, Lists((torch.tensor([0]), torch.tensor([0.5])))) == (0.5, None)
    ignored = Lists((torch.tensor([1, 2]), torch.tensor([1, -100])))
    assert measure(task, ignored) == (1.0, [None, 1.0])
    tokens = Lists((torch.tensor([[1, 2]]), torch.tensor([[1, 1]])))
    assert measure(task, tokens) == (1 / 2, None)


def test_recalibration_averages_over_batches() -> None:
    """Against the means and (unbiased) variances of each batch, averaged by hand."""
    inputs, targets = tiny_data(64)
    data = TensorBatches(inputs, targets, batch_size=16, shuffle=False)
    model = nn.Sequential(nn.Dropout(0.9), nn.BatchNorm1d(6, momentum=0.3), nn.Linear(6, 3))
    model[1].running_mean.fill_(100)  # of another network
    model.eval()
    recalibrate(Task(model, data), steps=3)
    batches = inputs[:48].reshape(3, 16, 6)
    assert torch.allclose(model[1].running_mean, batches.mean(1).mean(0), atol=1e-6)
    assert torch.allclose(model[1].running_var, batches.var(1).mean(0), atol=1e-6)
    assert int(model[1].num_batches_tracked) == 3
    assert model[1].momentum == 0.3
    assert not any(m.training for m in model.modules())


def test_recalibration_puts_things_back_after_an_error() -> None:
    class Broken(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise KeyboardInterrupt

    model = nn.Sequential(nn.BatchNorm1d(6), Broken(), nn.Linear(6, 3))
    with pytest.raises(KeyboardInterrupt):
        recalibrate(Task(model, TensorBatches(*tiny_data())))
    assert model[0].momentum == 0.1
    assert all(m.training for m in model.modules())


def test_recalibration_of_what_has_no_statistics() -> None:
    class Untouchable(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise AssertionError("no batch is needed")

    norm = nn.BatchNorm1d(6, track_running_stats=False)
    recalibrate(Task(nn.Sequential(nn.Linear(6, 6), norm, Untouchable()), TensorBatches(*tiny_data())))
