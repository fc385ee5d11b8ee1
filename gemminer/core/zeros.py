"""The one place where pruned weights are made zero, once or for as long as a training lasts."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from gemminer.core.errors import UsageError

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
        self._pruned: dict[int, tuple[Tensor, Tensor]] = {}  # weight -> its mask, and that turned around
        self._lent: list[tuple[Tensor, Tensor]] = []

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

    def lend(self, optimiser: Optimizer) -> None:
        """Until `take_back`, make the second moments of pruned weights in Adam's state one, on a CPU.

        PyTorch's square root takes 6 to 16 times as long on zeros there; where the first moment is zero, the weight
        moves by zero whatever the second is.
        """
        for group in optimiser.param_groups:
            for weight in () if any(map(group.get, ("fused", "amsgrad", "differentiable"))) else group["params"]:
                value = optimiser.state.get(weight, {}).get("exp_avg_sq")
                if value is not None and value.device.type == "cpu" and (pair := self._pair(weight)):
                    self._lent.append((value, pair[0]))
                    value.add_(pair[1])

    def take_back(self) -> None:
        """Make what was lent zero again."""
        if self._lent:
            torch._foreach_mul_([v for v, _ in self._lent], [m for _, m in self._lent])
            self._lent = []

    def _pair(self, weight: Tensor) -> tuple[Tensor, Tensor] | None:
        if not self._pruned:
            self._pruned = {id(w): (m, 1 - m) for w, m in zip(self.weights, self.masks, strict=True)}
        return self._pruned.get(id(weight))

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
    made zero before they are accumulated, so those that `torch.autograd.grad` returns are too. It lives as long as the
    modules, whoever keeps it, and so does its `owner`.

    Args:
        places: where the weights are; a weight that is replaced there is held as well, once `look` has seen it.
        masks: of each, boolean.
    """

    def __init__(self, places: Sequence[Place], masks: Sequence[Tensor]) -> None:
        self.places, self.masks, self.zeros = places, masks, Zeros([])
        self.owner: object = None  # a hold of somebody's; None for what the sparse engine holds of its own network
        self.paused = False  # `unheld`
        self._hooks: list[tuple[Tensor, Any] | None] = [None] * len(places)  # on the gradients
        self._handles: list[Any] = []  # of the hooks on the modules
        self._released = False
        self.zero()
        self._attach()
        _ACTIVE.add(self)

    def weights(self) -> list[Any]:
        """What is at the places now."""
        return [module._parameters.get(name) for module, name in self.places]

    def zero(self) -> None:
        """Make the pruned weights zero, and their gradients."""
        if self.paused:
            return
        self.look()
        self.zeros.mask_gradients()
        self.zeros.mask_weights()

    def look(self) -> None:
        """Look for the weights anew: `to` may have moved them, or put others in their place; some may be unfrozen."""
        weights = self.weights()
        for (module, name), weight in zip(self.places, weights, strict=True):
            if weight is None:
                raise UsageError(
                    f"the {name!r} of a {type(module).__name__} is held, and is no parameter any more, as where it is "
                    "pruned or parametrised: end the hold before with `Hold.remove()`"
                )
        if not self.zeros.fit(weights):
            self.zeros = Zeros(zip(weights, self.masks, strict=True))
        for i, weight in enumerate([] if self._released or self.paused else weights):
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
        self._detach()
        self._released = True
        _ACTIVE.discard(self)

    def pause(self) -> None:
        """Hold nothing until `resume`, before which the weights are put back as they were."""
        self.paused = True
        self._detach()

    def resume(self) -> None:
        self.paused = False
        if not self._released:
            self._attach()

    def _attach(self) -> None:
        modules = dict.fromkeys(module for module, _ in self.places)
        self._handles = [module.register_load_state_dict_post_hook(_Loaded(self)) for module in modules]
        self.look()

    def _detach(self) -> None:
        for handle in (*self._handles, *(hook[1] for hook in self._hooks if hook)):
            handle.remove()
        self._handles, self._hooks = [], [None] * len(self.places)


_ACTIVE: weakref.WeakSet[Held] = weakref.WeakSet()


def held_in(model: nn.Module) -> list[Held]:
    """What holds weights of the model now."""
    own = {id(p) for p in model.parameters()}
    return [held for held in list(_ACTIVE) if any(id(weight) in own for weight in held.weights())]


@contextlib.contextmanager
def unheld(model: nn.Module) -> Iterator[None]:
    """Let no owner hold the model inside, where its weights are another network's; they are put back before the end."""
    paused = [held for held in held_in(model) if held.owner is not None and not held.paused]
    for held in paused:
        held.pause()
    try:
        yield
    finally:
        for held in paused:
            held.resume()


class _Loaded:
    """A hook on a module that was given another state; in a copy of the module, or in a file, it does nothing."""

    def __init__(self, owner: Held | None = None) -> None:
        self._owner = owner

    def __call__(self, module: nn.Module, keys: Any) -> None:
        if self._owner is not None:
            self._owner.zero()

    def __deepcopy__(self, memo: Any) -> _Loaded:
        return _Loaded()

    def __reduce__(self) -> tuple[type[_Loaded], tuple[()]]:
        return _Loaded, ()
