"""Sanity checks: does it matter *which* weights a ticket keeps, and from which values they start?

Shuffle and reinit turn a ticket into another with one thing destroyed (Frankle et al. 2021; Su et al. 2020); the
inverted and random tickets come from the methods themselves. A ticket passes a check when training from it beats
training from the destroyed one, over seeds, by more than chance.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from scipy import stats

from gemminer.errors import UsageError
from gemminer.initialise import Draw, generator, mixed
from gemminer.ticket import Ticket

Verdict = Literal["pass", "fail", "not decided"]

CHECKS = ("shuffle", "reinit", "invert", "uniform", "erk")


def shuffle(ticket: Ticket, seed: int) -> Ticket:
    """Permute the mask inside each layer: the layer densities stay, the choice of weights is destroyed.

    Raises UsageError where every layer is empty or full, so that no permutation changes anything: a shuffle that
    shuffles nothing would be passed off as a check.
    """
    masks = {}
    for name, mask in ticket.masks.items():
        order = torch.randperm(mask.numel(), generator=generator(seed, "shuffle", name))
        masks[name] = mask.reshape(-1)[order].reshape(mask.shape)
    if all(torch.equal(masks[name], mask) for name, mask in ticket.masks.items()):
        raise UsageError("shuffling changes nothing in this ticket: each of its layers is empty or full")
    return ticket.with_(masks=masks, check="shuffle", check_seed=seed)


def reinit(ticket: Ticket, seed: int) -> Ticket:
    """Keep the mask and draw the masked weights anew from the distribution the ticket's own were drawn from.

    Where that is unknown (a user's own weights) the layer's initial values are permuted: a draw, without
    replacement, from the distribution they form.
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
    return ticket.with_(initial={**ticket.initial, **fresh}, draw=draw, check="reinit", check_seed=seed)


@dataclass(frozen=True)
class Check:
    """A check's outcome over n paired seeds; `difference` is the mean of ticket minus check, pair by pair."""

    mean: float
    std: float
    n: int
    difference: float
    difference_std: float
    verdict: Verdict
    values: tuple[float, ...]
    ticket_values: tuple[float, ...]


def compare(ticket: Sequence[float], check: Sequence[float], *, margin: float = 0.005, level: float = 0.95) -> Check:
    """Judge a check from paired metrics (same training seed, same batches) of the ticket and of what is left of it.

    With the mean m and standard error s of the n differences and Student's t quantile at `level`, one-sided:

        pass         m - t * s > 0              the ticket is better, beyond chance
        fail         m + t * s < margin         any gain is below the margin, beyond chance
        not decided  otherwise, and always for n = 1

    Args:
        ticket, check: metrics of the same seeds, in the same order; higher is better.
        margin: the least gain that matters, in units of the metric (0.005: half a point of accuracy).

    >>> compare([0.97, 0.96, 0.98], [0.90, 0.91, 0.90]).verdict
    'pass'
    """
    if len(ticket) != len(check) or not ticket:
        raise UsageError(f"paired values are needed; there are {len(ticket)} of the ticket, {len(check)} of the check")
    n = len(ticket)
    differences = [a - b for a, b in zip(ticket, check, strict=True)]
    mean, std = _mean_std(differences)
    verdict: Verdict = "not decided"
    if n > 1:
        reach = float(stats.t.ppf(level, n - 1)) * std / math.sqrt(n)
        verdict = "pass" if mean - reach > 0 else "fail" if mean + reach < margin else "not decided"
    own, own_std = _mean_std(check)
    return Check(own, own_std, n, mean, std, verdict, tuple(check), tuple(ticket))


def overall(checks: Sequence[Check]) -> Verdict:
    """pass when every check passes, fail when one fails, else not decided."""
    verdicts = {check.verdict for check in checks}
    return "fail" if "fail" in verdicts else "pass" if verdicts == {"pass"} else "not decided"


def _mean_std(values: Sequence[float]) -> tuple[float, float]:
    """Mean and sample standard deviation (n - 1; 0 for one value)."""
    mean = math.fsum(values) / len(values)
    if len(values) == 1:
        return mean, 0.0
    return mean, math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (len(values) - 1))
