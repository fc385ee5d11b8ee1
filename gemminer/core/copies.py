"""A copy of a model that shares no tensor with it, whatever it holds."""

from __future__ import annotations

import copy
import types
from typing import Any, TypeVar

from torch import Tensor, nn

Model = TypeVar("Model", bound=nn.Module)
_SIMPLE = (int, float, complex, bool, str, bytes, type(None), type, types.FunctionType, types.ModuleType)
# Modules of Python whose objects lead to the whole process (a logger's handlers).
_CLOSED = {"logging", "threading", "multiprocessing", "concurrent", "asyncio", "_io", "_thread", "socket", "queue"}


def duplicate(model: Model) -> Model:
    """A deep copy of `model`: parameters and buffers cloned, with the hooks on their gradients.

    An activation that a module keeps is copied without its graph. What cannot be copied (a lock, a file, a generator)
    is the model's own.
    """
    found = _reachable(model)
    kept = [v for v in found.values() if isinstance(v, Tensor) and v.grad_fn is not None]
    memo: dict[int, Any] = {id(activation): activation.detach().clone() for activation in kept}
    try:
        new = copy.deepcopy(model, dict(memo))
    except Exception:  # anything that an attribute may raise
        _share(found, memo)
        new = copy.deepcopy(model, memo)
    own = dict(new.named_parameters(remove_duplicate=False))
    for name, parameter in model.named_parameters(remove_duplicate=False):
        _copy_hooks(parameter, own.get(name))
    return new


def _reachable(value: Any) -> dict[int, Any]:
    """Every object that `value` holds, through attributes and containers, by id."""
    found: dict[int, Any] = {}
    stack = [value]
    while stack:
        value = stack.pop()
        if id(value) not in found and not isinstance(value, _SIMPLE):
            found[id(value)] = value
            stack += _parts(value)
    return found


def _parts(value: Any) -> list[Any]:
    if isinstance(value, Tensor) or type(value).__module__.split(".")[0] in _CLOSED:
        return []
    parts: list[Any] = []
    if isinstance(value, dict):
        parts += [*value.keys(), *value.values()]
    elif isinstance(value, list | tuple | set | frozenset):
        parts += value
    elif isinstance(value, types.MethodType):
        parts.append(value.__self__)
    attributes = getattr(value, "__dict__", None)
    return parts + (list(attributes.values()) if isinstance(attributes, dict) else [])


def _share(found: dict[int, Any], memo: dict[int, Any]) -> None:
    """Put into `memo` what cannot be copied though all that it holds can be, or is in `memo`."""
    objects = [
        v for v in found.values() if not isinstance(v, nn.Module | Tensor | dict | list | tuple | set | frozenset)
    ]
    for whole in (False, True):  # first what holds nothing; then, inside first, what does
        for value in objects[::-1]:
            if id(value) in memo or bool(_parts(value)) != whole:
                continue
            try:
                copy.deepcopy(value, dict(memo))
            except Exception:  # anything that an attribute may raise
                memo[id(value)] = value


def _copy_hooks(old: Tensor, new: Tensor | None) -> None:
    if new is None or new is old or not new.requires_grad or not new.is_leaf:
        return
    if old._backward_hooks and not new._backward_hooks:
        for hook in old._backward_hooks.values():
            new.register_hook(hook)
    after = getattr(old, "_post_accumulate_grad_hooks", None)
    if after and not new._post_accumulate_grad_hooks:
        for hook in after.values():
            new.register_post_accumulate_grad_hook(hook)
