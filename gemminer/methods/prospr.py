"""ProsPr: score weights by how the loss after a few training steps depends on them.

Source: Alizadeh et al., "Prospect Pruning: Finding Trainable Weights at Initialization using Meta-Gradients", ICLR
2022. As in the released code: every parameter takes part in the steps, the mask acts on the start alone, each step
has its own batch and so has the loss after them. Where we differ on purpose: the released code cuts the graph at the
first momentum (a clone that is detached); ours does not unless `detach_first`. Its scores with `first_order` and its
structured masks are left out; it keeps ceil(density * d) weights, we round.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
import torch.utils.checkpoint
from torch import Tensor, nn

from gemminer.core.errors import UsageError
from gemminer.core.names import full_names, named_parameters, unwrapped
from gemminer.methods.parts.one_shot import DataOptions, Seen, first_batches, prune_once, shares, twice_differentiable
from gemminer.methods.registry import Found, register
from gemminer.training.task import Swapped, Task


@dataclass(frozen=True)
class Options(DataOptions):
    """ProsPr's settings; each step, and the loss after the steps, is averaged over `batches` batches.

    Args:
        steps: the number M of SGD steps after which the loss is measured.
        lr: the learning rate of those SGD steps.
        momentum: the momentum of those SGD steps.
        detach_first: treat the first step's momentum as a constant, as the released code does; without momentum
            there is nothing to detach, there and here.
    """

    steps: int = 3
    lr: float = 0.5
    momentum: float = 0.9
    detach_first: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.steps < 0:
            raise UsageError(f"steps must be 0 or more, not {self.steps}")
        if not self.lr > 0:
            raise UsageError(f"lr, the learning rate, must be above 0, not {self.lr}")
        if not 0 <= self.momentum < 1:
            raise UsageError(f"momentum must be at least 0 and below 1, not {self.momentum}")


class _With(Swapped):
    """The model with other values for its parameters, differentiable in them; tied ones stay tied."""

    def __init__(self, model: nn.Module, values: Mapping[str, Tensor]) -> None:
        super().__init__(unwrapped(model))  # DataParallel cannot be called so
        full = full_names(self.model)
        self._values = {full[name]: value for name, value in values.items()}

    def values(self) -> dict[str, Tensor]:
        return self._values


_RECOMPUTED = "_checkpoint_without_reentrant_generator"  # of torch.utils.checkpoint; yields before and after a call


@contextlib.contextmanager
def _without_checkpointing() -> Iterator[None]:
    """Keep what `torch.utils.checkpoint` would compute again: in the backward pass it would do so from other values."""
    there = torch.utils.checkpoint
    name = next(n for n in (f"{_RECOMPUTED}_impl", _RECOMPUTED) if hasattr(there, n))
    before = getattr(there, name)
    setattr(there, name, lambda *args, **kwargs: iter((None,)))
    try:
        yield
    finally:
        setattr(there, name, before)


def _loss(task: Task, values: Mapping[str, Tensor], seen: Seen) -> Tensor:
    there = dataclasses.replace(task, model=_With(task.model, values))
    losses = [there.loss_of(x, y) * share for (x, y), share in zip(seen, shares(seen), strict=True)]
    return torch.stack(losses).sum()


def loss_after(task: Task, masks: Mapping[str, Tensor], seen: Seen, options: Options) -> Tensor:
    """L(w_M): the loss after M steps of SGD with momentum from w_0 = mask * w, differentiable in the masks.

    Args:
        masks: by parameter name, real; other parameters start as they are.
        seen: `options.batches` batches for each of the M steps, and as many for the loss.
    """
    trainable = {name: p for name, p in named_parameters(task.model).items() if p.requires_grad}
    values = {name: p * masks[name] if name in masks else p for name, p in trainable.items()}
    velocity: list[Tensor] = []
    n = options.batches
    for step in range(options.steps):
        loss = _loss(task, values, seen[step * n : (step + 1) * n])
        found = torch.autograd.grad(loss, list(values.values()), create_graph=True, allow_unused=True)
        grads = [torch.zeros_like(w) if g is None else g for w, g in zip(values.values(), found, strict=True)]
        if velocity:
            velocity = [options.momentum * v + g for v, g in zip(velocity, grads, strict=True)]
        else:
            velocity = [g.detach() for g in grads] if options.detach_first and options.momentum else grads
        values = {name: w - options.lr * v for (name, w), v in zip(values.items(), velocity, strict=True)}
    return _loss(task, values, seen[options.steps * n :])


@register(
    "prospr",
    Options,
    summary="meta-gradient through 3 training steps",
    source="Alizadeh et al., ICLR 2022",
)
def find(task: Task, density: float, options: Options, seed: int) -> Found:
    """Keep the highest s = |dL(w_M)/dmask| at mask = 1, through M unrolled SGD steps; M = 0 is SNIP."""
    seen = first_batches(task, options.batches * (options.steps + 1))

    def score(weights: dict[str, nn.Parameter]) -> dict[str, Tensor]:
        masks = {name: torch.ones_like(w, requires_grad=True) for name, w in weights.items()}
        with twice_differentiable("prospr"), _without_checkpointing():
            # A whole pass: autograd.grad would treat a function without a second derivative as a constant.
            loss_after(task, masks, seen, options).backward()
        return {name: torch.zeros_like(m) if m.grad is None else m.grad.abs() for name, m in masks.items()}

    return prune_once(task, density, options, seed, score, options.batches * (3 * options.steps + 1))
