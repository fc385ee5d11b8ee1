"""A ticket's training in somebody else's Trainer: written into the model once, held while it is trained."""

from __future__ import annotations

import weakref
from pathlib import Path

from torch import nn
from torch.optim import Optimizer

from gemminer.core.errors import UsageError
from gemminer.core.holding import Hold, hold, holder, holds_of
from gemminer.core.ticket import Ticket

_HOLDS: weakref.WeakKeyDictionary[Hold, str] = weakref.WeakKeyDictionary()  # by callbacks, and the ticket's digest


class Course:
    """What the callbacks of all frameworks have in common.

    Args:
        ticket: a ticket, or its file; None where it is still to be found.
    """

    def __init__(self, ticket: Ticket | str | Path | None) -> None:
        self.ticket: Ticket | None = None if ticket is None else Ticket.given(ticket)
        self.held: Hold | None = None
        self._begun: nn.Module | None = None  # what has the ticket's weights already, or a checkpoint's

    def require(self, digest: str | None) -> None:
        """Raise UsageError where a checkpoint is of another ticket than this, by its digest."""
        if digest != (self.ticket and self.ticket.digest):
            raise UsageError("the checkpoint is of another ticket: pass its own, or train anew without resuming")

    def write(self, model: nn.Module, restored: bool = False) -> None:
        """Write the ticket into the model, or into what it is of inside; not into one that is restored or was begun."""
        if not restored and self._begun is not model:
            assert self.ticket is not None
            self.ticket.apply(holder(model, self.ticket))
        self._begun = model

    def succeed(self, model: nn.Module) -> set[str]:
        """End what a callback's training that was interrupted still holds of the model; the digests of its tickets."""
        ended = {held: _HOLDS[held] for held in holds_of(model) if held in _HOLDS}
        for held in ended:
            held.remove()
        return set(ended.values())

    def hold(self, model: nn.Module, *optimisers: Optimizer) -> None:
        """Hold the model until `release`."""
        self.release()
        assert self.ticket is not None
        self.held = hold(model, self.ticket, *optimisers)
        _HOLDS[self.held] = self.ticket.digest

    def release(self) -> None:
        """End what holds the model, if anything does; `held` still counts."""
        if self.held is not None:
            self.held.remove()
