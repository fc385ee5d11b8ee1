"""Rules: which tensors a training step may change, and which conditions must hold after it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from gemminer.core.names import named_parameters
from gemminer.core.zeros import Zeros


class Rule(Protocol):
    """The part in which a search and a ticket's training differ: which tensors a step moves, and what holds after it.

    `fit` calls the rule after each backward pass and after each step. A rule may exchange the network of the task it
    was made with, `task.model`, as `GemMinerRule` does in `after_step` and `load_state_dict`; `fit` therefore looks up
    `task.model` anew for each step. `settle` is the number of batches from which batch-norm statistics are estimated
    anew before a validation, where those of the loop lag behind; 0 keeps the loop's. `scheduled` says that steps
    follow a schedule to its end: where the last epoch ends before it, `fit` goes on with more batches.
    """

    settle: int
    scheduled: bool

    def parameters(self) -> list[Tensor]:
        """The tensors the optimiser moves."""

    def begin(self, optimiser: torch.optim.Optimizer) -> None:
        """Called once with the optimiser, before the first step of a new or resumed training."""

    def after_backward(self) -> None:
        """Turn the model's gradients into gradients of `parameters()`."""

    def after_step(self, step: int) -> None:
        """Restore what must hold after optimiser step number `step` (the first is 0), and clear the gradients."""

    def after_epoch(self, step: int, last: bool) -> None:
        """Catch up with the schedule at an epoch's end, `step`, where its batches came to fewer steps than promised.

        Mid-search only what is due at the ends of epochs; after the `last` epoch everything, so that counts are exact.
        """

    def numbers(self) -> dict[str, Any]:
        """What to log at the end of an epoch."""

    def state_dict(self) -> dict[str, Any]:
        """The rule's state for a resumed run, without what the model's own state holds."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""


class Dense:
    """Train every parameter: the reference without a mask."""

    settle = 0
    scheduled = False

    def __init__(self, model: nn.Module) -> None:
        self._parameters: list[Tensor] = [p for p in model.parameters() if p.requires_grad]

    def parameters(self) -> list[Tensor]:
        return self._parameters

    def begin(self, optimiser: torch.optim.Optimizer) -> None: ...

    def after_backward(self) -> None: ...

    def after_step(self, step: int) -> None:
        for parameter in self._parameters:
            parameter.grad = None

    def after_epoch(self, step: int, last: bool) -> None: ...

    def numbers(self) -> dict[str, Any]:
        return {}

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class KeepMask(Dense):
    """Train the kept weights only: masked-out ones stay exactly zero, and so does their optimiser state.

    Masking the gradient before the step is enough for SGD, Nesterov, Adam and AdamW: momentum and moments of pruned
    weights stay zero, and decay moves no zero. Masking the weights once more after each step would change no bit of
    them and cost 2% of a small network's step.

    Args:
        model: the network, its masked-out weights zero already (`Ticket.apply`).
        masks: parameter name -> boolean mask.
    """

    def __init__(self, model: nn.Module, masks: Mapping[str, Tensor]) -> None:
        super().__init__(model)
        named = named_parameters(model)
        self._zeros = Zeros((named[name], mask) for name, mask in masks.items())

    def after_backward(self) -> None:
        self._zeros.mask_gradients()
