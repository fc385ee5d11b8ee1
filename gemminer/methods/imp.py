"""Iterative magnitude pruning: train, remove the smallest weights, rewind, repeat.

Sources: Frankle & Carbin, ICLR 2019 ("cold": rewind to initialisation); Frankle et al., ICML 2020 ("warm": rewind to
step k, and train the rest of the schedule); Renda et al., ICLR 2020 ("lr": keep the weights, restart the schedule).
The ticket's own training is not part of the search: n rounds are n trainings, and one more by whoever uses it.
Momentum starts from nothing after each rewinding: the state that is rewound to holds weights and buffers only.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from gemminer.core.errors import UsageError, unknown
from gemminer.core.model_state import copied, named_state
from gemminer.core.selection import keep_highest, target
from gemminer.core.zeros import zero_pruned
from gemminer.methods.registry import Found, register
from gemminer.training import rate
from gemminer.training.loop import check_rows, fit
from gemminer.training.rules import KeepMask
from gemminer.training.settings import Settings
from gemminer.training.task import Task

REWINDS = ("cold", "warm", "lr")
# Step 1000 of 150 epochs of CIFAR-10 at batch 128, as a fraction of the training.
WARM = 1000 / 58650


@dataclass(frozen=True)
class Options(Settings):
    """IMP's settings: those of `training.settings.Settings` for each round's training, and its own.

    Args:
        epochs: passes over the training data in each round.
        lr: the initial learning rate; by default found in the first round, for all rounds.
        schedule: how the learning rate falls in a round; multistep without milestones drops it at 8/15 and 12/15 of the
            epochs (80 and 120 of 150).
        rewind: the weights after each round are those of step 0 ("cold"), those of step k ("warm") or left as trained
            ("lr").
        rewind_steps: the step k to which "warm" rewinds; 0 takes 1.7% of the training (1000 of 58,650 steps in the
            source), at least one.
        rate: the fraction of the kept weights that each round removes; the last removes as many as the density asks.
        invert: remove the largest weights instead, the sanity check.
    """

    schedule: Literal["cosine", "cosine-by-epoch", "multistep", "constant"] = "multistep"
    rewind: Literal["cold", "warm", "lr"] = "cold"
    rewind_steps: int = 0
    rate: float = 0.2
    invert: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rewind not in REWINDS:
            raise unknown("rewind", self.rewind, REWINDS)
        if self.rewind_steps < 0:
            raise UsageError(f"rewind_steps is a number of steps, 0 or more, not {self.rewind_steps}")
        if not 0 < self.rate < 1:
            raise UsageError(f"rate, the fraction removed in a round, must lie between 0 and 1, not {self.rate}")


def round_counts(total: int, density: float, rate: float) -> list[int]:
    """Weights kept after each round: round(total * (1 - rate)^k), the last round(total * density).

    The number of rounds is the whole number nearest to log(density) / log(1 - rate), at least one.

    >>> [len(round_counts(268_336, d, 0.2)) for d in (0.1334, 0.0372, 0.0144, 0.0059)]
    [9, 15, 19, 23]
    """
    final = target(density, total)
    rounds = max(1, round(math.log(density) / math.log(1 - rate)))
    return [max(final, round(total * (1 - rate) ** k)) for k in range(1, rounds)] + [final]


def prune(
    weights: Mapping[str, Tensor], masks: Mapping[str, Tensor], count: int, invert: bool = False
) -> dict[str, Tensor]:
    """Keep, of the weights kept so far, the `count` with the largest |w| over all layers (inverted: the smallest)."""
    sign = -1.0 if invert else 1.0
    ranking = {name: (sign * w.detach().abs()).masked_fill(~masks[name], -torch.inf) for name, w in weights.items()}
    return keep_highest(ranking, count)


class _Round(KeepMask):
    """The rule of one round: masked weights stay zero, and the state after step k of the first round is kept.

    `history` holds what later rounds need of earlier ones. It goes into every checkpoint, so that a resumed search
    repeats no finished round; `_resumed` reads it back.
    """

    def __init__(self, model: nn.Module, history: dict[str, Any], capture: int, over: int) -> None:
        super().__init__(model, history["masks"])
        self.model, self.history, self.capture, self.batches = model, history, capture, over

    def after_step(self, step: int) -> None:
        super().after_step(step)
        self.batches += 1  # counted, since fewer may come than the data promises
        if self.history["round"] == 1 and sum(self.history["steps"]) + self.batches == self.capture:
            self.history["state"] = {name: t.detach().clone() for name, t in named_state(self.model).items()}
            self.history["at"] = [len(self.history["steps"]), self.batches]

    def after_epoch(self, step: int, last: bool) -> None:
        if self.history["round"] == 1:
            if self.history["at"] == [len(self.history["steps"]), self.batches]:
                self.history["at"] = [len(self.history["steps"]) + 1, 0]
            self.history["steps"].append(self.batches)
            self.batches = 0

    def numbers(self) -> dict[str, Any]:
        kept = [int(mask.sum()) for mask in self.history["masks"].values()]
        density = sum(kept) / sum(mask.numel() for mask in self.history["masks"].values())
        return {"kept": density, "live": density, "layers_kept": kept}

    def state_dict(self) -> dict[str, Any]:
        return {"imp": self.history}


def _resumed(task: Task, key: str, rounds: int) -> dict[str, Any] | None:
    """The history in the task's checkpoint, if it holds one of this search."""
    state = task.checkpoint.load() if task.checkpoint else None
    if task.checkpoint is None or state is None:
        return None
    with task.checkpoint.restoring():
        if not state["phase"].startswith(f"{task.phase}:round"):
            return None
        found: dict[str, Any] = state["rule"]["imp"]
        history = {**found, "masks": {n: found["masks"][n].to(task.device, torch.bool) for n in task.prunable()}}
        _check(history, task, rounds, state["epoch"])
    if history["key"] != key:
        raise UsageError(f"the checkpoint {task.checkpoint.path} is of another search: delete it to begin anew")
    return history


