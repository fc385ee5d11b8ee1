"""Small networks and data, and scores against oracles that share no code with the methods."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from gemminer import methods
from gemminer.data import TensorBatches
from gemminer.training.task import Task


def small(seed: int = 0) -> nn.Sequential:
    """4 -> 5 -> 3, smooth, float64: 35 prunable weights and biases beside them."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()


def task_of(model: nn.Module, batch_size: int = 12) -> Task:
    source = torch.Generator().manual_seed(1)
    x = torch.randn(48, 4, generator=source, dtype=torch.float64)
    return Task(model, TensorBatches(x, torch.randint(3, (48,), generator=source), batch_size=batch_size))


def flat_weights(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().reshape(-1) for p in model.parameters() if p.dim() == 2])


def loss_at(model: nn.Module, flat: Tensor, x: Tensor, y: Tensor, temperature: float = 1.0) -> Tensor:
    """The loss as a function of one vector of all prunable weights."""
    named = {n: p for n, p in model.named_parameters() if p.dim() == 2}
    parts = flat.split([p.numel() for p in named.values()])
    values = {n: part.view(p.shape) for (n, p), part in zip(named.items(), parts, strict=True)}
    return F.cross_entropy(functional_call(model, values, (x,)) / temperature, y)


def together(seen: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    return torch.cat([x for x, _ in seen]), torch.cat([y for _, y in seen])


def assert_ranked(method: str, scores: Tensor, task: Task, options: Any) -> None:
    """The method's ticket of every size is the oracle's top k; and so for its inversion, the lowest k."""
    d = scores.numel()
    for invert, order in ((False, scores.argsort(descending=True)), (True, scores.argsort())):
        chosen = dataclasses.replace(options, invert=invert)
        for k in range(1, d + 1):
            masks = methods.get(method).find(task, k / d, chosen, 0).masks
            kept = torch.cat([m.reshape(-1) for m in masks.values()]).nonzero().flatten().tolist()
            assert kept == sorted(order[:k].tolist()), (method, invert, k)


def first(task: Task, count: int) -> list[tuple[Tensor, Tensor]]:
    return [batch for _, batch in zip(range(count), task.train.epoch(0), strict=False)]


def ones_task(model: nn.Module, *shape: int) -> Task:
    return Task(model, TensorBatches(torch.randn(8, *shape), torch.zeros(8, dtype=torch.long), batch_size=4))


class Layers(nn.Module):
    """Convolutions 3x3 of 1 -> 2 -> 4 -> 10 channels and a classifier 10 -> 10: 18, 72, 360 and 100 weights."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(1, 2, 3), nn.Conv2d(2, 4, 3), nn.Conv2d(4, 10, 3)
        self.fc = nn.Linear(10, 10)


def kept(method: str, density: float, **options: Any) -> list[int]:
    row = methods.get(method)
    return [layer.kept for layer in row.find(ones_task(Layers(), 1), density, row.options(**options), 0).per_layer()]
