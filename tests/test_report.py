"""The page is checked as a reader meets it: its words, what it must survive, and how Chromium shows it."""

from __future__ import annotations

import ast
import json
import math
import os
import random
import re
import time
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

import gemminer
from gemminer.core.errors import GemminerError, UsageError
from gemminer.reporting import axes, format
from gemminer.reporting.page import PLOTLY as SCRIPT
from gemminer.reporting.page import report, write
from gemminer.runs.record import Record

PLOTLY = SCRIPT.read_text(encoding="utf-8")
CHROMIUM = Path("/usr/bin/chromium")
# ResNet-20 with one input channel: 268,048 prunable weights; kept per layer as a search at 0.59% leaves them.
SHAPES = [[16, 1, 3, 3], *[[16, 16, 3, 3]] * 6, [32, 16, 3, 3], *[[32, 32, 3, 3]] * 5]
SHAPES += [[64, 32, 3, 3], *[[64, 64, 3, 3]] * 5, [10, 64]]
BLOCKS = [f"layers.{stage}.{block}.conv{conv}" for stage in range(3) for block in range(3) for conv in (1, 2)]
NAMES = [f"{name}.weight" for name in ("conv1", *BLOCKS, "classifier")]
KEPT = [37, 78, 103, 106, 80, 86, 60, 71, 113, 162, 103, 103, 39, 40, 40, 44, 29, 26, 33, 228]
CHECKS = {
    "shuffle": [0.921, 0.933, 0.914],
    "reinit": [0.938, 0.947, 0.931],
    "invert": [0.102, 0.097, 0.104],
    "uniform": [0.742, 0.781, 0.764],
    "erk": [0.874, 0.893, 0.881],
}
TICKET = [0.972, 0.975, 0.967]


def spread(values: list[float]) -> tuple[float, float]:
    mean = sum(values) / len(values)
    return mean, math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1))


def fake_layers() -> list[dict[str, Any]]:
    layers = []
    for name, shape, kept in zip(NAMES, SHAPES, KEPT, strict=True):
        size = math.prod(shape)
        dead = max(0, round(shape[0] * (1 - kept / shape[0]) / 1.4)) if kept < shape[0] else shape[0] // 16
        layer = {"name": name, "shape": shape, "prunable": size, "kept": kept, "density": kept / size}
        layers.append(layer | {"filters": shape[0], "dead_filters": dead})
    return layers


def fake_checks() -> dict[str, Any]:
    checks = {}
    for name, values in CHECKS.items():
        mean, std = spread(values)
        difference, difference_std = spread([t - v for t, v in zip(TICKET, values, strict=True)])
        row = {"mean": mean, "std": std, "n": 3, "values": values, "ticket_values": TICKET, "verdict": "pass"}
        checks[name] = row | {"difference": difference, "difference_std": difference_std}
    return checks


def fake_record(**changes: Any) -> dict[str, Any]:
    cost = {"epochs": 40, "seconds": 63.4, "flops_dense": 1.2e13, "flops_sparse": 2.0e12}
    layers = fake_layers()
    prunable, kept = sum(layer["prunable"] for layer in layers), sum(layer["kept"] for layer in layers)
    record = {
        "schema": "gemminer.record/1",
        "created": "2026-11-22T17:00:00+00:00",
        "command": "gemminer mine --model resnet20 --data digits --density 0.0059 --seed 0 --out runs/gem",
        "method": "gem-miner",
        "options": {"lambda": 1e-4, "freeze_every": None, "optimiser": "sgd", "lr": 0.1, "mask": "q"},
        "model": "resnet20",
        "model_options": {"in_channels": 1, "batch_norm": "non-affine"},
        "data": "digits",
        "data_options": {},
        "seed": 0,
        "recipe": {"method": "gem-miner", "model": "resnet20", "data": "digits", "density": 0.0059},
        "recipe_hash": "ab12cd34ef56",
        "epochs": {"search": 40, "train": 40},
        "density": {
            "asked": 0.0059,
            "realised": kept / prunable,
            "kept": kept,
            "prunable": prunable,
            "live": 0.0051,
        },
        "layers": layers,
        "accuracy": {
            "before": 0.872,
            "after": 0.9713,
            "dense": 0.985,
            "after_std": 0.004,
            "n": 3,
            "after_values": TICKET,
        },
        "verdict": "pass",
        "checks": fake_checks(),
        "notes": [],
        "cost": {"search": cost, "train": cost | {"seconds": 41.2, "flops_sparse": 9.1e10}},
        "metric": "accuracy",
        "hardware": {"cpu": "AMD EPYC 7B13", "cores": 2, "threads": 2, "device": "cpu", "memory_gib": 24},
        "versions": {"gemminer": "0.1.0", "torch": "2.14.1", "numpy": "2.4.0", "python": "3.11.7"},
        "git": "abc1234",
        "frozen": {"search": list(range(2, 660, 2))},
    }
    return record | changes


