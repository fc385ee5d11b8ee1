"""Which of the operations a forward pass has put off run as chains: layer -> norm -> (+) -> ReLU."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from gemminer.sparse.training.chain import Links, Pool, Shortcut, Unit

Ref = int  # an operation by its number, or a tensor that is there already: -1, -2, ...


class Step(NamedTuple):
    """An operation without its tensors: all that decides how it is run.

    `kind` is layer, norm, add, relu, pool, part (x[:, :, ::s, ::s]) or pad (channels before and after); `numbers` are a
    pool's six sizes, s, or the two counts of channels; `batch` says which of a layer's leading sizes are its batch, and
    whether it is linear.
    """

    kind: str
    reads: tuple[Ref, ...]
    numbers: tuple[int, ...] = ()
    batch: tuple[bool, tuple[int, ...]] | None = None


class Chain(NamedTuple):
    """`links` run on `inputs`; the modules are those of the operations `layers` (None: a shortcut) and `norms`."""

    links: Links
    inputs: tuple[Ref, ...]
    layers: tuple[int | None, ...]
    norms: tuple[int | None, ...]
    outputs: tuple[int, ...]


@dataclass
class Task:
    """What runs next: a chain, or one operation by PyTorch; and which results nobody reads afterwards."""

    run: Chain | int
    last: tuple[int, ...] = ()


@dataclass
class _Found:
    """A unit: its operations, the last of which is its value."""

    layer: int | None
    source: Ref
    nodes: list[int]
    batch: tuple[bool, tuple[int, ...]] | None
    norm: int | None = None
    residual: Ref | None = None
    relu: bool = False
    shortcut: Shortcut | None = None
    pool: Pool | None = None

    @property
    def value(self) -> int:
        return self.nodes[-1]


@dataclass
class _Plan:
    """The tasks of a list of operations, with as many units in each chain as their order allows."""

    steps: Sequence[Step]
    wanted: frozenset[int]
    alive: frozenset[int]
    tasks: list[Task] = field(default_factory=list)
    current: list[_Found] = field(default_factory=list)
    tainted: list[int] = field(default_factory=list)  # outside the current chain, but computed from it

    def __post_init__(self) -> None:
        self.users: list[list[int]] = [[] for _ in self.steps]
        for i, step in enumerate(self.steps):
            for ref in dict.fromkeys(step.reads):
                if ref >= 0:
                    self.users[ref].append(i)

    def __call__(self) -> list[Task]:
        units = self._find()
        inner = {node for unit in units.values() for node in unit.nodes}
        for i in range(len(self.steps)):
            if i in units:
                self._unit(units[i])
            elif i not in inner:
                self._other(i)
        if self.current:
            self._close()
        self._mark_last()
        return self.tasks

    def _find(self) -> dict[int, _Found]:
        """Units by their last operation."""
        claimed: set[int] = set()
        units = {}
        for i, step in enumerate(self.steps):
            unit = self._shortcut(i)
            if step.kind == "layer":
                unit = _Found(i, step.reads[0], [i], step.batch)
                self._extend(unit, claimed)
            elif step.kind == "pool":
                kh, kw, sh, sw, ph, pw = step.numbers
                unit = _Found(None, step.reads[0], [i], None, pool=Pool((kh, kw), (sh, sw), (ph, pw)))
            if unit is not None:
                claimed |= set(unit.nodes)
                units[unit.value] = unit
        return units

    def _next(self, i: int, claimed: set[int]) -> int | None:
        """The one reader of an operation's result, unless a unit has it already."""
        users = self.users[i]
        return users[0] if len(users) == 1 and users[0] not in claimed and i not in self.wanted else None

    def _extend(self, unit: _Found, claimed: set[int]) -> None:
        i = self._next(unit.value, claimed)
        if i is not None and self.steps[i].kind == "norm":
            unit.norm = i
            unit.nodes.append(i)
            i = self._next(i, claimed)
        if i is not None and self.steps[i].kind == "add":
            a, b = self.steps[i].reads
            unit.residual = b if a == unit.value else a
            unit.nodes.append(i)
            i = self._next(i, claimed)
        if i is not None and self.steps[i].kind == "relu":
            unit.relu = True
            unit.nodes.append(i)

    def _shortcut(self, i: int) -> _Found | None:
        """The unit of a parameter-free shortcut, x[:, :, ::s, ::s] with zero channels padded on, if `i` begins one."""
        if self.steps[i].kind != "part" or (pad := self._next(i, set())) is None or self.steps[pad].kind != "pad":
            return None
        shortcut = Shortcut(*self.steps[i].numbers, *self.steps[pad].numbers)
        return _Found(None, self.steps[i].reads[0], [i, pad], None, shortcut=shortcut)

    def _unit(self, unit: _Found) -> None:
        if unit.layer is None and not any(unit.source == other.value for other in self.current):
            for i in unit.nodes:
                self._other(i)
            return
        reads = [unit.source, *([] if unit.residual is None else [unit.residual])]
        first = self.current[0].batch if self.current else unit.batch
        if self.current and (unit.batch not in (None, first) or any(ref in self.tainted for ref in reads)):
            self._close()
        self.current.append(unit)

    def _other(self, i: int) -> None:
        made = {unit.value for unit in self.current}
        if any(ref in made or ref in self.tainted for ref in self.steps[i].reads):
            self.tainted.append(i)
        else:
            self.tasks.append(Task(i))

    def _close(self) -> None:
        """Run the current chain, and then the operations that waited for it."""
        units, waiting = self.current, self.tainted
        self.current, self.tainted = [], []
        made = [unit.value for unit in units]
        reads = [ref for u in units for ref in (u.source, u.residual) if ref is not None]
        inputs = list(dict.fromkeys(ref for ref in reads if ref not in made))
        index = {ref: i for i, ref in enumerate([*inputs, *made])}
        inside = {i for unit in units for i in unit.nodes}
        held = self.wanted | self.alive
        outputs = tuple(i for i in made if i in held or not self.users[i] or not inside.issuperset(self.users[i]))
        links = Links(
            len(inputs),
            tuple(
                Unit(index[u.source], None if u.residual is None else index[u.residual], u.relu, u.shortcut, u.pool)
                for u in units
            ),
            tuple(index[i] for i in outputs),
        )
        modules = tuple(u.layer for u in units), tuple(u.norm for u in units)
        self.tasks.append(Task(Chain(links, tuple(inputs), *modules, outputs)))
        self.tasks += map(Task, waiting)

    def _mark_last(self) -> None:
        """Say after which task a result can go; a module's user may still hold those that are alive."""
        seen = set(self.wanted | self.alive)
        for task in reversed(self.tasks):
            run = task.run
            reads, made = (run.inputs, run.outputs) if isinstance(run, Chain) else (self.steps[run].reads, (run,))
            here = {ref for ref in (*reads, *made) if ref >= 0}
            task.last = tuple(here - seen)
            seen |= here


def tasks_of(steps: Sequence[Step], wanted: frozenset[int], alive: frozenset[int]) -> list[Task]:
    """The tasks that compute `steps` in their order.

    Args:
        wanted: operations whose results are read by somebody outside.
        alive: operations whose results might be; one inside a unit (a sum before its norm) is not kept for that.
    """
    return _Plan(steps, wanted, alive)()
