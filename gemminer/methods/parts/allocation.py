"""How many weights each layer keeps: relative layer densities made exact, capped at 1 and redistributed."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from gemminer.core.errors import UsageError
from gemminer.core.randomness import generator


def allocate(sizes: Mapping[str, int], ratios: Mapping[str, float], total: int) -> dict[str, int]:
    """Whole numbers k_l that sum to `total`, with k_l / n_l = min(1, c * ratio_l) for one c, up to rounding.

    A layer that would keep more than all of its weights keeps all, and the others share the excess in proportion
    (Evci et al. 2020). Fractions are rounded down, and what is left goes to the largest remainders, ties to the
    earlier layer. Raises UsageError where `total` cannot be met.

    >>> allocate({"a": 10, "b": 100}, {"a": 4.0, "b": 1.0}, 55)
    {'a': 10, 'b': 45}
    """
    if not 0 < total <= sum(sizes.values()):
        raise UsageError(f"cannot keep {total} of {sum(sizes.values())} weights")
    full: set[str] = set()
    while True:
        rest = [name for name in sizes if name not in full]
        share = sum(ratios[name] * sizes[name] for name in rest)
        room = total - sum(sizes[name] for name in full)
        scale = room / share if share else 0.0
        over = {name for name in rest if scale * ratios[name] > 1}
        if not over:
            break
        full |= over
    exact = {name: float(sizes[name]) if name in full else scale * ratios[name] * sizes[name] for name in sizes}
    counts = {name: min(sizes[name], math.floor(value + 1e-9)) for name, value in exact.items()}
    # Rounded, so that remainders equal but for float noise tie, and the earlier layer comes first.
    by_remainder = sorted(sizes, key=lambda name: round(counts[name] - exact[name], 9))
    while missing := total - sum(counts.values()):
        for name in [n for n in by_remainder if counts[n] < sizes[n]][:missing]:
            counts[name] += 1
    return counts


def random_masks(shapes: Mapping[str, torch.Size], counts: Mapping[str, int], seed: int) -> dict[str, Tensor]:
    """Masks that keep exactly `counts[name]` weights of each layer, drawn evenly."""
    masks = {}
    for name, shape in shapes.items():
        size = math.prod(shape)
        order = torch.randperm(size, generator=generator(seed, "random mask", name))
        mask = torch.zeros(size, dtype=torch.bool)
        mask[order[: counts[name]]] = True
        masks[name] = mask.reshape(shape)
    return masks
