"""Tables of many runs, as CSV and Markdown."""

from __future__ import annotations

import csv
import re
import types
from pathlib import Path
from typing import Any

import pytest

from gemminer.reporting import tables
from tests.reporting.grids import cell
from tests.runs.helpers import cells_of_seeds


def test_summary_is_mean_and_deviation_over_seeds_and_pairs() -> None:
    cells = cells_of_seeds(3)

    def fake(after: float, shuffled: float) -> Any:
        check = types.SimpleNamespace(values=(shuffled,), ticket_values=(after,))
        costs = types.SimpleNamespace(epochs=2.0, flops_sparse=10.0)
        return types.SimpleNamespace(
            accuracy=types.SimpleNamespace(before=0.5, after=after),
            start=None,
            cost={"search": costs, "train": costs},
            checks={"shuffle": check},
            metric="accuracy",
        )

    figures = zip(cells, (fake(0.9, 0.5), fake(0.8, 0.5), fake(0.7, 0.3)), strict=True)
    (line,) = tables.summary(cells, {c.digest: r for c, r in figures})
    assert line["n"] == 3
    assert (line["after"], line["after_std"]) == (pytest.approx(0.8), pytest.approx(0.1))
    assert line["shuffle_difference"] == pytest.approx((0.4 + 0.3 + 0.4) / 3)
    assert (line["shuffle_verdict"], line["flops_sparse"]) == ("pass", 20.0)
    assert tables.spread(line, "after") == "0.8000 +- 0.1000"


def test_tables_beside_the_page(grid: Path) -> None:
    rows = list(csv.DictReader((grid.parent / "report.csv").read_text().splitlines()))
    assert len(rows) == 2 * (3 * 14 + 1)
    row = next(r for r in rows if (r["method"], r["data"], r["density"]) == ("snip", "digits", "0.0059"))
    values = [cell("snip", 2, seed)["accuracy"]["after"] for seed in range(5)]
    assert float(row["after_mean"]) == pytest.approx(sum(values) / 5)
    assert (row["after_n"], row["seeds"], row["shuffle_n"]) == ("5", "0 1 2 3 4", "5")
    assert row["shuffle_verdict"] == row["verdict"] == "fail"
    assert row["collapsed_layers"] == "layers.2.1.conv2.weight layers.2.2.conv1.weight"
    text = (grid.parent / "report.md").read_text()
    assert text.count("### ") == 6
    assert "- absent: no record: it has not run, or not finished" in text
    tables = re.findall(r"(?m)^\|.*\|$", text)
    assert len(tables) == 6 * (2 + 14 + 1)
    assert len({len(re.findall(r"(?<!\\)\|", line)) for line in tables}) == 1
