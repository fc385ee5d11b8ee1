"""Layers that stay dense stay what they are: what a ticket removes of their own parameters stays zero."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from gemminer.core.zeros import Held


class _Held:
    """Before a module's own class: its parameters are held, also in copies and files, and whichever they become.

    A multiplication by the mask in each forward pass would cost a small network a tenth of its step. The module is not
    wrapped, since its owner may read its attributes (nn.Transformer) or call no forward of it (a ParameterList).
    """

    _held: Held

    def __getattr__(self, name: str) -> Any:
        """The attribute; a parameter that is held has its hook, whoever reads it: new, loaded, copied or unfrozen."""
        value = super().__getattr__(name)  # type: ignore[misc]
        if (own := self.__dict__.get("_held")) is not None and isinstance(value, nn.Parameter):
            own.look()
        return value

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self._held.look()  # an LSTM reads a list of its own
        return super().__call__(*args, **kwargs)  # type: ignore[misc]

    def _apply(self, function: Callable[[Tensor], Tensor], *args: Any) -> nn.Module:
        module: nn.Module = super()._apply(function, *args)  # type: ignore[misc]
        self._held.look()
        return module

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        state = getattr(self, "__getstate__", lambda: self.__dict__)()  # an LSTM leaves out what cannot be copied
        masks = {name: mask for (_, name), mask in zip(self._held.places, self._held.masks, strict=True)}
        return _empty, (type(self).__mro__[2],), {**state, "_held": masks}  # the class can be found in no module

    def __setstate__(self, state: dict[str, Any]) -> None:
        masks = state.pop("_held")
        super().__setstate__(state)  # type: ignore[misc]
        hold_own(self, masks)  # type: ignore[arg-type]


_CLASSES: dict[type[nn.Module], type[nn.Module]] = {}


def _class_of(kind: type[nn.Module]) -> type[nn.Module]:
    own = {"__module__": kind.__module__, "__qualname__": kind.__qualname__, "__doc__": kind.__doc__}
    return _CLASSES.setdefault(kind, type(kind.__name__, (_Held, kind), own))


def _empty(kind: type[nn.Module]) -> nn.Module:
    made = _class_of(kind)
    return made.__new__(made)


def hold_own(module: nn.Module, masks: Mapping[str, Tensor]) -> None:
    """Hold the module's own parameters of these names at their masks; it stays the same object."""
    if not is_held(module):
        module.__class__ = _class_of(type(module))
    elif (before := module.__dict__.get("_held")) is not None:
        before.release()
    module._held = Held([(module, name) for name in masks], list(masks.values()))  # type: ignore[assignment]


def is_held(module: nn.Module) -> bool:
    """Whether a module has parameters that are held at their masks."""
    return isinstance(module, _Held)
