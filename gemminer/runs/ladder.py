"""The densities that are looked at for the smallest ticket, and which of them to look at next.

Pure functions: what a rung comes to is measured by the functions they are given. Rung 0 is the densest.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

Verdict = Literal["within", "not within", "undecided"]

DENSEST = 0.5
FACTOR = math.sqrt(0.5)  # from rung to rung; two halve the weights
LEAST = 0.001  # no sparser, however large the network


def rungs(prunable: int, layers: int) -> tuple[float, ...]:
    """The densities, from the densest down, of a network with so many prunable weights in so many layers.

    The last one keeps a weight for each layer, or a thousandth if that is more. Three digits each, so that a density
    can be typed.

    >>> rungs(268_048, 20)[:4], len(rungs(268_048, 20))
    ((0.5, 0.354, 0.25, 0.177), 18)
    """
    least = max(LEAST, layers / prunable)
    found = [DENSEST]
    while (finer := float(f"{DENSEST * FACTOR ** len(found):.3g}")) >= least:
        found.append(finer)
    return tuple(found)


def sparsest(count: int, looks: Callable[[int], bool]) -> int | None:
    """The last rung that looks right, by bisection; None if no rung that was looked at does.

    It asks about as few rungs as are needed where a rung looks right whenever the next, sparser one does: at most
    floor(log2(count)) + 1.

    >>> sparsest(18, lambda rung: rung <= 11)
    11
    """
    right, wrong = -1, count
    while wrong - right > 1:
        middle = (right + wrong) // 2
        right, wrong = (middle, wrong) if looks(middle) else (right, middle)
    return None if right < 0 else right


def confirmed(start: int, judged: Callable[[int], tuple[Verdict, bool]]) -> tuple[int, Verdict]:
    """The first rung from `start` towards the densest whose difference is right, and what is known of it.

    Args:
        judged: a rung's verdict, and whether its mean is right, chance or not. Where it is not the next denser rung is
            asked; the densest is the answer whatever comes of it.
    """
    rung = start
    while True:
        verdict, looks = judged(rung)
        if verdict == "within" or (verdict == "undecided" and looks) or rung == 0:
            return rung, verdict
        rung -= 1


def densest(
    count: int, guess: Callable[[int], float], size: Callable[[int], float], limit: float
) -> tuple[int | None, float | None]:
    """The densest rung whose size is at most `limit`, and the size that the next denser one has or is thought to have.

    A guess costs little, a size a search. Guesses are scaled by what the last size was to its guess; rungs are measured
    until one fits whose denser neighbour does not, by its own size or by the scaled guess. None where none fits.

    >>> densest(6, lambda rung: 64 / 2**rung, lambda rung: 80 / 2**rung, 22)
    (2, 40.0)
    """
    scale, sizes = 1.0, dict[int, float]()
    over, fits = -1, count  # the sparsest known not to fit, the densest known to fit

    def thought(rung: int) -> float:
        return sizes[rung] if rung in sizes else scale * guess(rung)

    while True:
        low, rung = over, fits  # the first rung between them that is thought to fit, else `fits`
        while rung - low > 1:
            middle = (low + rung) // 2
            low, rung = (low, middle) if thought(middle) <= limit else (middle, rung)
        if rung == fits < count:
            return fits, thought(fits - 1) if fits else None
        if rung == count:
            if over == count - 1:
                return None, None
            rung = count - 1  # none is thought to fit: the sparsest decides
        sizes[rung] = size(rung)
        scale = sizes[rung] / guess(rung)
        over, fits = (over, rung) if sizes[rung] <= limit else (rung, fits)
