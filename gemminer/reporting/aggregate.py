"""Many runs -> numbers: which method finds the best ticket, at what cost, and does it pass its checks?

A `Field` is what can be compared: one network on one data set by one metric. A `Row` in it is one method at one
density, over all its seeds. Pure Python: records in, numbers out; `sentences` says them in words.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from gemminer.core.statistics import Check, Judgement, least_gain, overall, paired_test
from gemminer.core.ticket import Layer
from gemminer.reporting import format
from gemminer.runs.record import PerClass, Record

MEASURES = ("epochs", "seconds", "flops_dense", "flops_sparse")
PHASES = ("search", "train")
EARLIER = ("score", "pretrain")  # phases that come before a search, where there are any
# Fields of a recipe that do not change how a ticket is found and trained, or that the record has elsewhere.
_ELSEWHERE = {"method", "density", "model", "data", "seed", "epochs", "limit_train", "validation", "augment"}
_ELSEWHERE |= {"batch_size", "model_options", "options", "checks", "check_seeds", "dense"}
# The file of scores: what is chosen by it stands in `pretrain`, as do the options of the choice.
_ELSEWHERE |= {"scores"}


@dataclass(frozen=True)
class Stat:
    """Mean and sample standard deviation of n values; no deviation for one."""

    mean: float
    std: float | None
    n: int
    values: tuple[float, ...]


@dataclass(frozen=True)
class MeanLayer:
    """A layer over the runs of a row: means, and how many runs keep nothing of it."""

    name: str
    density: float
    dead: float
    filters: int
    collapsed: int


@dataclass(frozen=True)
class Run:
    """A run as a comparison sees it, from its record."""

    name: str
    record: Record
    before: float | None
    after: float | None
    trained: tuple[float, ...]
    dense: float | None
    cost: Mapping[tuple[str, str], float | None]
    classes: Mapping[str, float]

    @property
    def asked(self) -> float:
        return self.record.density.asked

    @property
    def realised(self) -> float:
        return self.record.density.realised

    @property
    def seed(self) -> int | None:
        return self.record.seed


@dataclass(frozen=True)
class Row:
    """One method at one density: its runs and, over them, results, costs, checks and layers.

    `gap` judges the best row of the density against this one over the seeds they share: `pass` says that the best
    is better beyond chance. None for the best itself and where no seed is shared.
    """

    method: str
    asked: float
    runs: tuple[Run, ...]
    before: Stat | None
    after: Stat | None
    cost: Mapping[tuple[str, str], Stat | None]
    checks: Mapping[str, Check]
    verdict: Judgement | None
    layers: tuple[MeanLayer, ...]
    classes: Mapping[str, Stat]
    gap: Check | None = None

    @property
    def realised(self) -> float:
        return math.fsum(run.realised for run in self.runs) / len(self.runs)

    @property
    def dead(self) -> float | None:
        """Share of all filters that are dead, mean over runs."""
        filters = sum(layer.filters for layer in self.layers)
        return math.fsum(layer.dead for layer in self.layers) / filters if filters else None

    @property
    def worst(self) -> MeanLayer | None:
        """The layer with the largest share of dead filters."""
        known = [layer for layer in self.layers if layer.filters]
        return max(known, key=lambda layer: layer.dead / layer.filters, default=None)

    @property
    def collapsed(self) -> tuple[MeanLayer, ...]:
        return tuple(layer for layer in self.layers if layer.collapsed)


@dataclass(frozen=True)
class Field:
    """One network on one data set: rows by density, the best first; `dense` is the line to compare with."""

    model: str
    data: str
    metric: str
    rows: Mapping[float, tuple[Row, ...]]
    dense: Stat | None
    notes: tuple[str, ...]

    @property
    def title(self) -> str:
        return f"{self.model} on {self.data}"

    @property
    def classes(self) -> list[str]:
        return list(dict.fromkeys(name for rows in self.rows.values() for row in rows for name in row.classes))

    def of(self, method: str) -> list[Row]:
        """A method's rows by density, largest first."""
        return [row for rows in self.rows.values() for row in rows if row.method == method]


