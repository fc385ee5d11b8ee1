"""Gem-Miner: learn which weights to keep while every weight stays at its initial value.

Source: Sreenivasan et al., "Rare Gems: Finding Lottery Tickets at Initialization", NeurIPS 2022. Where we differ on
purpose: freezes hit the exact count (the released code removes every score at or below a threshold, and scores
clipped to 0 tie); by default a little is frozen every few steps instead of 13% every five epochs; the last freeze
always leaves time to recover; any `nn.Module` is taken.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from dataclasses import dataclass
from typing import Literal

from gemminer.errors import UsageError
from gemminer.masking import borrowed, prunable, target
from gemminer.methods.registry import register
from gemminer.methods.scores import Scores
from gemminer.task import Task
from gemminer.ticket import State, Ticket, named_state
from gemminer.train import Settings, fit

# A continuous search removes at most this fraction of the remaining weights in one freeze.
FREEZE_AT_MOST = 0.015


@dataclass(frozen=True)
class Options(Settings):
    """Gem-Miner's settings: those of `train.Settings` for the scores, and its own.

    Args:
        lr: the scores' learning rate.
        ridge: lambda of the penalty lambda * |p|^2 on the scores p. Not given, it is solved for after every step so
            that the number of live weights follows a schedule of its own (`live_count`).
        scale: scale the scores' gradient to one size for every network (`scores.RATE`), so that `lr` need not be tuned;
            by default where lambda is solved for.
        start: the fraction of weights live at the first step, where lambda is solved for.
        slack: where lambda is solved for, unfrozen weights for each that is live; what is not among them never returns.
        freeze_every: 0 freezes a little every few steps; E > 0 freezes at the end of epochs E, 2E, ..., as published.
        repair: the last fraction of a continuous search in which nothing is frozen.
        scores: the distribution scores start from, on [0, 1]: uniform, bernoulli (0 or 1, evenly), beta (2, 2).
        threshold: a weight is on where its score is above it.
        mask: "q" keeps what was never frozen, exactly the asked count; "live" only what is also on, maybe fewer.
        floor: weights each layer keeps unfrozen at least.
        invert: freeze the highest scores instead, the sanity check.
    """

    # Chosen by cross-validation inside the training part of digits (docs/design.md); neutral on Fashion-MNIST.
    lr: float = 0.2
    ridge: float | None = None
    scale: bool | None = None
    start: float = 0.5
    slack: float = 6.0
    weight_decay: float = 0.0
    freeze_every: int = 0
    repair: float = 0.25
    scores: Literal["uniform", "bernoulli", "beta"] = "uniform"
    threshold: float = 0.5
    mask: Literal["q", "live"] = "q"
    floor: int = 0
    invert: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.ridge is not None and not (self.ridge >= 0 and math.isfinite(self.ridge)):
            raise UsageError(f"lambda (ridge) must be 0 or more, or left out, not {self.ridge}")
        if not 0 < self.start <= 1:
            raise UsageError(f"start, the fraction live at first, must lie above 0 and up to 1, not {self.start}")
        if not (self.slack >= 1 and math.isfinite(self.slack)):
            raise UsageError(f"slack, unfrozen weights for each live one, must be 1 or more, not {self.slack}")
        if not 0 <= self.repair < 1:
            raise UsageError(f"repair, a fraction of the search, must be at least 0 and below 1, not {self.repair}")
        if not 0 < self.threshold < 1:
            raise UsageError(f"threshold must lie between 0 and 1, not {self.threshold}")
        if self.ridge is None and self.threshold != 0.5:
            raise UsageError("threshold is 0.5 where lambda is solved for: set ridge to choose another")
        if self.freeze_every < 0:
            raise UsageError(f"freeze_every is a number of epochs, 0 or more, not {self.freeze_every}")
        if self.optimiser == "adamw":
            raise UsageError("a search takes sgd or adam: adamw would decouple the ridge from the scores' gradient")
        if self.floor < 0:
            raise UsageError(f"floor is a number of weights, 0 or more, not {self.floor}")
        if self.scores not in ("uniform", "bernoulli", "beta"):
            raise UsageError(f"scores must be uniform, bernoulli or beta, not {self.scores!r}")
        if self.mask not in ("q", "live"):
            raise UsageError(f"mask must be q or live, not {self.mask!r}")
        if self.freeze_every and not freeze_epochs(self.epochs, self.freeze_every):
            raise UsageError(
                f"{self.epochs} epochs leave no time to freeze every {self.freeze_every}: "
                f"search for at least {2 * self.freeze_every} epochs or freeze more often"
            )

    @property
    def scales(self) -> bool:
        """Whether the scores' gradient is scaled."""
        return self.ridge is None if self.scale is None else self.scale