def fake_metrics(record: dict[str, Any], every: int | None = None) -> list[dict[str, Any]]:
    """A search that freezes all the time (or every so many epochs, and falls each time), and trainings."""
    noise, rows, kept = random.Random(0), [], 1.0
    for epoch in range(1, 41):
        freezes = (11 if epoch <= 30 else 0) if every is None else int(epoch % every == 0 and epoch < 38)
        kept = kept if not freezes else record["density"]["asked"] ** min(1.0, epoch / (30 if every is None else 36))
        live = min(kept * noise.uniform(0.82, 0.95), 0.5 * math.exp(-epoch / 9) + 0.005)
        validation = 0.93 - 0.7 * math.exp(-epoch / 6) + noise.gauss(0, 0.01)
        validation -= 0.5 * noise.random() if freezes and every else 0
        row = {"phase": "search", "epoch": epoch, "step": 22 * epoch, "loss": 2.3 * math.exp(-epoch / 9)}
        row |= {
            "validation": validation,
            "kept": kept,
            "live": live,
            "lambda": 1e-4,
            "lr": 0.1,
            "seconds": 0.2,
        }
        rows.append(row | {"freezes": freezes})
    trained = {"train": record["accuracy"].get("after"), "dense": record["accuracy"].get("dense")}
    for name, check in (record.get("checks") or {}).items():
        trained |= {f"check:{name}:{seed}": value for seed, value in enumerate(check["values"])}
    for phase, end in trained.items():
        for epoch in range(1, 41 if end is not None else 1):
            start = 0.85 if phase == "train" else 0.1
            value = end + (start - end) * math.exp(-epoch / 5) + noise.gauss(0, 0.004)
            row = {"phase": phase, "epoch": epoch, "step": 22 * epoch, "loss": 1 - value, "validation": value}
            rows.append(row | {"kept": 0.0059, "live": 0.0059, "lr": 0.1, "seconds": 0.1, "freezes": 0})
    return rows