# ---- reading a record ----


def read(name: str, record: Record) -> Run:
    """A run from its record; raises ValueError where a check has no pairs."""
    accuracy = record.accuracy
    for check, row in record.checks.items():
        if len(row.ticket_values) != len(row.values) or not row.values:
            raise ValueError(f"check {check} has no paired values")
    after = format.number(accuracy.after)
    return Run(
        name=name,
        record=record,
        before=before(record),
        after=after,
        trained=accuracy.after_values or (() if after is None else (after,)),
        dense=format.number(accuracy.dense),
        cost={
            (phase, measure): format.number(getattr(record.cost.get(phase), measure, None))
            for phase in PHASES
            for measure in MEASURES
        },
        classes=_classes(record.per_class),
    )


def before(record: Record) -> float | None:
    """The result before training, of a ticket at initialisation alone: weights of step k have been trained."""
    return None if record.start else format.number(record.accuracy.before)


def _classes(found: PerClass | None) -> dict[str, float]:
    """The result by class; classes without names are numbered."""
    if not found or not found.after:
        return {}
    names = found.names or tuple(map(str, range(len(found.after))))
    return {name: x for name, given in zip(names, found.after, strict=True) if (x := format.number(given)) is not None}


# ---- runs -> fields ----


def fields(runs: Iterable[Run]) -> list[Field]:
    """The runs grouped into fields of comparable runs, in order of first appearance."""
    groups: dict[tuple[str, ...], list[Run]] = {}
    for run in runs:
        groups.setdefault(tuple(_text(getattr(run.record, key)) for key in _FIELD), []).append(run)
    labels = {
        part: _labels({key: group[0].record for key, group in groups.items()}, part) for part in ("model", "data")
    }
    return [_field(group, labels["model"][key], labels["data"][key]) for key, group in groups.items()]


_FIELD = ("model", "model_options", "data", "data_options", "metric")


def _text(x: Any) -> str:
    return json.dumps(x, sort_keys=True, default=str)


def _labels(records: Mapping[Any, Record], part: str) -> dict[Any, str]:
    """The name of each record's model (or data), with the options in which it differs from others of that name."""
    options = {key: (getattr(r, part), getattr(r, f"{part}_options")) for key, r in records.items()}
    said = {key: _differing(own, [o for name, o in options.values() if name == n]) for key, (n, own) in options.items()}
    return {
        key: f"{options[key][0]} ({', '.join(parts)})" if parts else str(options[key][0]) for key, parts in said.items()
    }


def _differing(options: Mapping[str, Any], others: Sequence[Mapping[str, Any]]) -> list[str]:
    """option=value for the options that are not the same in all."""
    names = dict.fromkeys(option for other in others for option in other)
    differ = [option for option in names if len({_text(other.get(option)) for other in others}) > 1]
    return [f"{option}={_plain(options[option])}" for option in differ if option in options]


def _plain(x: Any) -> str:
    return x if isinstance(x, str) else _text(x)


def _field(runs: list[Run], model: str, data: str) -> Field:
    notes: list[str] = []
    single = _once(runs, notes)
    pruned = [run for run in single if run.realised < 1]  # at density 1 too, where whole layers are removed
    labels = _methods(pruned)
    cells: dict[tuple[float, str], list[Run]] = {}
    for run in pruned:
        cells.setdefault((run.asked, labels[id(run)]), []).append(run)
    rows: dict[float, tuple[Row, ...]] = {}
    for asked in sorted({run.asked for run in pruned}, reverse=True):
        rows[asked] = _ranked([_row(label, asked, own) for (at, label), own in cells.items() if at == asked])
    notes += _gaps(rows, list(dict.fromkeys(labels.values())))
    full = [run for run in single if run not in pruned]
    return Field(model, data, runs[0].record.metric, rows, _dense(full, pruned), tuple(notes))


