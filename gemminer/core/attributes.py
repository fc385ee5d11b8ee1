"""What a model's forward may leave in its modules' attributes, put back as it was: counters, histories, caches."""

from __future__ import annotations

import contextlib
from collections import OrderedDict, defaultdict, deque
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

_OWN = frozenset(vars(nn.Module()))  # parameters, buffers, modules, modes and hooks
_MAPPINGS = (dict, OrderedDict, defaultdict)
WRITABLE = (list, deque, set, *_MAPPINGS)


@contextlib.contextmanager
def attributes(model: nn.Module) -> Iterator[None]:
    """Restore every module's attributes at the end, and the contents of the lists, dicts, sets and tensors in them.

    Objects of other classes stay the same, whatever happens inside them.
    """
    modules = [(m, {name: value for name, value in vars(m).items() if name not in _OWN}) for m in model.modules()]
    contents = _contents([value for _, own in modules for value in own.values()])
    try:
        yield
    finally:
        for value, before in contents:
            _put_back(value, before)
        for module, own in modules:
            for name in [name for name in vars(module) if name not in _OWN and name not in own]:
                del vars(module)[name]
            vars(module).update(own)


def _contents(values: list[Any]) -> list[tuple[Any, Any]]:
    """All that can be written into among these values and what they hold, each with a copy of what is in it."""
    found, seen = [], set()
    while values:
        value = values.pop()
        if id(value) in seen:
            continue
        if type(value) in (list, deque, set, tuple):
            values += value
        elif type(value) in _MAPPINGS:
            values += value.values()
        elif type(value) is not Tensor or value.layout is not torch.strided or value.is_meta or value.is_inference():
            continue
        seen.add(id(value))
        if type(value) is not tuple:
            found.append((value, value.detach().clone() if isinstance(value, Tensor) else value.copy()))
    return found


def _put_back(value: Any, before: Any) -> None:
    if isinstance(value, Tensor):
        if not torch.equal(value.detach(), before):
            value.detach().copy_(before)
        return
    refill(value, before if isinstance(before, dict) else dict(enumerate(before)))


def refill(value: Any, contents: Mapping[Any, Any]) -> None:
    """Give a list, deque, set or dictionary other contents: those of a dictionary by key, else in this order."""
    value.clear()
    if isinstance(value, dict):
        value.update(contents)
    elif isinstance(value, set):
        value.update(contents.values())
    else:
        value.extend(contents.values())
