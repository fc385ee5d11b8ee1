"""SNIP: keep the weights whose removal would change the loss most, to first order."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from gemminer.methods.parts.one_shot import DataOptions, first_batches, gradient, prune_once
from gemminer.methods.registry import Found, register
from gemminer.training.task import Task


@dataclass(frozen=True)
class Options(DataOptions):
    """SNIP's settings are those of every score that sees data; its source uses one batch."""


@register(
    "snip",
    Options,
    summary="|w * dL/dw| at initialisation",
    source="Lee et al., ICLR 2019",
)
def find(task: Task, density: float, options: Options, seed: int) -> Found:
    """Keep the highest connection sensitivities s = |w * dL/dw| (equation 5 there, without its normalisation).

    L is the mean loss over the batches, in training mode. The scored weights are the ticket's own initial weights;
    some ports score a copy that was drawn anew.
    """

    def score(weights: dict[str, nn.Parameter]) -> dict[str, Tensor]:
        grads = gradient(task, first_batches(task, options.batches), list(weights.values()))
        return {name: (w * g).abs() for (name, w), g in zip(weights.items(), grads, strict=True)}

    return prune_once(task, density, options, seed, score, options.batches)
