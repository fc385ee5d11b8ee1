"""The picture of the layers that could be removed, and that a removed layer is no collapsed one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gemminer.reporting import run_charts
from gemminer.reporting.page import report
from gemminer.runs.record import Record, parsed
from tests.reporting.fakes import fake_record


def with_removed(**options: Any) -> Record:
    found = fake_record()
    names = [layer["name"].rpartition(".")[0] for layer in found["layers"]]
    for layer in found["layers"][1:3]:
        layer.update(kept=0, density=0.0, dead_filters=layer["filters"])
    rows = [{"name": n, "score": i / 10, "stage": [4, 8], "removed": i in (1, 2)} for i, n in enumerate(names)]
    found |= {"removable": rows, "method": "layers", "options": {"criterion": "snip", "least": 1, **options}}
    return parsed(found, "a record")


def test_each_layer_that_could_go_has_its_score_and_those_gone_another_colour() -> None:
    found = with_removed()
    figure = run_charts.removable(found)
    assert figure is not None
    stays, gone = figure["data"]
    assert (stays["name"], gone["name"]) == ("stays", "removed")
    assert gone["y"] == [1, 2]
    assert gone["x"] == [0.1, 0.2]
    assert len(stays["y"]) == len(found.removable) - 2
    assert "snip" in figure["layout"]["xaxis"]["title"]["text"]
    assert run_charts.removable(parsed(fake_record(), "a record")) is None


@pytest.mark.parametrize("removed", [True, False])
def test_a_page_says_removed_and_not_collapsed(removed: bool, tmp_path: Path) -> None:
    found = with_removed()
    if not removed:
        found = found.model_copy(update={"removable": []})
    found.save(tmp_path / "record.json")
    page = report([tmp_path]).read_text(encoding="utf-8")
    assert ('badge fail">collapsed' in page) is not removed
    assert ("removable layers are removed:" in page) is removed
    assert ('">removed</span>' in page) is removed
