"""A ticket in Hugging Face's Trainer: written before training, its zeros kept, its checkpoints told from another's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

try:
    from transformers import TrainerCallback
except ModuleNotFoundError as error:
    raise ImportError("transformers is not installed: pip install 'gemminer[transformers]'") from error

from gemminer.core.holding import refuse_sharded
from gemminer.core.ticket import Ticket
from gemminer.integrations.course import Course

_KEY = "gemminer.ticket"  # in the state that the Trainer writes into its checkpoints


class TicketTrainerCallback(Course, TrainerCallback):
    """Trains a ticket in a Trainer of transformers: `Trainer(..., callbacks=[TicketTrainerCallback(ticket)])`.

    As `train` begins the ticket is written into the model, unless a checkpoint is resumed or this callback has trained
    that model before; then it is held as by `gemminer.hold`, so that clipping sees the norm of what is trained.

    Args:
        ticket: a ticket, or its file.

    Raises:
        UsageError: a ticket of another model, a checkpoint of another ticket.
    """

    def __init__(self, ticket: Ticket | str | Path) -> None:
        super().__init__(ticket)

    def on_train_begin(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        self.release()  # the training before may have ended by an exception
        refuse_sharded({"DeepSpeed"} if args.deepspeed else ())
        assert self.ticket is not None
        self.require(state.stateful_callbacks.setdefault(_KEY, {"digest": self.ticket.digest})["digest"])
        self.write(others["model"], restored=state.global_step > 0)
        self.hold(others["model"], others["optimizer"])

    def on_train_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        self.release()
