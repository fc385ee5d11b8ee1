"""The page is checked as a reader meets it: its words, and what it must survive."""

from __future__ import annotations

import ast
import csv
import io
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

import gemminer
from gemminer.core.errors import GemminerError, UsageError
from gemminer.reporting import aggregate
from gemminer.reporting.page import report, write
from gemminer.runs import checks as registry
from gemminer.runs.record import Record
from tests.reporting.fakes import fake_checks, fake_layers, fake_record, make_run
from tests.reporting.grids import cell, dense, put
from tests.reporting.reader import HOSTILE, Page


def test_the_fixture_is_a_record_as_gemminer_writes_it(tmp_path: Path) -> None:
    record = Record(**fake_record())
    (tmp_path / "record.json").write_text(record.to_json())
    assert record.density.prunable == 268_048
    assert record.density.kept == 1_581
    assert "5 of 5" in Page(write(tmp_path)).text


def test_the_answer_comes_first(gem: Path) -> None:
    page = Page(gem)
    answer = "A 0.59% ticket: 87.2% accurate before any weight is trained, 97.1% after training; dense 98.5%; "
    assert answer + "passes 5 of 5 checks" in page.text
    assert page.text.index(answer) < 400
    for expected in (
        "1,581 of 268,048 weights kept; live 0.51%",
        "ticket − dense: −1.4 points",
        "± 0.4, n = 3",
        "1 min 45 s",
        "Shaded: the period of freezing, 330 in epochs 1 to 30",
        "No layer collapsed",
        "gemminer mine --model resnet20 --data digits --density 0.0059 --seed 0 --out runs/gem",
        "abc1234",
        "2.14.1",
        "AMD EPYC 7B13",
        "the fraction of prunable weights that is kept",
    ):
        assert expected in page.text, expected


def test_checks_and_costs_are_the_records_own_numbers(gem: Path) -> None:
    text = Page(gem).text
    # shuffle: 0.921, 0.933, 0.914 against 0.972, 0.975, 0.967, by hand: mean 0.92267; differences 5.1, 4.2, 5.3
    assert re.search(r"shuffle the mask permuted inside each layer 92\.3% ± 1\.0 \+4\.9 ± 0\.6 3 ✓ pass", text)
    assert "search 40 63.4 s 12 TFLOP 2 TFLOP 16.7%" in text
    assert "together 80 1 min 45 s 24 TFLOP 2.09 TFLOP 8.71%" in text


def test_what_failed_is_said_in_words(tmp_path: Path) -> None:
    checks, layers = fake_checks(), fake_layers()
    checks["shuffle"] |= {"verdict": "fail", "difference": -0.003}
    checks["reinit"] |= {"verdict": "not decided"}
    layers[9] |= {"kept": 0, "density": 0.0, "dead_filters": 32}
    notes = ["the ridge switched off more than was asked"]
    text = Page(write(make_run(tmp_path, checks=checks, layers=layers, verdict="fail", notes=notes))).text
    assert "passes 3 of 5 checks (fails shuffle; reinit not decided)" in text
    assert "−0.3" in text
    assert "1 layer collapsed: layers.1.1.conv1.weight keeps no weight" in text
    assert notes[0] in text


def test_hostile_names_stay_text(tmp_path: Path) -> None:
    layers = fake_layers()
    layers[0]["name"] = HOSTILE
    changes: dict[str, Any] = dict.fromkeys(("method", "model", "data", "command", "metric", "git"), HOSTILE)
    changes |= {"checks": {HOSTILE: fake_checks()["shuffle"] | {"verdict": HOSTILE}}, "layers": layers}
    changes |= {"options": {HOSTILE: [HOSTILE]}, "hardware": {"cpu": HOSTILE}, "notes": [HOSTILE]}
    changes |= {"cost": {HOSTILE: {"epochs": 1, "seconds": 1, "flops_dense": 1, "flops_sparse": 1}}}
    run = make_run(tmp_path / "<run>&", **changes)
    for path in (write(run), report([run, run], out=tmp_path / "many.html")):
        page = Page(path)
        tags = [tag for tag, _ in page.elements]
        assert tags.count("script") == 3
        assert "img" not in tags
        assert not [key for _, attributes in page.elements for key in attributes if key.startswith("on")]
        assert HOSTILE in "".join(page.words)
        assert "<b>%" not in json.dumps(page.figures()), "plotly reads markup in text: it must be escaped there"


