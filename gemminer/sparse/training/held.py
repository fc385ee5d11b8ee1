"""Layers that no kernel knows stay what they are: what a ticket removes of their own parameters stays zero."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn


class _Held:
    """Before a module's own class: the gradients of pruned weights are zero, so the weights stay zero.

    The module is not wrapped, since its owner may read its attributes (nn.Transformer) or call no forward of it (a
    ParameterList). A copy gets hooks of its own.
    """

    _parameters: dict[str, nn.Parameter | None]
    _held: dict[str, Tensor]

    def _hold(self) -> None:
        for name, mask in self._held.items():
            p = self._parameters[name]
            if p is not None and p.requires_grad:
                p.register_hook(functools.partial(_zeroed, mask))

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        state = getattr(self, "__getstate__", lambda: self.__dict__)()  # an LSTM leaves out what cannot be copied
        return _empty, (type(self).__mro__[2],), state  # the class itself can be found in no module

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[misc]
        self._hold()

    def _load_from_state_dict(self, *args: Any) -> None:
        super()._load_from_state_dict(*args)  # type: ignore[misc]
        with torch.no_grad():
            for name, mask in self._held.items():
                p = self._parameters[name]
                if p is not None:
                    p.mul_(mask.to(p.device))


def _zeroed(mask: Tensor, gradient: Tensor) -> Tensor:
    return gradient * mask.to(gradient.device)


_CLASSES: dict[type[nn.Module], type[nn.Module]] = {}


def _class_of(kind: type[nn.Module]) -> type[nn.Module]:
    own = {"__module__": kind.__module__, "__qualname__": kind.__qualname__, "__doc__": kind.__doc__}
    return _CLASSES.setdefault(kind, type(kind.__name__, (_Held, kind), own))


def _empty(kind: type[nn.Module]) -> nn.Module:
    made = _class_of(kind)
    return made.__new__(made)


def held(module: nn.Module, masks: Mapping[str, Tensor]) -> nn.Module:
    """The same module, whose own parameters of these names stay at their masks."""
    module.__class__ = _class_of(type(module))
    module._held = dict(masks)  # type: ignore[assignment]
    module._hold()  # type: ignore[operator]
    return module


def is_held(module: nn.Module) -> bool:
    """Whether a module has parameters that are held at their masks."""
    return isinstance(module, _Held)
