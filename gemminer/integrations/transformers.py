"""A ticket in Hugging Face's Trainer: written before training, its zeros kept, its checkpoints told from another's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

try:
    from transformers import TrainerCallback
except ModuleNotFoundError as error:
    raise ImportError("transformers is not installed: pip install 'gemminer[transformers]'") from error

from gemminer.core.errors import UsageError
from gemminer.core.holding import Hold, hold, holder
from gemminer.core.ticket import Ticket

_KEY = "gemminer.ticket"  # in the state that the Trainer writes into its checkpoints


class TicketTrainerCallback(TrainerCallback):
    """Trains a ticket in a Trainer of transformers: `Trainer(..., callbacks=[TicketTrainerCallback(ticket)])`.

    As `train` begins the ticket is written into the model, unless a checkpoint is resumed or this callback has trained
    that model before; then it is held as by `gemminer.hold`, so that clipping sees the norm of what is trained.

    Args:
        ticket: a ticket, or its file.

    Raises:
        UsageError: a ticket of another model, a checkpoint of another ticket.
    """

    def __init__(self, ticket: Ticket | str | Path) -> None:
        self.ticket = Ticket.given(ticket)
        self.held: Hold | None = None
        self._begun: nn.Module | None = None  # what has the ticket's weights already

    def on_train_begin(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        model, optimiser = others["model"], others["optimizer"]
        self.on_train_end(args, state, control)  # the training before may have ended by an exception
        own = {"digest": self.ticket.digest}
        if state.stateful_callbacks.setdefault(_KEY, own) != own:
            raise UsageError("the checkpoint is of another ticket: pass its own, or train anew without resuming")
        if state.global_step == 0 and self._begun is not model:
            self.ticket.apply(holder(model, self.ticket))
        self._begun = model
        self.held = hold(model, self.ticket, optimiser)

    def on_train_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        if self.held is not None:
            self.held.remove()
