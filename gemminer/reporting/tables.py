"""A comparison in tables, CSV and Markdown: of its cells, and of the fields its page compares.

OUT/table.csv, .md     a row a cell: only what a repetition gives again, bit for bit
OUT/summary.csv        a row for each method, density, network and data set: mean and deviation over seeds
OUT/costs.csv          the seconds, and the machine they were measured on
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gemminer.core.files import save_text
from gemminer.core.ownership import refuse_foreign
from gemminer.core.statistics import Check
from gemminer.reporting import format, sentences
from gemminer.reporting.aggregate import EARLIER, MEASURES, PHASES, Field, Row, Stat, before, checks_over, stat
from gemminer.runs.grid import Cell
from gemminer.runs.record import Record

Line = dict[str, Any]
NAMES = ("table.csv", "table.md", "summary.csv", "costs.csv")
PAGE_FILES = {"CSV": "table.csv", "over seeds": "summary.csv", "Markdown": "table.md"}  # what a page links to
_GROUP = ("data", "model", "density", "method")


def row(cell: Cell, found: Record | None, status: str = "finished") -> Line:
    """A cell's line of table.csv; an unfinished cell has only the fields asked for.

    CHECK is the metric after training from the check's altered ticket, CHECK_difference the ticket's minus that.
    """
    r = cell.recipe
    asked = {"data": r.data, "model": r.model, "density": r.density, "method": cell.label, "seed": r.seed}
    head = {"cell": cell.digest, **asked, "status": status}
    if found is None:
        return head
    density, accuracy = found.density, found.accuracy
    kept = {"realised": density.realised, "kept": density.kept, "prunable": density.prunable, "live": density.live}
    reached = {"before": before(found), "after": accuracy.after, "validation": accuracy.validation}
    checked: Line = {}
    for name, check in found.checks.items():
        checked |= {name: check.mean, f"{name}_difference": check.difference}
    costs = {
        f"{phase}_{what}": getattr(found.cost[phase], what)
        for phase in ("search", "train")
        for what in ("epochs", "flops_dense", "flops_sparse")
    }
    costs |= {f"{phase}_epochs": found.cost[phase].epochs for phase in EARLIER if phase in found.cost}
    return {**head, **kept, **reached, **checked, **costs}


def cost_row(cell: Cell, found: Record) -> Line:
    """A cell's line of costs.csv: the seconds of its search and of one training, and where."""
    seconds = {f"{phase}_seconds": found.cost[phase].seconds for phase in ("search", "train")}
    machine = {key: found.hardware.get(key) for key in ("cpu", "cores", "threads", "device")}
    head = {k: v for k, v in row(cell, None).items() if k != "status"}
    return {**head, **seconds, **machine, "created": found.created}


def summary(cells: Sequence[Cell], records: Mapping[str, Record]) -> list[Line]:
    """A row for each method, density, network and data set: mean and deviation over the seeds, the checks' verdicts.

    A check's difference and verdict are over the pairs of all seeds, as `core.statistics.paired_test` has them.
    """
    groups: dict[tuple[Any, ...], list[Record]] = {}
    for cell in cells:
        if cell.digest in records:
            key = (cell.recipe.data, cell.recipe.model, cell.recipe.density, cell.label)
            groups.setdefault(key, []).append(records[cell.digest])
    return [{**dict(zip(_GROUP, key, strict=True)), **_over_seeds(found)} for key, found in groups.items()]


def _over_seeds(found: Sequence[Record]) -> Line:
    line: Line = {"n": len(found)}
    for name, values in (("before", map(before, found)), ("after", (r.accuracy.after for r in found))):
        over = stat(values)
        line |= {name: over and over.mean, f"{name}_std": over and over.std}
    line |= {f"{phase}_epochs": _mean([r.cost[phase].epochs for r in found]) for phase in PHASES}
    line |= {"flops_sparse": math.fsum(_flops(r) for r in found) / len(found)}
    line |= {f"{phase}_epochs": _mean(own) for phase in EARLIER if (own := _epochs(found, phase))}
    for name, check in checks_over(found).items():
        line |= {f"{name}_difference": check.difference, f"{name}_std": check.difference_std}
        line |= {f"{name}_verdict": check.verdict}
    return line


def _flops(found: Record) -> float:
    """Of finding and training the ticket; scores are a file's, which many runs may share."""
    return math.fsum(cost.flops_sparse for name, cost in found.cost.items() if name != "score")


def _epochs(found: Sequence[Record], phase: str) -> list[float]:
    return [r.cost[phase].epochs for r in found if phase in r.cost]


def _mean(values: Sequence[float]) -> float | None:
    over = stat(values)
    return over.mean if over else None


def spread(line: Line, name: str) -> str:
    """A mean of `summary` with its deviation, in words."""
    if line[name] is None:
        return ""
    return f"{line[name]:.4f}" + ("" if line[f"{name}_std"] is None else f" +- {line[f'{name}_std']:.4f}")


def summary_in_words(cells: Sequence[Cell], records: Mapping[str, Record]) -> list[Line]:
    """Means over seeds, with n and the deviation in words, for a person."""
    return [{**line, **{name: spread(line, name) for name in ("before", "after")}} for line in summary(cells, records)]


