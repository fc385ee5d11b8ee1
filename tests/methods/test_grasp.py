"""GraSP against an explicit Hessian."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gemminer.data import TensorBatches
from gemminer.methods import grasp
from gemminer.methods.parts import one_shot
from gemminer.training.task import Task
from tests.methods.oracles import assert_ranked, first, flat_weights, loss_at, small, task_of, together


@pytest.mark.parametrize("batches", [1, 2])
def test_grasp_is_the_explicit_hessian_times_the_gradient(batches: int) -> None:
    model = small()
    task = task_of(model)
    x, y = together(first(task, batches))
    w = flat_weights(model)

    def loss(v: Tensor) -> Tensor:
        return loss_at(model, v, x, y, temperature=200.0)

    g = torch.autograd.functional.jacobian(loss, w)
    s = -w * (torch.autograd.functional.hessian(loss, w) @ g)  # the highest are removed
    assert_ranked("grasp", -s, task, grasp.Options(per_class=0, batches=batches))


def test_grasps_temperature_and_examples_of_each_class_matter_as_said() -> None:
    model = small()
    task = task_of(model)
    x, y = together(first(task, 4))
    rows = sorted(i for c in range(3) for i in (y == c).nonzero().flatten()[:5].tolist())
    w = flat_weights(model)

    def loss(v: Tensor) -> Tensor:
        return loss_at(model, v, x[rows], y[rows], temperature=3.0)

    g = torch.autograd.functional.jacobian(loss, w)
    score = w * (torch.autograd.functional.hessian(loss, w) @ g)
    assert_ranked("grasp", score, task, grasp.Options(per_class=5, temperature=3.0))


def test_examples_of_each_class_come_in_even_batches() -> None:
    task = task_of(small())
    seen = grasp.of_each_class(task, 5)
    assert [len(y) for _, y in seen] == [7, 8]
    assert torch.cat([y for _, y in seen]).bincount().tolist() == [5, 5, 5]


def test_grasps_product_goes_through_pytorchs_own_attention() -> None:
    """Against the difference of two gradients, along g: the fused kernels have no second derivative."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layer = nn.TransformerEncoderLayer(4, 2, 6, dropout=0.0, batch_first=True)
        model = nn.Sequential(layer, nn.Flatten(), nn.Linear(12, 3)).double()
    source = torch.Generator().manual_seed(0)
    x, y = torch.randn(6, 3, 4, generator=source).double(), torch.arange(6) % 3
    task = Task(model, TensorBatches(x, y, batch_size=6))
    weights = [p for p in model.parameters() if p.dim() == 2]
    g = torch.autograd.grad(F.cross_entropy(model(x), y), weights)
    ends = []
    for h in (1e-5, -1e-5):
        moved = copy.deepcopy(model)
        there = [p for p in moved.parameters() if p.dim() == 2]
        with torch.no_grad():
            for p, direction in zip(there, g, strict=True):
                p += h * direction
        ends.append(torch.autograd.grad(F.cross_entropy(moved(x), y), there))
    with one_shot.twice_differentiable("grasp"):
        found = grasp.hessian_gradient(task, first(task, 1), weights)
    for product, up, down in zip(found, *ends, strict=True):
        torch.testing.assert_close(product, (up - down) / 2e-5, rtol=1e-5, atol=1e-8)
        assert float(product.abs().sum()) > 0
