"""A comparison's grid: methods x densities x networks x data sets x seeds, a recipe a cell. Imports nothing heavy."""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from gemminer.core.errors import UsageError, unknown
from gemminer.core.numbers import plain, shown
from gemminer.runs import recipe as recipes
from gemminer.runs.recipe import Recipe

# Axes from the outermost loop to the innermost, the order of a table's rows.
AXES = ("data", "model", "density", "method", "pretrain", "seed")
# The cells' seeds are the pairs of a comparison, so that a cell trains once from its ticket and once a check; random
# tickets are methods of their own, and dense networks cells of their own.
CHECKS = ("shuffle", "reinit", "invert")
CELL: dict[str, Any] = {"checks": CHECKS, "check_seeds": 1}  # fields of a cell where nothing else is asked for
DENSE = "dense"
PARTS = "parts"
MOST = 100_000  # cells of a comparison, and values of an axis


@dataclass(frozen=True)
class Cell:
    """One run of a comparison; `label` is its method as asked for ("imp:rewind=warm"), or "dense"."""

    label: str
    recipe: Recipe

    @cached_property
    def digest(self) -> str:
        return self.recipe.digest

    def __str__(self) -> str:
        r = self.recipe
        return f"{self.label}, {r.model}, {r.data}, density {r.density:g}, seed {r.seed}"


@dataclass(frozen=True)
class Grid:
    """A comparison: the values of each axis, the fields that all cells share, the options by method.

    With `dense`, each (data, model, seed) has a reference: the method "uniform" at density 1, which keeps every weight.
    `others` are grids compared with this one, for instance more seeds at one of the densities.
    """

    axes: Mapping[str, tuple[Any, ...]]
    common: Mapping[str, Any]
    options: Mapping[str, Mapping[str, Any]]
    dense: bool = True
    others: tuple[Grid, ...] = ()

    @property
    def parts(self) -> tuple[Grid, ...]:
        """This grid and the `others`."""
        return (self, *self.others)

    def cells(self) -> list[Cell]:
        """Every cell once, in the order of the table; raises UsageError for a recipe that cannot be.

        >>> [str(cell) for cell in make({"density": [0.1], "dense": False, "data": "digits", "seed": "0-1"}).cells()]
        ['gem-miner, resnet20, digits, density 0.1, seed 0', 'gem-miner, resnet20, digits, density 0.1, seed 1']
        """
        found: dict[str, Cell] = {}
        for cell in itertools.chain.from_iterable(part._all() for part in self.parts):
            found.setdefault(cell.digest, cell)
        return list(found.values())

    def _all(self) -> Iterator[Cell]:
        if math.prod(map(len, self.axes.values())) > MOST:
            raise UsageError(f"a comparison has at most {MOST:,} cells")
        for data, model in itertools.product(self.axes["data"], self.axes["model"]):
            if self.dense:
                for seed in self.axes["seed"]:
                    axes = {"data": data, "model": model, "density": 1.0, "seed": seed}
                    yield self._cell(DENSE, "uniform", {}, **axes, **recipes.ALONE)
            for density, label, pretrain, seed in itertools.product(*(self.axes[name] for name in AXES[2:])):
                method, own = parse(label)
                options = {**self.options.get(method, {}), **own}
                axes = {"data": data, "model": model, "density": density, "seed": seed, "pretrain": pretrain}
                found = self._cell(label, method, options, **axes)
                begun = found.recipe.pretrain
                yield found if begun is None else dataclasses.replace(found, label=f"{label}:pretrain={begun}")

    def _cell(self, label: str, method: str, options: Mapping[str, Any], **axes: Any) -> Cell:
        fields = {**CELL, **self.common, **axes, "method": method, "options": options}
        chosen = recipes.make({**fields, "dense": False}, "comparison")
        # Nothing is left out, so there is nothing to destroy; unless layers are removed by their number.
        if chosen.density == 1 and not options.get("remove"):
            chosen = recipes.make({**fields, "dense": False, "checks": ()}, "comparison")
        return Cell(label, chosen)

    def as_fields(self) -> dict[str, Any]:
        """The fields from which `make` makes this grid, as JSON values."""
        axes = {name: list(values) for name, values in self.axes.items() if values != (None,)}
        own = {**axes, **self.common, "options": {k: dict(v) for k, v in self.options.items()}, "dense": self.dense}
        return {PARTS: [own, *(other.as_fields() for other in self.others)]} if self.others else own


