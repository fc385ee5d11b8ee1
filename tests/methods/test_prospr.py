"""ProsPr against finite differences of real training."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gemminer import methods
from gemminer.methods import prospr
from tests.helpers import mined
from tests.methods.oracles import assert_ranked, first, flat_weights, small, task_of, together


def loss_after_sgd(model: nn.Module, masks: Tensor, seen: list[tuple[Tensor, Tensor]], n: int) -> float:
    """Torch's own SGD on a copy whose weights were masked at the start."""
    net = copy.deepcopy(model)
    with torch.no_grad():
        weights = [p for p in net.parameters() if p.dim() == 2]
        for p, m in zip(weights, masks.split([p.numel() for p in weights]), strict=True):
            p.mul_(m.view(p.shape))
    optimiser = torch.optim.SGD(net.parameters(), lr=0.5, momentum=0.9)
    groups = [together(seen[i : i + n]) for i in range(0, len(seen), n)]
    for x, y in groups[:-1]:
        optimiser.zero_grad()
        F.cross_entropy(net(x), y).backward()
        optimiser.step()
    x, y = groups[-1]
    return float(F.cross_entropy(net(x), y).detach())


@pytest.mark.parametrize(("steps", "batches"), [(0, 1), (3, 1), (1, 2)])
def test_prosprs_meta_gradient_is_the_finite_difference_of_real_training(steps: int, batches: int) -> None:
    model = small()
    task = task_of(model)
    options = prospr.Options(steps=steps, batches=batches)
    seen = first(task, batches * (steps + 1))
    d = flat_weights(model).numel()
    h, slopes = 1e-5, []
    for i in range(d):
        step = torch.zeros(d, dtype=torch.float64)
        step[i] = h
        up, down = (loss_after_sgd(model, 1 + sign * step, seen, batches) for sign in (1, -1))
        slopes.append((up - down) / (2 * h))
    oracle = torch.tensor(slopes, dtype=torch.float64)

    named = {n: torch.ones_like(p, requires_grad=True) for n, p in model.named_parameters() if p.dim() == 2}
    found = torch.autograd.grad(prospr.loss_after(task, named, seen, options), list(named.values()))
    torch.testing.assert_close(torch.cat([g.reshape(-1) for g in found]), oracle, rtol=1e-6, atol=1e-9)
    assert_ranked("prospr", oracle.abs(), task, options)


@pytest.mark.parametrize("steps", [1, 3])
def test_without_momentum_there_is_nothing_to_detach(steps: int) -> None:
    """As in the released code, whose momentum is a tensor of its own only where there is one."""
    task = task_of(small())
    scores = []
    for detach in (False, True):
        options = prospr.Options(steps=steps, momentum=0.0, detach_first=detach)
        masks = {n: torch.ones_like(p, requires_grad=True) for n, p in task.model.named_parameters() if p.dim() == 2}
        loss = prospr.loss_after(task, masks, first(task, steps + 1), options)
        scores.append(torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, list(masks.values()))]))
    assert torch.equal(*scores)


def test_prospr_without_the_first_momentums_graph_is_another_score() -> None:
    task = task_of(small())
    full, cut = (mined(methods.get("prospr").find, task, 0.5, prospr.Options(detach_first=x), 0) for x in (False, True))
    assert full != cut
