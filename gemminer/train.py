"""The one training loop. A search and a ticket's training differ in their `Rule`, and in nothing else."""

from __future__ import annotations

import contextlib
import math
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from gemminer.errors import GemminerError, UsageError, unknown
from gemminer.initialise import mixed
from gemminer.masking import Rule
from gemminer.task import Task, evaluate, recalibrate
from gemminer.ticket import named_state

OPTIMISERS = ("sgd", "adam", "adamw")
SCHEDULES = ("cosine", "multistep", "constant")


@dataclass(frozen=True)
class Settings:
    """How something is trained: optimiser and learning-rate schedule by name.

    At epoch e (a fraction, updated each step) of T the learning rate is

        cosine      lr * (1 + cos(pi * e / T)) / 2
        multistep   lr * gamma^(number of milestones <= floor(e))
        constant    lr

    Args:
        epochs: T, passes over the training data.
        lr: the initial learning rate.
        momentum: SGD's momentum, or Adam's beta_1.
        weight_decay: L2 added to the gradient for sgd and adam, decoupled for adamw.
        milestones: epochs at which multistep drops the rate.
    """

    epochs: int = 40
    optimiser: Literal["sgd", "adam", "adamw"] = "sgd"
    lr: float = 0.1
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 1e-4
    schedule: Literal["cosine", "multistep", "constant"] = "cosine"
    milestones: tuple[int, ...] = ()
    gamma: float = 0.1

    def __post_init__(self) -> None:
        if self.optimiser not in OPTIMISERS:
            raise unknown("optimiser", self.optimiser, OPTIMISERS)
        if self.schedule not in SCHEDULES:
            raise unknown("schedule", self.schedule, SCHEDULES)
        if self.epochs < 1:
            raise UsageError(f"epochs must be 1 or more, not {self.epochs}")
        if not (self.lr > 0 and math.isfinite(self.lr)):
            raise UsageError(f"lr, the learning rate, must be above 0, not {self.lr}")
        if not 0 <= self.momentum < 1:
            raise UsageError(f"momentum must be at least 0 and below 1, not {self.momentum}")
        if not (self.weight_decay >= 0 and math.isfinite(self.weight_decay)):
            raise UsageError(f"weight_decay must be 0 or more, not {self.weight_decay}")

    def lr_at(self, epoch: float) -> float:
        """The learning rate after `epoch` epochs, a fraction between two."""
        if self.schedule == "cosine":
            return self.lr * (1 + math.cos(math.pi * epoch / self.epochs)) / 2
        if self.schedule == "multistep":
            return self.lr * self.gamma ** sum(epoch >= m for m in self.milestones)
        return self.lr

    def build(self, parameters: list[Tensor]) -> torch.optim.Optimizer:
        """The optimiser, fused where PyTorch has a fused kernel for these tensors."""
        if self.nesterov and (self.optimiser != "sgd" or self.momentum == 0):
            raise UsageError("nesterov needs optimiser sgd with a momentum above 0")
        common: dict[str, Any] = {"lr": self.lr, "weight_decay": self.weight_decay}
        devices = {p.device.type for p in parameters}
        common["fused"] = devices <= {"cpu", "cuda"} and all(p.is_floating_point() for p in parameters)
        if self.optimiser == "sgd":
            return torch.optim.SGD(parameters, momentum=self.momentum, nesterov=self.nesterov, **common)
        kind = torch.optim.Adam if self.optimiser == "adam" else torch.optim.AdamW
        return kind(parameters, betas=(self.momentum, 0.999), **common)


@contextlib.contextmanager
def private_randomness() -> Iterator[None]:
    """Give torch's, numpy's and Python's global generators back as they were.

    Inside, each epoch seeds them from (seed, epoch), so dropout and a user's augmentation repeat after a resume.
    """
    python, numpy_state = random.getstate(), np.random.get_state()  # noqa: NPY002 - theirs to restore
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy_state)  # noqa: NPY002


def seed_globals(seed: int) -> None:
    """Seed every global generator user code may draw from; only inside `private_randomness`."""
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002
    random.seed(seed)