def parse(label: str) -> tuple[str, dict[str, Any]]:
    """A method and its options from NAME:OPTION=VALUE:...; values are read as JSON where they are JSON.

    >>> parse("imp:rewind=warm:rate=0.3")
    ('imp', {'rewind': 'warm', 'rate': 0.3})
    """
    method, *parts = label.split(":")
    complaint = f"a method with options is written NAME:OPTION=VALUE, not {label!r}"
    return method, dict(recipes.setting(part, complaint) for part in parts)


def make(fields: Mapping[str, Any], where: str = "comparison") -> Grid:
    """A grid from plain fields: those of `Recipe`, with lists in `AXES`, and `options` by method.

    Seeds may be ranges: "0-4" is 0, 1, 2, 3, 4. `parts` are several grids in one: a list of fields, each on top of
    those beside it. Raises UsageError with one sentence that names the field at fault.

    >>> fields = {"data": "digits", "dense": False, "parts": [{"density": 0.1, "seed": "0-1"}, {"density": 0.01}]}
    >>> len(make(fields).cells())
    3
    """
    if not isinstance(fields, Mapping):
        raise UsageError(f"a {where} is fields by name, not {shown(fields)}")
    if PARTS in fields:
        first, *others = (make(part, where) for part in parts_of(fields))
        return dataclasses.replace(first, others=tuple(others))
    recipes.require_fields(fields, f"the {where}")
    axes = {name: _values(name, fields.get(name, Recipe.model_fields[name].default)) for name in AXES}
    by_method = fields.get("options", {})
    methods = {parse(label)[0] for label in axes["method"]}
    if not isinstance(by_method, Mapping) or not all(isinstance(own, Mapping) for own in by_method.values()):
        raise UsageError("the options of a comparison are by method: write options.gem-miner = {ridge = 1e-4}")
    for name in by_method:
        if name not in methods:
            raise unknown("method in the options, which is not compared:", name, methods)
    dense = fields.get("dense", True)
    if not isinstance(dense, bool):
        raise UsageError(f"dense: must be true or false, not {dense!r}")
    common = {k: v for k, v in fields.items() if k not in (*AXES, "options", "dense")}
    return Grid(axes, common, by_method, dense)


def parts_of(fields: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The fields of each part, or the grid's own if it has no parts."""
    parts = fields.get(PARTS, [{}])
    if not isinstance(parts, list) or not parts or not all(isinstance(part, dict) for part in parts):
        raise UsageError("the parts of a comparison are a list of fields: write [[parts]] before those of each")
    common = {name: value for name, value in fields.items() if name != PARTS}
    return [{**common, **part} for part in parts]


def _values(axis: str, given: Any) -> tuple[Any, ...]:
    """The values of an axis, each once, from one value or a list of them."""
    values: list[Any] = []
    given = plain([given] if isinstance(given, range) else given)
    for value in given if isinstance(given, (list, tuple)) else [given]:
        span = re.fullmatch(r"(\d{1,19})-(\d{1,19})", value) if axis == "seed" and isinstance(value, str) else None
        several = range(int(span[1]), int(span[2]) + 1) if span else value
        if isinstance(several, range) and several[MOST:]:
            raise UsageError(f"{axis} takes at most {MOST:,} values, not {shown(value)}")
        values += several if isinstance(several, range) else [value]
        if axis == "pretrain" and value is None:
            continue
        if axis in ("data", "model", "method", "pretrain") and not isinstance(value, str):
            raise UsageError(f"{axis} takes names, not {shown(value)}")
    if not values:
        raise UsageError(f"there is nothing to compare: {axis} has no values")
    return tuple(dict.fromkeys(map(_hashable, values)))


def _hashable(value: Any) -> Any:
    return value if isinstance(value, (str, int, float)) or value is None else repr(value)


def load(path: Path) -> dict[str, Any]:
    """The fields of a grid from a TOML or JSON file, or from a comparison's compare.json."""
    if path.suffix not in (".toml", ".json"):
        raise UsageError(f"a comparison's recipe is a .toml or .json file, not {str(path)!r}")
    fields = recipes.fields_of(path)
    return dict(fields["grid"]) if isinstance(fields.get("grid"), dict) else fields
