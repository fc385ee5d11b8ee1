"""The charts of one run carry the record's own numbers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gemminer.reporting.page import write
from tests.reporting.fakes import CHECKS, TICKET, fake_layers, make_run
from tests.reporting.reader import Page


def test_charts_carry_the_data(gem: Path) -> None:
    figures = Page(gem).figures()
    assert list(figures) == ["search", "training", "checks", "layers"]
    search = figures["search"]["data"]
    assert [trace["name"] for trace in search][1:] == ["kept: not frozen", "live: kept and switched on"]
    assert all(len(trace["x"]) == 40 for trace in search)
    assert figures["search"]["layout"]["yaxis2"]["type"] == "log"
    names = [trace["name"] for trace in figures["training"]["data"]]
    assert names[::-1] == ["ticket", "dense", *CHECKS]
    assert figures["layers"]["data"][0]["x"] == pytest.approx([layer["density"] for layer in fake_layers()])
    assert "37 of 144 weights kept" in figures["layers"]["data"][0]["hovertext"][0]
    checks = figures["checks"]["data"]
    assert [trace["x"] for trace in checks[:4]] == [
        TICKET,
        [0.9713],
        CHECKS["shuffle"],
        [pytest.approx(0.92267, abs=1e-5)],
    ]
    assert checks[3]["error_x"]["array"] == [pytest.approx(0.00961, abs=1e-5)]


def test_a_mean_over_seeds_is_drawn_for_each_check(tmp_path: Path) -> None:
    run = make_run(tmp_path, metrics=False)
    rows = [{"phase": f"check:shuffle:{seed}", "epoch": 1, "validation": 0.5 + 0.1 * seed} for seed in range(3)]
    (run / "metrics.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    (trace,) = Page(write(run)).figures()["training"]["data"]
    assert trace["y"] == [pytest.approx(0.6)]


@pytest.mark.parametrize(("every", "lines", "shades"), [(None, 0, 1), (3, 12, 0)])
def test_freezes_are_lines_or_one_shade_when_many(tmp_path: Path, every: int | None, lines: int, shades: int) -> None:
    shapes = Page(write(make_run(tmp_path, every=every))).figures()["search"]["layout"]["shapes"]
    assert sum(shape["type"] == "line" and shape["xref"] == "x" for shape in shapes) == lines
    assert sum(shape["type"] == "rect" for shape in shapes) == shades


def test_a_check_at_chance_does_not_flatten_the_others(gem: Path) -> None:
    layout = Page(gem).figures()["checks"]["layout"]
    assert [note["text"] for note in layout["annotations"]] == ["◀ 10.1%, off the scale"]
    assert 0.6 < layout["xaxis"]["range"][0] < min(CHECKS["uniform"])


def test_a_torn_line_is_passed_over_and_the_last_writing_of_an_epoch_counts(tmp_path: Path) -> None:
    run = make_run(tmp_path, metrics=False)
    row = {"phase": "search", "epoch": 1, "validation": 0.1, "kept": 1.0, "live": float("nan"), "freezes": 0}
    lines = [json.dumps(row), '{"phase": "search", "epo', json.dumps(row | {"validation": 0.7})]
    (run / "metrics.jsonl").write_bytes("\n".join(lines).encode() + b"\n\xff\xfe")
    search = Page(write(run)).figures()["search"]["data"]
    assert [trace["y"] for trace in search] == [[0.7], [1.0], [None]]
