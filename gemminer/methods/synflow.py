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
import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from gemminer.core.errors import GemminerError, UsageError
from gemminer.core.selection import lowest, target
from gemminer.methods.parts.allocation import allocate
from gemminer.methods.parts.one_shot import ScoreOptions, scored, scoring
from gemminer.methods.registry import Found, register
from gemminer.training.feed import mapped
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


def flow(
    task: Task, inputs: Any, weights: Mapping[str, nn.Parameter], out: Mapping[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """|w| * dR/d|w| of a linearised model, R the sum of its outputs; written into `out`, if given.

    Raises GemminerError where it is not finite.
    """
    outputs = [t for t in tree_leaves(task.output(inputs)) if isinstance(t, Tensor) and t.requires_grad]
    if not outputs:
        raise GemminerError("synflow's output does not depend on any weight of this model")
    total = torch.stack([t.sum() for t in outputs]).sum()
    grads = torch.autograd.grad(total, list(weights.values()), allow_unused=True)
    scores = {name: torch.empty_like(w, requires_grad=False) for name, w in weights.items()} if out is None else out
    for (name, w), g in zip(weights.items(), grads, strict=True):
        if g is None:
            scores[name].zero_()
        else:
            torch.mul(w.detach(), g, out=scores[name]).abs_()
    if not all(bool(s.sum().isfinite()) for s in scores.values()):  # of numbers that are not negative
        raise GemminerError("synflow's scores are not finite on this model, even in float64")
    return dict(scores)


class _Left:
    """The weights that no round has removed, as indices into one vector of all of them, and the scores of all.

    Only what is left is ranked, and nothing as long as a network is made anew in a round: on ResNet-18 that, and not
    the two passes, was nine tenths of the time.
    """

    def __init__(self, weights: Mapping[str, nn.Parameter]) -> None:
        self.weights = weights
        self.sizes = {name: w.numel() for name, w in weights.items()}
        self.total = sum(self.sizes.values())
        device = next(iter(weights.values())).device
        self._scores = torch.empty(self.total, dtype=torch.float64, device=device)
        self.scores = self._by_weight(self._scores)
        self.indices = torch.arange(self.total, device=device)
        self._ends = torch.tensor(list(itertools.accumulate(self.sizes.values())))

    def _by_weight(self, flat: Tensor) -> dict[str, Tensor]:
        parts = flat.split(list(self.sizes.values()))
        return {name: part.view(w.shape) for (name, w), part in zip(self.weights.items(), parts, strict=True)}

    def _parts(self, indices: Tensor) -> list[int]:
        """How many of some sorted indices belong to each weight."""
        ends = torch.searchsorted(indices, self._ends.to(indices.device)).tolist()
        return [b - a for a, b in itertools.pairwise([0, *ends])]

    def keep(self, count: int, final: int, options: Options) -> None:
        """Remove all but the `count` highest scores, of which `final` are the last round's."""
        ranking = _taken(self._scores, self.indices)
        ranking = ranking.neg_() if options.invert else ranking
        if options.scope == "global":
            gone = lowest(ranking, ranking.numel() - count, last=True)
        else:
            left = self._parts(self.indices)
            now, least = (
                list(allocate(self.sizes, dict.fromkeys(self.sizes, 1.0), n).values()) for n in (count, final)
            )
            # No layer gets weights back, whichever way its share is rounded.
            wanted = [max(low, min(n, have)) for n, low, have in zip(now, least, left, strict=True)]
            starts = itertools.accumulate([0, *left])
            each = zip(ranking.split(left), wanted, starts, strict=False)
            gone = torch.cat([start + lowest(part, part.numel() - n, last=True) for part, n, start in each])
        stay = torch.ones_like(ranking, dtype=torch.bool)
        stay[gone] = False
        removed = _taken(self.indices, gone).sort().values
        self.indices = _taken(self.indices, _where(stay))
        start = 0
        for w, mine in zip(self.weights.values(), removed.split(self._parts(removed)), strict=True):
            _clear(w.data, mine - start)
            start += w.numel()

    def masks(self) -> dict[str, Tensor]:
        mask = torch.zeros(self.total, dtype=torch.bool, device=self.indices.device)
        mask[self.indices] = True
        return self._by_weight(mask)


def _taken(values: Tensor, indices: Tensor) -> Tensor:
    """values[indices]; numpy's is a third of the time."""
    if values.device.type == "cpu":
        return torch.from_numpy(values.numpy()[indices.numpy()])
    return values[indices]


def _where(chosen: Tensor) -> Tensor:
    """The indices of what is true; numpy's is a seventh of the time."""
    if chosen.device.type == "cpu":
        return torch.from_numpy(np.flatnonzero(chosen.numpy()))
    return chosen.nonzero().flatten()


def _clear(weight: Tensor, gone: Tensor) -> None:
    if weight.is_contiguous():
        weight.view(-1)[gone] = 0.0
    else:
        weight[torch.unravel_index(gone, weight.shape)] = 0.0


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
    ones = mapped(ones_like_first, task.place_inputs(inputs))
    with scoring(task, seed) as weights, linearised(task.model):
        left = _Left(weights)
        count = target(density, left.total)
        for k in range(1, options.rounds + 1):
            flow(task, ones, weights, left.scores)
            left.keep(max(count, round(left.total * density ** (k / options.rounds))), count, options)
    return scored(task, left.masks(), options.rounds * len(task.train) / task.train.examples)
