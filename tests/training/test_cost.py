"""FLOPs against counts by hand: a multiply-add is two."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from gemminer.core.prunable import prunable_weights
from gemminer.data import TensorBatches
from gemminer.training.cost import TRAINING_PASSES, Flops, count
from gemminer.training.task import Task
from tests.helpers import tiny_net


def flops(model: nn.Module, inputs: Tensor, targets: Tensor | None = None) -> Flops:
    targets = torch.zeros(len(inputs), dtype=torch.long) if targets is None else targets
    return count(Task(model, TensorBatches(inputs, targets, batch_size=5)), prunable_weights(model))


def test_linear_layers() -> None:
    found = flops(tiny_net(), torch.rand(10, 6))
    assert found.by_parameter == {"0.weight": 2 * 96, "3.weight": 2 * 192, "5.weight": 2 * 36}
    assert found.rest == 0
    assert found.dense == 2 * 324
    assert found.sparse({"0.weight": 0.5, "3.weight": 0.0}) == 2 * (48 + 36)
    assert TRAINING_PASSES == 3


def test_convolutions() -> None:
    model = nn.Sequential(nn.Conv2d(2, 4, 3, stride=2), nn.Conv2d(4, 6, 3, padding=1, groups=2), nn.Flatten())
    found = flops(model, torch.rand(5, 2, 9, 9))
    assert found.by_parameter == {"0.weight": 2 * 16 * 4 * 2 * 9, "1.weight": 2 * 16 * 6 * 2 * 9}  # 4x4 places


def test_tied_weights_work_twice_and_unused_ones_not() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.head, self.unused = nn.Embedding(7, 4), nn.Linear(4, 7, bias=False), nn.Linear(4, 4)
            self.head.weight = self.table.weight

        def forward(self, x: Tensor) -> Tensor:
            x = self.table(x)
            return self.head(torch.nn.functional.linear(x @ self.table.weight.t(), self.table.weight.t()))

    model = Net()
    names = {**prunable_weights(model, embeddings=True)}
    assert list(names) == ["table.weight", "unused.weight"]
    task = Task(model, TensorBatches(torch.zeros(5, 3, dtype=torch.long), torch.zeros(5, 3, dtype=torch.long)))
    assert count(task, names).by_parameter == {"table.weight": 3 * 3 * 2 * 28, "unused.weight": 0.0}


def test_attention_has_a_rest_that_no_mask_changes() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    found = flops(layer, torch.rand(5, 3, 8))
    assert found.by_parameter == {
        "self_attn.in_proj_weight": 2 * 3 * 3 * 64,
        "self_attn.out_proj.weight": 2 * 3 * 64,
        "linear1.weight": 2 * 3 * 128,
        "linear2.weight": 2 * 3 * 128,
    }
    assert found.rest == 2 * (2 * 3 * 3 * 8)  # queries x keys and weights x values: 2 heads of 4
    assert found.sparse(dict.fromkeys(found.by_parameter, 0.0)) == found.rest


@pytest.mark.parametrize("training", [True, False])
def test_counting_changes_nothing(training: bool, snapshot: Callable[[nn.Module], object]) -> None:
    model = nn.Sequential(tiny_net(), nn.Dropout(0.5)).train(training)
    before, generators = snapshot(model), torch.get_rng_state()
    flops(model, torch.rand(4, 6, generator=torch.Generator()))
    assert snapshot(model) == before
    assert torch.equal(torch.get_rng_state(), generators)