def _asked(run: Run) -> dict[str, Any]:
    """The options of the method and the training that are not the defaults."""
    recipe = run.record.recipe
    return dict(recipe.get("options") or {}) | {key: x for key, x in recipe.items() if key not in _ELSEWHERE}


def _settings(run: Run) -> dict[str, Any]:
    """All options that can make two runs of one method differ: the method's and the training's."""
    return _asked(run) | run.record.options


def _methods(runs: list[Run]) -> dict[int, str]:
    """A label for each run, by id: its method; METHOD:OPTION=VALUE where it ran with several at one density."""
    labels: dict[int, str] = {}
    for method in dict.fromkeys(run.record.method for run in runs):
        own = [run for run in runs if run.record.method == method]
        variants = {(run.asked, _text(_settings(run))) for run in own}
        if len(variants) == len({run.asked for run in own}):
            labels |= {id(run): method for run in own}
            continue
        for options in (_asked, _settings):  # the options asked for, if they tell the runs apart: they are fewer
            others = [options(run) for run in own]
            named = {id(run): ":".join([method, *_differing(options(run), others)]) for run in own}
            if len({(run.asked, named[id(run)]) for run in own}) == len(variants):
                break
        labels |= named
    return labels


def _once(runs: list[Run], notes: list[str]) -> list[Run]:
    """Runs without repeats: the same settings and seed a second time is no second sample."""
    first: dict[str, Run] = {}
    for run in runs:
        key = _text([run.record.method, run.asked, run.seed, _settings(run)])
        if run.seed is not None and key in first:
            notes.append(f"{run.name} repeats {first[key].name} (same settings and seed), so it is counted once")
        first.setdefault(key if run.seed is not None else f"{len(first)}", run)
    return list(first.values())


def stat(values: Iterable[float | None]) -> Stat | None:
    """Mean and sample standard deviation of the values that are known."""
    known = tuple(v for v in values if v is not None)
    if not known:
        return None
    mean = math.fsum(known) / len(known)
    return Stat(mean, statistics.stdev(known) if len(known) > 1 else None, len(known), known)


def checks_over(records: Iterable[Record]) -> dict[str, Check]:
    """Each check judged over the pairs of all records that have it."""
    found: dict[str, list[Check]] = {}
    metric = "accuracy"
    for record in records:
        metric = record.metric
        for name, check in record.checks.items():
            found.setdefault(name, []).append(check)
    return {
        name: _test([v for c in rows for v in c.ticket_values], [v for c in rows for v in c.values], metric)
        for name, rows in found.items()
    }


def _test(ours: Sequence[float], theirs: Sequence[float], metric: str) -> Check:
    return paired_test(ours, theirs, margin=least_gain(metric, [*ours, *theirs]))


def _row(method: str, asked: float, runs: list[Run]) -> Row:
    """A single run shows the spread of its trainings; of several runs each counts once, with its mean."""
    after = stat(run.after for run in runs)
    if len(runs) == 1 and after and len(runs[0].trained) > 1:
        after = stat(runs[0].trained)
    checks = checks_over(run.record for run in runs)
    return Row(
        method=method,
        asked=asked,
        runs=tuple(runs),
        before=stat(run.before for run in runs),
        after=after,
        cost={key: stat(run.cost[key] for run in runs) for key in runs[0].cost},
        checks=checks,
        verdict=overall(list(checks.values())) if checks else None,
        layers=_mean_layers(runs),
        classes={
            name: s
            for name in dict.fromkeys(name for run in runs for name in run.classes)
            if (s := stat(run.classes.get(name) for run in runs))
        },
    )


def _mean_layers(runs: Sequence[Run]) -> tuple[MeanLayer, ...]:
    found: dict[str, list[Layer]] = {}
    for layer in (layer for run in runs for layer in run.record.layers):
        found.setdefault(layer.name, []).append(layer)
    return tuple(
        MeanLayer(
            name,
            math.fsum(layer.density for layer in own) / len(own),
            math.fsum(layer.dead_filters for layer in own) / len(own),
            own[0].filters,
            sum(layer.kept == 0 for layer in own),
        )
        for name, own in found.items()
    )


