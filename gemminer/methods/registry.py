"""The list of methods: a name, one function `find(task, density, options, seed) -> Ticket`, its options, its source."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from gemminer.core.errors import unknown
from gemminer.core.ticket import Ticket
from gemminer.training.task import Task


class Find(Protocol):
    """A pruning method: what it may see is the task, what it gives back is a ticket."""

    def __call__(self, task: Task, density: float, options: Any, seed: int, /) -> Ticket: ...


@dataclass(frozen=True)
class Method:
    """One row of the registry.

    `initialiser` is the distribution the method's source draws initial weights from; `fan_scaled` says that it
    draws them for the kept weights alone, with fan_in times the density (`Draw.fan_scale`).
    """

    name: str
    find: Find
    options: type[Any]
    summary: str
    source: str
    initialiser: str
    fan_scaled: bool = False


_METHODS: dict[str, Method] = {}


def register(
    name: str,
    options: type[Any],
    *,
    summary: str,
    source: str,
    initialiser: str = "kaiming-normal",
    fan_scaled: bool = False,
) -> Callable[[Find], Find]:
    """Decorator that adds a method under `name`; the conformance suite and the command line take it up by itself."""

    def add(find: Find) -> Find:
        _METHODS[name] = Method(name, find, options, summary, source, initialiser, fan_scaled)
        return find

    return add


def names() -> tuple[str, ...]:
    """All methods, in the order they were registered."""
    return tuple(_METHODS)


def get(name: str) -> Method:
    """The method of this name; raises UsageError naming the nearest."""
    if name not in _METHODS:
        raise unknown("method", name, names())
    return _METHODS[name]
