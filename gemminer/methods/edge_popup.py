"""Edge-Popup, and the ladder of changes that leads from it to Gem-Miner.

Sources: Ramanujan et al., "What's Hidden in a Randomly Weighted Neural Network?", CVPR 2020; the rungs are table 3 of
Sreenivasan et al., "Rare Gems", NeurIPS 2022, and the fifth is the method gem-miner. Where we differ on purpose:
counts are exact, ties go to the lower index, and a frozen weight never returns (the released Rare Gems code counts
frozen weights but lets them come back when their score rises).
"""

from __future__ import annotations

import bisect
import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from gemminer.core.errors import UsageError, unknown
from gemminer.core.layout import Layout
from gemminer.core.prunable import Prunable, train_only
from gemminer.core.randomness import drawing, generator
from gemminer.core.selection import NAN, target
from gemminer.methods.parts import schedules
from gemminer.methods.parts.one_shot import keep
from gemminer.methods.registry import Driven, Found, register
from gemminer.training.loop import fit
from gemminer.training.settings import Settings
from gemminer.training.task import Task

RUNGS = ("layer", "global", "gradual", "ridge")


@dataclass(frozen=True)
class Options(Settings):
    """Edge-Popup's settings: those of `training.settings.Settings` for the scores, and its own.

    Args:
        lr: the scores' learning rate.
        rung: "layer" ranks scores in each layer, all of the same density (Edge-Popup as published); "global" ranks
            all together; "gradual" also freezes the lowest on Gem-Miner's schedule; "ridge" also penalises them.
        ridge: lambda of the penalty lambda * |s|^2, in the rung "ridge" only; weight_decay holds in every rung.
        freeze_every: 0 freezes a little every few steps; E > 0 freezes at the end of epochs E, 2E, ... (5 in table 3 of
            Rare Gems).
        repair: the last fraction of the search in which nothing is frozen, with freeze_every 0.
        clip: the largest norm of each layer's score gradient; 0, as published, sets no limit. Batch norm divides
            the zeros of a filter without kept weights by sqrt(eps), so that its scores get a gradient some 300 times
            too large: at low densities one such step sends all the weights of the rung "global" into one layer.
        invert: keep the lowest |s| instead, the sanity check.
    """

    lr: float = 0.1
    weight_decay: float = 5e-4
    rung: Literal["layer", "global", "gradual", "ridge"] = "layer"
    ridge: float = 1e-4
    freeze_every: int = 0
    repair: float = 0.25
    clip: float = 0.0
    invert: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rung not in RUNGS:
            raise unknown("rung", self.rung, RUNGS)
        if not (self.ridge >= 0 and math.isfinite(self.ridge)):
            raise UsageError(f"lambda (ridge) must be 0 or more, not {self.ridge}")
        if not (self.clip >= 0 and math.isfinite(self.clip)):
            raise UsageError(f"clip, the largest norm of a gradient, must be 0 (no limit) or more, not {self.clip}")
        if self.rung in ("gradual", "ridge"):
            schedules.check_repair(self.repair)
            schedules.check_period(self.freeze_every)
            schedules.check_time(self.epochs, self.freeze_every)

    def freeze_schedule(self, steps: int, density: float, total: int) -> dict[int, int]:
        """Gem-Miner's freezing schedule, in the rungs that freeze; `steps` are those of an epoch."""
        if self.rung not in ("gradual", "ridge"):
            return {}
        return schedules.freeze_schedule(
            self.epochs, steps, density, total, freeze_every=self.freeze_every, repair=self.repair
        )


