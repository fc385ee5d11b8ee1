"""Charts of many runs, one for each metric."""

from __future__ import annotations

from pathlib import Path

from gemminer.reporting.page import report, write
from tests.reporting.fakes import make_run
from tests.reporting.reader import Page


def test_many_runs_make_a_table_and_a_chart_for_each_metric(tmp_path: Path) -> None:
    a, b = make_run(tmp_path / "a"), make_run(tmp_path / "b", metrics=False, method="snip", seed=4)
    c = make_run(tmp_path / "c", metrics=False, metric="-mse", accuracy={"after": -0.1}, checks=None, cost=None)
    write(a)
    path = report([a, b, str(c)])
    page = Page(path)
    assert path == tmp_path / "report.html"
    assert "a gem-miner resnet20 digits 0.59% 0 87.2% 97.1% ± 0.4 98.5% ✓ pass 5 of 5 80 1 min 45 s" in page.text
    assert "b snip resnet20 digits 0.59% 4" in page.text
    assert "c gem-miner resnet20 digits 0.59% 0 – −0.1 – not run – – – –" in page.text
    assert ("a", {"href": "a/report.html"}) in page.elements
    names = {key: [trace["name"] for trace in figure["data"]] for key, figure in page.figures().items()}
    assert names["after/0"] == names["before/0"] == ["gem-miner", "snip"]
    assert names["after/1"] == ["gem-miner"]
    assert "before/1" not in names