def freeze_epochs(epochs: int, every: int) -> list[int]:
    """The published schedule: E, 2E, ..., K*E with K = floor((T-1)/E), less any that leaves under E-1 epochs.

    >>> freeze_epochs(150, 5)[-1], len(freeze_epochs(150, 5))
    (145, 29)
    """
    return [e for e in range(every, epochs, every) if epochs - e >= every - 1]


def freeze_schedule(options: Options, steps: int, density: float, total: int) -> dict[int, int]:
    """How many weights remain unfrozen after which step: {step: count}, exponential in time.

        count after fraction t of the freezing period = round(d * density^t),   the last = round(d * density)

    Where lambda is solved for it is `slack` times what may be live, and the last step leaves the ticket.

    Args:
        steps: optimiser steps in an epoch.
        density: the asked fraction of weights kept.
        total: d, the number of prunable weights.
    """
    final, last = target(density, total), options.epochs * steps - 1
    if options.freeze_every:
        ends = [epoch * steps - 1 for epoch in freeze_epochs(options.epochs, options.freeze_every)]
        return {end: round(total * density ** (k / len(ends))) for k, end in enumerate(ends, start=1)}
    if options.ridge is None:
        found, before = {}, total
        for step in range(last):
            wanted = min(total, round(options.slack * live_count(options, step, steps, density, total)))
            if wanted < before * (1 - FREEZE_AT_MOST):
                found[step] = before = wanted
        return {**found, last: final}
    period = max(1, round(options.epochs * steps * (1 - options.repair)))
    wanted = max(1, math.ceil(math.log(total / final) / FREEZE_AT_MOST))
    ends = [*range(period - 1, -1, -max(1, period // wanted))][::-1]
    return {end: max(final, round(total * density ** ((end + 1) / period))) for end in ends}


def live_count(options: Options, step: int, steps: int, density: float, total: int) -> int:
    """How many weights may be live after `step` (-1: before the first): from `start` down to the ticket's number.

        max(round(d * density), round(d * (density + (s - density) * (1 - x)^3))),   s = max(start, density)

    x is the part of the search that is over, its last quarter (`repair`) left out: fast at first, when little is
    lost, and slowly in the end (Zhu & Gupta, 2017).

    >>> [live_count(Options(10), step, 100, 0.01, 1000) for step in (-1, 374, 749, 999)]
    [500, 71, 10, 10]
    """
    part = min(1.0, (step + 1) / max(1.0, options.epochs * steps * (1 - options.repair)))
    start = max(options.start, density)
    return max(target(density, total), round(total * (density + (start - density) * (1 - part) ** 3)))


@register(
    "gem-miner",
    Options,
    summary="learn which weights to keep while they stay at initialisation",
    source="Sreenivasan et al., NeurIPS 2022",
    initialiser="signed-constant",
)
def find(task: Task, density: float, options: Options, seed: int) -> Ticket:
    """Search for a gem: train scores, freezing the lowest on a schedule until round(density * d) weights remain."""
    initial = State(named_state(task.model))
    with borrowed(task.model):
        parameters = prunable(task.model, exclude=task.exclude, embeddings=task.embeddings)
        total = sum(p.numel() for p in parameters.values())
        least = sum(min(options.floor, p.numel()) for p in parameters.values())
        if least > target(density, total):
            raise UsageError(
                f"floor={options.floor} keeps at least {least} weights, but density {density} asks for "
                f"{target(density, total)}: lower the floor or raise the density"
            )
        steps = len(task.train)
        schedule = freeze_schedule(options, steps, density, total)
        for p in task.model.parameters():
            p.requires_grad_(False)
        for p in parameters.values():
            p.requires_grad_(True)
        live_at = None
        if options.ridge is None:
            live_at = functools.partial(_live_at, options, steps, density, total)
        task = dataclasses.replace(task)  # its model is the rule's to exchange
        rule = Scores(parameters, options, schedule, seed, live_at, task)
        settings = Settings(
            options.epochs,
            options.optimiser,
            options.lr,
            options.momentum,
            options.nesterov,
            2 * (options.ridge or 0.0) + options.weight_decay,
            options.schedule,
            options.milestones,
            options.gamma,
        )
        rows = fit(task, rule, settings, seed=seed, phase=task.phase)
        live = float(rule.live().double().mean())
        return Ticket(rule.masks(), initial, {"live": live, "rows": rows})


def _live_at(options: Options, steps: int, density: float, total: int, step: int) -> int:
    return live_count(options, step, steps, density, total)
