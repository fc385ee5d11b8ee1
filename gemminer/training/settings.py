"""Settings of a training: epochs, optimiser and learning-rate schedule."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from gemminer.core.errors import UsageError, unknown

OPTIMISERS = ("sgd", "adam", "adamw")
SCHEDULES = ("cosine", "cosine-by-epoch", "multistep", "constant")


@dataclass(frozen=True)
class Settings:
    """Settings of a training: epochs, optimiser and learning-rate schedule.

    At epoch e (a fraction, updated each step) of T = `epochs` the learning rate is

        cosine            lr * (1 + cos(pi * e / T)) / 2
        cosine-by-epoch   the same of floor(e): a step down after each epoch, as in Rare Gems' released code
        multistep         lr * gamma^(number of milestones <= floor(e))
        constant          lr

    Args:
        epochs: passes over the training data.
        optimiser: the optimiser that takes the steps.
        lr: the initial learning rate; by default found from the training's first batches (`training.rate`).
        momentum: SGD's momentum, or Adam's beta_1.
        nesterov: Nesterov's momentum, for sgd.
        weight_decay: L2 added to the gradient for sgd and adam, decoupled for adamw.
        schedule: how the learning rate falls over the epochs.
        milestones: epochs at which multistep drops the rate.
        gamma: the factor by which multistep multiplies the rate at each milestone.
        max_norm: gradients whose norm over all tensors is larger are shortened to it; by default found together with
            the rate, and no limit where lr is a number.
    """

    epochs: int = 40
    optimiser: Literal["sgd", "adam", "adamw"] = "sgd"
    lr: float | Literal["auto"] = "auto"
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 1e-4
    schedule: Literal["cosine", "cosine-by-epoch", "multistep", "constant"] = "cosine"
    milestones: tuple[int, ...] = ()
    gamma: float = 0.1
    max_norm: float | None = None

    def __post_init__(self) -> None:
        if self.optimiser not in OPTIMISERS:
            raise unknown("optimiser", self.optimiser, OPTIMISERS)
        if self.schedule not in SCHEDULES:
            raise unknown("schedule", self.schedule, SCHEDULES)
        if self.epochs < 1:
            raise UsageError(f"epochs must be 1 or more, not {self.epochs}")
        if self.lr != "auto" and not (isinstance(self.lr, float | int) and self.lr > 0 and math.isfinite(self.lr)):
            raise UsageError(f"lr, the learning rate, must be above 0 or auto, not {self.lr}")
        if self.max_norm is not None and not (self.max_norm > 0 and math.isfinite(self.max_norm)):
            raise UsageError(f"max_norm, the longest gradient, must be above 0, not {self.max_norm}")
        if not 0 <= self.momentum < 1:
            raise UsageError(f"momentum must be at least 0 and below 1, not {self.momentum}")
        if not (self.weight_decay >= 0 and math.isfinite(self.weight_decay)):
            raise UsageError(f"weight_decay must be 0 or more, not {self.weight_decay}")

    @property
    def initial_lr(self) -> float:
        """The initial learning rate as a number."""
        if self.lr == "auto":
            raise UsageError("lr='auto' stands for no number yet: `gemminer.training.loop.fit` finds it")
        return self.lr

    def lr_at(self, epoch: float) -> float:
        """The learning rate after `epoch` epochs, a fraction between two."""
        if self.schedule == "cosine-by-epoch":
            epoch = math.floor(epoch)
        if self.schedule.startswith("cosine"):
            return self.initial_lr * (1 + math.cos(math.pi * epoch / self.epochs)) / 2
        if self.schedule == "multistep":
            return self.initial_lr * self.gamma ** sum(epoch >= m for m in self.milestones)
        return self.initial_lr

    def build(self, parameters: list[Tensor]) -> torch.optim.Optimizer:
        """The optimiser, fused where PyTorch has a fused kernel for these tensors."""
        if self.nesterov and (self.optimiser != "sgd" or self.momentum == 0):
            raise UsageError("nesterov needs optimiser sgd with a momentum above 0")
        common: dict[str, Any] = {"lr": self.initial_lr, "weight_decay": self.weight_decay}
        devices = {p.device.type for p in parameters}
        common["fused"] = devices <= {"cpu", "cuda"} and all(p.is_floating_point() for p in parameters)
        if self.optimiser == "sgd":
            return torch.optim.SGD(parameters, momentum=self.momentum, nesterov=self.nesterov, **common)
        kind = torch.optim.Adam if self.optimiser == "adam" else torch.optim.AdamW
        return kind(parameters, betas=(self.momentum, 0.999), **common)
