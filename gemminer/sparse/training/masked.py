"""Layers that stay dense under their mask: pruned weights and their gradients are zero, so the weights stay zero."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class _MaskedWeight:
    """Base of a layer that stays dense: pruned weights and their gradients are zero, so the weights stay zero.

    A multiplication by the mask in each forward pass would cost a small network a tenth of its step.
    """

    mask: Tensor
    _hook = -1

    @property
    def weight(self) -> Tensor:
        """The weight, with a hook that zeros the gradient of pruned weights, whoever reads it."""
        weight: nn.Parameter = self._parameters["weight"]  # type: ignore[attr-defined]
        if self._hook not in (weight._backward_hooks or ()) and weight.requires_grad:  # new, or a copy
            self._hook = weight.register_hook(self._hold).id
        return weight

    def _hold(self, gradient: Tensor) -> Tensor:
        return gradient * self.mask if gradient.requires_grad else gradient.mul_(self.mask)

    def _load_from_state_dict(self, *args: Any) -> None:
        super()._load_from_state_dict(*args)  # type: ignore[misc]
        with torch.no_grad():
            self.weight.mul_(self.mask)


class MaskedConv2d(_MaskedWeight, nn.Conv2d):  # type: ignore[override]
    """A convolution that stays dense under its mask."""

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self._conv_forward(x, self.weight, self.bias)
        return y


class MaskedLinear(_MaskedWeight, nn.Linear):  # type: ignore[override]
    """A linear layer that stays dense under its mask."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)
