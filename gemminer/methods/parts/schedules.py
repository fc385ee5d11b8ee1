"""Freezing schedules: how many weights remain unfrozen, or live, after which step of a search."""

from __future__ import annotations

import math

from gemminer.core.errors import UsageError
from gemminer.core.selection import target

# A continuous search removes at most this fraction of the remaining weights in one freeze.
FREEZE_AT_MOST = 0.015


def freeze_epochs(epochs: int, every: int, late: bool = False) -> list[int]:
    """The published schedule: E, 2E, ..., K*E with K = floor((T-1)/E), less any that leaves under E-1 epochs.

    `late` is an epoch later each, E+1, 2E+1, ...: the released code counts epochs from 0 and freezes after training.

    >>> freeze_epochs(150, 5)[-1], len(freeze_epochs(150, 5))
    (145, 29)
    >>> freeze_epochs(150, 5, late=True)[::28]
    [6, 146]
    """
    return [e + late for e in range(every, epochs, every) if epochs - e - late >= every - 1]


def check_repair(repair: float) -> None:
    """Raise UsageError unless `repair` is a fraction of a search that leaves time to freeze."""
    if not 0 <= repair < 1:
        raise UsageError(f"repair, a fraction of the search, must be at least 0 and below 1, not {repair}")


def check_period(every: int) -> None:
    """Raise UsageError unless `every` is a number of epochs, or 0 for a little every few steps."""
    if every < 0:
        raise UsageError(f"freeze_every is a number of epochs, 0 or more, not {every}")


def check_time(epochs: int, every: int, late: bool = False) -> None:
    """Raise UsageError where so many epochs leave none to freeze at."""
    if every and not freeze_epochs(epochs, every, late):
        raise UsageError(
            f"{epochs} epochs leave no time to freeze every {every}: "
            f"search for at least {2 * every + late} epochs or freeze more often"
        )


def freeze_schedule(
    epochs: int,
    steps: int,
    density: float,
    total: int,
    *,
    freeze_every: int = 0,
    freeze_late: bool = False,
    repair: float = 0.25,
    start: float = 0.5,
    slack: float | None = None,
) -> dict[int, int]:
    """How many weights remain unfrozen after which step: {step: count}, exponential in time.

        count after fraction t of the freezing period = round(d * density^t),   the last = round(d * density)

    With `slack` the count is `slack` times the live weights (`live_count`), and the last step leaves the ticket.

    Args:
        epochs: the epochs of the search.
        steps: optimiser steps in an epoch.
        density: the asked fraction of weights kept.
        total: d, the number of prunable weights.
        freeze_every: 0 freezes a little every few steps; E > 0 freezes at the end of epochs E, 2E, ...
        freeze_late: with `freeze_every`, an epoch later each.
        repair: the last fraction of the search in which nothing is frozen, with `freeze_every` 0.
        start: with `slack`, the fraction of weights live at the first step.
        slack: unfrozen weights for each that is live, where lambda is solved for; None where it is fixed.
    """
    final, last = target(density, total), epochs * steps - 1
    if freeze_every:
        ends = [epoch * steps - 1 for epoch in freeze_epochs(epochs, freeze_every, freeze_late)]
        return {end: round(total * density ** (k / len(ends))) for k, end in enumerate(ends, start=1)}
    if slack is not None:
        found, before = {}, total
        for step in range(last):
            live = live_count(step, epochs * steps, density, total, start=start, repair=repair)
            wanted = min(total, round(slack * live))
            if wanted < before * (1 - FREEZE_AT_MOST):
                found[step] = before = wanted
        return {**found, last: final}
    period = max(1, round(epochs * steps * (1 - repair)))
    wanted = max(1, math.ceil(math.log(total / final) / FREEZE_AT_MOST))
    ends = [*range(period - 1, -1, -max(1, period // wanted))][::-1]
    return {end: max(final, round(total * density ** ((end + 1) / period))) for end in ends}


def live_count(step: int, steps: int, density: float, total: int, *, start: float = 0.5, repair: float = 0.25) -> int:
    """How many weights may be live after `step` of `steps` (-1: before the first): from `start` to the ticket's number.

        max(round(d * density), round(d * (density + (s - density) * (1 - x)^3))),   s = max(start, density)

    x is the part of the search that is over, its last quarter (`repair`) left out: fast at first, when little is
    lost, and slowly in the end (Zhu & Gupta, 2017).

    >>> [live_count(step, 1000, 0.01, 1000) for step in (-1, 374, 749, 999)]
    [500, 71, 10, 10]
    """
    part = min(1.0, (step + 1) / max(1.0, steps * (1 - repair)))
    start = max(start, density)
    return max(target(density, total), round(total * (density + (start - density) * (1 - part) ** 3)))