def make_run(folder: Path, every: int | None = None, metrics: bool = True, **changes: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    record = fake_record(**changes)
    (folder / "record.json").write_text(json.dumps(record))
    if metrics:
        lines = (json.dumps(row) for row in fake_metrics(record, every))
        (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    return folder


class Page(HTMLParser):
    """A page as a browser's parser sees it: elements with their attributes, and the text outside scripts."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.words: list[str] = []
        self.scripts: list[str] = []
        self._inside: list[str] | None = self.words
        whole = path.read_text(encoding="utf-8")
        assert whole.count(PLOTLY) == 1
        self.feed(whole.replace(PLOTLY, ""))  # a million characters that would only cost time
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {key: value or "" for key, value in attrs}))
        if tag == "script":
            self.scripts.append("")
        self._inside = self.scripts if tag == "script" else None if tag == "style" else self.words

    def handle_endtag(self, tag: str) -> None:
        self._inside = self.words

    def handle_data(self, data: str) -> None:
        if self._inside is self.scripts:
            self.scripts[-1] += data
        elif self._inside is not None:
            self._inside.append(data)

    def figures(self) -> dict[str, Any]:
        """The charts' data: the first script, which must be JSON that nothing had to be taken out of."""
        return dict(json.loads(self.scripts[0]))


@pytest.fixture(scope="module")
def gem(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(make_run(tmp_path_factory.mktemp("report") / "gem"))


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


def test_a_figure_is_plain_json_without_numbers_that_are_none() -> None:
    figure = axes.new_figure(100, xaxis={"range": (0, math.inf)}, yaxis={"type": "log"})
    axes.add_line(figure, "a", [1, 2], [0.5, math.nan])
    axes.add_bars(figure, x=[1], y=[-math.inf])
    axes.add_mark(figure, 0.25, "var(--c0)")
    axes.add_text(figure, "here", x=1)
    shared = json.loads(axes.to_json(figure))
    assert [trace["type"] for trace in shared["data"]] == ["scatter", "bar"]
    assert [trace["y"] for trace in shared["data"]] == [[0.5, None], [None]]
    assert shared["layout"]["xaxis"]["range"] == [0, None]
    (mark,), (text,) = shared["layout"]["shapes"], shared["layout"]["annotations"]
    assert (mark["x0"], mark["x1"], mark["yref"], mark["layer"]) == (0.25, 0.25, "paper", "below")
    assert text == {"text": "here", "showarrow": False, "x": 1}


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


HOSTILE = """</script><script>alert(1)</script><img src=x onerror="alert(2)">'"{{ 7 * 7 }}&amp;<b>%{x}"""


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
    ("shown", "expected"),
    [
        (format.density(0.005898), "0.59%"),
        (format.density(1581 / 268048), "0.59%"),
        (format.density(1.0), "100%"),
        (format.density(0.00031), "0.031%"),
        (format.density(0.13344), "13.3%"),
        (format.density(None), "–"),
        (format.value(0.97134, "accuracy"), "97.1%"),
        (format.value(-0.0142, "accuracy", True), "−1.4"),
        (format.value(float("nan"), "accuracy"), "–"),
        (format.flops(1.2e13), "12 TFLOP"),
        (format.flops(512), "512 FLOP"),
        (format.flops(0), "0 FLOP"),
        (format.duration(9.13), "9.1 s"),
        (format.duration(151), "2 min 31 s"),
        (format.duration(3 * 3600 + 299), "3 h 04 min"),
    ],
)
def test_numbers_as_people_read_them(shown: str, expected: str) -> None:
    assert shown == expected


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
        assert attributes.get("href", "data:,") == "data:,"
    markup = re.sub(r"<script>.*?</script>", "", gem.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert not re.search(r"https?://|@import|url\(", markup)
    policy = [a["content"] for tag, a in page.elements if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy[0].startswith("default-src 'none'")


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
    with pytest.raises(UsageError, match="at least one run"):
        report([])


def test_a_failing_disk_leaves_no_half_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(tmp_path, metrics=False)
    write(run).write_text("old")

    def full(*_: Any) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(GemminerError, match="No space left"):
        write(run)
    assert {path.name for path in run.iterdir()} == {"record.json", "report.html"}
    assert (run / "report.html").read_text() == "old"


def test_the_modules_read_files_only() -> None:
    """Of our own they know what a record, a cell and a watch are, and of the others nothing that computes."""
    room = Path(gemminer.__file__).parent / "reporting"
    names = {path.stem for path in room.glob("*.py")}
    assert names >= {"page", "tables", "sentences", "aggregate", "format", "axes", "run_charts", "comparison_charts"}
    for name in names:
        tree = ast.parse((room / f"{name}.py").read_text(encoding="utf-8"))
        modules = {n.module or "" for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
        modules |= {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
        assert {m.split(".")[1] for m in modules if m.startswith("gemminer.")} <= {"core", "runs", "reporting"}
        assert not {m.split(".")[0] for m in modules} & {"torch", "numpy", "scipy", "pydantic", "plotly"}


# ---- in a real browser ----


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api")
    if not CHROMIUM.exists():
        pytest.skip("Chromium is not installed")
    quiet = [
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--no-first-run",
    ]
    with playwright.sync_playwright() as play:
        chromium = play.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox", "--disable-gpu", *quiet])
        yield chromium
        chromium.close()


def settle(page: Any, script: str, arg: Any = None, seconds: float = 20.0) -> None:
    """Wait until `script` is true. Playwright's wait_for_function has the page evaluate strings, which it forbids."""
    last = time.monotonic() + seconds
    while not page.evaluate(script, arg):
        assert time.monotonic() < last, f"never true: {script}"
        page.wait_for_timeout(20)


class Opened:
    """A page in Chromium, with all it complained of and asked for, and how long until its charts were drawn."""

    def __init__(self, browser: Any, path: Path, width: int = 1200, scheme: str = "light") -> None:
        self.page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(path.resolve().as_uri())
        self.page.wait_for_selector("html[data-ready]", timeout=20_000)
        self.ms = self.page.evaluate("performance.getEntriesByName('ready')[0].startTime")

    def style(self, selector: str, name: str) -> str:
        script = "([s, n]) => getComputedStyle(document.querySelector(s)).getPropertyValue(n)"
        return str(self.page.evaluate(script, [selector, name]))

    def overflow(self) -> int:
        return int(self.page.evaluate("document.documentElement.scrollWidth - innerWidth"))


@pytest.mark.alone
@pytest.mark.parametrize(("width", "scheme"), [(1200, "light"), (360, "light"), (1200, "dark")])
def test_chromium_shows_every_chart_soon_and_asks_for_nothing(browser: Any, gem: Path, width: int, scheme: str) -> None:
    opened = Opened(browser, gem, width, scheme)
    assert opened.complaints == []
    assert opened.requests == [gem.resolve().as_uri()]
    assert opened.page.locator(".chart").count() == 4
    for name in ("search", "training", "checks", "layers"):
        box = opened.page.locator(f"#{name} .main-svg").first.bounding_box()
        assert box["width"] > 0.75 * min(width, 900)
        assert box["x"] + box["width"] <= width
    assert opened.overflow() <= 0
    if opened.ms > 3000:  # once more: other work on the machine is not the page's fault
        opened.ms = Opened(browser, gem, width, scheme).ms
    assert opened.ms < 3000
    dark = opened.style("body", "background-color") == "rgb(19, 21, 25)"
    assert dark == (scheme == "dark")
    # tick labels: the muted colour of the scheme, so charts are readable on the page's own background
    label = opened.style("#search .xtick text", "fill")
    assert label == ("rgb(163, 170, 181)" if dark else "rgb(90, 96, 107)")
    opened.page.close()


def test_chromium_follows_the_scheme_hovers_and_prints(browser: Any, gem: Path) -> None:
    opened = Opened(browser, gem)
    page = opened.page
    page.locator("#layers").scroll_into_view_if_needed()
    box = page.locator("#layers .bars path").first.bounding_box()
    page.mouse.move(box["x"] + box["width"] - 20, box["y"] + box["height"] / 2)
    page.wait_for_selector("#layers .hoverlayer .hovertext")
    assert "37 of 144 weights kept" in page.locator("#layers .hoverlayer").text_content()
    page.emulate_media(color_scheme="dark")
    settle(page, "getComputedStyle(document.querySelector('#search .xtick text')).fill == 'rgb(163, 170, 181)'")
    page.evaluate(
        """addEventListener("beforeprint", () => { window.printed = {
            folded: document.querySelectorAll("details:not([open])").length,
            background: getComputedStyle(document.body).backgroundColor,
            width: Math.max(...[...document.querySelectorAll(".main-svg")].map((s) => s.clientWidth)) }; })"""
    )
    assert page.pdf(format="A4")[:4] == b"%PDF"
    printed = page.evaluate("window.printed")
    assert printed["folded"] == 0
    assert printed["background"] == "rgb(255, 255, 255)"
    assert 500 < printed["width"] <= 688, "A4 less 14 mm on each side is 688 CSS pixels"
    assert opened.style("body", "background-color") == "rgb(19, 21, 25)", "the screen gets its colours back"
    assert opened.complaints == []
    page.close()


def test_chromium_survives_hostile_names_and_failures(browser: Any, tmp_path: Path) -> None:
    layers = fake_layers()
    layers[3] |= {"name": HOSTILE * 3}
    layers[9] |= {"kept": 0, "density": 0.0, "dead_filters": 32}
    one = make_run(
        tmp_path / "one",
        layers=layers,
        method=HOSTILE,
        metric=HOSTILE,
        checks={HOSTILE: fake_checks()["erk"]},
    )
    two = make_run(tmp_path / "two", metrics=False, checks=None, accuracy={"after": 0.5})
    for path in (write(one), report([one, two])):
        opened = Opened(browser, path, width=360)
        assert opened.complaints == []
        assert opened.overflow() <= 0
        assert opened.page.locator("img").count() == 0
        opened.page.close()
