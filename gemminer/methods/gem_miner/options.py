"""Options of a Gem-Miner search."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from gemminer.core.errors import UsageError
from gemminer.methods.parts import schedules
from gemminer.training.settings import Settings


@dataclass(frozen=True)
class Options(Settings):
    """Gem-Miner's settings: those of `training.settings.Settings` for the scores, and its own.

    Args:
        lr: the scores' learning rate.
        ridge: lambda of the penalty lambda * |p|^2 on the scores p; not set, it is solved for after every step so that
            the number of live weights follows a schedule of its own (`live_count`).
        scale: scale the scores' gradient to one size for every network (`rule.RATE`), so that `lr` need not be tuned;
            not set, this is done where lambda is solved for.
        start: the fraction of weights live at the first step, where lambda is solved for.
        slack: unfrozen weights for each live one, where lambda is solved for; a frozen weight never returns.
        freeze_every: 0 freezes a little every few steps; E > 0 freezes at the end of epochs E, 2E, ..., as published.
        freeze_late: with freeze_every, freeze at the end of epochs E+1, 2E+1, ..., as the released code does.
        repair: the last fraction of the search in which nothing is frozen, with freeze_every 0.
        scores: the distribution scores start from, on [0, 1]: uniform, bernoulli (0 or 1, evenly), beta (2, 2).
        threshold: a weight is on where its score is above this.
        mask: "q" keeps what was never frozen, exactly the asked count; "live" only what is also on, maybe fewer.
        floor: the least number of weights that stay unfrozen in each layer.
        invert: freeze the highest scores instead, the sanity check.
    """

    # Chosen by cross-validation inside the training part of digits (docs/results.md); neutral on Fashion-MNIST.
    lr: float = 0.2
    ridge: float | None = None
    scale: bool | None = None
    start: float = 0.5
    slack: float = 6.0
    weight_decay: float = 0.0
    freeze_every: int = 0
    freeze_late: bool = False
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
        schedules.check_repair(self.repair)
        if not 0 < self.threshold < 1:
            raise UsageError(f"threshold must lie between 0 and 1, not {self.threshold}")
        if self.ridge is None and self.threshold != 0.5:
            raise UsageError("threshold is 0.5 where lambda is solved for: set ridge to choose another")
        schedules.check_period(self.freeze_every)
        if self.optimiser == "adamw":
            raise UsageError("a search takes sgd or adam: adamw would decouple the ridge from the scores' gradient")
        if self.floor < 0:
            raise UsageError(f"floor is a number of weights, 0 or more, not {self.floor}")
        if self.scores not in ("uniform", "bernoulli", "beta"):
            raise UsageError(f"scores must be uniform, bernoulli or beta, not {self.scores!r}")
        if self.mask not in ("q", "live"):
            raise UsageError(f"mask must be q or live, not {self.mask!r}")
        schedules.check_time(self.epochs, self.freeze_every, self.freeze_late)

    @property
    def scales(self) -> bool:
        """Whether the scores' gradient is scaled."""
        return self.ridge is None if self.scale is None else self.scale

    def freeze_schedule(self, steps: int, density: float, total: int) -> dict[int, int]:
        """How many of `total` weights remain unfrozen after which step; `steps` are those of an epoch."""
        return schedules.freeze_schedule(
            self.epochs,
            steps,
            density,
            total,
            freeze_every=self.freeze_every,
            freeze_late=self.freeze_late,
            repair=self.repair,
            start=self.start,
            slack=self.slack if self.ridge is None else None,
        )

    def live_count(self, step: int, steps: int, density: float, total: int) -> int:
        """How many of `total` weights may be live after `step`, where lambda is solved for."""
        return schedules.live_count(step, self.epochs * steps, density, total, start=self.start, repair=self.repair)
