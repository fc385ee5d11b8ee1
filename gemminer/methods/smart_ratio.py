"""Smart-Ratio: random tickets whose layer densities fall with depth.

Source: Su et al., "Sanity-Checking Pruning Methods: Random Tickets can Win the Jackpot", NeurIPS 2020. Where we
differ from the released code on purpose: the excess of a full layer is shared by the others in proportion (there:
by the first that have room); 0.3 is for the classifier, the last layer if it is linear (there: for every linear
layer, which would leave a network of linear layers no say in its density); counts are exact (there: rounded down in
each layer); `invert` turns both shapes upside down (there "ascending" divides by l^2 as before for VGG).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch

from gemminer.core.errors import UsageError, unknown
from gemminer.core.selection import target
from gemminer.methods.parts.allocation import allocate, random_masks
from gemminer.methods.registry import Found, register
from gemminer.training.task import Task

SHAPES = ("resnet", "vgg")


@dataclass(frozen=True)
class Options:
    """Smart-Ratio's settings.

    Args:
        shape: "resnet" keeps in layer l of L in proportion to (L-l+1)^2 + (L-l+1); "vgg", for networks without
            shortcuts, divides that by l^2.
        classifier: the density of a last layer that is linear; 0 gives it the same share as any other layer.
        invert: make densities rise with depth instead: the ratios in reverse order. For "resnet" that is the source's
            "ascending" check; for "vgg" the source goes on dividing by l^2, so that its ratios 1 + 1/l still fall.
    """

    shape: Literal["resnet", "vgg"] = "resnet"
    classifier: float = 0.3
    invert: bool = False

    def __post_init__(self) -> None:
        if self.shape not in SHAPES:
            raise unknown("shape", self.shape, SHAPES)
        if not 0 <= self.classifier <= 1:
            raise UsageError(f"classifier is a density, at least 0 and at most 1, not {self.classifier}")


def smart_ratios(layers: int, shape: str = "resnet") -> list[float]:
    """Relative densities of layers 1 to L: (L-l+1)^2 + (L-l+1), divided by l^2 for "vgg".

    >>> smart_ratios(3), smart_ratios(3, "vgg")
    ([12.0, 6.0, 2.0], [12.0, 1.5, 0.2222222222222222])
    """
    rising = [float(k * k + k) for k in range(layers, 0, -1)]
    return [r / (i * i) if shape == "vgg" else r for i, r in enumerate(rising, start=1)]


def layer_counts(sizes: Mapping[str, int], classifier: str | None, count: int, options: Options) -> dict[str, int]:
    """How many weights each layer keeps, `count` in all; the classifier's share is taken first."""
    ratios = smart_ratios(len(sizes), options.shape)
    by_layer = dict(zip(sizes, reversed(ratios) if options.invert else ratios, strict=True))
    if classifier is None or not options.classifier or len(sizes) == 1:
        return allocate(sizes, by_layer, count)
    rest = {name: size for name, size in sizes.items() if name != classifier}
    own = max(round(options.classifier * sizes[classifier]), count - sum(rest.values()))
    if own >= count:
        raise UsageError(
            f"smart-ratio keeps {own} weights of the classifier alone and {count} are asked for in all: "
            f"lower the option classifier, which is {options.classifier}"
        )
    return {**allocate(rest, by_layer, count - own), classifier: own}


@register(
    "smart-ratio", Options, summary="layer densities that fall with depth, at random", source="Su et al., NeurIPS 2020"
)
def find(task: Task, density: float, options: Options, seed: int) -> Found:
    """Random masks with Smart-Ratio layer densities, capped at 1, the excess redistributed."""
    table = task.table()
    shapes: dict[str, torch.Size] = {name: p.shape for name, p in table.weights.items()}
    sizes = {name: shape.numel() for name, shape in shapes.items()}
    last = list(shapes)[-1]
    classifier = last if table.kinds[last] == "linear" else None
    counts = layer_counts(sizes, classifier, target(density, sum(sizes.values())), options)
    return Found(random_masks(shapes, counts, seed), live=sum(counts.values()) / sum(sizes.values()))
