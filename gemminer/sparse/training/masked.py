"""Layers that stay dense under their mask: pruned weights and their gradients are zero, so the weights stay zero."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gemminer.sparse.training.modules import as_plain


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


class MaskedLayer(nn.Module):
    """Any other module with masked parameters: `layer` computes with parameter * mask, so zeros and their gradients
    stay zero."""

    def __init__(self, layer: nn.Module, masks: dict[str, Tensor]) -> None:
        super().__init__()
        self.layer, self.names = layer, tuple(masks)
        for i, mask in enumerate(masks.values()):
            self.register_buffer(f"mask{i}", mask, persistent=False)

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        """The layer's: a forward that asks for `isinstance` is told what it would be told of the layer."""
        return type(vars(self).get("_modules", {}).get("layer", self))

    def __getattr__(self, name: str) -> Any:
        """What a forward may ask the layer for; a masked parameter is parameter * mask."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if "layer" not in vars(self).get("_modules", {}):
                raise
        value = getattr(self.layer, name)
        return value * self.get_buffer(f"mask{self.names.index(name)}") if name in self.names else value

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        if not as_plain.get():
            return super().state_dict(*args, **kwargs)
        state, prefix = self.layer.state_dict(*args, **kwargs), kwargs.get("prefix", "")
        for i, name in enumerate(self.names):
            state[prefix + name] = state[prefix + name] * self.get_buffer(f"mask{i}")
        return state

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        own = dict(self.layer.named_parameters())
        masked = {name: own[name] * self.get_buffer(f"mask{i}") for i, name in enumerate(self.names)}
        return torch.func.functional_call(self.layer, masked, args, kwargs)
