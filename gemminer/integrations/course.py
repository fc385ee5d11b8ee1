"""A ticket's training in somebody else's Trainer: written into the model once, held while it is trained."""

from __future__ import annotations

import logging
import weakref
from pathlib import Path

import torch
from torch import nn
from torch.optim import Optimizer

from gemminer.core.errors import UsageError, unknown
from gemminer.core.holding import Hold, hold, holder, holds_of
from gemminer.core.model_state import named_state
from gemminer.core.names import named_modules
from gemminer.core.ticket import Ticket

_LOG = logging.getLogger("gemminer")
_HOLDS: weakref.WeakKeyDictionary[Hold, str] = weakref.WeakKeyDictionary()  # by callbacks, and the ticket's digest


class Course:
    """What the callbacks of all frameworks have in common.

    Args:
        ticket: a ticket, or its file; None where it is still to be found.
        module: the name of the module that the ticket is of; None where the ticket fits the model, or one inside alone.
        keep_weights: whether to go on from the model's own weights; None for yes where the ticket was trained in it.
    """

    def __init__(
        self, ticket: Ticket | str | Path | None, *, module: str | None = None, keep_weights: bool | None = None
    ) -> None:
        self.ticket: Ticket | None = None if ticket is None else Ticket.given(ticket)
        self.module, self.keep_weights = module, keep_weights
        self._held: Hold | None = None
        self._begun: nn.Module | None = None  # what has the ticket's weights already, or a checkpoint's

    @property
    def held(self) -> Hold:
        """What holds the model, or held it last; raises UsageError before a training has begun."""
        if self._held is None:
            raise UsageError("nothing is held yet: the callback's training has not begun")
        return self._held

    def require(self, digest: str | None) -> None:
        """Raise UsageError where a checkpoint is of another ticket than this, by its digest."""
        if digest != (self.ticket and self.ticket.digest):
            raise UsageError("the checkpoint is of another ticket: pass its own, or train anew without resuming")

    def write(self, model: nn.Module, restored: bool = False) -> None:
        """Write the ticket into what it is of, but not into a model that is restored, was begun or is to be kept."""
        if not restored and self._begun is not model:
            own, ticket = self._of(model)
            keep = _trained(own, ticket) if self.keep_weights is None else self.keep_weights
            if not keep:
                ticket.apply(own)
                _LOG.info(
                    "the ticket's start is written into the model; give keep_weights=True to go on from the model's own"
                )
            elif self.keep_weights is None:
                _LOG.warning(
                    "the model has the ticket's zeros, so its training goes on from the model's own weights; give "
                    "keep_weights=False to write the ticket's start into it"
                )
        self._begun = model

    def _of(self, model: nn.Module) -> tuple[nn.Module, Ticket]:
        """What the ticket is of, the model or a module inside, and the ticket."""
        assert self.ticket is not None
        if self.module is not None:
            named = dict(named_modules(model))
            if self.module not in named:
                raise unknown("module", self.module, filter(None, named))
            model = named[self.module]
        return holder(model, self.ticket), self.ticket

    def succeed(self, model: nn.Module) -> set[str]:
        """End what a callback's training that was interrupted still holds of the model; the digests of its tickets."""
        ended = {held: _HOLDS[held] for held in holds_of(model) if held in _HOLDS}
        for held in ended:
            held.remove()
        return set(ended.values())

    def hold(self, model: nn.Module, *optimisers: Optimizer) -> None:
        """Hold the model until `release`."""
        self.release()
        own, ticket = self._of(model)
        self._held = hold(own, ticket, *optimisers)
        _HOLDS[self._held] = ticket.digest

    def release(self) -> None:
        """End what holds the model, if anything does; `held` still counts."""
        if self._held is not None:
            self._held.remove()


def _trained(model: nn.Module, ticket: Ticket) -> bool:
    """Whether the ticket was trained in a model: what it prunes is zero, what it keeps is not as at its start."""
    own, tensors = ticket.fitted(model), named_state(model)
    with torch.no_grad():
        pairs = [(tensors[name], own.initial[name], mask.to(tensors[name].device)) for name, mask in own.masks.items()]
        zero = all(not now[~mask].any() for now, _, mask in pairs)
        moved = any(not torch.equal(now[mask], start.to(now)[mask]) for now, start, mask in pairs)
    return zero and moved and not all(mask.all() for mask in own.masks.values())
