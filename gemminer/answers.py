"""A comparison in words and tables: the sentences of the page, and the CSV and Markdown beside it."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from gemminer import words
from gemminer.comparison import MEASURES, PHASES, Field, Row, Stat, tied
from gemminer.verdict import Check


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
        return f"At {words.density(self.asked)} density: {'; '.join(part for part in parts if part)}."


def spread(found: Stat | None, metric: str) -> str:
    """97.1% ± 0.4"""
    return words.value(found and found.mean, metric) + (words.deviation(found.std, metric) if found else "")


def answer(field: Field, asked: float) -> Answer:
    """What the rows of a density say, best method first."""
    rows, metric = field.rows[asked], field.metric
    best = rows[0]
    result = f"after training (n = {best.after.n})" if best.after else "before training, no result after it"
    result += f", {words.value(best.before.mean, metric)} before" if best.before and best.after else ""
    result += f"; dense {words.value(field.dense.mean, metric)}" if field.dense else ""
    verdicts = {name: check.verdict for name, check in best.checks.items()}
    checks = words.checked(verdicts) if verdicts else "not checked"
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
        second = f"{rows[1].method}, {words.value(rows[1].after and rows[1].after.mean, metric)}"
        return f"ahead of every other method beyond chance (next: {second})"
    names = [f"{row.method} ({words.value(row.after and row.after.mean, metric)})" for row in level]
    return f"not told apart from {words.listed(names, 3)}"


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
    return f"{words.epochs(x)} epoch{'' if x == 1 else 's'}"


def _times(x: float, own: float) -> str:
    """x against one's own, as a multiple or a part of it."""
    if not x:
        return "none"
    if not own:
        return _epochs(x)
    ratio = x / own
    if 0.95 <= ratio <= 1.05:
        return "as many"
    return (
        f"{words.epochs(x)} ({ratio:.2g} times that)" if ratio > 1 else f"{words.epochs(x)} (1/{1 / ratio:.2g} of that)"
    )


def headline(field: Field) -> str:
    """Which method is best at which density."""
    if not field.rows:
        return f"{field.title}: dense networks only, {spread(field.dense, field.metric)}"
    best: dict[str, list[float]] = {}
    for asked, rows in field.rows.items():
        best.setdefault(rows[0].method, []).append(asked)
    if len({row.method for rows in field.rows.values() for row in rows}) == 1:
        return f"{field.title}: one method, {next(iter(best))}"
    every = len(best) == 1 and len(field.rows) > 1
    parts = [
        f"{method} {'finds the best ticket at ' + _at(at, every) if i == 0 else 'at ' + _names(at)}"
        for i, (method, at) in enumerate(sorted(best.items(), key=lambda item: -len(item[1])))
    ]
    return f"{field.title}: {', '.join(parts)}"


def leads(field: Field) -> str:
    """Where the best method's lead is more than chance."""
    rivals = {asked: rows for asked, rows in field.rows.items() if len(rows) > 1 and rows[0].after}
    sure = [asked for asked, rows in rivals.items() if not tied(rows)]
    if not rivals:
        return ""
    if not sure:
        return "No lead over the next methods is beyond chance."
    return f"The lead is beyond chance at {_at(sure, len(sure) == len(field.rows) > 1)}."


def _at(densities: Sequence[float], every: bool) -> str:
    return f"all {len(densities)} densities" if every else f"{_names(densities)} density"


def _names(densities: Sequence[float]) -> str:
    return words.listed([words.density(d) for d in densities])


def summary(found: Sequence[Field]) -> str:
    """One sentence over all fields: the one headline, or how often each method is best."""
    if len(found) == 1:
        return headline(found[0])
    wins: dict[str, int] = {}
    for field in found:
        for rows in field.rows.values():
            wins[rows[0].method] = wins.get(rows[0].method, 0) + 1
    total = sum(wins.values())
    if not total:
        return "Dense networks only: no ticket to compare"
    parts = [f"{method} in {n}" for method, n in sorted(wins.items(), key=lambda item: -item[1])]
    return f"Best ticket in {total} comparisons: {words.listed(parts, 4)}"


# ---- tables ----


def to_csv(found: Sequence[Field]) -> str:
    """A row for each method at each density and for each dense reference: n, mean, std."""
    rows = [_csv_row(field, row) for field in found for own in field.rows.values() for row in own]
    rows += [
        {"model": f.model, "data": f.data, "metric": f.metric, "method": "dense", "density": 1}
        | _stat("after", f.dense)
        for f in found
        if f.dense
    ]
    names = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, names, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _stat(name: str, found: Stat | None) -> dict[str, object]:
    if found is None:
        return {}
    std = "" if found.std is None else found.std
    return {f"{name}_mean": found.mean, f"{name}_std": std, f"{name}_n": found.n}


