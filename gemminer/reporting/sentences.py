"""A comparison in words: the sentences of its page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gemminer.reporting import format
from gemminer.reporting.aggregate import Field, Row, Stat, tied


@dataclass(frozen=True)
class Answer:
    """The result at one density, in words: the best method, how good, how far ahead, at what cost, how checked."""

    asked: float
    method: str
    score: str
    result: str
    standing: str
    cost: str
    checks: str
    verdict: str | None

    @property
    def sentence(self) -> str:
        parts = (f"{self.method} {self.score} {self.result}", self.standing, self.cost, self.checks)
        return f"At {format.density(self.asked)} density: {'; '.join(part for part in parts if part)}."


def spread(found: Stat | None, metric: str) -> str:
    """97.1% ± 0.4"""
    return format.value(found and found.mean, metric) + (format.deviation(found.std, metric) if found else "")


def answer(field: Field, asked: float) -> Answer:
    """The answer at one density, from its rows, best method first."""
    rows, metric = field.rows[asked], field.metric
    best = rows[0]
    result = f"after training (n = {best.after.n})" if best.after else "before training, no result after it"
    result += f", {format.value(best.before.mean, metric)} before" if best.before and best.after else ""
    result += f"; dense {format.value(field.dense.mean, metric)}" if field.dense else ""
    verdicts = {name: check.verdict for name, check in best.checks.items()}
    checks = format.checked(verdicts) if verdicts else "not checked"
    score = spread(best.after or best.before, metric)
    return Answer(asked, best.method, score, result, _standing(rows, metric), _cost(rows), checks, best.verdict)


def _standing(rows: Sequence[Row], metric: str) -> str:
    best, level = rows[0], tied(rows)
    if len(rows) == 1:
        return "the only method"
    if not best.after or not any(row.after for row in rows[1:]):
        return "nothing to compare it with"
    if not any(row.gap and row.gap.n > 1 for row in rows[1:]):
        return f"a single seed, so its lead over {rows[1].method} may be chance"
    if not level:
        second = f"{rows[1].method}, {format.value(rows[1].after and rows[1].after.mean, metric)}"
        return f"ahead of every other method beyond chance (next: {second})"
    names = [f"{row.method} ({format.value(row.after and row.after.mean, metric)})" for row in level]
    return f"not told apart from {format.listed(names, 3)}"


def _cost(rows: Sequence[Row]) -> str:
    """The best method's search against the next that is level and cheaper or, without one, against the next."""

    def epochs(row: Row) -> float | None:
        found = row.cost["search", "epochs"]
        return found.mean if found else None

    own = epochs(rows[0])
    if own is None:
        return "search cost not recorded"
    said = f"its search takes {_epochs(own)}" if own else "it needs no search"
    for row in tied(rows):
        if (cost := epochs(row)) is not None and cost < own:
            return f"{said}, {row.method}'s {_times(cost, own)}"
    others = [row for row in rows[1:] if epochs(row) is not None]
    return f"{said}, {others[0].method}'s {_times(epochs(others[0]) or 0.0, own)}" if others else said


def _epochs(x: float) -> str:
    return f"{format.epochs(x)} epoch{'' if x == 1 else 's'}"


def _times(x: float, own: float) -> str:
    """x against one's own, as a multiple or a part of it."""
    if not x:
        return "none"
    if not own:
        return _epochs(x)
    ratio = x / own
    if 0.95 <= ratio <= 1.05:
        return "as many"
    part = f"{_two(ratio)} times that" if ratio > 1 else f"1/{_two(1 / ratio)} of that"
    return f"{format.epochs(x)} ({part})"


def _two(x: float) -> str:
    """Two digits, written out: 3.3, 330, 1,600."""
    return f"{float(f'{x:.2g}'):,.0f}" if x >= 10 else f"{x:.2g}"


def headline(field: Field) -> str:
    """Which method is best at which density, where its lead over the others is beyond chance."""
    if not field.rows:
        return f"{field.title}: dense networks only, {spread(field.dense, field.metric)}"
    methods = {row.method for rows in field.rows.values() for row in rows}
    if len(methods) == 1:
        return f"{field.title}: one method, {next(iter(methods))}"
    best: dict[str, list[float]] = {}
    for asked in _sure(field):
        best.setdefault(field.rows[asked][0].method, []).append(asked)
    if not best:
        return f"{field.title}: no method is told apart"
    every = len(next(iter(best.values()))) == len(field.rows) > 1
    parts = [
        f"{method} {'finds the best ticket at ' + _at(at, every) if i == 0 else 'at ' + _names(at)}"
        for i, (method, at) in enumerate(sorted(best.items(), key=lambda item: -len(item[1])))
    ]
    return f"{field.title}: {', '.join(parts)}"


def lead_beyond_chance(field: Field) -> str:
    """A sentence about the densities where the best method's lead is beyond chance."""
    sure = _sure(field)
    if not any(len(rows) > 1 and rows[0].after for rows in field.rows.values()):
        return ""
    if not sure:
        return "No lead over the next methods is beyond chance."
    return f"The lead is beyond chance at {_at(sure, len(sure) == len(field.rows) > 1)}."


def _sure(field: Field) -> list[float]:
    """The densities at which the best method's lead over all others is beyond chance."""
    return [asked for asked, rows in field.rows.items() if len(rows) > 1 and rows[0].after and not tied(rows)]


def _at(densities: Sequence[float], every: bool) -> str:
    return f"all {len(densities)} densities" if every else f"{_names(densities)} density"


def _names(densities: Sequence[float]) -> str:
    return format.listed([format.density(d) for d in densities])


def summary(found: Sequence[Field]) -> str:
    """One sentence over all fields: the one headline, or how often each method is best."""
    if len(found) == 1:
        return headline(found[0])
    total = sum(len(field.rows) for field in found)
    if not total:
        return "Dense networks only: no ticket to compare"
    wins: dict[str, int] = {}
    for field in found:
        for asked in _sure(field):
            method = field.rows[asked][0].method
            wins[method] = wins.get(method, 0) + 1
    if not wins:
        return f"No method is told apart in {total} comparisons"
    parts = [f"{method} in {n}" for method, n in sorted(wins.items(), key=lambda item: -item[1])]
    return f"Best ticket beyond chance in {sum(wins.values())} of {total} comparisons: {format.listed(parts, 4)}"
