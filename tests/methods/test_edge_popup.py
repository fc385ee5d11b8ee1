"""Edge-Popup's rungs against the published rule."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from gemminer import methods
from gemminer.core.randomness import generator
from gemminer.data import TensorBatches
from gemminer.methods import edge_popup
from gemminer.training.task import Task
from tests.helpers import tiny_data, tiny_net
from tests.methods.iterative import EPOCHS, assert_resumes, flat, search


@pytest.mark.parametrize("rung", edge_popup.RUNGS)
@pytest.mark.parametrize("freeze_every", [0, 1])
def test_every_rung_keeps_the_exact_count(rung: str, freeze_every: int) -> None:
    for density in (0.5, 0.1, 0.0123):
        ticket = search("edge-popup", density, rung=rung, freeze_every=freeze_every)
        assert ticket.kept == round(density * 324)
        if rung == "layer":
            assert all(abs(layer.kept - density * layer.prunable) < 1 for layer in ticket.per_layer())


def test_the_rungs_are_four_different_methods() -> None:
    tickets = {search("edge-popup", 0.1, rung=rung, epochs=8, ridge=0.01).digest for rung in edge_popup.RUNGS}
    assert len(tickets) == 4


def test_gradual_rungs_thin_out_and_freeze_for_good() -> None:
    parameters = {n: p for n, p in tiny_net().named_parameters() if p.dim() == 2}
    options = edge_popup.Options(epochs=4, rung="gradual")
    rule = edge_popup.Popup(parameters, options, {0: 200, 2: 50}, 50, seed=0)
    assert [int(flat(m).sum()) for m in (rule.open, rule.on)] == [324, 200]
    closed: list[Tensor] = []
    on: list[int] = []
    for step in range(4):
        rule.after_backward()
        with torch.no_grad():
            for s in rule.scores.values():
                s.copy_(torch.randn(s.shape, generator=generator(step)))  # scores that want everything to return
        rule.after_step(step)
        closed.append(~flat(rule.open))
        on.append(int(flat(rule.on).sum()))
        assert not bool((flat(rule.on) & closed[-1]).any())
        assert all(bool((later >= earlier).all()) for earlier, later in itertools.pairwise(closed))
    assert [int(c.sum()) for c in closed] == [124, 124, 274, 274]
    assert on == [50] * 4  # what the next freeze will leave


class _TopK(torch.autograd.Function):
    """The published layer rule, as its authors wrote it: sort, keep the top k, let the gradient through."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor, k: int) -> Tensor:
        out = torch.zeros_like(scores)
        out.view(-1)[scores.flatten().sort(descending=True).indices[:k]] = 1
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


def test_edge_popup_is_the_published_rule() -> None:
    """Autograd through weight * TopK(|s|), torch's own SGD with weight decay, as many steps: the same masks."""
    model = tiny_net().double()
    x, y = tiny_data()
    task = Task(model, TensorBatches(x.double(), y, batch_size=96, shuffle=False))
    ticket = search("edge-popup", 0.25, task, epochs=6)

    weights = {n: p.detach().clone() for n, p in model.named_parameters() if p.dim() == 2}
    scores = {
        n: edge_popup._first_scores(w, w.shape[1], generator(0, "scores", n)).requires_grad_()
        for n, w in weights.items()
    }
    counts = {n: w.numel() // 4 for n, w in weights.items()}
    optimiser = torch.optim.SGD(list(scores.values()), lr=0.1, momentum=0.9, weight_decay=5e-4)
    model.train()
    for epoch in range(6):
        optimiser.param_groups[0]["lr"] = 0.1 * (1 + math.cos(math.pi * epoch / 6)) / 2
        optimiser.zero_grad()
        masked = {n: w * _TopK.apply(scores[n].abs(), counts[n]) for n, w in weights.items()}
        F.cross_entropy(functional_call(model, masked, (x.double(),)), y).backward()
        optimiser.step()
    for name, s in scores.items():
        assert torch.equal(ticket.masks[name], _TopK.apply(s.abs(), counts[name]).bool()), name


def test_first_scores_are_kaiming_uniform() -> None:
    w = torch.empty(64, 16, 3, 3)
    s = edge_popup._first_scores(w, 16 * 9, generator(0))
    reference = nn.init.kaiming_uniform_(w.clone(), a=math.sqrt(5), generator=torch.Generator().manual_seed(0))
    assert float(s.abs().max()) == pytest.approx(1 / 12, rel=1e-3)
    assert float(s.std()) == pytest.approx(float(reference.std()), rel=0.02)


def test_clipping_keeps_a_filter_without_weights_from_drawing_all_of_them() -> None:
    """Batch norm of a filter that gives zeros has a gradient of 1/sqrt(eps) = 316 times that of one of unit spread."""
    model = nn.Sequential(nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4, affine=False), nn.Flatten())
    parameters = {"0.weight": model[0].weight}
    norms = {}
    for clip in (0.0, 0.5):
        rule = edge_popup.Popup(parameters, edge_popup.Options(rung="global", clip=clip), {}, 9, seed=0)
        rule.on = {"0.weight": torch.zeros(4, 1, 3, 3, dtype=torch.bool)}
        rule.on["0.weight"][0] = True  # three filters of four are empty
        model[0].weight.data = rule.initial["0.weight"] * rule.on["0.weight"]
        inputs = torch.randn(16, 1, 6, 6, generator=torch.Generator().manual_seed(0))
        (model(inputs) * torch.arange(64.0)).sum().backward()
        rule.after_backward()
        gradient = rule.scores["0.weight"].grad
        assert gradient is not None
        norms[clip] = gradient.flatten(1).norm(dim=1)
        model[0].weight.grad, model[0].weight.data = None, rule.initial["0.weight"].clone()
    assert norms[0.0][1:].min() > 50 * norms[0.0][0]
    assert float(norms[0.5].norm()) == pytest.approx(0.5, rel=1e-4)
    torch.testing.assert_close(norms[0.5] / 0.5, norms[0.0] / norms[0.0].norm())  # its direction stays


def test_edge_popup_asks_for_a_draw_scaled_by_the_density() -> None:
    rows = [methods.get(name) for name in methods.names()]
    assert [row.name for row in rows if row.fan_scaled] == ["edge-popup"]


@pytest.mark.parametrize("rung", ["layer", "ridge"])
def test_edge_popup_resumes(rung: str, tmp_path: Path) -> None:
    assert_resumes("edge-popup", 0.1, tmp_path, EPOCHS, rung=rung)
