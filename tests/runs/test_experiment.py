"""One network and its data: memory format, and figures before training."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import gemminer
from gemminer.core.errors import UsageError
from gemminer.data import TensorBatches
from gemminer.runs.experiment import Experiment, wants_channels_last
from gemminer.training.settings import Settings
from gemminer.training.task import Task
from tests.helpers import Pair, Snapshot, states, tiny_data, tiny_net


class Flattening(nn.Module):
    def __init__(self, view: bool) -> None:
        super().__init__()
        self.conv, self.head, self.view = nn.Conv2d(2, 4, 3, padding=1), nn.Linear(64, 3), view
        self.drop = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x).relu()
        return self.head(self.drop(x.view(len(x), -1) if self.view else x.flatten(1)))


@pytest.mark.parametrize("view", [True, False])
def test_channels_last_only_where_the_model_can(view: bool, snapshot: Snapshot) -> None:
    model, data = Flattening(view), (torch.rand(24, 2, 4, 4), torch.arange(24) % 3)
    before, generators = snapshot(model), states()
    assert wants_channels_last(Task(model, TensorBatches(*data, batch_size=8))) is not view
    assert snapshot(model) == before
    assert states() == generators
    assert gemminer.mine(model, data, 0.2, epochs=2, batch_size=8).kept == round(0.2 * (72 + 192))
    assert gemminer.train(model, gemminer.mine(model, data, 0.2, epochs=1), data, data, epochs=1)["test"] >= 0
    assert not wants_channels_last(Task(tiny_net(), TensorBatches(*tiny_data())))


def test_a_model_may_take_batches_of_one_size_only() -> None:
    model = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.Flatten(), nn.Unflatten(0, (3, 4)), nn.Flatten(0, 1))
    model.append(nn.Linear(64, 3))
    data = TensorBatches(torch.rand(24, 2, 4, 4), torch.arange(24) % 3, batch_size=12)
    assert wants_channels_last(Task(model, data))
    assert gemminer.mine(model, data, 0.2, epochs=2).kept == round(0.2 * (72 + 192))


def test_before_does_not_depend_on_statistics_of_another_network(pair: Pair) -> None:
    """Batch-norm statistics of the dense net used with a ticket: a hazard of the field."""
    ticket = gemminer.mine(tiny_net(), pair, 0.3, epochs=4)
    found = []
    for mean in (0.0, 50.0):
        net = tiny_net()
        net[1].running_mean.fill_(mean)
        moved = ticket.replace(initial={**ticket.initial, "1.running_mean": net[1].running_mean})
        bench = Experiment(Task(net, TensorBatches(*pair)), TensorBatches(*pair, shuffle=False), Settings())
        found.append(bench.before(moved))
        assert float(net[1].running_mean[0]) == mean
    assert found[0] == found[1]
    with pytest.raises(UsageError, match="no test data to measure on"):
        Experiment(Task(tiny_net(), TensorBatches(*pair)), None, Settings()).before(ticket)