def _check(history: Mapping[str, Any], task: Task, rounds: int, epoch: int) -> None:
    """Raise ValueError for a history that cannot be of this network, this many rounds and epochs of the current one."""
    check_rows(history["rows"], {"kept": 0.0, "layers_kept": [0] * len(history["masks"])})
    own, (first, skip), steps = named_state(task.model), history["at"], history["steps"]
    kept = history["masks"] if history["state"] is None else {**history["masks"], **history["state"]}
    later = history["round"] > 1
    if (
        not 1 <= history["round"] <= rounds
        or any(kept[name].shape != own[name].shape for name in kept)
        or (history["state"] is not None and history["state"].keys() != own.keys())
        or not all(type(count) is int and count > 0 for count in steps)
        or not (first in range(len(steps) + (not later)) and skip in range((*steps, 1)[first] + 1))
        or not (history["rows"] if later else len(steps) == epoch)
    ):
        raise ValueError("a round that cannot be")


def _write(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    with torch.no_grad():
        for name, tensor in named_state(model).items():
            tensor.copy_(state[name])


def _training(options: Options) -> Settings:
    if options.schedule == "multistep" and not options.milestones:
        drops = (round(options.epochs * 8 / 15), round(options.epochs * 12 / 15))
        return dataclasses.replace(options, milestones=drops)
    return options


def _found(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """How the learning rate was found, for the ticket's provenance, if it was not given."""
    return {"rate": rows[0]["rate"]} if "rate" in rows[0] else {}


def _epochs(options: Options, density: float, total: int) -> float:
    return float(options.epochs * len(round_counts(total, density, options.rate)))


@register(
    "imp",
    Options,
    summary="train, prune 20%, rewind, repeat",
    source="Frankle & Carbin, ICLR 2019",
    trains=True,
    cost=_epochs,
)
def find(task: Task, density: float, options: Options, seed: int) -> Found:
    """Rounds of training and removing the smallest |w| until round(density * d) are left.

    The ticket starts from the initial weights (cold), from those after step k (warm) or from the trained ones (lr);
    only a cold ticket is at initialisation.
    """
    initial = copied(task.model)
    steps, settings = task.steps, _training(options)
    k = (options.rewind_steps or math.ceil(WARM * options.epochs * steps)) if options.rewind == "warm" else 0
    if k >= options.epochs * steps:
        raise UsageError(f"rewind_steps={k} is not below the {options.epochs * steps} steps of a round")
    k = max(k, task.begun)  # the weights as they are given may be those of a later step
    epoch, over = task.position(task.begun, options.epochs)
    model = task.model
    weights = task.prunable()
    total = sum(w.numel() for w in weights.values())
    counts = round_counts(total, density, options.rate)
    key = repr((seed, density, options))
    history = _resumed(task, key, len(counts)) or {
        "key": key,
        "round": 1,
        "masks": {name: torch.ones_like(w, dtype=torch.bool) for name, w in weights.items()},
        "state": None,  # after step k of the first round
        "at": [epoch, over],  # the epoch and the batch in it at which that is, or the first round begins
        "steps": [steps] * epoch,  # batches of each epoch of the first round
        "rows": [],
    }
    for number in range(history["round"], len(counts) + 1):
        if number > 1 and options.rewind != "lr":
            _write(model, history["state"] or initial)
        zero_pruned((w, history["masks"][name]) for name, w in weights.items())
        history["round"] = number
        first, skip = history["at"] if number > 1 else (epoch, over)
        rows = fit(
            task,
            _Round(model, history, k, over if len(history["steps"]) == epoch else 0),
            rate.taken(settings, history["rows"][0].get("rate") if number > 1 else None),
            seed=seed,
            phase=f"{task.phase}:round{number}",
            first_epoch=first,
            first_step=skip,
        )
        if k >= sum(history["steps"]):
            raise UsageError(f"rewind_steps={k} is not below the {sum(history['steps'])} steps that a round really has")
        begun = history["rows"][-1]["seconds"] if history["rows"] else 0.0
        history["rows"] = history["rows"] + [{**row, "seconds": begun + row["seconds"]} for row in rows]
        history["masks"] = prune(weights, history["masks"], counts[number - 1], options.invert)
    start = {"cold": None, "warm": history["state"], "lr": copied(model)}[options.rewind]
    reached = None if options.rewind == "lr" else k or None
    return Found(
        history["masks"],
        start,
        history["rows"],
        live=counts[-1] / total,
        epochs=math.fsum(row.get("fraction", 1.0) for row in history["rows"]),
        draw_holds=options.rewind == "cold",
        facts={"rewind_step": reached, **_found(history["rows"])},
    )
