"""Magnitude at initialisation: the largest weights, before anything is learnt."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from gemminer.methods.parts.one_shot import ScoreOptions, prune_once
from gemminer.methods.registry import Found, register
from gemminer.training.task import Task


@dataclass(frozen=True)
class Options(ScoreOptions):
    """Magnitude's settings are those of every score; it sees no data."""


@register("magnitude", Options, summary="|w| at initialisation, no data", source="Frankle et al., ICLR 2021")
def find(task: Task, density: float, options: Options, seed: int) -> Found:
    """Keep the highest s = |w|. With signed-constant weights all of a layer tie, and the lower index is kept."""

    def score(weights: dict[str, nn.Parameter]) -> dict[str, Tensor]:
        return {name: w.abs() for name, w in weights.items()}

    return prune_once(task, density, options, seed, score)