@pytest.mark.parametrize(
    "changes",
    [
        {"checks": None, "verdict": None},
        {"checks": {}},
        {"accuracy": {"before": None, "after": 0.9, "dense": None, "after_std": None, "n": 1}},
        {"accuracy": {}},
        {"layers": []},
        {"cost": None, "hardware": None, "versions": None, "git": None, "options": None},
        {"cost": {"search": {"epochs": 0, "seconds": 0.0, "flops_dense": 0, "flops_sparse": None}}},
        {"density": {"asked": 0.5, "realised": 0.5, "kept": 5, "prunable": 10}},
        {"layers": [{"name": "a", "shape": [1, 1], "prunable": 1, "kept": 0, "density": 0.0}]},
        {"metric": "-mse", "accuracy": {"before": -0.81, "after": -0.0342}},
    ],
)
@pytest.mark.parametrize("metrics", [True, False])
def test_missing_parts_leave_a_page(tmp_path: Path, changes: dict[str, Any], metrics: bool) -> None:
    page = Page(write(make_run(tmp_path, metrics=metrics, **changes)))
    assert not re.search(r"\b(None|nan|Undefined)\b", page.text)
    if not changes.get("checks", True):
        assert "The checks were not run" in page.text
        assert "checks" not in page.figures()
    if not metrics:
        assert "No epochs of a search are recorded" in page.text


def test_another_metric_is_named_and_not_a_percentage(tmp_path: Path) -> None:
    accuracy = {"before": -0.81, "after": -0.0342, "dense": -0.03}
    page = Page(write(make_run(tmp_path, metric="-mse", accuracy=accuracy, checks=None)))
    assert "-mse −0.81 before any weight is trained, −0.0342 after training; dense −0.03" in page.text
    assert "tickformat" not in page.figures()["search"]["layout"]["yaxis"]


@pytest.mark.parametrize(
    ("realised", "start"),
    [
        (0.0059, "A 0.59%"),
        (0.08, "An 8%"),
        (0.115, "An 11.5%"),
        (0.11, "An 11%"),
        (0.18, "An 18%"),
        (0.5, "A 50%"),
    ],
)
def test_the_headline_has_the_right_article(tmp_path: Path, realised: float, start: str) -> None:
    density = {"asked": realised, "realised": realised, "kept": 5, "prunable": 10}
    assert f"{start} ticket: " in Page(write(make_run(tmp_path, density=density))).text