def write(out: Path, cells: Sequence[Cell], records: Mapping[str, Record], failures: Mapping[str, str]) -> None:
    """Write table.csv, table.md, summary.csv and costs.csv in the folder `out`, each whole or not at all."""
    rows = [
        row(c, records.get(c.digest), "failed" if c.digest in failures else "finished" if c.digest in records else "")
        for c in cells
    ]
    means = summary(cells, records)
    head = {"table.csv": rows, "summary.csv": means}
    head["costs.csv"] = [cost_row(c, records[c.digest]) for c in cells if c.digest in records]
    refuse_foreign(out / name for name in NAMES)
    for name, lines in head.items():
        save_text(out / name, csv_text(lines))
    save_text(out / "table.md", f"## Over seeds\n\n{_markdown(means)}\n## Each cell\n\n{_markdown(rows)}")


def _markdown(rows: Sequence[Line]) -> str:
    names = _columns(rows)
    return (
        markdown_table(names, [[_short(line.get(name)) for name in names] for line in rows]) if rows else "none yet\n"
    )


def _short(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value).replace("|", "\\|")


# ---- how any table is written ----


def _columns(rows: Sequence[Line]) -> list[str]:
    """The names of all columns; where rows differ, each name stands after the one it follows in its own row."""
    names: list[str] = []
    for line in rows:
        at = 0
        for name in line:
            if name not in names:
                names.insert(at, name)
            at = names.index(name) + 1
    return names


def csv_text(rows: Sequence[Line]) -> str:
    """Rows as CSV: floats in full, empty cells for None and for missing columns."""
    text = io.StringIO()
    writer = csv.DictWriter(text, _columns(rows), restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]], *, numbers_from: int | None = None) -> str:
    """A Markdown table of texts that are escaped already; columns from `numbers_from` on are flush right."""
    left = len(head) if numbers_from is None else numbers_from
    rule = ["---"] * left + ["---:"] * (len(head) - left)
    return "".join(f"| {' | '.join(cells)} |\n" for cells in (head, rule, *rows))


# ---- of the fields a page compares ----


def fields_csv(found: Sequence[Field]) -> str:
    """A row for each method at each density and for each dense reference: n, mean, std."""
    rows = [_csv_row(field, row) for field in found for own in field.rows.values() for row in own]
    rows += [
        {"model": f.model, "data": f.data, "metric": f.metric, "method": "dense", "density": 1}
        | _stat("after", f.dense)
        for f in found
        if f.dense
    ]
    return csv_text(rows)


def _stat(name: str, found: Stat | None) -> Line:
    return {f"{name}_mean": found.mean, f"{name}_std": found.std, f"{name}_n": found.n} if found else {}


def _csv_row(field: Field, row: Row) -> Line:
    cells: Line = {"model": field.model, "data": field.data, "metric": field.metric}
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


def fields_markdown(found: Sequence[Field], missing: Mapping[str, str]) -> str:
    """The page without its charts: answers, then a table for each density, then what is missing."""
    lines = [f"# {_cell(sentences.summary(found))}", ""]
    for field in found:
        lines += [f"## {_cell(sentences.headline(field) if len(found) > 1 else field.title)}", ""]
        lines += [f"- {_cell(sentences.answer(field, asked).sentence)}" for asked in field.rows]
        lines += ["", sentences.lead_beyond_chance(field), ""] if field.rows else []
        for asked, rows in field.rows.items():
            lines += [f"### {_cell(field.title)}, {format.density(asked)} density", "", _markdown_of(field, rows)]
        lines += [f"- Note: {_cell(note)}" for note in field.notes] + ([""] if field.notes else [])
    if missing:
        lines += ["## Missing runs", "", *(f"- {_cell(name)}: {_cell(why)}" for name, why in missing.items()), ""]
    lines.append("Density is the fraction of weights kept. ± is the standard deviation over n seeds; costs are of one")
    lines.append("search, mean over seeds. Behind: the best method minus this one over the seeds both have.")
    return "\n".join(lines) + "\n"


def _markdown_of(field: Field, rows: Sequence[Row]) -> str:
    metric, checks = field.metric, list(dict.fromkeys(name for row in rows for name in row.checks))
    head = ["method", "n", f"{metric} after", "behind", "before", "search epochs", "search time", "search FLOPs"]
    head += ["counting zeros", *checks]
    table = []
    for row in rows:
        cost = [row.cost["search", measure] for measure in MEASURES]
        epochs, seconds, dense, kept = (found and found.mean for found in cost)
        cells = [row.method, str(len(row.runs)), sentences.spread(row.after, metric), behind(row, metric)]
        cells += [
            sentences.spread(row.before, metric),
            format.epochs(epochs),
            format.duration(seconds),
            format.flops(dense),
        ]
        cells.append(format.flops(kept))
        for name in checks:
            check = row.checks.get(name)
            cells.append(f"{check.verdict} ({difference(check, metric)})" if check else "–")
        table.append([_cell(text) for text in cells])
    if field.dense:
        table.append(["dense", str(field.dense.n), sentences.spread(field.dense, metric), *[""] * (len(head) - 3)])
    return markdown_table([_cell(name) for name in head], table, numbers_from=1)


def _cell(text: str) -> str:
    """Text escaped for a Markdown table, on one line: a name from a record must not become markup."""
    text = " ".join(text.split())
    return "".join(f"\\{char}" if char in "\\|<>*_`[]" else char for char in text)


def behind(row: Row, metric: str) -> str:
    """How far a row is behind the best, in points: the paired difference and its spread."""
    return difference(row.gap, metric) if row.gap else "–"


def difference(check: Check, metric: str) -> str:
    """+4.9 ± 0.6, n = 3"""
    std = format.deviation(check.difference_std if check.n > 1 else None, metric)
    return f"{format.value(check.difference, metric, True)}{std}, n = {check.n}"
