"""Gem-Miner: learn which weights to keep while every weight stays at its initial value.

Source: Sreenivasan et al., "Rare Gems: Finding Lottery Tickets at Initialization", NeurIPS 2022. Where we differ on
purpose: freezes hit the exact count (the released code removes every score at or below a threshold, and scores
clipped to 0 tie); by default a little is frozen every few steps instead of 13% every five epochs; the last freeze
always leaves time to recover; any `nn.Module` is taken.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from gemminer.errors import UsageError
from gemminer.initialise import generator
from gemminer.masking import borrowed, lowest, prunable, target
from gemminer.methods.registry import register
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
        ridge: lambda of the penalty lambda * |p|^2 on the scores p.
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
    ridge: float = 3e-4
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
        if not (self.ridge >= 0 and math.isfinite(self.ridge)):
            raise UsageError(f"lambda (ridge) must be 0 or more, not {self.ridge}")
        if not 0 <= self.repair < 1:
            raise UsageError(f"repair, a fraction of the search, must be at least 0 and below 1, not {self.repair}")
        if not 0 < self.threshold < 1:
            raise UsageError(f"threshold must lie between 0 and 1, not {self.threshold}")
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


def freeze_epochs(epochs: int, every: int) -> list[int]:
    """The published schedule: E, 2E, ..., K*E with K = floor((T-1)/E), less any that leaves under E-1 epochs.

    >>> freeze_epochs(150, 5)[-1], len(freeze_epochs(150, 5))
    (145, 29)
    """
    return [e for e in range(every, epochs, every) if epochs - e >= every - 1]


def freeze_schedule(options: Options, steps: int, density: float, total: int) -> dict[int, int]:
    """How many weights remain unfrozen after which step: {step: count}, exponential in time.

        count after fraction t of the freezing period = round(d * density^t),   the last = round(d * density)

    Args:
        steps: optimiser steps in an epoch.
        density: the asked fraction of weights kept.
        total: d, the number of prunable weights.
    """
    final = target(density, total)
    if options.freeze_every:
        ends = [epoch * steps - 1 for epoch in freeze_epochs(options.epochs, options.freeze_every)]
        return {end: round(total * density ** (k / len(ends))) for k, end in enumerate(ends, start=1)}
    period = max(1, round(options.epochs * steps * (1 - options.repair)))
    wanted = max(1, math.ceil(math.log(total / final) / FREEZE_AT_MOST))
    ends = [*range(period - 1, -1, -max(1, period // wanted))][::-1]
    return {end: max(final, round(total * density ** ((end + 1) / period))) for end in ends}


class Scores:
    """The search's rule: scores p and the unfrozen set q in place of the weights.

        w_eff = w * q * r(p),  r(p) = 1[p > threshold];   dL/dp := dL/dw_eff * w * q (straight-through)

    All scores are one flat vector, and the model's parameters are views of another, so a step costs a handful of
    vector operations however many layers there are. The ridge, 2 * lambda * p, is the optimiser's L2 term.
    """

    def __init__(
        self, parameters: dict[str, nn.Parameter], options: Options, schedule: dict[int, int], seed: int
    ) -> None:
        self.names = list(parameters)
        self.weights = list(parameters.values())
        self.options, self.schedule = options, schedule
        self.sizes = [p.numel() for p in self.weights]
        dtype = torch.float64 if any(p.dtype == torch.float64 for p in self.weights) else torch.float32
        device = self.weights[0].device
        if any(p.device != device for p in self.weights):
            raise UsageError("the model is spread over several devices; Gem-Miner needs its weights on one")
        total = sum(self.sizes)
        self.initial = torch.empty(total, dtype=dtype, device=device)  # w
        self.effective, self.gradient = torch.zeros_like(self.initial), torch.zeros_like(self.initial)
        for part, p in zip(self._parts(self.initial), self.weights, strict=True):
            part.copy_(p.detach())
        self._bind()
        scores = torch.cat(
            [_first_scores(options.scores, p, generator(seed, "scores", name)) for name, p in parameters.items()]
        )
        self.p = scores.to(device=device, dtype=dtype)
        self.p.grad = self.gradient
        self.q = torch.ones(total, dtype=torch.bool, device=device)
        self.remaining = total  # the number of ones in q
        self.kept_initial = self.initial.clone()  # w * q
        self.closed = torch.zeros_like(self.p)  # infinity where q = 0: added to a ranking, it takes the frozen out
        self._products = list(
            zip(self.weights, self._parts(self.kept_initial), self._parts(self.gradient), strict=True)
        )
        self.frozen_in_epoch = 0
        self._write()

    def _parts(self, flat: Tensor) -> list[Tensor]:
        """Views of a flat vector with each parameter's shape; logical order, so ties do not depend on strides."""
        return [v.view(p.shape) for v, p in zip(flat.split(self.sizes), self.weights, strict=True)]

    def _bind(self) -> None:
        """Make the parameters views of the flat vector of effective weights; other types get a copy each step."""
        self._copies: list[tuple[nn.Parameter, Tensor]] = []
        for p, weight in zip(self.weights, self._parts(self.effective), strict=True):
            p.grad = None
            if p.dtype == weight.dtype:
                p.data = weight
            else:
                self._copies.append((p, weight))

    def parameters(self) -> list[Tensor]:
        return [self.p]

    def after_backward(self) -> None:
        for p, kept, gradient in self._products:
            if p.grad is None:  # a parameter the loss does not use
                gradient.zero_()
            else:
                torch.mul(p.grad, kept, out=gradient)
                p.grad = None

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        self.p.clamp_(0.0, 1.0)
        if step in self.schedule:
            self._freeze(self.remaining - self.schedule[step])
        self._write()

    def _write(self) -> None:
        """w_eff into the model."""
        # Ones and zeros in the weights' own type: six times faster than a product with booleans.
        torch.gt(self.p, self.options.threshold, out=self.effective)
        self.effective.mul_(self.kept_initial)
        for p, weight in self._copies:
            p.data.copy_(weight)

    def _freeze(self, count: int) -> None:
        """Take the `count` lowest scores among the unfrozen out of q for good, ties by index."""
        if count <= 0:
            return
        ranking = self.closed - self.p if self.options.invert else self.closed + self.p
        if self.options.floor:
            ranking[self._protected(ranking)] = math.inf
        frozen = lowest(ranking, count)
        self.q[frozen] = False
        self.kept_initial[frozen] = 0.0
        self.closed[frozen] = math.inf
        self.remaining -= count
        self.frozen_in_epoch += 1

    def _protected(self, ranking: Tensor) -> Tensor:
        """Indices of each layer's `floor` best among the unfrozen."""
        best, start = [], 0
        for part in ranking.split(self.sizes):
            unfrozen = part.masked_fill(part == math.inf, -math.inf)
            best.append(start + unfrozen.topk(min(self.options.floor, part.numel())).indices)
            start += part.numel()
        return torch.cat(best)

    def live(self) -> Tensor:
        """q * r(p) as booleans: what the network computes with."""
        return self.q & (self.p > self.options.threshold)

    def masks(self) -> dict[str, Tensor]:
        """The masks the options ask for, by parameter name."""
        flat = self.live() if self.options.mask == "live" else self.q
        return dict(zip(self.names, self._parts(flat), strict=True))

    def numbers(self) -> dict[str, Any]:
        kept = [int(part.sum()) for part in self._parts(self.q)]
        row = {
            "kept": sum(kept) / self.q.numel(),
            "live": float(self.live().double().mean()),
            "lambda": self.options.ridge,
            "freezes": self.frozen_in_epoch,
            "layers_kept": kept,
        }
        self.frozen_in_epoch = 0
        return row

    def state_dict(self) -> dict[str, Any]:
        return {"p": self.p, "q": self.q}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.p.copy_(state["p"])
        self.q.copy_(state["q"])
        self.remaining = int(self.q.sum())
        torch.mul(self.initial, self.q, out=self.kept_initial)
        self.closed.masked_fill_(~self.q, math.inf)
        self._write()


def _first_scores(kind: str, parameter: Tensor, source: torch.Generator) -> Tensor:
    size = parameter.numel()
    if kind == "uniform":
        return torch.rand(size, generator=source)
    if kind == "bernoulli":
        return torch.bernoulli(torch.full((size,), 0.5), generator=source)
    # Beta(2, 2) is the median of three uniforms: no sampler without the global generator is needed.
    return torch.rand(3, size, generator=source).median(dim=0).values


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
        schedule = freeze_schedule(options, len(task.train), density, total)
        for p in task.model.parameters():
            p.requires_grad_(False)
        for p in parameters.values():
            p.requires_grad_(True)
        rule = Scores(parameters, options, schedule, seed)
        settings = Settings(
            options.epochs,
            options.optimiser,
            options.lr,
            options.momentum,
            options.nesterov,
            2 * options.ridge + options.weight_decay,
            options.schedule,
            options.milestones,
            options.gamma,
        )
        rows = fit(task, rule, settings, seed=seed, phase=task.phase)
        live = float(rule.live().double().mean())
        return Ticket(rule.masks(), initial, {"live": live, "rows": rows})
