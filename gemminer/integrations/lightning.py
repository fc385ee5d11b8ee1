"""A ticket in Lightning's Trainer: written before training, its zeros kept, its checkpoints told from another's."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from torch import nn

from gemminer import api
from gemminer.core.errors import UsageError
from gemminer.core.holding import Hold, hold, holder
from gemminer.core.ticket import Ticket

# One program under two names, often both installed, and a Trainer knows the callbacks of its own name.
_BASES: list[type] = []
for _name in ("lightning.pytorch", "pytorch_lightning"):
    with contextlib.suppress(ModuleNotFoundError):
        _BASES.append(import_module(_name).Callback)
if not _BASES:
    raise ImportError("Lightning is not installed: pip install 'gemminer[lightning]'")


class TicketCallback(*_BASES):  # type: ignore[misc]
    """Trains a ticket in a Lightning Trainer: `Trainer(callbacks=[TicketCallback(ticket)])`.

    As `fit` begins the ticket is written into the module, or into the one module inside that it is of, unless a
    checkpoint was restored or this callback has trained that module before; then it is held as by `gemminer.hold`.

    Args:
        ticket: a ticket, or its file.
        mine: instead of it, arguments of `gemminer.mine`, which then searches as `fit` begins, on the training data of
            the Trainer and in one process. A checkpoint holds what was found: to resume searches no more.

    Raises:
        UsageError: a ticket of another module, a checkpoint of another ticket, a search in several processes.
    """

    def __init__(self, ticket: Ticket | str | Path | None = None, *, mine: Mapping[str, Any] | None = None) -> None:
        if (ticket is None) == (mine is None):
            raise UsageError("pass either a ticket or mine=dict(density=...)")
        self.ticket: Ticket | None = None if ticket is None else Ticket.given(ticket)
        self.mine = mine
        self.held: Hold | None = None
        self._begun: nn.Module | None = None  # what has the ticket's weights already, or a checkpoint's

    def state_dict(self) -> dict[str, Any]:
        state = {"digest": self.ticket and self.ticket.digest, "begun": self._begun is not None, "asked": self._asked()}
        if self.mine is not None and self.ticket is not None:
            state["found"] = {n: dict(getattr(self.ticket, n)) for n in ("masks", "initial", "provenance")}
        return state

    def _asked(self) -> dict[str, Any]:
        return {name: v for name, v in (self.mine or {}).items() if isinstance(v, bool | int | float | str)}

    def on_load_checkpoint(self, trainer: Any, pl_module: nn.Module, checkpoint: Mapping[str, Any]) -> None:
        state = checkpoint["callbacks"].get(self.state_key)
        if state is not None:
            if self.ticket is None and "found" in state and state["asked"] == self._asked():
                self.ticket = Ticket(**state["found"])
            if state["digest"] != (self.ticket and self.ticket.digest):
                raise UsageError("the checkpoint is of another ticket: pass its own, or train anew without ckpt_path")
        # Lightning's search for a learning rate restores a checkpoint of before the first step.
        if trainer.state.fn == "fit" and (state is None or state["begun"]):
            self._begun = pl_module

    def on_fit_start(self, trainer: Any, pl_module: nn.Module) -> None:
        if self._begun is not pl_module:
            if self.ticket is None:
                self.ticket = self._search(trainer, pl_module)
            self.ticket.apply(holder(pl_module, self.ticket))
            self._begun = pl_module

    def _search(self, trainer: Any, pl_module: nn.Module) -> Ticket:
        if trainer.world_size > 1:
            raise UsageError(
                f"mine= searches in one process and this Trainer has {trainer.world_size}: find the ticket before, "
                "with gemminer.mine, and pass it"
            )
        trainer.fit_loop.setup_data()
        return api.mine(pl_module, trainer.train_dataloader, **(self.mine or {}))

    def on_train_start(self, trainer: Any, pl_module: nn.Module) -> None:
        assert self.ticket is not None
        self.held = hold(pl_module, self.ticket, *trainer.optimizers)

    def on_train_end(self, trainer: Any, pl_module: nn.Module) -> None:
        if self.held is not None:
            self.held.remove()

    def on_exception(self, trainer: Any, pl_module: nn.Module, exception: BaseException) -> None:
        self.on_train_end(trainer, pl_module)
