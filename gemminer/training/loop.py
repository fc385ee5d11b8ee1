"""The one training loop. A search and a ticket's training differ in their `Rule`, and in nothing else."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from gemminer.core.devices import at_hand
from gemminer.core.errors import Diverged, GemminerError
from gemminer.core.model_state import named_state
from gemminer.core.randomness import mixed, private_randomness, seed_globals
from gemminer.training import rate
from gemminer.training.accumulation import Batch, grouped, step_loss
from gemminer.training.clock import Clock
from gemminer.training.evaluate import mean_metric, recalibrate
from gemminer.training.rules import Rule
from gemminer.training.settings import Settings
from gemminer.training.task import Task


def fit(
    task: Task,
    rule: Rule,
    settings: Settings,
    *,
    seed: int,
    phase: str = "train",
    first_epoch: int = 0,
    first_step: int = 0,
    last_epoch: int | None = None,
    last_step: int | None = None,
) -> list[dict[str, Any]]:
    """Run `settings.epochs` epochs: batches, loss, backward, rule, optimiser step, rule. Returns a row an epoch.

    The same (seed, task, settings) gives the same weights, bit for bit on one CPU, whether or not the loop was
    killed and resumed from `task.checkpoint` in between.

    Args:
        task: the model (changed in place), batches and loss; its `monitor` is told of every step and epoch.
        rule: decides which tensors the optimiser moves (`rules.Dense`, `rules.KeepMask`, a search's rule); it may
            exchange `task.model` between steps.
        seed: seeds dropout and the order of a user's DataLoader; a named data set's order is its own.
        phase: the name of this training in rows and checkpoints.
        settings: epochs, optimiser and learning-rate schedule.
        first_epoch: the epoch of the schedule to begin with (rewinding methods start at step k).
        first_step: the steps of that epoch that are over: so many of its batches are left out, and the learning rate
            and the numbers of the steps are those of the rest.
        last_epoch: the epoch of the schedule to end with; by default the last.
        last_step: the step of that epoch to end with; by default its last.

    The first row has `rate`, how the learning rate was found, if it was "auto": a resumed loop takes it from there. A
    row has the `fraction` of the promised batches that came in its epoch, where that is not 1.

    Raises:
        GemminerError: the loss is not finite; what was computed up to the last checkpoint stays on disk.
    """
    stop = settings.epochs if last_epoch is None else last_epoch
    checkpoint, now = task.checkpoint, time.monotonic()
    settings, found = _rate(task, rule, settings, seed, phase)
    optimiser = settings.build(rule.parameters())
    rule.begin(optimiser)
    clock = Clock(task.steps, settings.epochs, first_epoch, first_step, of=task.accumulate)
    start, seconds, rows = _resumed(task, rule, optimiser, phase, clock) or (first_epoch, 0.0, [])
    task.monitor.begin(phase, start, stop)
    begun = now - seconds
    with private_randomness():
        for epoch in range(start, stop):
            until = last_step if epoch + 1 == stop else None
            taken, loss = clock.taken, _epoch(task, rule, optimiser, settings, clock, seed, phase, until)
            row: dict[str, Any] = {"phase": phase, "epoch": epoch + 1, "step": clock.taken}
            row |= {"loss": loss, "lr": optimiser.param_groups[0]["lr"], **rule.numbers()}
            if task.ranks is not None:
                task.ranks.take_over(task.model.buffers())
            if task.validation and rule.settle:
                recalibrate(task, rule.settle)
            row["validation"] = mean_metric(task, task.validation) if task.validation else None
            if task.metric_name != "accuracy":
                row["metric"] = task.metric_name
            row["seconds"] = time.monotonic() - begun
            if (batches := clock.taken - taken) != clock.steps:
                row["fraction"] = batches / clock.steps
            if found and not rows:
                row["rate"] = found
            rows.append(row)
            task.monitor.epoch(row)
            if checkpoint and (checkpoint.due() or epoch + 1 == stop):
                checkpoint.save(_state(task, rule, optimiser, rows, clock))
    if clock.told is not None:
        task.note(clock.told)
    return rows


def _rate(task: Task, rule: Rule, settings: Settings, seed: int, phase: str) -> tuple[Settings, rate.Found | None]:
    """The settings with a number for the rate: that of the checkpoint, if this phase has one, or found now."""
    if task.checkpoint and settings.lr == "auto" and (state := task.checkpoint.load()) is not None:
        with task.checkpoint.restoring():
            if state["phase"] == phase and (found := state["rows"][0].get("rate")):
                return rate.taken(settings, found), found
    return rate.settled(task, rule, settings, seed=seed, phase=phase)


def _state(
    task: Task, rule: Rule, optimiser: torch.optim.Optimizer, rows: list[dict[str, Any]], clock: Clock
) -> dict[str, Any]:
    """The contents of a checkpoint after the epoch of the last row."""
    return {
        "phase": rows[-1]["phase"],
        "epoch": rows[-1]["epoch"],
        "seconds": rows[-1]["seconds"],
        "rows": rows,
        "clock": clock.state_dict(),
        "optimiser": optimiser.state_dict(),
        "rule": rule.state_dict(),
        "engine": {"asked": task.engine, "below": None if task.below is None else dict(task.below)},
        "model": dict(named_state(task.model)),
    }


def _resumed(
    task: Task, rule: Rule, optimiser: torch.optim.Optimizer, phase: str, clock: Clock
) -> tuple[int, float, list[dict[str, Any]]] | None:
    """Restore rule, optimiser and model from this phase's checkpoint; returns its epoch, seconds and rows, or None."""
    state = task.checkpoint.load() if task.checkpoint else None
    if task.checkpoint is None or state is None:
        return None
    with task.checkpoint.restoring():
        return _restored(task, rule, optimiser, phase, clock, state) if state["phase"] == phase else None


def _restored(
    task: Task, rule: Rule, optimiser: torch.optim.Optimizer, phase: str, clock: Clock, state: dict[str, Any]
) -> tuple[int, float, list[dict[str, Any]]] | None:
    rule.load_state_dict(state["rule"])
    own = named_state(task.model)
    if {n: t.shape for n, t in own.items()} != {n: t.shape for n, t in state["model"].items()}:
        task.monitor.note(f"'{phase}' was begun with another engine: it starts over")
        return None
    # Its rates and the like are those of this call, which is the same call.
    optimiser.load_state_dict({**optimiser.state_dict(), "state": state["optimiser"]["state"]})
    for p, kept in optimiser.state.items():
        kept = {name: value for name, value in kept.items() if not (name == "momentum_buffer" and value is None)}
        if not all(isinstance(t, Tensor) and (t.dim() == 0 or t.shape == p.shape) for t in kept.values()):
            raise ValueError("the optimiser's state is of other weights")
    clock.load_state_dict(state["clock"])
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(state["model"][name])
    epoch, seconds, rows = int(state["epoch"]), float(state["seconds"]), list(state["rows"])
    if epoch != clock.epoch or not 0 <= seconds < math.inf or any(row["phase"] != phase for row in rows):
        raise ValueError("epochs that cannot be")
    check_rows(rows, rule.numbers())
    return epoch, seconds, rows


def check_rows(rows: list[dict[str, Any]], numbers: dict[str, Any]) -> None:
    """Raise ValueError unless each row holds what this loop writes, and numbers such as the rule's."""
    like = {"epoch": 0, "step": 0, "loss": 0.0, "lr": 0.0, "seconds": 0.0, **numbers}
    rated = {"lr": 0.0, "steps": 0, "seconds": 0.0}
    for row in rows:
        if not (
            _alike(row, like)
            and isinstance(row["phase"], str)
            and (row["validation"] is None or _alike(row["validation"], 0.0))
            and _alike(row.get("rate", rated), rated)
            and _alike(row.get("fraction", 1.0), 1.0)
        ):
            raise ValueError("a row that cannot be")


def _alike(found: Any, value: Any) -> bool:
    """Whether `found` holds numbers where `value` does; what more it holds by name does not matter."""
    if isinstance(value, dict):
        return isinstance(found, dict) and all(name in found and _alike(found[name], value[name]) for name in value)
    if isinstance(value, list):
        return isinstance(found, list) and len(found) == len(value) and all(map(_alike, found, value))
    return type(found) in (int, float) and abs(found) < 2**63


def _epoch(
    task: Task,
    rule: Rule,
    optimiser: torch.optim.Optimizer,
    settings: Settings,
    clock: Clock,
    seed: int,
    phase: str,
    until: int | None = None,
) -> float:
    """One pass over the training batches, to step `until` if that is given; returns the mean loss of its steps."""
    epoch = clock.epoch
    seed_globals(mixed(seed, phase, epoch))
    task.train_mode()
    total, count = torch.zeros((), dtype=torch.float64, device=task.device), 0
    for batches in _groups(task, rule, clock, until):
        for group in optimiser.param_groups:
            group["lr"] = settings.lr_at(epoch + clock.part)
        total += step(task, rule, optimiser, batches, clock.tick(), settings.max_norm)
        count += 1
        task.monitor.step(phase, clock.step + 1, clock.end)
        if count % 32 == 0 and at_hand(total.isfinite()) is False:  # elsewhere than on a CPU the epoch's end tells
            break
    loss = float(total)
    if not math.isfinite(loss):
        raise Diverged(
            f"the loss is no longer finite in epoch {epoch + 1} of '{phase}': lower the learning rate "
            f"(lr is {settings.lr}) or check the data for NaN"
        )
    if count == 0:
        raise GemminerError(
            f"there is nothing to train on: the training data gave no batch in epoch {epoch + 1} of '{phase}'; pass "
            "data that can be read again each epoch"
        )
    last = clock.epoch == clock.epochs - 1
    rule.after_epoch(clock.next_epoch() - 1, last)
    return loss / count


def _groups(task: Task, rule: Rule, clock: Clock, until: int | None = None) -> Iterator[list[Batch]]:
    """The batches of the epoch's steps and, where the last epoch ends before a schedule does, of as many more.

    Those are of the epoch before, which had as many as a whole one has. A first epoch may begin in the middle.
    """
    yield from itertools.islice(grouped(task.train.epoch(clock.epoch), task.accumulate), clock.batches, until)
    if until is not None and clock.batches >= until:
        return
    clock.came()
    while rule.scheduled and clock.short:
        before = clock.taken
        for batches in grouped(task.train.epoch(max(0, clock.epoch - 1)), task.accumulate):
            yield batches
            if not clock.short:
                return
        if clock.taken == before:
            return


def step(
    task: Task,
    rule: Rule,
    optimiser: torch.optim.Optimizer,
    batches: Sequence[Batch],
    index: int,
    max_norm: float | None = None,
) -> Tensor:
    """Optimiser step number `index` on its batches, gradients at most `max_norm` long; returns its loss, detached."""
    loss = step_loss(task, batches, backward=True)
    rule.after_backward()
    if max_norm is not None:
        torch.nn.utils.clip_grad_norm_(rule.parameters(), max_norm)
    optimiser.step()
    rule.after_step(index)
    return loss