def _ranked(rows: list[Row]) -> tuple[Row, ...]:
    """Best first by accuracy after training (those not trained last, by accuracy before), each set against the best."""

    def key(row: Row) -> tuple[float, float]:
        return (row.after.mean if row.after else -math.inf, row.before.mean if row.before else -math.inf)

    first, *rest = sorted(rows, key=key, reverse=True)
    return (first, *(replace(row, gap=_gap(first, row)) for row in rest))


def _gap(best: Row, other: Row) -> Check | None:
    """The best against another over the seeds they share: by runs or, with one seed each, by its trainings."""
    if len(best.runs) == len(other.runs) == 1 and best.runs[0].seed == other.runs[0].seed:
        pairs = list(zip(best.runs[0].trained, other.runs[0].trained, strict=False))
    else:
        theirs = {run.seed: run.after for run in other.runs if run.after is not None}
        pairs = [(r.after, x) for r in best.runs if r.after is not None and (x := theirs.get(r.seed)) is not None]
    metric = best.runs[0].record.metric
    return _test([a for a, _ in pairs], [b for _, b in pairs], metric) if pairs else None


def _dense(full: list[Run], pruned: list[Run]) -> Stat | None:
    """Runs of density 1 or, without any, the dense networks trained beside the tickets, one a seed."""
    if known := stat(run.after for run in full):
        return known
    by_seed = {run.seed: run.dense for run in pruned if run.dense is not None}
    return stat(by_seed.values())


def _gaps(rows: Mapping[float, tuple[Row, ...]], methods: list[str]) -> list[str]:
    """Sentences about gaps in the grid: methods without a run at a density, missing seeds, no test result."""
    said = []
    for asked, own in rows.items():
        at, present = f"{format.density(asked)} density", {row.method: row for row in own}
        if absent := [method for method in methods if method not in present]:
            said.append(f"no run of {format.listed(absent)} at {at}")
        seeds = sorted({run.seed for row in own for run in row.runs if run.seed is not None})
        lacking: dict[str, list[str]] = {}
        for method, row in present.items():
            have = {run.seed for run in row.runs}
            if None not in have and (missing := [str(seed) for seed in seeds if seed not in have]):
                lacking.setdefault(format.listed(missing), []).append(method)
        for missed, names in lacking.items():
            said.append(f"{format.listed(names)} at {at}: no seed {missed}, which others have")
        for row in own:
            if bad := [run.name for run in row.runs if run.after is None]:
                said.append(f"{row.method} at {at}: no result after training in {format.listed(bad, 4)}")
    return said


# ---- comparing rows ----


def pareto(points: Sequence[tuple[float, float]]) -> list[bool]:
    """Whether each (cost, result) is on the Pareto front: no other costs as little, is as good, and is better in one.

    >>> pareto([(1, 0.9), (2, 0.95), (3, 0.94), (1, 0.8)])
    [True, True, False, False]
    """

    def beaten(cost: float, result: float) -> bool:
        return any(c <= cost and r >= result and (c < cost or r > result) for c, r in points)

    return [not beaten(*point) for point in points]


def tied(rows: Sequence[Row]) -> list[Row]:
    """Rows that the best one does not beat beyond chance."""
    return [row for row in rows[1:] if row.after and (row.gap is None or row.gap.verdict != "pass")]


def methods(found: Sequence[Field]) -> list[str]:
    """All methods, those that rank high on the whole first."""
    places: dict[str, list[float]] = {}
    for field in found:
        for rows in field.rows.values():
            for place, row in enumerate(rows):
                places.setdefault(row.method, []).append(place / len(rows))
    return sorted(places, key=lambda method: math.fsum(places[method]) / len(places[method]))
