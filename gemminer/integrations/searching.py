"""A search before a Lightning Trainer's loop begins, on its data and with the module's own `training_step`."""

from __future__ import annotations

import contextlib
import inspect
import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from gemminer import api
from gemminer.core import numbers
from gemminer.core.errors import UsageError
from gemminer.core.ticket import Ticket
from gemminer.runs.keywords import of_method, require_taken
from gemminer.training.losses import Step


def arguments(given: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of `gemminer.mine` by name, without a model and data; raises UsageError for what it would not take.

    >>> arguments({"density": 0.05, "epochs": 5})
    {'density': 0.05, 'epochs': 5}
    """
    if not isinstance(given, Mapping):
        raise UsageError(
            f"mine must be arguments of gemminer.mine, as in mine=dict(density=0.05), not {numbers.shown(given)}"
        )
    of_method(given)  # raises for a method that is not known
    require_taken("gemminer.mine", given, of_method)
    for name in sorted(given.keys() & {"model", "train_data"}):
        raise UsageError(f"mine takes no {name}: what is searched is what the Trainer fits, on its training data")
    if "density" not in given:
        raise UsageError("mine has no density, the fraction of weights kept: give one, as in mine=dict(density=0.05)")
    numbers.fraction("density is the fraction of weights kept", given["density"])
    return dict(given)


def mined(trainer: Any, module: Any, options: Mapping[str, Any]) -> Ticket:
    """The ticket that `gemminer.mine` finds with these options, as a Trainer's `fit` begins; the module is as before.

    Raises:
        UsageError: a module that steps its optimisers itself, without a loss or step in the options.
    """
    options = {"distributed": trainer.world_size > 1, **options}
    trainer.fit_loop.setup_data()
    if options.keys() & {"loss", "step"}:
        return api.mine(module, trainer.train_dataloader, **options)
    if not module.automatic_optimization:
        raise UsageError(
            "the module optimises by hand (automatic_optimization is False), so its training_step returns no loss to "
            "search with: give mine=dict(step=...), a function of the module and a batch that returns one, or a ticket"
        )
    with _training_step(trainer, module) as step:
        return api.mine(module, trainer.train_dataloader, step=step, **options)


@contextlib.contextmanager
def _training_step(trainer: Any, module: Any) -> Iterator[Step]:
    """A step of (model, batch) that calls the model's `training_step` as the Trainer does; what it logs goes nowhere.

    Lightning takes `self.log` in its own loop only. A batch passes the hooks of its transfer, and gets a number. A step
    without a loss (None), which Lightning skips, is a loss that moves nothing.

    Args:
        trainer: what `module` is attached to.
        module: the LightningModule; the model of a step is this, or a copy of it, which may be wrapped.
    """
    numbered = "batch_idx" in (named := inspect.signature(module.training_step).parameters) or len(named) > 1
    numbers = itertools.count()

    def training_step(model: nn.Module, batch: Any) -> Tensor:
        own: Any = next(part for part in model.modules() if isinstance(part, type(module)))
        own.trainer = trainer  # a copy has none
        batch = trainer.strategy.batch_to_device(module._on_before_batch_transfer(batch))
        found = own.training_step(batch, next(numbers)) if numbered else own.training_step(batch)
        if found is None:
            return torch.zeros((), requires_grad=True)
        loss: Tensor = found["loss"] if isinstance(found, Mapping) else found
        return loss

    logging = [part for part in module.modules() if hasattr(part, "log_dict")]
    for part in logging:
        part.log = part.log_dict = _ignored
    try:
        yield training_step
    finally:
        for part in logging:
            del part.log, part.log_dict


def _ignored(*args: Any, **options: Any) -> None:
    """In the place of `self.log`."""
