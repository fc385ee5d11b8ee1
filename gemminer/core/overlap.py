"""What two tickets have in common, layer by layer."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from gemminer.core.errors import UsageError


class Bits(Protocol):
    """Masks as a ticket holds them."""

    def __iter__(self) -> Iterator[str]: ...

    def shape(self, name: str) -> tuple[int, ...]: ...

    def packed(self, name: str) -> np.ndarray[Any, Any]: ...


@dataclass(frozen=True)
class Overlap:
    """The weights of a layer, or of all, that two tickets keep.

    Args:
        name: the weight's name, or "all".
        size: its numbers.
        kept: those that the first ticket keeps.
        other: those that the second keeps.
        both: those that both keep.
    """

    name: str
    size: int
    kept: int
    other: int
    both: int

    @property
    def jaccard(self) -> float:
        """both / either: 1 for equal masks, also where neither keeps any; 0 where they share nothing."""
        either = self.kept + self.other - self.both
        return self.both / either if either else 1.0

    @property
    def by_chance(self) -> float:
        """What `both` would be on average for random masks of these counts: kept * other / size."""
        return self.kept * self.other / self.size if self.size else 0.0


def overlaps(one: Bits, another: Bits) -> tuple[Overlap, ...]:
    """A row for each weight that two tickets mask, and a last one for all; UsageError where these differ."""
    shapes, others = ({name: masks.shape(name) for name in masks} for masks in (one, another))
    if shapes != others:
        odd = next(name for name in {**shapes, **others} if shapes.get(name) != others.get(name))
        raise UsageError(f"the tickets are of different models: they differ in {odd!r}")
    rows = []
    for name, shape in shapes.items():
        a, b = (np.unpackbits(masks.packed(name)).astype(bool) for masks in (one, another))
        rows.append(Overlap(name, math.prod(shape), int(a.sum()), int(b.sum()), int((a & b).sum())))
    sums = (sum(getattr(row, field) for row in rows) for field in ("size", "kept", "other", "both"))
    return (*rows, Overlap("all", *sums))