def test_the_page_is_one_small_file_that_asks_for_nothing(gem: Path) -> None:
    assert gem.stat().st_size < 8_000_000
    page = Page(gem)
    for tag, attributes in page.elements:
        assert not {"src", "srcset", "action", "poster"} & set(attributes), (tag, attributes)
        link = attributes.get("href", "data:,")  # what is inside, or a file beside it that a person asks for
        assert link.startswith("data:") or (link == attributes.get("download") == "ticket.safetensors"), link
    markup = re.sub(r"<script>.*?</script>", "", gem.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert not re.search(r"https?://|@import|url\(", markup)
    policy = [a["content"] for tag, a in page.elements if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy[0].startswith("default-src 'none'")


def test_where_the_page_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(tmp_path / "run", metrics=False)
    assert report([run], out=tmp_path / "x.html") == tmp_path / "x.html"
    assert report([run], out=tmp_path) == tmp_path / "report.html"
    assert report([run / "record.json"]) == run / "report.html"
    monkeypatch.chdir(tmp_path)
    assert write(Path("run")).samefile(run / "report.html")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "cannot read"),
        ("", "is damaged"),
        ('{"schema": "gemminer.rec', "is damaged"),
        ("[1, 2]", "not a gemminer record"),
        ('{"name": "x"}', "not a gemminer record"),
        (b"\xff\xfe", "is damaged"),
        (json.dumps(fake_record(schema="gemminer.record/2")), "upgrade"),
        (json.dumps(fake_record(density=None)), "no usable 'density'"),
        (json.dumps(fake_record(density={"asked": 0.1})), "is damaged"),
        (json.dumps(fake_record(accuracy={"before": "high"})), "is damaged"),
        (json.dumps(fake_record(layers=[{"name": "a"}])), "is damaged"),
        (json.dumps(fake_record(checks=[1])), "is damaged"),
        (json.dumps(fake_record(checks={"shuffle": {"verdict": "pass"}})), "is damaged"),
        (json.dumps(fake_record(cost={"search": 3})), "is damaged"),
    ],
)
def test_a_bad_record_is_one_sentence_and_leaves_the_old_page(tmp_path: Path, content: Any, said: str) -> None:
    (tmp_path / "report.html").write_text("old")
    if content is not None:
        (tmp_path / "record.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(GemminerError, match=said) as error:
        write(tmp_path)
    assert "\n" not in str(error.value)
    assert str(tmp_path) in str(error.value)
    assert (tmp_path / "report.html").read_text() == "old"
    assert {path.name for path in tmp_path.iterdir()} <= {"report.html", "record.json"}


def test_damaged_metrics_and_unwritable_places_are_one_sentence(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", metrics=False)
    with pytest.raises(GemminerError, match="cannot write"):
        report([run], out=tmp_path / "missing" / "x.html")
    (run / "metrics.jsonl").write_text('{"phase": "search"}\n')
    with pytest.raises(GemminerError, match="without an epoch"):
        write(run)
    (run / "metrics.jsonl").unlink()
    for name, ending in (("thesis.html", ""), ("two.csv", "two.html"), ("two.md", "two.html")):
        (tmp_path / name).write_text("thesis")
        with pytest.raises(UsageError, match=f"{name} was not written by gemminer"):
            report([run, run.parent / "none"][: 1 + bool(ending)], out=tmp_path / (ending or name))
        assert (tmp_path / name).read_text() == "thesis"
        (tmp_path / name).unlink()
    with pytest.raises(UsageError, match="at least one run"):
        report([])


def test_a_failing_disk_leaves_no_half_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(tmp_path, metrics=False)
    old = write(run).read_text()

    def full(*_: Any) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(GemminerError, match="No space left"):
        write(run)
    assert {path.name for path in run.iterdir()} == {"record.json", "report.html"}
    assert (run / "report.html").read_text() == old


def test_the_modules_read_files_only() -> None:
    """Of our own they know what a record, a cell and a watch are, and of the others nothing that computes."""
    room = Path(gemminer.__file__).parent / "reporting"
    names = {path.stem for path in room.glob("*.py")}
    names -= {"commands", "flags", "options"}  # the command line's
    assert names >= {"page", "tables", "sentences", "aggregate", "format", "axes", "run_charts", "comparison_charts"}
    for name in names:
        tree = ast.parse((room / f"{name}.py").read_text(encoding="utf-8"))
        modules = {n.module or "" for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
        modules |= {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
        assert {m.split(".")[1] for m in modules if m.startswith("gemminer.")} <= {"core", "runs", "reporting"}
        assert not {m.split(".")[0] for m in modules} & {"torch", "numpy", "scipy", "pydantic", "plotly"}


# ---- many runs ----


def test_the_page_answers_first_and_drops_nothing(grid: Path) -> None:
    page = Page(grid)
    assert page.text.index("told apart") < 600  # the heading claims no lead that may be chance
    assert "finds the best ticket" not in page.text[:600]
    assert page.text.index("not told apart from") < 1200
    for expected in (
        "3 of 288 runs are missing",
        "prospr, resnet20, digits, density 0.0059, seed 4 (0123456789ab) : failed: the process was killed (SIGKILL)",
        "broken : record.json is damaged",
        "absent : no record: it has not run, or not finished",
        "prospr at 0.59% density: no seed 4, which others have",
        "snip collapses: layers.2.1.conv2.weight keeps nothing in 2 of 5 runs",
    ):
        assert expected in page.text, expected
    assert grid.stat().st_size < 8_000_000
    assert [tag for tag, _ in page.elements].count("script") == 3
    figures = page.figures()
    assert {f"cost/{f}/{d}/{m}" for f in (0, 1) for d in range(3) for m in aggregate.MEASURES} <= set(figures)
    after = figures["after/0"]["data"]
    assert len(after) == 14
    snip = next(trace for trace in after if trace["name"] == "snip")
    assert [len(snip[key]) for key in ("x", "y")] == [3, 3]
    assert all(snip["error_y"]["array"])
    free = next(trace for trace in figures["cost/0/2/epochs"]["data"] if trace["name"] == "erk")
    axis = figures["cost/0/2/epochs"]["layout"]["xaxis"]
    assert axis["ticktext"][0] == "none"
    assert free["x"][0] == pytest.approx(axis["tickvals"][0])


def test_damaged_and_failed_runs_are_listed_with_the_rest(tmp_path: Path) -> None:
    good = make_run(tmp_path / "good", metrics=False)
    bad = put(tmp_path / "bad", fake_record(layers=[{"name": "a"}]))
    unpaired = {"shuffle": {"mean": 0.5, "std": 0.1, "verdict": "pass", "values": [], "ticket_values": []}}
    worse = put(tmp_path / "worse", fake_record(checks=unpaired))
    text = Page(report([good, bad, worse], failed={"snip, seed 3": "out of memory"})).text
    assert "3 of 4 runs are missing" in text
    assert "bad : record.json is damaged (no usable 'layers.0.kept')" in text
    assert "check shuffle has no paired values" in text
    assert "snip, seed 3 : out of memory" in text
    assert (tmp_path / "report.csv").exists()
    with pytest.raises(GemminerError, match="damaged"):
        report([bad, worse])


def test_hostile_names_stay_text_in_the_tables_too(tmp_path: Path) -> None:
    layers = fake_record()["layers"]
    layers[0] |= {"name": HOSTILE, "kept": 0, "density": 0.0}
    changes: dict[str, Any] = {"method": HOSTILE, "model": HOSTILE, "layers": layers, "metric": "-mse"}
    changes |= {"per_class": {"after": {HOSTILE: 0.5}}}
    one = make_run(tmp_path / "one", metrics=False, **changes)
    two = make_run(tmp_path / "two", metrics=False, seed=1, **changes)
    path = report([one, two], failed={HOSTILE: HOSTILE})
    page = Page(path)
    tags = [tag for tag, _ in page.elements]
    assert tags.count("script") == 3
    assert "img" not in tags
    assert not [key for _, attributes in page.elements for key in attributes if key.startswith("on")]
    assert "<b>%" not in json.dumps(page.figures())
    text = path.with_suffix(".md").read_text()
    assert not re.search(r"(?<!\\)<", text)
    assert next(csv.DictReader(io.StringIO(path.with_suffix(".csv").read_text())))["method"] == HOSTILE


@pytest.mark.parametrize(
    "changes",
    [
        {"checks": None},
        {"accuracy": {}},
        {"accuracy": {"before": 0.4, "after": None}},
        {"layers": []},
        {"cost": None},
        {"seed": None},
        {"density": {"asked": 1.0, "realised": 1.0}},
        {"metric": "-mse", "accuracy": {"before": -0.81, "after": -0.0342}},
    ],
)
def test_missing_parts_leave_a_comparison(tmp_path: Path, changes: dict[str, Any]) -> None:
    runs = [make_run(tmp_path / name, metrics=False, **{"method": name, **changes}) for name in ("a", "b")]
    assert not re.search(r"\b(None|nan|Undefined)\b", Page(report(runs)).text)
    assert "None" not in (tmp_path / "report.md").read_text()


def test_a_check_that_is_registered_is_told_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_CHECKS", dict(registry._CHECKS))
    registry.register("halve", "half of the kept weights gone")(lambda experiment, ticket, seed: ticket)
    checks = {"halve": fake_checks()["erk"]}
    runs = [make_run(tmp_path / str(seed), checks=checks, seed=seed, metrics=False) for seed in (0, 1)]
    for path in (write(runs[0]), report(runs)):
        assert "half of the kept weights gone" in Page(path).text


def test_a_dense_network_is_spoken_of_where_one_was_trained(tmp_path: Path, grid: Path) -> None:
    run = make_run(tmp_path)
    assert "Thick: the ticket; dashed: the dense network." in Page(write(run)).text
    file = tmp_path / "metrics.jsonl"
    rows = [row for row in file.read_text().splitlines(keepends=True) if '"dense' not in row]
    file.write_text("".join(rows))
    text = Page(write(run)).text
    assert "Thick: the ticket." in text
    assert "dashed" not in text.split("Thick: the ticket")[1].split("Sanity checks")[0]


def test_the_page_of_many_speaks_of_a_dense_network_where_there_is_one(tmp_path: Path) -> None:
    sparse = [put(tmp_path / name, cell("snip", 1, seed)) for seed, name in enumerate(("a", "b"))]
    for run in sparse:
        record = json.loads((run / "record.json").read_text())
        record["accuracy"]["dense"] = None
        (run / "record.json").write_text(json.dumps(record))
    assert "Dashed: the dense network" not in Page(report(sparse, tmp_path / "without.html")).text
    both = [*sparse, put(tmp_path / "dense", dense(0))]
    assert "Dashed: the dense network" in Page(report(both, tmp_path / "with.html")).text
