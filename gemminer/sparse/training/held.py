"""Layers that stay dense stay what they are: what a ticket removes of their own parameters stays zero."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn


class _Held:
    """Before a module's own class: the gradients of pruned weights are zero, so the weights stay zero.

    A multiplication by the mask in each forward pass would cost a small network a tenth of its step. The module is not
    wrapped, since its owner may read its attributes (nn.Transformer) or call no forward of it (a ParameterList).
    """

    _parameters: dict[str, nn.Parameter | None]
    _held: dict[str, Tensor]  # by name, masks in the parameter's type and place
    _hooks: dict[str, int]

    def __getattr__(self, name: str) -> Any:
        """The attribute; a parameter that is held has its hook, whoever reads it: new, loaded, copied or unfrozen."""
        value = super().__getattr__(name)  # type: ignore[misc]
        if name in self.__dict__.get("_held", ()):
            self._hold(name)
        return value

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self._hold_all()  # an LSTM reads a list of its own
        return super().__call__(*args, **kwargs)  # type: ignore[misc]

    def _hold(self, name: str) -> None:
        p = self._parameters[name]
        if p is not None and p.requires_grad and self._hooks.get(name) not in (p._backward_hooks or ()):
            # Not in place: another parameter may have the same gradient, as in a sum.
            self._hooks[name] = p.register_hook(lambda gradient: gradient * self._held[name]).id

    def _hold_all(self) -> None:
        for name, mask in self._held.items():
            p = self._parameters[name]
            if p is not None:
                self._held[name] = mask.to(p.device, p.dtype)
            self._hold(name)

    def _apply(self, function: Callable[[Tensor], Tensor], *args: Any) -> nn.Module:
        module: nn.Module = super()._apply(function, *args)  # type: ignore[misc]
        self._hold_all()
        return module

    def _load_from_state_dict(self, *args: Any) -> None:
        super()._load_from_state_dict(*args)  # type: ignore[misc]
        self._hold_all()
        with torch.no_grad():
            for name, mask in self._held.items():
                p = self._parameters[name]
                if p is not None:
                    p.mul_(mask)

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        state = getattr(self, "__getstate__", lambda: self.__dict__)()  # an LSTM leaves out what cannot be copied
        return _empty, (type(self).__mro__[2],), state  # the class itself can be found in no module

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[misc]
        self._hold_all()


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
    module._held, module._hooks = dict(masks), {}  # type: ignore[assignment]
    module._hold_all()  # type: ignore[operator]
    return module


def is_held(module: nn.Module) -> bool:
    """Whether a module has parameters that are held at their masks."""
    return isinstance(module, _Held)
