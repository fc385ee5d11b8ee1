"""GraSP: keep the weights whose removal would reduce the gradient flow after pruning most.

Source: Wang et al., "Picking Winning Tickets Before Training by Preserving Gradient Flow", ICLR 2020. Where we
differ from the released code on purpose: it draws the linear layers anew before it scores them, we score the weights
that will be trained; it splits its examples in two halves, sorted by class, we take batches of the training size in
the stream's order (batch norm sees all classes). Its sums over the halves are means here, which changes no ranking.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from gemminer.core.errors import UsageError
from gemminer.methods.parts.one_shot import (
    DataOptions,
    Seen,
    first_batches,
    gradient,
    prune_once,
    shares,
    twice_differentiable,
)
from gemminer.methods.registry import Found, register
from gemminer.training.feed import mapped, tensors_of
from gemminer.training.losses import output_loss
from gemminer.training.task import Task

# A gradient for g, and for H g a gradient and the way back through it.
STEPS = 4


@dataclass(frozen=True)
class Options(DataOptions):
    """GraSP's settings.

    Args:
        temperature: the number T by which the logits are divided.
        per_class: examples of each class that the score sees, the first in the training data; with 0, or without class
            numbers as targets, the number of batches decides.
    """

    temperature: float = 200.0
    per_class: int = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (self.temperature > 0 and math.isfinite(self.temperature)):
            raise UsageError(f"temperature must be above 0, not {self.temperature}")
        if self.per_class < 0:
            raise UsageError(f"per_class must be 0 or more, not {self.per_class}")


def of_each_class(task: Task, count: int) -> Seen:
    """The first `count` examples of each class in the training data, in batches of the training size.

    Empty where targets are not class numbers of shape (n,), or a tensor of the inputs has no row for each.
    """
    taken: dict[int, int] = {}
    examples: list[tuple[Any, Any]] = []
    size = 1
    for inputs, targets in task.train.epoch(0):
        if not isinstance(targets, Tensor) or targets.dim() != 1 or targets.is_floating_point():
            return []
        if any(t.shape[:1] != targets.shape for t in tensors_of(inputs)):
            return []  # not of examples alone
        size = max(size, len(targets))
        chosen = []
        for i, label in enumerate(targets.tolist()):
            if taken.setdefault(label, 0) < count:
                taken[label] += 1
                chosen.append(i)
        examples += [(mapped(lambda t, i=i: t[i], inputs), targets[i]) for i in chosen]
    parts = math.ceil(len(examples) / size)  # of even sizes: batch norm cannot train on one example left over
    bounds = [len(examples) * i // parts for i in range(parts + 1)]
    return [_batch(examples[a:b]) for a, b in itertools.pairwise(bounds)]


def _batch(examples: Sequence[tuple[Any, Any]]) -> tuple[Any, Any]:
    inputs = mapped(lambda *parts: torch.stack(parts), *(x for x, _ in examples))
    return inputs, torch.stack([y for _, y in examples])


def hessian_gradient(task: Task, seen: Seen, weights: Sequence[Tensor]) -> list[Tensor]:
    """H g of the mean loss over the batches, g its gradient, H its Hessian: d<g(w), g>/dw with the second g fixed.

    Adds it to the `.grad` of the borrowed weights. It runs a whole backward pass, as `torch.autograd.grad` would
    treat a function without a second derivative as a constant.
    """
    fixed = gradient(task, seen, weights)
    for (inputs, targets), share in zip(seen, shares(seen), strict=True):
        loss = task.loss_of(inputs, targets) * share
        flow = torch.autograd.grad(loss, weights, create_graph=True, allow_unused=True)
        product = torch.stack([(f * g).sum() for f, g in zip(flow, fixed, strict=True) if f is not None]).sum()
        if product.requires_grad:  # else the loss is linear in the weights: H = 0
            product.backward()
    return [torch.zeros_like(w) if w.grad is None else w.grad for w in weights]


@register(
    "grasp",
    Options,
    summary="-w * (H g) at initialisation, the highest removed",
    source="Wang et al., ICLR 2020",
)
def find(task: Task, density: float, options: Options, seed: int) -> Found:
    """Remove the highest S = -w * (H g), of the loss of logits / T (equation 8 there)."""
    seen = examples_of(task, options)

    def score(weights: dict[str, nn.Parameter]) -> dict[str, Tensor]:
        return flow(task, options, seen, weights)

    return prune_once(task, density, options, seed, score, STEPS * len(seen))


def examples_of(task: Task, options: Options) -> Seen:
    """The batches that are scored: so many examples of each class, or the first batches."""
    seen = of_each_class(task, options.per_class) if options.per_class else []
    return seen or first_batches(task, options.batches)


def flow(task: Task, options: Options, seen: Seen, weights: dict[str, nn.Parameter]) -> dict[str, Tensor]:
    """-S = w * (H g) of each weight, of the loss of logits / T over the batches."""
    if task.loss is output_loss:
        task.note("grasp has no temperature here: the model makes its loss itself")

    def divided(module: nn.Module, args: Any, output: Any) -> Any:
        return tree_map(lambda t: t / options.temperature if isinstance(t, Tensor) else t, output)

    with twice_differentiable("grasp"), task.hooked(divided):
        products = hessian_gradient(task, seen, list(weights.values()))
    return {name: w * hg for (name, w), hg in zip(weights.items(), products, strict=True)}
