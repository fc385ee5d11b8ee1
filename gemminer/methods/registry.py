"""The list of methods: a name, one function `find(task, density, options, seed) -> Found`, its options, its source."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypedDict, Unpack

from torch import Tensor

from gemminer.core.errors import unknown
from gemminer.core.prunable import Prunable
from gemminer.training.rules import Rule
from gemminer.training.settings import Settings
from gemminer.training.task import Task


@dataclass(frozen=True)
class Found:
    """The result of a search: masks, the state to start from, and the facts that the rest of the package needs.

    Args:
        masks: parameter name -> boolean tensor of its shape (True = kept), round(density * d) ones in all.
        start: the state the ticket starts from, parameters and buffers; None is the state before the search.
        rows: the log, a row for each epoch: `seconds` since the search began, `layers_kept` (weights kept of each
            layer), and the `fraction` of a promised epoch that the row covers, 1 where it is not given.
        live: the fraction of the prunable weights that is kept and on in the end; None if that has no meaning.
        epochs: passes over the training data; None is what the rows cover.
        draw_holds: whether the ticket starts from the weights that were drawn; False after rewinding to later ones.
        facts: further JSON-serialisable facts for the ticket's provenance.
        removed: names of modules that are gone, as `Ticket.removed`.
    """

    masks: Mapping[str, Tensor]
    start: Mapping[str, Tensor] | None = None
    rows: Sequence[Mapping[str, Any]] = ()
    live: float | None = None
    epochs: float | None = None
    draw_holds: bool = True
    facts: Mapping[str, Any] = field(default_factory=dict)
    removed: Sequence[str] = ()


@dataclass(frozen=True)
class Driven:
    """A search that a training loop drives: this package's (`training.loop.fit`) or anybody's (`gemminer.Search`).

    Args:
        rule: what is done around each step.
        settings: of the optimiser that moves `rule.parameters()`.
        found: what was found, from the log of the epochs, once the loop is over.
    """

    rule: Rule
    settings: Settings
    found: Callable[[Sequence[Mapping[str, Any]]], Found]


class Drive(Protocol):
    """Begin a search of so many steps an epoch on a borrowed model, whose prunable weights are those of the table.

    Given a task, the rule may exchange `task.model` while it runs.
    """

    def __call__(
        self, table: Prunable, density: float, options: Any, seed: int, steps: int, task: Task | None = None
    ) -> Driven: ...


class Find(Protocol):
    """A pruning method: a function of the task that returns what it found.

    The caller lends it the task's model at its initial weights (`core.model_state.borrowed`), so that a method may
    change values, gradients and modes as it likes: all are put back afterwards.
    """

    def __call__(self, task: Task, density: float, options: Any, seed: int, /) -> Found: ...


Cost = Callable[[Any, float, int], float]


def _no_epochs(options: Any, density: float, total: int) -> float:
    """A method that scores a few batches, or none, counts as no epochs."""
    return 0.0


def _own_epochs(options: Any, density: float, total: int) -> float:
    return float(options.epochs)


@dataclass(frozen=True)
class Method:
    """One row of the registry.

    Args:
        initialiser: the distribution the method's source draws initial weights from.
        fan_scaled: it draws them for the kept weights alone, with fan_in times the density (`Draw.fan_scale`).
        trains: it passes over the training data for `options.epochs` epochs, once or several times.
        cost: (options, density, prunable weights) -> the epochs a search will take in all.
        remedy: advice for the warning that a layer keeps nothing.
        drive: begins the search for a loop of the caller's own; None for a method that is more than one loop.
        exact: it keeps exactly round(density * d) weights, of any network; one that removes whole layers keeps at most
            so many.
    """

    name: str
    find: Find
    options: type[Any]
    summary: str
    source: str
    initialiser: str = "kaiming-normal"
    fan_scaled: bool = False
    trains: bool = False
    cost: Cost = _no_epochs
    remedy: str = ""
    drive: Drive | None = None
    exact: bool = True


_METHODS: dict[str, Method] = {}


class About(TypedDict, total=False):
    """What a row may say besides, as `Method` has it."""

    initialiser: str
    fan_scaled: bool
    trains: bool
    remedy: str
    drive: Drive | None
    exact: bool


def register(
    name: str, options: type[Any], *, summary: str, source: str, cost: Cost | None = None, **about: Unpack[About]
) -> Callable[[Find], Find]:
    """Decorator that registers a method as `name`; the conformance suite and the command line list all of them.

    `cost` is by default `options.epochs` for a method that trains, and nothing for one that does not. `about` are
    further fields of `Method`. Raises TypeError where a method trains and its options have no `epochs`.
    """
    trains = about.get("trains", False)
    if trains and "epochs" not in {f.name for f in dataclasses.fields(options)}:
        raise TypeError(f"the method {name!r} trains, so its options need a field epochs")
    cost = cost or (_own_epochs if trains else _no_epochs)

    def add(find: Find) -> Find:
        _METHODS[name] = Method(name, find, options, summary, source, cost=cost, **about)
        return find

    return add


def names() -> tuple[str, ...]:
    """All methods, in the order they were registered."""
    return tuple(_METHODS)


def get(name: str) -> Method:
    """The method of this name; raises UsageError naming the nearest."""
    if not isinstance(name, str) or name not in _METHODS:
        raise unknown("method", name, names())
    return _METHODS[name]
