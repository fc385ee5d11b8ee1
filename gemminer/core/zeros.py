"""The one place where pruned weights are made zero, once or for as long as a training lasts."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

Place = tuple[nn.Module, str]  # a module and its own parameter's name


def zero_pruned(masked: Iterable[tuple[Tensor, Tensor]]) -> None:
    """Make the pruned weights of pairs of a weight and its boolean mask zero, once, one after the other."""
    with torch.no_grad():
        for weight, mask in masked:
            weight.mul_(mask.to(weight.device))


class Zeros:
    """Weights and the masks they are held at: a mask has its weight's type, device and strides.

    Args:
        masked: pairs of a weight and its boolean mask.
    """

    def __init__(self, masked: Iterable[tuple[Tensor, Tensor]]) -> None:
        pairs = list(masked)
        self.weights = [weight for weight, _ in pairs]
        self.masks = [_like(weight, mask) for weight, mask in pairs]

    def mask_gradients(self) -> None:
        """Make the gradients of pruned weights zero, in one operation."""
        pairs = [(w.grad, m) for w, m in zip(self.weights, self.masks, strict=True) if w.grad is not None]
        if pairs:
            torch._foreach_mul_([g for g, _ in pairs], [m for _, m in pairs])

    def mask_weights(self) -> None:
        """Make the pruned weights zero."""
        with torch.no_grad():
            torch._foreach_mul_(self.weights, self.masks)

    def mask_state(self, optimiser: Optimizer) -> None:
        """Make zero what an optimiser remembers of pruned weights, number by number."""
        with torch.no_grad():
            for weight, mask in zip(self.weights, self.masks, strict=True):
                for value in optimiser.state.get(weight, {}).values():
                    if isinstance(value, Tensor) and value.shape == weight.shape and value.is_floating_point():
                        value.mul_(mask)

    def fit(self, weights: Sequence[Tensor]) -> bool:
        """Whether these are the weights, and the masks are still of their type and device."""
        return len(weights) == len(self.weights) and all(
            new is old and new.device == mask.device and new.dtype is mask.dtype
            for new, old, mask in zip(weights, self.weights, self.masks, strict=True)
        )


def _like(weight: Tensor, mask: Tensor) -> Tensor:
    return torch.empty_like(weight, requires_grad=False).copy_(mask)


class Held:
    """Parameters of modules that are held at their masks from now to `release`, whichever tensors they become.

    The pruned weights are made zero at once, and whenever a module of theirs loads another state. Their gradients are
    made zero before they are accumulated, so those that `torch.autograd.grad` returns are too.

    Args:
        places: where the weights are; a weight that is replaced there is held as well, once `look` has seen it.
        masks: of each, boolean.
    """

    def __init__(self, places: Sequence[Place], masks: Sequence[Tensor]) -> None:
        self.places, self.masks, self.zeros = places, masks, Zeros([])
        self._hooks: list[tuple[Tensor, Any] | None] = [None] * len(places)  # on the gradients
        self._released = False
        self.zero()
        modules = dict.fromkeys(module for module, _ in places)
        self._handles = [module.register_load_state_dict_post_hook(_Loaded(self)) for module in modules]

    def zero(self) -> None:
        """Make the pruned weights zero, and their gradients."""
        self.look()
        self.zeros.mask_gradients()
        self.zeros.mask_weights()

    def look(self) -> None:
        """Look for the weights anew: `to` may have moved them, or put others in their place; some may be unfrozen."""
        weights: list[Any] = [module._parameters[name] for module, name in self.places]
        if not self.zeros.fit(weights):
            self.zeros = Zeros(zip(weights, self.masks, strict=True))
        for i, weight in enumerate([] if self._released else weights):
            hook = self._hooks[i]
            if weight.requires_grad and (hook is None or hook[0] is not weight):
                self._hooks[i] = (weight, weight.register_hook(lambda gradient, i=i: self._masked(gradient, i)))

    def _masked(self, gradient: Tensor, i: int) -> Tensor:
        """A gradient of weight `i`, zero where pruned; not in place, since what is summed with it has the same."""
        mask = self.zeros.masks[i]
        if mask.device != gradient.device or mask.dtype is not gradient.dtype:
            self.look()
            mask = self.zeros.masks[i]
        return gradient * mask

    def release(self) -> None:
        """End it: weights may move again. A second call does nothing."""
        for handle in (*self._handles, *(hook[1] for hook in self._hooks if hook)):
            handle.remove()
        self._handles, self._hooks, self._released = [], [None] * len(self.places), True


class _Loaded:
    """A hook on a module that was given another state; in a copy of the module, or in a file, it does nothing."""

    def __init__(self, owner: Held | None = None) -> None:
        self._owner = None if owner is None else weakref.ref(owner)

    def __call__(self, module: nn.Module, keys: Any) -> None:
        if self._owner is not None and (owner := self._owner()) is not None:
            owner.zero()

    def __deepcopy__(self, memo: Any) -> _Loaded:
        return _Loaded()

    def __reduce__(self) -> tuple[type[_Loaded], tuple[()]]:
        return _Loaded, ()
