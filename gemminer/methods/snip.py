"""SNIP: keep the weights whose removal would change the loss most, to first order.

Source: Lee et al., "SNIP: Single-shot Network Pruning based on Connection Sensitivity", ICLR 2019. Where we differ from
the released code on purpose: it scores in evaluation mode, where batch norm divides by the variances the network was
made with, all 1 (`mode="eval"`); we score in training mode, as most ports do. It scores one draw of the weights and
trains another; we score the weights that will be trained. It ranks biases too, which are 0 and so always go. Its
scores are divided by their sum, which changes no ranking.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from gemminer.core.errors import unknown
from gemminer.methods.parts.one_shot import DataOptions, first_batches, gradient, prune_once
from gemminer.methods.registry import Found, register
from gemminer.training.task import Task

MODES = ("train", "eval")


@dataclass(frozen=True)
class Options(DataOptions):
    """SNIP's settings: those of every score that sees data; its source uses one batch.

    Args:
        mode: the model's mode while it is scored: "train", or "eval" as in the released code (batch norm with the
            statistics that the model comes with, no dropout).
    """

    mode: Literal["train", "eval"] = "train"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mode not in MODES:
            raise unknown("mode", self.mode, MODES)


@register(
    "snip",
    Options,
    summary="|w * dL/dw| at initialisation",
    source="Lee et al., ICLR 2019",
)
def find(task: Task, density: float, options: Options, seed: int) -> Found:
    """Keep the highest connection sensitivities s = |w * dL/dw| (equation 5 there, without its normalisation).

    L is the mean loss over the batches. The scored weights are the ticket's own initial weights.
    """

    def score(weights: dict[str, nn.Parameter]) -> dict[str, Tensor]:
        if options.mode == "eval":
            task.model.eval()
        grads = gradient(task, first_batches(task, options.batches), list(weights.values()))
        return {name: (w * g).abs() for (name, w), g in zip(weights.items(), grads, strict=True)}

    return prune_once(task, density, options, seed, score, options.batches)
