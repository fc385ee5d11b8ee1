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
from tests.helpers import mined
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
    ticket = mined(methods.get("synflow").find, ones_task(model, 3), 0.3, synflow.Options(rounds=4, invert=invert), 0)
    assert torch.equal(torch.cat([m.reshape(-1) for m in ticket.masks.values()]), alive)


def plain_synflow(model: nn.Module, ones: torch.Tensor, density: float, options: synflow.Options) -> torch.Tensor:
    """SynFlow over all weights in each round, the removed ones scored minus infinity: the flat mask."""
    weights = [p for p in model.parameters() if p.dim() > 1]
    start = [p.detach().clone() for p in weights]
    sizes = [p.numel() for p in weights]
    total = sum(sizes)
    alive = torch.ones(total, dtype=torch.bool)
    for k in range(1, options.rounds + 1):
        for p, w, m in zip(weights, start, alive.split(sizes), strict=True):
            p.data = w * m.view(w.shape)
        slopes = torch.autograd.grad(model(ones).sum(), weights)
        scores = torch.cat([(w * g).abs().detach().reshape(-1) for w, g in zip(weights, slopes, strict=True)])
        ranking = (-scores if options.invert else scores).masked_fill(~alive, -torch.inf)
        wanted = max(round(density * total), round(total * density ** (k / options.rounds)))
        parts = ranking.split(sizes)
        names = {f"{i:02}": part for i, part in enumerate(parts)}
        alive = torch.cat([m.reshape(-1) for m in one_shot.keep(names, wanted, options.scope).values()])
    return alive


@pytest.mark.parametrize("scope", ["global", "layer"])
@pytest.mark.parametrize("invert", [False, True])
@pytest.mark.parametrize("channels_last", [False, True])
def test_ranking_only_what_is_left_changes_no_mask(scope: str, invert: bool, channels_last: bool) -> None:
    torch.manual_seed(0)
    layers = (nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 5, 3, bias=False), nn.Flatten())
    model = nn.Sequential(*layers, nn.Linear(20, 4))
    model = model.to(memory_format=torch.channels_last) if channels_last else model
    task = ones_task(model, 3, 6, 6)
    options = synflow.Options(rounds=9, scope=scope, invert=invert)
    ticket = mined(methods.get("synflow").find, task, 0.07, options, 0)
    with one_shot.scoring(task, 0), synflow.linearised(model):
        expected = plain_synflow(model, torch.ones(1, 3, 6, 6, dtype=torch.float64), 0.07, options)
    assert torch.equal(torch.cat([m.reshape(-1) for m in ticket.masks.values()]), expected)


@pytest.mark.parametrize("rounds", [3, 40])
def test_no_layer_gets_weights_back_whichever_way_shares_are_rounded(rounds: int) -> None:
    """Largest remainders can give a small layer more of a smaller total: 100 rounds over layers of 6, 6 and 2."""
    model = nn.Sequential(nn.Linear(2, 3, bias=False), nn.Linear(3, 2, bias=False), nn.Linear(2, 1, bias=False))
    for kept in range(1, 14):
        options = synflow.Options(rounds=rounds, scope="layer")
        assert mined(methods.get("synflow").find, ones_task(model, 2), kept / 14, options, 0).kept == kept


@pytest.mark.parametrize("density", [1.0, 0.05])
def test_synflow_is_conserved_through_vgg16(density: float) -> None:
    """Between input and output every cut carries the same flow: each layer's scores sum to R."""
    model = models.build("vgg16", width=0.25)
    task = ones_task(model, 3, 32, 32)
    ticket = mined(methods.get("random").find, task, density, methods.get("random").options(), 0)
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
    ticket = mined(methods.get("synflow").find, ones_task(model, 3, 32, 32), density, synflow.Options(), 0)
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
    assert mined(methods.get("synflow").find, a, 0.3, synflow.Options(), 0) == mined(
        methods.get("synflow").find, b, 0.3, synflow.Options(), 0
    )