def _csv_row(field: Field, row: Row) -> dict[str, object]:
    cells: dict[str, object] = {"model": field.model, "data": field.data, "metric": field.metric}
    cells |= {"method": row.method, "density": row.asked, "realised_density": row.realised, "runs": len(row.runs)}
    cells["seeds"] = " ".join(str(run.seed) for run in row.runs)
    cells |= _stat("before", row.before) | _stat("after", row.after)
    gap = row.gap
    cells |= {"best_minus_this": gap and gap.difference, "best_minus_this_std": gap and gap.difference_std}
    cells |= {"best_minus_this_n": gap and gap.n, "best_is_better": gap and gap.verdict}
    for phase in PHASES:
        for measure in MEASURES:
            cells |= _stat(f"{phase}_{measure}", row.cost[phase, measure])
    cells |= {"dead_filters": row.dead, "collapsed_layers": " ".join(layer.name for layer in row.collapsed)}
    cells["verdict"] = row.verdict or ""
    for name, check in row.checks.items():
        cells |= {f"{name}_difference": check.difference, f"{name}_std": check.difference_std}
        cells |= {f"{name}_n": check.n, f"{name}_verdict": check.verdict}
    return cells


def to_markdown(found: Sequence[Field], missing: Mapping[str, str]) -> str:
    """The page without its charts: answers, then a table for each density, then what is missing."""
    lines = [f"# {_cell(summary(found))}", ""]
    for field in found:
        lines += [f"## {_cell(headline(field) if len(found) > 1 else field.title)}", ""]
        lines += [f"- {_cell(answer(field, asked).sentence)}" for asked in field.rows]
        lines += ["", leads(field), ""] if field.rows else []
        for asked, rows in field.rows.items():
            lines += [f"### {_cell(field.title)}, {words.density(asked)} density", "", *_markdown(field, rows), ""]
        lines += [f"- Note: {_cell(note)}" for note in field.notes] + ([""] if field.notes else [])
    if missing:
        lines += ["## Missing runs", "", *(f"- {_cell(name)}: {_cell(why)}" for name, why in missing.items()), ""]
    lines.append("Density is the fraction of weights kept. ± is the standard deviation over n seeds; costs are of one")
    lines.append("search, mean over seeds. Behind: the best method minus this one over the seeds both have.")
    return "\n".join(lines) + "\n"


def _markdown(field: Field, rows: Sequence[Row]) -> list[str]:
    metric, checks = field.metric, list(dict.fromkeys(name for row in rows for name in row.checks))
    head = ["method", "n", f"{metric} after", "behind", "before", "search epochs", "search time", "search FLOPs"]
    table = [[*head, "counting zeros", *checks]]
    for row in rows:
        cost = [row.cost["search", measure] for measure in MEASURES]
        epochs, seconds, dense, kept = (found and found.mean for found in cost)
        cells = [row.method, str(len(row.runs)), spread(row.after, metric), behind(row, metric)]
        cells += [spread(row.before, metric), words.epochs(epochs), words.duration(seconds), words.flops(dense)]
        cells.append(words.flops(kept))
        for name in checks:
            check = row.checks.get(name)
            cells.append(f"{check.verdict} ({difference(check, metric)})" if check else "–")
        table.append(cells)
    if field.dense:
        table.append(["dense", str(field.dense.n), spread(field.dense, metric), *[""] * (len(table[0]) - 3)])
    rule = ["---", *["---:"] * (len(table[0]) - 1)]
    return [f"| {' | '.join(map(_cell, cells))} |" for cells in (table[0], rule, *table[1:])]


def _cell(text: str) -> str:
    """Text that Markdown takes as it is: a name from a record is no markup, and one line."""
    text = " ".join(text.split())
    return "".join(f"\\{char}" if char in "\\|<>*_`[]" else char for char in text)


def behind(row: Row, metric: str) -> str:
    """How far a row is behind the best, in points: the paired difference and its spread."""
    return difference(row.gap, metric) if row.gap else "–"


def difference(check: Check, metric: str) -> str:
    """+4.9 ± 0.6, n = 3"""
    std = words.deviation(check.difference_std if check.n > 1 else None, metric)
    return f"{words.value(check.difference, metric, True)}{std}, n = {check.n}"
