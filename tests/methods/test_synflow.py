"""SynFlow by hand, conserved, and without layer collapse."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

from gemminer import methods, models
from gemminer.data import TensorBatches
from gemminer.methods import synflow
from gemminer.methods.parts import one_shot
from gemminer.training.task import Task
from tests.methods.oracles import assert_ranked, ones_task, small, task_of


def test_synflow_by_hand_on_two_layers() -> None:
    """R = 1' |W2| |W1| 1, so a weight's score is |w_ij| times what flows in at j times what flows out at i."""
    model = nn.Sequential(nn.Linear(3, 4, bias=False), nn.ReLU(), nn.Linear(4, 2, bias=False)).double()
    first_, second = (model[i].weight.detach().abs() for i in (0, 2))
    scores = torch.cat([(first_ * second.sum(0)[:, None]).reshape(-1), (second * first_.sum(1)).reshape(-1)])
    assert_ranked("synflow", scores, ones_task(model, 3), synflow.Options(rounds=1))


@pytest.mark.parametrize("invert", [False, True])
def test_synflow_scores_anew_in_each_round_and_nothing_returns(invert: bool) -> None:
    model = nn.Sequential(nn.Linear(3, 4, bias=False), nn.ReLU(), nn.Linear(4, 2, bias=False)).double()
    weights = [model[i].weight.detach().abs() for i in (0, 2)]
    alive = torch.ones(20, dtype=torch.bool)
    for k in range(1, 5):
        one, two = (w * m.view(w.shape) for w, m in zip(weights, alive.split([12, 8]), strict=True))
        scores = torch.cat([(one * two.sum(0)[:, None]).reshape(-1), (two * one.sum(1)).reshape(-1)])
        order = sorted(alive.nonzero().flatten().tolist(), key=lambda i: float(scores[i]), reverse=not invert)
        alive = torch.zeros(20, dtype=torch.bool)
        alive[order[: round(20 * 0.3 ** (k / 4))]] = True
    ticket = methods.get("synflow").find(ones_task(model, 3), 0.3, synflow.Options(rounds=4, invert=invert), 0)
    assert torch.equal(torch.cat([m.reshape(-1) for m in ticket.masks.values()]), alive)


@pytest.mark.parametrize("density", [1.0, 0.05])
def test_synflow_is_conserved_through_vgg16(density: float) -> None:
    """Between input and output every cut carries the same flow: each layer's scores sum to R."""
    model = models.build("vgg16", width=0.25)
    task = ones_task(model, 3, 32, 32)
    ticket = methods.get("random").find(task, density, methods.get("random").options(), 0)
    with one_shot.scoring(task, 0) as weights, synflow.linearised(model):
        for name, w in weights.items():
            w.data *= ticket.masks[name]
        scores = synflow.flow(task, torch.ones(1, 3, 32, 32, dtype=torch.float64), weights)
        total = float(model(torch.ones(1, 3, 32, 32, dtype=torch.float64)).sum().detach())
    assert total > 0
    for name, s in scores.items():
        assert abs(float(s.sum()) - total) <= 1e-9 * total, name


@pytest.mark.parametrize("density", [0.01, 0.001])
def test_synflow_collapses_no_layer_of_vgg16(density: float) -> None:
    model = models.build("vgg16", width=0.25)
    ticket = methods.get("synflow").find(ones_task(model, 3, 32, 32), density, synflow.Options(), 0)
    assert ticket.kept == round(density * ticket.prunable)
    assert min(layer.kept for layer in ticket.per_layer()) > 0


def test_synflow_sees_tokens_as_the_sum_of_the_embeddings_rows() -> None:
    model = nn.Sequential(nn.Embedding(5, 3), nn.Linear(3, 2, bias=False)).double()
    x = torch.randint(5, (6, 4), generator=torch.Generator().manual_seed(0))
    task = Task(model, TensorBatches(x, x % 2, batch_size=3), embeddings=True)
    table, head = (p.detach().abs() for p in model.parameters())
    length = x.shape[1]
    scores = length * torch.cat([(table * head.sum(0)).reshape(-1), (head * table.sum(0)).reshape(-1)])
    assert_ranked("synflow", scores, task, synflow.Options(rounds=1))


def test_synflow_does_not_look_at_the_data() -> None:
    model = small()
    a = task_of(model)
    b = dataclasses.replace(a, train=TensorBatches(torch.randn(48, 4).double(), torch.zeros(48).long(), batch_size=12))
    assert methods.get("synflow").find(a, 0.3, synflow.Options(), 0) == methods.get("synflow").find(
        b, 0.3, synflow.Options(), 0
    )