def fit(
    task: Task,
    rule: Rule,
    settings: Settings,
    *,
    seed: int,
    phase: str = "train",
    first_epoch: int = 0,
    last_epoch: int | None = None,
) -> list[dict[str, Any]]:
    """Run `settings.epochs` epochs: batch, loss, backward, rule, optimiser step, rule. Returns a row an epoch.

    The same (seed, task, settings) gives the same weights, bit for bit on one CPU, whether or not the loop was
    killed and resumed from `task.checkpoint` in between.

    Args:
        task: model (changed in place), batches, loss; its `monitor` is told of every step and epoch.
        rule: what may move (`masking.Dense`, `masking.KeepMask`, a search's scores).
        seed: seeds dropout and the order of a user's DataLoader; a named data set's order is its own.
        phase: the name rows and checkpoints go by.
        first_epoch, last_epoch: run only this part of the schedule (rewinding methods start at step k).

    Raises:
        GemminerError: the loss is not finite; what was computed up to the last checkpoint stays on disk.
    """
    optimiser = settings.build(rule.parameters())
    rows: list[dict[str, Any]] = []
    start, seconds = first_epoch, 0.0
    stop = settings.epochs if last_epoch is None else last_epoch
    checkpoint = task.checkpoint
    rule.begin(optimiser)
    if checkpoint and (state := checkpoint.load()) and state["phase"] == phase:
        rule.load_state_dict(state["rule"])
        own = named_state(task.model)
        if {n: t.shape for n, t in own.items()} == {n: t.shape for n, t in state["model"].items()}:
            start, seconds, rows = state["epoch"], state["seconds"], state["rows"]
            optimiser.load_state_dict(state["optimiser"])
            with torch.no_grad():
                for name, tensor in own.items():
                    tensor.copy_(state["model"][name])
        else:
            task.monitor.note(f"'{phase}' was begun with another engine: it starts over")
    task.monitor.begin(phase, start, stop)
    begun = time.monotonic() - seconds
    with private_randomness():
        for epoch in range(start, stop):
            loss = _epoch(task, rule, optimiser, settings, epoch, seed, phase)
            row: dict[str, Any] = {"phase": phase, "epoch": epoch + 1, "step": (epoch + 1) * len(task.train)}
            row |= {"loss": loss, "lr": optimiser.param_groups[0]["lr"], **rule.numbers()}
            if task.validation and rule.settle:
                recalibrate(task, rule.settle)
            row["validation"] = evaluate(task, task.validation) if task.validation else None
            row["seconds"] = time.monotonic() - begun
            rows.append(row)
            task.monitor.epoch(row)
            if checkpoint and (checkpoint.due() or epoch + 1 == stop):
                checkpoint.save(
                    {
                        "phase": phase,
                        "epoch": epoch + 1,
                        "seconds": row["seconds"],
                        "rows": rows,
                        "optimiser": optimiser.state_dict(),
                        "rule": rule.state_dict(),
                        "model": dict(named_state(task.model)),
                    }
                )
    return rows


def _epoch(
    task: Task,
    rule: Rule,
    optimiser: torch.optim.Optimizer,
    settings: Settings,
    epoch: int,
    seed: int,
    phase: str,
) -> float:
    """One pass over the training batches; returns the mean loss of its steps."""
    seed_globals(mixed(seed, phase, epoch))
    task.model.train()
    steps, total, count = len(task.train), torch.zeros((), dtype=torch.float64, device=task.device), 0
    for inputs, targets in task.train.epoch(epoch):
        for group in optimiser.param_groups:
            group["lr"] = settings.lr_at(epoch + min(count / steps, 1.0))
        total += step(task, rule, optimiser, inputs, targets, epoch * steps + count)
        count += 1
        task.monitor.step(phase, epoch * steps + count, settings.epochs * steps)
        if count % 32 == 0 and not torch.isfinite(total):  # one device sync in 32 steps
            break
    if not torch.isfinite(total):
        raise GemminerError(
            f"the loss is no longer finite in epoch {epoch + 1} of '{phase}': lower the learning rate "
            f"(lr is {settings.lr}) or check the data for NaN"
        )
    if count == 0:
        raise GemminerError("there is nothing to train on: the training data gave no batch")
    return float(total) / count


def step(task: Task, rule: Rule, optimiser: torch.optim.Optimizer, inputs: Any, targets: Any, index: int) -> Tensor:
    """Optimiser step number `index` on one batch; returns its loss, detached."""
    loss = task.loss_of(inputs, targets)
    loss.backward()
    rule.after_backward()
    optimiser.step()
    rule.after_step(index)
    return loss.detach()