class Popup:
    """The search's rule: scores s in place of the weights.

        w_eff = w * top_k(|s|);   ds := dL/dw_eff * w * sign(s) (straight-through)

    k is round(density * d) or, with a freezing schedule, the number that the next freeze will leave (as in the released
    code): |s| is ranked among the unfrozen weights, and a freeze closes all those below the k highest.

    Args:
        parameters: the prunable weights, at their initial values; their data are replaced.
        schedule: step -> weights unfrozen after it, falling; empty for no freezing.
        count: weights kept at the end.
        fans_in: of each weight, for its first scores; by default that of a linear layer or convolution.
    """

    settle = 0

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        options: Options,
        schedule: dict[int, int],
        count: int,
        seed: int,
        fans_in: Mapping[str, int] | None = None,
    ) -> None:
        self.weights = dict(parameters)
        self.initial = {name: p.detach().clone() for name, p in parameters.items()}
        fans_in = fans_in or {name: Layout().fans(p.shape)[0] for name, p in parameters.items()}
        self.scores = {
            name: _first_scores(p, fans_in[name], generator(seed, "scores", name)) for name, p in parameters.items()
        }
        self.open = {name: torch.ones_like(p, dtype=torch.bool) for name, p in parameters.items()}
        self.scope, self.invert = "layer" if options.rung == "layer" else "global", options.invert
        self.clip = options.clip
        self.scheduled, self.at_ends = bool(schedule) and not options.freeze_every, bool(options.freeze_every)
        self.schedule, self.ends, self.counts = schedule, list(schedule), [*schedule.values(), count]
        self.freezes = 0
        self._nan = torch.zeros((), dtype=torch.bool, device=next(iter(self.scores.values())).device)
        self._write(-1)

    def parameters(self) -> list[Tensor]:
        return list(self.scores.values())

    def begin(self, optimiser: torch.optim.Optimizer) -> None: ...

    @torch.no_grad()
    def after_backward(self) -> None:
        for name, p in self.weights.items():
            s, w = self.scores[name], self.initial[name]
            if p.grad is None:
                s.grad = torch.zeros_like(s)
            else:
                s.grad = (p.grad * w).to(s.dtype) * s.sign()
            if self.clip:
                nn.utils.clip_grad_norm_(s, self.clip)

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        self._freeze(step)
        self._write(step)
        for p in self.weights.values():
            p.grad = None

    @torch.no_grad()
    def after_epoch(self, step: int, last: bool) -> None:
        if (last or self.at_ends) and self._freeze(step):
            self._write(step)
        self._check()

    def _check(self) -> None:
        """Raise UsageError if scores have become NaN on a device that no step has waited for."""
        if self._nan:
            raise UsageError(NAN)

    def _freeze(self, step: int) -> bool:
        """Close what is due after `step`, if anything is: fewer steps may come than the schedule has."""
        passed = bisect.bisect_right(self.ends, step)
        if passed == bisect.bisect_right(self.ends, self.step):
            return False
        self.open = self._top(self.counts[passed - 1])
        self.freezes += 1
        return True

    def _top(self, count: int) -> dict[str, Tensor]:
        """The `count` highest |s| among the unfrozen."""
        ranking = {}
        for name, s in self.scores.items():
            rank = -s.abs() if self.invert else s.abs()
            ranking[name] = rank.masked_fill(~self.open[name], -torch.inf)
        return keep(ranking, count, self.scope, self._nan)

    @torch.no_grad()
    def _write(self, step: int) -> None:
        """Write w_eff of the step after `step` into the model."""
        self.step = step
        self.on = self._top(self.counts[bisect.bisect_right(self.ends, step)])
        for name, p in self.weights.items():
            torch.mul(self.initial[name], self.on[name], out=p.data)

    def numbers(self) -> dict[str, Any]:
        kept = [int(mask.sum()) for mask in self.on.values()]
        density = sum(kept) / sum(mask.numel() for mask in self.on.values())
        row = {"kept": density, "live": density, "freezes": self.freezes, "layers_kept": kept}
        self.freezes = 0
        return row

    def found(self, rows: Sequence[Mapping[str, Any]]) -> Found:
        """What is kept now."""
        self._check()
        kept, total = (sum(map(f, self.on.values())) for f in (lambda m: int(m.sum()), Tensor.numel))
        return Found(self.on, rows=rows, live=kept / total)

    def state_dict(self) -> dict[str, Any]:
        return {"scores": self.scores, "open": self.open, "step": self.step}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, s in self.scores.items():
            s.copy_(state["scores"][name])
        self.open = {name: mask.to(self.scores[name].device) for name, mask in state["open"].items()}
        self._write(state["step"])


@drawing()
def _first_scores(parameter: Tensor, fan_in: int, source: torch.Generator) -> Tensor:
    """Kaiming uniform with a = sqrt(5): U(-b, b), b = sqrt(6 / ((1 + a^2) * fan_in)) = 1 / sqrt(fan_in)."""
    bound = math.sqrt(1 / fan_in)
    drawn = (2 * torch.rand(parameter.shape, generator=source) - 1) * bound
    return drawn.to(parameter.device, torch.promote_types(parameter.dtype, torch.float32))


def drive(table: Prunable, density: float, options: Options, seed: int, steps: int, task: Task | None = None) -> Driven:
    """Begin a search: scores in place of the weights."""
    parameters = table.weights
    fans_in = {name: table.layouts[name].fans(shape)[0] for name, shape in table.shapes.items()}
    total = sum(p.numel() for p in parameters.values())
    schedule = options.freeze_schedule(steps, density, total)
    rule = Popup(parameters, options, schedule, target(density, total), seed, fans_in)
    decay = options.weight_decay + (2 * options.ridge if options.rung == "ridge" else 0.0)
    return Driven(rule, dataclasses.replace(options, weight_decay=decay), rule.found)


@register(
    "edge-popup",
    Options,
    summary="learn scores and keep the top, by layer; rungs towards gem-miner",
    source="Ramanujan et al., CVPR 2020",
    initialiser="signed-constant",
    fan_scaled=True,
    trains=True,
    drive=drive,
)
def find(task: Task, density: float, options: Options, seed: int) -> Found:
    """Train scores and keep the highest |s|: exactly round(density * d), by layer or over all layers."""
    table = task.table()
    train_only(task.model, table)
    search = drive(table, density, options, seed, task.steps)
    return search.found(fit(task, search.rule, search.settings, seed=seed, phase=task.phase))
