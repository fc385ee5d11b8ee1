"""Parts of the score methods: a score for each weight -> a scope -> an exact number kept -> a ticket.

A method's cost is counted in training steps: an epoch is as many gradients as there are training examples, and a
gradient through a gradient counts as two more.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from gemminer.core.errors import GemminerError, UsageError, cause, unknown
from gemminer.core.randomness import mixed, private_randomness, seed_globals
from gemminer.core.selection import keep_highest, target
from gemminer.data import examples_in
from gemminer.methods.parts.allocation import allocate
from gemminer.methods.registry import Found
from gemminer.training.task import Task

SCOPES = ("global", "layer")
Seen = Sequence[tuple[Any, Any]]  # batches of (inputs, targets)
Score = Callable[[dict[str, nn.Parameter]], Mapping[str, Tensor]]


@dataclass(frozen=True)
class ScoreOptions:
    """Options of every score method.

    Args:
        scope: "global" ranks all weights together; "layer" ranks within each layer, all of the same density.
        invert: keep the lowest scores instead, the sanity check.
    """

    scope: Literal["global", "layer"] = "global"
    invert: bool = False

    def __post_init__(self) -> None:
        if self.scope not in SCOPES:
            raise unknown("scope", self.scope, SCOPES)


@dataclass(frozen=True)
class DataOptions(ScoreOptions):
    """Options of a score method that sees data.

    Args:
        batches: the number of training batches over which the score is averaged.
    """

    batches: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.batches < 1:
            raise UsageError(f"batches must be 1 or more, not {self.batches}")


def keep(scores: Mapping[str, Tensor], count: int, scope: str, flag: Tensor | None = None) -> dict[str, Tensor]:
    """Masks of exactly `count` highest scores: over all layers together, or an equal density of each layer.

    `flag` is that of `core.selection.keep_highest`.

    >>> keep({"a": torch.tensor([9.0, 8.0]), "b": torch.tensor([1.0, 2.0])}, 2, "layer")
    {'a': tensor([ True, False]), 'b': tensor([False,  True])}
    """
    if scope == "global":
        return keep_highest(scores, count, flag)
    counts = allocate({n: s.numel() for n, s in scores.items()}, dict.fromkeys(scores, 1.0), count)
    return {name: keep_highest({name: s}, counts[name], flag)[name] for name, s in scores.items()}


@contextlib.contextmanager
def scoring(task: Task, seed: int) -> Iterator[dict[str, nn.Parameter]]:
    """Lend out the prunable weights in training mode; global generators are seeded (for dropout) and restored."""
    with private_randomness():
        seed_globals(mixed(seed, "score"))
        task.train_mode()
        yield task.prunable()


def prune_once(task: Task, density: float, options: ScoreOptions, seed: int, score: Score, steps: float = 0.0) -> Found:
    """The round(density * d) weights with the highest score at initialisation.

    Args:
        score: prunable weights by name -> their scores, higher is better; called on a model in training mode.
        steps: what the score costs, in training steps.
    """
    with scoring(task, seed) as parameters:
        count = target(density, sum(p.numel() for p in parameters.values()))
        ranking = {name: s.detach() for name, s in score(parameters).items()}
        masks = keep(_upside_down(ranking) if options.invert else ranking, count, options.scope)
    return scored(task, masks, steps)


def scored(task: Task, masks: Mapping[str, Tensor], steps: float) -> Found:
    """The result of a score method: masks that cost `steps` training steps, with every kept weight on."""
    live = sum(int(mask.sum()) for mask in masks.values()) / sum(mask.numel() for mask in masks.values())
    return Found(masks, live=live, epochs=steps / len(task.train))


def _upside_down(scores: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: -s for name, s in scores.items()}


def first_batches(task: Task, count: int) -> Seen:
    """The first `count` training batches, going on into further epochs where one has fewer."""
    seen: list[tuple[Any, Any]] = []
    for epoch in itertools.count():
        before = len(seen)
        seen += itertools.islice(task.train.epoch(epoch), count - before)
        if len(seen) == count:
            return seen
        if len(seen) == before:
            raise GemminerError(
                f"the training data gave no batch in epoch {epoch + 1}: pass data that can be read anew"
            )
    return seen


def shares(seen: Seen) -> list[float]:
    """Each batch's fraction of all examples, so that sums over batches are means over examples."""
    sizes = [examples_in(inputs, targets) for inputs, targets in seen]
    return [size / sum(sizes) for size in sizes]


def gradient(task: Task, seen: Seen, weights: Sequence[Tensor]) -> list[Tensor]:
    """The gradient of the mean loss over the batches; zero for a weight the loss does not depend on."""
    total = [torch.zeros_like(w, requires_grad=False) for w in weights]
    for (inputs, targets), share in zip(seen, shares(seen), strict=True):
        loss = task.loss_of(inputs, targets) * share
        for sum_, part in zip(total, torch.autograd.grad(loss, weights, allow_unused=True), strict=True):
            if part is not None:
                sum_ += part
    return total


@contextlib.contextmanager
def twice_differentiable(method: str) -> Iterator[None]:
    """Use attention that has second derivatives; one sentence where another operation of the model lacks them."""
    with sdpa_kernel(SDPBackend.MATH):
        try:
            yield
        except RuntimeError as error:
            if not any(sign in str(error) for sign in ("is not implemented", "differentiate twice")):
                raise
            raise GemminerError(f"{method} needs second derivatives, which this model lacks: {error}") from cause(error)
