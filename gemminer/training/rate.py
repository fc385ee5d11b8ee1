"""The learning rate of a training, found from its own first batches: `lr="auto"`.

Nothing here asks what the network is made of. Every training that has no rate of its own goes through the same steps,
whatever its mask: a ticket, the altered ticket of a check, the dense network, the first round of IMP.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import statistics
import time
from collections.abc import Iterator
from typing import Any

import torch

from gemminer.core.devices import at_hand
from gemminer.core.model_state import borrowed
from gemminer.core.randomness import mixed, private_randomness, seed_globals
from gemminer.training.accumulation import Batch, grouped, step_loss
from gemminer.training.rules import Rule
from gemminer.training.settings import Settings
from gemminer.training.task import Task

# The highest rate of each optimiser; the others are halves of halves of it, so that no result hangs on a last bit.
HIGHEST = {"sgd": 0.1, "adam": 8e-3, "adamw": 8e-3}
# Halvings to the rate that the others are held against, and to the lowest.
CAREFUL, LOWEST = 3, 9
# Steps of a trial: this part of the training's, within bounds, and never more than a tenth.
PART, FEWEST, MOST, TENTH = 0.03, 20, 100, 0.1
HELD = 4  # steps' batches whose loss a trial ends with
HARM = 0.5  # of the loss at the start, or of the careful trial's: so much more, and a rate does harm
STEP = 0.04  # of the norm of the weights: the longest step, before momentum

Found = dict[str, Any]


def settled(task: Task, rule: Rule, settings: Settings, *, seed: int, phase: str) -> tuple[Settings, Found | None]:
    """The settings with a number for each that is "auto", and how the numbers were found (None: nothing was open).

    A trial is a short training from the start weights on the first batches, with a rate that falls to 0 as a cosine,
    whose result is the mean loss of the first four steps' batches afterwards; then everything is as before.

        n      = 3% of the training's steps, at least 20 and at most 100, never more than a tenth of them
        lr     = highest, if its trial of n steps takes half of the loss away; else
        low    = highest / 8, or the first of highest / 64, highest / 512 that does no harm in a trial
        lr     = the first of highest, highest / 2, ... whose trial ends with a loss of at most
                 loss(low) + max(|loss(low)|, |loss at the start|) / 2;   low, if none does
        |g|   <= 0.04 |w| / lr    in trials and training, |w| at the start: longer gradients are shortened to it, so
                 that no step of plain SGD is longer than 4% of the weights

    Args:
        task: its model is at the weights that the training starts from, and is left as it was.
        rule: says which tensors move; `after_backward` is called, `after_step` is not.
        settings: returned as they are where `lr` is a number.
        seed, phase: seed dropout and a user's augmentation, as in the training.
    """
    if settings.lr != "auto":
        return settings, None
    begun = time.monotonic()
    with private_randomness():
        trials = _Trials(task, rule, settings, seed, phase)
        lr, note = _search(trials, HIGHEST[settings.optimiser])
    found = {
        "lr": lr,
        "max_norm": trials.longest(lr),
        "steps": trials.steps,
        "seconds": time.monotonic() - begun,
        "tried": trials.tried,
    }
    if note:
        task.note(f"{note} in '{phase}': the training goes on with lr {lr:g}; if it fails, set lr yourself")
    return taken(settings, found), found


def taken(settings: Settings, found: Found | None) -> Settings:
    """The settings with what was found, as in the first row of a training."""
    if found is None or settings.lr != "auto":
        return settings
    return dataclasses.replace(settings, lr=found["lr"], max_norm=found["max_norm"])


def given(settings: Settings) -> Found:
    """A rate that was not looked for, in the same form."""
    return {"lr": settings.initial_lr, "max_norm": settings.max_norm, "steps": 0, "seconds": 0.0, "tried": []}


def length(steps: int) -> int:
    """The steps of a trial of a training of so many."""
    return max(1, min(MOST, max(FEWEST, round(PART * steps)), int(TENTH * steps)))


def usual(settings: Settings, steps: int) -> float:
    """The epochs, of so many steps, that finding a rate usually takes: two trials; none where it is given."""
    return 2 * length(settings.epochs * steps) / max(1, steps) if settings.lr == "auto" else 0.0


class _Trials:
    """Runs trials, and counts their steps."""

    def __init__(self, task: Task, rule: Rule, settings: Settings, seed: int, phase: str) -> None:
        self.task, self.rule, self.settings, self.key = task, rule, settings, mixed(seed, phase, "rate")
        self.length = length(settings.epochs * task.steps)
        seed_globals(self.key)
        self.held = list(itertools.islice(grouped(task.train.epoch(0), task.accumulate), HELD))
        self.weights = math.hypot(*(float(p.detach().double().norm()) for p in rule.parameters()))
        self.steps, self.tried = 0, list[list[float | None]]()

    def longest(self, lr: float) -> float | None:
        """The norm asked for, else that of the longest gradient at this rate, to two digits; None where it is 0."""
        if self.settings.max_norm is not None:
            return self.settings.max_norm
        norm = float(f"{STEP * self.weights / lr:.2g}")
        return norm if 0 < norm < math.inf else None

    def start(self) -> float:
        """The loss before any step."""
        with borrowed(self.task.model):
            return self._loss()

    def run(self, lr: float) -> float:
        """The loss after a trial, infinite if it is not a number."""
        task, rule, n = self.task, self.rule, self.length
        longest, taken_before = self.longest(lr) or math.inf, self.steps
        finite = torch.ones((), dtype=torch.bool, device=task.device)
        with borrowed(task.model):
            seed_globals(self.key)
            task.train_mode()
            parameters = rule.parameters()
            optimiser = dataclasses.replace(self.settings, lr=lr).build(parameters)
            for i, batches in enumerate(itertools.islice(_groups(task), n)):
                optimiser.param_groups[0]["lr"] = lr * (1 + math.cos(math.pi * i / n)) / 2
                step_loss(task, batches, backward=True)
                rule.after_backward()
                finite &= torch.nn.utils.clip_grad_norm_(parameters, longest).isfinite()
                optimiser.step()
                task.model.zero_grad()
                self.steps += 1
                if at_hand(finite) is False:
                    break
            sound = self.steps > taken_before and bool(finite)
            loss = self._loss() if sound else math.inf
        self.tried.append([lr, loss if math.isfinite(loss) else None])
        return loss

    def _loss(self) -> float:
        """The mean loss of the held batches, as in training; infinite if it is not a number."""
        seed_globals(self.key)
        self.task.train_mode()
        with torch.no_grad():
            losses = [float(step_loss(self.task, batches)) for batches in self.held]
        mean = statistics.fmean(losses) if losses else math.nan
        return mean if math.isfinite(mean) else math.inf


def _groups(task: Task) -> Iterator[list[Batch]]:
    """The batches of the training's steps from its first epoch on; ends with an epoch that has none."""
    for epoch in itertools.count():
        empty = True
        for batches in grouped(task.train.epoch(epoch), task.accumulate):
            empty = False
            yield batches
        if empty:
            return


def _search(trials: _Trials, highest: float) -> tuple[float, str]:
    """The rate, and what is to be said where no rate can be trusted."""
    start = trials.start()
    if not math.isfinite(start):
        return highest / 2**LOWEST, "the loss is not finite before any step"
    first = trials.run(highest)
    if first <= start - HARM * abs(start):  # no careful trial of a loss above 0 could speak against it
        return highest, ""
    for halvings in range(CAREFUL, LOWEST + 1, CAREFUL):
        low = highest / 2**halvings
        loss = trials.run(low)
        if loss <= start + HARM * abs(start):
            break
    else:
        return low, "the loss grows at every rate that was tried"
    most = loss + HARM * max(abs(loss), abs(start))
    if first <= most:
        return highest, ""
    return next((lr for k in range(1, halvings) if trials.run(lr := highest / 2**k) <= most), low), ""
