"""Sanity checks: does it matter *which* weights a ticket keeps, and from which values they start?

Shuffle and reinit turn a ticket into another with one thing destroyed (Frankle et al. 2021; Su et al. 2020); the
inverted and random tickets come from the methods themselves. A ticket passes a check when training from it beats
training from the destroyed one, over seeds, by more than chance.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from gemminer import methods
from gemminer.core import statistics
from gemminer.core.draw import Draw
from gemminer.core.errors import UsageError, unknown
from gemminer.core.model_state import borrowed, named_state
from gemminer.core.randomness import generator, mixed
from gemminer.core.statistics import Check
from gemminer.core.ticket import Ticket
from gemminer.runs.experiment import Experiment
from gemminer.runs.settings import options_of

CHECKS = ("shuffle", "reinit", "invert", "uniform", "erk")


def shuffle(ticket: Ticket, seed: int) -> Ticket:
    """Permute the mask inside each layer: the layer densities stay, the choice of weights is destroyed.

    Raises UsageError where every layer is empty or full, so that no permutation changes anything: a shuffle that
    shuffles nothing would be passed off as a check.
    """
    masks, partly = {}, False
    for name, mask in ticket.masks.items():
        flat, source = mask.reshape(-1), generator(seed, "shuffle", name)
        shuffled = flat
        while torch.equal(shuffled, flat) and 0 < ticket.masks.kept(name) < flat.numel():
            shuffled, partly = flat[torch.randperm(flat.numel(), generator=source)], True  # small ones may come back
        masks[name] = shuffled.reshape(mask.shape)
    if not partly:
        raise UsageError("shuffling changes nothing in this ticket: each of its layers is empty or full")
    return ticket.replace(masks=masks, check="shuffle", check_seed=seed)


def reinit(ticket: Ticket, seed: int) -> Ticket:
    """Keep the mask and draw the masked weights anew from the distribution the ticket's own were drawn from.

    Where that is unknown (a user's own weights) the layer's initial values are permuted: a draw, without
    replacement, from the distribution they form. Raises UsageError where that changes nothing.
    """
    if ticket.draw is not None:
        draw = Draw(ticket.draw.kind, mixed(seed, "reinit", ticket.draw.seed), ticket.draw.fan_scale)
        shapes = {name: torch.Size(ticket.masks.shape(name)) for name in ticket.masks}
        fresh = {name: w.to(ticket.initial[name].dtype) for name, w in draw.weights(shapes).items()}
    else:
        draw, fresh = None, {}
        for name in ticket.masks:
            values = ticket.initial[name]
            order = torch.randperm(values.numel(), generator=generator(seed, "reinit", name))
            fresh[name] = values.reshape(-1)[order].reshape(values.shape)
    if all(torch.equal(fresh[name], ticket.initial[name]) for name in fresh):
        raise UsageError("drawing this ticket's weights anew changes nothing: each of its layers is constant")
    return ticket.replace(initial={**ticket.initial, **fresh}, draw=draw, check="reinit", check_seed=seed)


def altered_ticket(experiment: Experiment, name: str, ticket: Ticket, index: int) -> Ticket:
    """What the ticket is compared with in check `name`, for training seed `index`: as many weights, same start.

    The inversion is one ticket for all seeds: the ticket's own search, its ranking upside down.
    """
    seed = mixed(experiment.seed, "check", index)
    if name == "shuffle":
        return shuffle(ticket, seed)
    if name == "reinit":
        return reinit(ticket, seed)
    facts = ticket.provenance
    method = facts.get("method") if name == "invert" else name
    if method not in methods.names():
        raise UsageError(f"the check {name!r} needs to know the ticket's method, which is {method!r}")
    options = dict(facts.get("options", {}), invert=True) if name == "invert" else {}
    chosen = options_of(methods.get(method).options, options, method)
    task = dataclasses.replace(experiment.task, phase=f"check:{name}:search")
    with borrowed(task.model) as model:
        _start_from(model, ticket)
        find = methods.get(method).find
        asked = facts["asked"] if name == "invert" else ticket.density
        found = find(task, asked, chosen, facts.get("seed", experiment.seed) if name == "invert" else seed)
    return ticket.replace(masks=found.masks, check=name)


def _start_from(model: nn.Module, ticket: Ticket) -> None:
    ticket.check_fits(model)
    tensors = named_state(model)
    with torch.no_grad():
        for name, value in ticket.initial.items():
            tensors[name].copy_(value)


def check_names(names: Sequence[str]) -> tuple[str, ...]:
    """The checks asked for, each once; raises UsageError for one that does not exist."""
    for name in names:
        if name not in CHECKS:
            raise unknown("check", name, CHECKS)
    return tuple(dict.fromkeys(names))


@dataclass(frozen=True)
class CheckResult:
    """The outcome of `check`: overall "pass", "fail" or "not decided", and each check's figures by name."""

    verdict: statistics.Judgement
    checks: dict[str, Check]

    def __str__(self) -> str:
        lines = [f"{self.verdict}: training from the ticket against training from what is left of it"]
        for name, c in self.checks.items():
            lines.append(
                f"  {name:<8} {c.mean:.4f} +- {c.std:.4f}  ticket better by {c.difference:+.4f}"
                f" +- {c.difference_std:.4f}  (n={c.n})  {c.verdict}"
            )
        return "\n".join(lines)


Step = Callable[[str, Callable[[], dict[str, Any]]], dict[str, Any]]


def judge(
    experiment: Experiment,
    ticket: Ticket,
    own: Sequence[float],
    names: Sequence[str],
    step: Step = lambda name, work: work(),
    inverted: Path | None = None,
) -> CheckResult:
    """Run the checks `names` against the ticket's own metrics, one step for each training.

    `inverted` is where the inversion's ticket is kept, so that a resumed run need not search for it again.
    """
    found: dict[str, Check] = {}
    for name in names:
        others: list[Ticket] = []
        if name == "invert":
            held: list[Ticket] = []

            def invert(held: list[Ticket] = held) -> dict[str, Any]:
                held.append(altered_ticket(experiment, "invert", ticket, 0))
                if inverted is not None:
                    held[0].save(inverted)
                return {"digest": held[0].digest}

            step("check:invert:search", invert)
            others = (held or [Ticket.load(inverted or "")]) * len(own)
        values = []
        for i in range(len(own)):

            def work(name: str = name, i: int = i, others: list[Ticket] = others) -> dict[str, Any]:
                other = others[i] if others else altered_ticket(experiment, name, ticket, i)
                trained: dict[str, Any] = experiment.train(other, i, f"check:{name}:{i}")
                return trained

            values.append(step(f"check:{name}:{i}", work)["test"])
        found[name] = statistics.paired_test(own, values)
    return CheckResult(statistics.overall(list(found.values())), found)
