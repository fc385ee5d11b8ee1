"""SynFlow: prune in many small rounds, without data, by a score whose sum is the same in every layer.

Source: Tanaka et al., "Pruning neural networks without any data by iteratively conserving synaptic flow", NeurIPS
2020. As there: batch norm in evaluation mode, float64 (float32 overflows on deep nets), 100 rounds. Where we differ
on purpose: the buffers of the model are left as they are (the released code takes their absolute value too, which is
the same at initialisation).

Token models: an embedding is a linear layer on one-hot vectors, so an input of all ones is the sum of its rows. That
sum is the output of every `nn.Embedding` while the score is computed; whole-number inputs lend only their shape.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from gemminer.core.errors import GemminerError, UsageError
from gemminer.core.selection import target
from gemminer.methods.parts.one_shot import ScoreOptions, keep, scored, scoring
from gemminer.methods.registry import Found, register
from gemminer.training.task import Task


@dataclass(frozen=True)
class Options(ScoreOptions):
    """SynFlow's settings.

    Args:
        rounds: the number n of rounds; after round k round(d * density^(k/n)) of d weights remain.
    """

    rounds: int = 100

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rounds < 1:
            raise UsageError(f"rounds must be 1 or more, not {self.rounds}")


def ones_like_first(value: Any) -> Any:
    """One example of the same shape, all ones in float64; for whole numbers the first example itself."""
    if not isinstance(value, Tensor):
        return value
    first = value[:1]
    return torch.ones_like(first, dtype=torch.float64) if first.is_floating_point() else first


def _sum_of_rows(module: nn.Module, args: Any, output: Tensor) -> Tensor:
    weight = module.weight
    assert isinstance(weight, Tensor)
    return weight.sum(dim=0).expand_as(output)


@contextlib.contextmanager
def linearised(model: nn.Module) -> Iterator[None]:
    """|w| in float64 for every parameter, evaluation mode, embeddings as sums of rows; on a borrowed model only."""
    model.eval()
    for p in model.parameters():
        p.data = p.data.abs().double()
    for module in model.modules():
        for name, b in module._buffers.items():
            if b is not None and b.is_floating_point():
                module._buffers[name] = b.double()
    embeddings = [m for m in model.modules() if isinstance(m, nn.Embedding | nn.EmbeddingBag)]
    hooks = [m.register_forward_hook(_sum_of_rows) for m in embeddings]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def flow(task: Task, inputs: Any, weights: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """|w| * dR/d|w| of a linearised model, R the sum of its outputs.

    Raises GemminerError where it is not finite.
    """
    outputs = [t for t in tree_leaves(task.forward(inputs)) if isinstance(t, Tensor) and t.requires_grad]
    if not outputs:
        raise GemminerError("synflow's output does not depend on any weight of this model")
    total = torch.stack([t.sum() for t in outputs]).sum()
    grads = torch.autograd.grad(total, list(weights.values()), allow_unused=True)
    scores = {
        name: torch.zeros_like(w) if g is None else (w * g).abs()
        for (name, w), g in zip(weights.items(), grads, strict=True)
    }
    if not all(bool(s.isfinite().all()) for s in scores.values()):
        raise GemminerError("synflow's scores are not finite on this model, even in float64")
    return {name: s.detach() for name, s in scores.items()}


@register(
    "synflow",
    Options,
    summary="conserved synaptic flow, 100 rounds, no data",
    source="Tanaka et al., NeurIPS 2020",
)
def find(task: Task, density: float, options: Options, seed: int) -> Found:
    """In each of n rounds keep the highest s = |w| * dR/d|w|, R the sum of the outputs for an input of ones.

    A weight that a round removes stays removed.
    """
    inputs, _ = next(iter(task.train.epoch(0)))
    ones = tree_map(ones_like_first, inputs)
    with scoring(task, seed) as weights, linearised(task.model):
        magnitudes = {name: w.detach().clone() for name, w in weights.items()}
        masks = {name: torch.ones_like(w, dtype=torch.bool) for name, w in magnitudes.items()}
        total = sum(w.numel() for w in weights.values())
        count = target(density, total)
        for k in range(1, options.rounds + 1):
            for name, w in weights.items():
                w.data = magnitudes[name] * masks[name]
            ranking = flow(task, ones, weights)
            for name, s in ranking.items():
                ranking[name] = (-s if options.invert else s).masked_fill(~masks[name], -torch.inf)
            masks = keep(ranking, max(count, round(total * density ** (k / options.rounds))), options.scope)
    return scored(task, masks, options.rounds * len(task.train) / task.train.examples)
