"""A ticket in Hugging Face's Trainer: written before training, its zeros kept, its checkpoints told from another's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

try:
    from transformers import TrainerCallback
except ModuleNotFoundError as error:
    raise ImportError("transformers is not installed: pip install 'gemminer[transformers]'") from error

from gemminer.core.errors import UsageError
from gemminer.core.holding import refuse_sharded
from gemminer.core.ticket import Ticket
from gemminer.integrations.course import Course

_KEY = "gemminer.ticket"  # in the state that the Trainer writes into its checkpoints


class TicketTrainerCallback(Course, TrainerCallback):
    """Trains a ticket in a Trainer of transformers: `Trainer(..., callbacks=[TicketTrainerCallback(ticket)])`.

    As `train` begins the ticket is written into the model, unless a checkpoint is resumed or this callback has trained
    that model last; then it is held as by `gemminer.hold`, so that clipping sees the norm of what is trained. What a
    callback's training that was interrupted still holds of the model ends.

    Args:
        ticket: a ticket, or its file.

    Raises:
        UsageError: a ticket of another model, a checkpoint or a second callback of another ticket.
    """

    def __init__(self, ticket: Ticket | str | Path) -> None:
        super().__init__(ticket)

    def on_train_begin(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        refuse_sharded({"DeepSpeed"} if args.deepspeed else ())
        assert self.ticket is not None
        digest, restored = self.ticket.digest, state.global_step > 0
        known = state.stateful_callbacks.setdefault(_KEY, {"digest": digest})["digest"]
        if not restored and known != digest:
            raise UsageError("the Trainer has callbacks of two tickets: take one away with trainer.remove_callback")
        self.require(known)
        if self.succeed(others["model"]) - {digest} and restored:
            raise UsageError(
                "the checkpoint was loaded while an interrupted training still held the model at another ticket, so "
                "weights of it are lost; that hold has ended: call train again"
            )
        self.write(others["model"], restored)
        self.hold(others["model"], others["optimizer"])

    def on_train_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        self.release()
