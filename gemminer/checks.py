"""Sanity checks: does it matter *which* weights a ticket keeps, and from which values they start?

Shuffle and reinit turn a ticket into another with one thing destroyed (Frankle et al. 2021; Su et al. 2020); the
inverted and random tickets come from the methods themselves. A ticket passes a check when training from it beats
training from the destroyed one, over seeds, by more than chance.
"""

from __future__ import annotations

import torch

from gemminer.errors import UsageError
from gemminer.initialise import Draw, generator, mixed
from gemminer.ticket import Ticket
from gemminer.verdict import Check, Verdict, compare, overall

__all__ = ["CHECKS", "Check", "Verdict", "compare", "overall", "reinit", "shuffle"]

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
    return ticket.with_(masks=masks, check="shuffle", check_seed=seed)


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
    return ticket.with_(initial={**ticket.initial, **fresh}, draw=draw, check="reinit", check_seed=seed)
