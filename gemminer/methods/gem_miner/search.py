"""Gem-Miner: learn which weights to keep while every weight stays at its initial value.

Source: Sreenivasan et al., "Rare Gems: Finding Lottery Tickets at Initialization", NeurIPS 2022. Where we differ on
purpose: freezes hit the exact count (the released code removes every score at or below a threshold, and scores
clipped to 0 tie); by default a little is frozen every few steps instead of 13% every five epochs; the last freeze
always leaves time to recover; any `nn.Module` is taken.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

from gemminer.core.errors import UsageError
from gemminer.core.prunable import Prunable, train_only
from gemminer.core.selection import target
from gemminer.methods.gem_miner.options import Options
from gemminer.methods.gem_miner.rule import GemMinerRule
from gemminer.methods.registry import Driven, Found, register
from gemminer.training.loop import fit
from gemminer.training.settings import Settings
from gemminer.training.task import Task


def drive(table: Prunable, density: float, options: Options, seed: int, steps: int, task: Task | None = None) -> Driven:
    """Begin a search: scores in place of the weights, and the schedule on which the lowest are frozen."""
    parameters = table.weights
    total = sum(p.numel() for p in parameters.values())
    least = sum(min(options.floor, p.numel()) for p in parameters.values())
    if least > target(density, total):
        raise UsageError(
            f"floor={options.floor} keeps at least {least} weights, but density {density} asks for "
            f"{target(density, total)}: lower the floor or raise the density"
        )
    schedule = options.freeze_schedule(steps, density, total)
    live_at = None
    if options.ridge is None:
        live_at = functools.partial(options.live_count, steps=steps, density=density, total=total)
    rule = GemMinerRule(parameters, options, schedule, seed, live_at, task)
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
        options.max_norm,
    )

    def found(rows: Sequence[Mapping[str, Any]]) -> Found:
        return Found(rule.masks(), rows=rows, live=float(rule.live().double().mean()))

    return Driven(rule, settings, found)


@register(
    "gem-miner",
    Options,
    summary="learn which weights to keep while they stay at initialisation",
    source="Sreenivasan et al., NeurIPS 2022",
    initialiser="signed-constant",
    trains=True,
    remedy="the option floor=1 keeps a weight in each layer",
    drive=drive,
)
def find(task: Task, density: float, options: Options, seed: int) -> Found:
    """Search for a gem: train scores, freezing the lowest on a schedule until round(density * d) weights remain."""
    table = task.table()
    train_only(task.model, table)
    task = dataclasses.replace(task)  # the rule exchanges its model
    search = drive(table, density, options, seed, task.steps, task)
    return search.found(fit(task, search.rule, search.settings, seed=seed, phase=task.phase))
