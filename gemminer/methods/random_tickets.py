"""Random tickets: the baselines that must be beaten. They see neither data nor weights, only shapes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from gemminer.core.layout import Layout
from gemminer.core.randomness import drawing, generator
from gemminer.core.selection import keep_highest, target
from gemminer.methods.parts.allocation import allocate, random_masks
from gemminer.methods.registry import Found, register
from gemminer.training.task import Task


@dataclass(frozen=True)
class Options:
    """Random tickets' settings: `invert` alone, so that the inversion check is the same call for every method.

    Args:
        invert: draw another ticket instead, since a random ranking turned upside down is another random ranking.
    """

    invert: bool = False


def _shapes(task: Task) -> dict[str, torch.Size]:
    return {name: p.shape for name, p in task.prunable().items()}


def _by_layer(task: Task, density: float, ratios: dict[str, float], seed: int, options: Options) -> Found:
    shapes = _shapes(task)
    sizes = {name: shape.numel() for name, shape in shapes.items()}
    counts = allocate(sizes, ratios, target(density, sum(sizes.values())))
    return Found(random_masks(shapes, counts, -1 - seed if options.invert else seed))


@drawing()
def _even(shape: torch.Size, *keys: object) -> torch.Tensor:
    return torch.rand(shape, generator=generator(*keys))


@register("random", Options, summary="one global draw", source="Frankle & Carbin 2019")
def find_random(task: Task, density: float, options: Options, seed: int) -> Found:
    """Keep the round(density * d) highest of d even random numbers."""
    scores = {name: _even(shape, seed, "random ticket", name) for name, shape in _shapes(task).items()}
    sign = -1.0 if options.invert else 1.0
    total = sum(s.numel() for s in scores.values())
    masks = keep_highest({name: sign * s for name, s in scores.items()}, target(density, total))
    return Found(masks)


@register("uniform", Options, summary="the same density in every layer, at random", source="Frankle et al. 2021")
def find_uniform(task: Task, density: float, options: Options, seed: int) -> Found:
    """Keep `density` of each layer, up to rounding to the exact total, at random."""
    return _by_layer(task, density, dict.fromkeys(_shapes(task), 1.0), seed, options)


def erk_ratio(shape: Sequence[int], layout: Layout | None = None) -> float:
    """(fan_in + fan_out + kernel extents) / (fan_in * fan_out * kernel extents): ERK's relative layer density.

    Of a weight that holds several matrices (gates, experts) it is that of one.

    >>> erk_ratio(torch.Size([16, 8, 3, 3])) == (8 + 16 + 3 + 3) / (8 * 16 * 3 * 3)
    True
    """
    matrix = (layout or Layout()).matrix(shape)
    return sum(matrix) / math.prod(matrix)


@register("erk", Options, summary="Erdos-Renyi-Kernel layer densities, at random", source="Evci et al. 2020")
def find_erk(task: Task, density: float, options: Options, seed: int) -> Found:
    """Random masks with ERK layer densities, capped at 1, the excess redistributed."""
    table = task.table()
    ratios = {name: erk_ratio(shape, table.layouts[name]) for name, shape in table.shapes.items()}
    return _by_layer(task, density, ratios, seed, options)
