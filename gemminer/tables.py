"""A comparison's cells as rows: CSV and Markdown. Only what a repetition gives again, but for costs.csv."""

from __future__ import annotations

import csv
import io
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gemminer import checks
from gemminer.files import atomic
from gemminer.grid import Cell
from gemminer.record import Record

Row = dict[str, Any]
BESIDE = {"CSV": "table.csv", "over seeds": "summary.csv", "Markdown": "table.md"}  # what the page links to
_GROUP = ("data", "model", "density", "method")


def row(cell: Cell, found: Record | None, status: str = "finished") -> Row:
    """A cell's line of table.csv; of one that is not finished only what was asked for.

    CHECK is the metric after training from what check CHECK leaves, CHECK_difference the ticket's minus that.
    """
    r = cell.recipe
    asked = {"data": r.data, "model": r.model, "density": r.density, "method": cell.label, "seed": r.seed}
    head = {"cell": cell.digest, **asked, "status": status}
    if found is None:
        return head
    density, accuracy = found.density, found.accuracy
    kept = {"realised": density.realised, "kept": density.kept, "prunable": density.prunable, "live": density.live}
    reached = {"before": accuracy.before, "after": accuracy.after, "validation": accuracy.validation}
    checked: Row = {}
    for name, check in found.checks.items():
        checked |= {name: check.mean, f"{name}_difference": check.difference}
    costs = {
        f"{phase}_{what}": getattr(found.cost[phase], what)
        for phase in ("search", "train")
        for what in ("epochs", "flops_dense", "flops_sparse")
    }
    return {**head, **kept, **reached, **checked, **costs}


def cost_row(cell: Cell, found: Record) -> Row:
    """A cell's line of costs.csv: the seconds of its search and of one training, and where."""
    seconds = {f"{phase}_seconds": found.cost[phase].seconds for phase in ("search", "train")}
    machine = {key: found.hardware.get(key) for key in ("cpu", "cores", "threads", "device")}
    head = {k: v for k, v in row(cell, None).items() if k != "status"}
    return {**head, **seconds, **machine, "created": found.created}


def summary(cells: Sequence[Cell], records: Mapping[str, Record]) -> list[Row]:
    """A row for each method, density, network and data set: mean and deviation over the seeds, the checks' verdicts.

    A check's difference and verdict are over the pairs of all seeds, as `checks.compare` has them.
    """
    groups: dict[tuple[Any, ...], list[Record]] = {}
    for cell in cells:
        if cell.digest in records:
            key = (cell.recipe.data, cell.recipe.model, cell.recipe.density, cell.label)
            groups.setdefault(key, []).append(records[cell.digest])
    return [{**dict(zip(_GROUP, key, strict=True)), **_over_seeds(found)} for key, found in groups.items()]


def _over_seeds(found: Sequence[Record]) -> Row:
    line: Row = {"n": len(found)}
    for name in ("before", "after"):
        values = [v for r in found if (v := getattr(r.accuracy, name)) is not None]
        line |= {name: math.fsum(values) / len(values) if values else None}
        line |= {f"{name}_std": statistics.stdev(values) if len(values) > 1 else None}
    line |= {f"{p}_epochs": math.fsum(r.cost[p].epochs for r in found) / len(found) for p in ("search", "train")}
    line |= {"flops_sparse": math.fsum(c.flops_sparse for r in found for c in r.cost.values()) / len(found)}
    for name in dict.fromkeys(name for r in found for name in r.checks):
        rows = [r.checks[name] for r in found if name in r.checks]
        check = checks.compare([v for c in rows for v in c.ticket_values], [v for c in rows for v in c.values])
        line |= {f"{name}_difference": check.difference, f"{name}_std": check.difference_std}
        line |= {f"{name}_verdict": check.verdict}
    return line


def spread(line: Row, name: str) -> str:
    """A mean of `summary` with its deviation, in words."""
    if line[name] is None:
        return ""
    return f"{line[name]:.4f}" + ("" if line[f"{name}_std"] is None else f" +- {line[f'{name}_std']:.4f}")


def write(out: Path, cells: Sequence[Cell], records: Mapping[str, Record], failures: Mapping[str, str]) -> None:
    """Write table.csv, table.md, summary.csv and costs.csv in the folder `out`, each whole or not at all."""
    rows = [
        row(c, records.get(c.digest), "failed" if c.digest in failures else "finished" if c.digest in records else "")
        for c in cells
    ]
    means = summary(cells, records)
    _save(out / "table.csv", _csv(rows))
    _save(out / "summary.csv", _csv(means))
    _save(out / "costs.csv", _csv([cost_row(c, records[c.digest]) for c in cells if c.digest in records]))
    _save(out / "table.md", f"## Over seeds\n\n{_markdown(means)}\n## Each cell\n\n{_markdown(rows)}")


def _save(path: Path, text: str) -> None:
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def _columns(rows: Sequence[Row]) -> list[str]:
    """All names; where rows have different ones, each behind the one it follows in its own row."""
    names: list[str] = []
    for line in rows:
        at = 0
        for name in line:
            if name not in names:
                names.insert(at, name)
            at = names.index(name) + 1
    return names


def _csv(rows: Sequence[Row]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, _columns(rows), restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(
        {k: "" if v is None else repr(v) if isinstance(v, float) else v for k, v in r.items()} for r in rows
    )
    return text.getvalue()


def _markdown(rows: Sequence[Row]) -> str:
    names = _columns(rows)
    lines = [names, ["---"] * len(names), *([_short(line.get(name)) for name in names] for line in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines) if rows else "none yet\n"


def _short(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value).replace("|", "\\|")
