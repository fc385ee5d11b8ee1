"""A ticket in Hugging Face's Trainer: written before training, its zeros kept, its checkpoints told from another's."""

from __future__ import annotations

from collections.abc import Mapping
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
from gemminer.runs.keywords import takes

_KEY = "gemminer.ticket"  # in the state that the Trainer writes into its checkpoints


def _nothing_more(given: Mapping[str, Any]) -> tuple[str, tuple[str, ...]]:
    if "mine" in given:
        raise UsageError(
            "TicketTrainerCallback does not search: ticket = gemminer.mine(model, trainer.get_train_dataloader(), "
            "density=0.05), then trainer.add_callback(TicketTrainerCallback(ticket))"
        )
    return "", ()


class TicketTrainerCallback(Course, TrainerCallback):
    """Trains a ticket in a Trainer of transformers: `Trainer(..., callbacks=[TicketTrainerCallback(ticket)])`.

    As `train` begins the ticket is written into the model, unless a checkpoint is resumed, this callback has trained
    that model last, or the ticket was trained in it; then it is held as by `gemminer.hold`, so that clipping sees the
    norm of what is trained. What was done is logged. What a callback's training that was interrupted still holds ends.

    Args:
        ticket: a ticket, or its file.
        module: the name of the module inside that the ticket is of, as "bert"; needed where it fits several.
        keep_weights: True to go on from the model's own weights, False from the ticket's start. By default from its
            own if the ticket was trained in it: what it prunes is zero already, what it keeps is not as at its start.

    Raises:
        UsageError: a ticket of another model, a checkpoint or a second callback of another ticket.
    """

    @takes("TicketTrainerCallback", _nothing_more)
    def __init__(
        self, ticket: Ticket | str | Path, *, module: str | None = None, keep_weights: bool | None = None
    ) -> None:
        super().__init__(ticket, module=module, keep_weights=keep_weights)

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
