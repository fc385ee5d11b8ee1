"""A ticket in Lightning's Trainer: written before training, its zeros kept, its checkpoints told from another's."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from torch import nn

from gemminer.core.errors import UsageError
from gemminer.core.holding import refuse_sharded
from gemminer.core.ticket import Ticket
from gemminer.integrations.course import Course
from gemminer.integrations.searching import arguments, mined
from gemminer.runs.keywords import takes

# One program under two names, often both installed, and a Trainer knows the callbacks of its own name.
_BASES: list[type] = []
for _name in ("lightning.pytorch", "pytorch_lightning"):
    with contextlib.suppress(ModuleNotFoundError):
        _BASES.append(import_module(_name).Callback)
if not _BASES:
    raise ImportError("Lightning is not installed: pip install 'gemminer[lightning]'")
_SHARDING = {"FSDPStrategy", "ModelParallelStrategy", "DeepSpeedStrategy", "XLAFSDPStrategy"}


class TicketCallback(Course, *_BASES):  # type: ignore[misc]
    """Trains a ticket in a Lightning Trainer: `Trainer(callbacks=[TicketCallback(ticket)])`.

    As `fit` begins the ticket is written into the module, or into the one module inside that it is of, unless a
    checkpoint was restored, this callback has trained that module last, or the ticket was trained in it; then it is
    held as by `gemminer.hold`. What was done is logged.

    Args:
        ticket: a ticket, or its file.
        mine: instead of it, arguments of `gemminer.mine`, which then searches as `fit` begins, on all ranks of the
            Trainer together and on its training data, with the module's `training_step` unless a loss or step is among
            them, and anew for another module. A checkpoint holds what was found: to resume searches no more.
        module: the name of the module inside that the ticket is of, as "encoder"; needed where it fits several.
        keep_weights: True to go on from the module's own weights, False from the ticket's start. By default from its
            own if the ticket was trained in it: what it prunes is zero already, what it keeps is not as at its start.

    Raises:
        UsageError: what are no arguments of `gemminer.mine`, a ticket of another module, a checkpoint of another
            ticket, a search of a module that optimises by hand, a strategy that shards weights (FSDP, DeepSpeed).
    """

    @takes("TicketCallback", lambda _: ("", ()))
    def __init__(
        self,
        ticket: Ticket | str | Path | None = None,
        *,
        mine: Mapping[str, Any] | None = None,
        module: str | None = None,
        keep_weights: bool | None = None,
    ) -> None:
        if (ticket is None) == (mine is None):
            raise UsageError("pass either a ticket or mine=dict(density=...)")
        if mine is not None and module is not None:
            raise UsageError("mine= searches the whole module, so its ticket is of that: leave module= out")
        super().__init__(ticket, module=module, keep_weights=keep_weights)
        self.mine = None if mine is None else arguments(mine)

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
            self.require(state["digest"])
        # Lightning's search for a learning rate restores a checkpoint of before the first step.
        if trainer.state.fn == "fit" and (state is None or state["begun"]):
            self._begun = pl_module

    def setup(self, trainer: Any, pl_module: nn.Module, stage: str) -> None:
        refuse_sharded({kind.__name__ for kind in type(trainer.strategy).__mro__} & _SHARDING)
        if stage == "fit":  # before a checkpoint is restored
            self.succeed(pl_module)
            if self._begun is not pl_module:
                self._begun = None
                self.ticket = self.ticket if self.mine is None else None

    def on_fit_start(self, trainer: Any, pl_module: nn.Module) -> None:
        if self.ticket is None:
            self.ticket = mined(trainer, pl_module, self.mine or {})
        self.write(pl_module)

    def on_train_start(self, trainer: Any, pl_module: nn.Module) -> None:
        self.hold(pl_module, *trainer.optimizers)

    def on_train_end(self, trainer: Any, pl_module: nn.Module) -> None:
        self.release()

    def on_exception(self, trainer: Any, pl_module: nn.Module, exception: BaseException) -> None:
        self.release()

    def teardown(self, trainer: Any, pl_module: nn.Module, stage: str) -> None:
        self.release()
