"""The page of an answer: the sentence, every density, charts, the files; offline, from smallest.json alone."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

import gemminer
from gemminer.core.errors import GemminerError, UsageError
from gemminer.reporting import smallest_page
from gemminer.runs.answer import Probe, Question, Smallest, Spread
from tests.reporting.reader import HOSTILE
from tests.reporting.test_page_in_browser import Opened, browser

__all__ = ["browser"]  # a fixture


def spread(*values: float) -> Spread:
    return Spread(values=values, mean=sum(values) / len(values), std=0.002 if len(values) > 1 else 0.0)


def probe(density: float, *values: float, **changes: Any) -> Probe:
    far = spread(*values).mean - 0.98  # type: ignore[operator]
    fields = {"density": density, "kept": round(268_048 * density), "validation": spread(*values), "difference": far}
    bounds = {"std": 0.002, "low": far - 0.001, "high": far + 0.001} if len(values) > 1 else {}
    size = {"bytes": round(1e6 * density), "latency": 1e-3 * density, "seconds": 12.0}
    return Probe(**fields | bounds | size | {"verdict": "looks within"} | changes)


def an_answer(folder: Path, **changes: Any) -> Path:
    folder.mkdir()
    probes = [probe(0.125, 0.981), probe(0.0313, 0.98, 0.979, 0.978, verdict="within", chosen=True)]
    probes.append(probe(0.00781, 0.95, verdict="looks not within"))
    fields = {"question": Question(within=0.5), "verdict": "within", "sentence": "3.13% of the weights stay near."}
    fields |= {"evidence": "Validation accuracy 97.90%.", "prunable": 268_048, "probes": probes}
    fields |= {"ladder": (0.125, 0.0313, 0.00781), "dense": spread(0.981, 0.98, 0.979), "dense_latency": 1e-3}
    fields |= {"test": spread(0.97, 0.971, 0.972), "dense_test": spread(0.97, 0.972, 0.974)}
    fields |= {"files": {"ticket.safetensors": 5000, "program.safetensors": 31_300}, "validation_examples": 288}
    fields |= {"method": "gem-miner", "model": "resnet20", "data": "digits", "seed": 0, "density": 0.0313}
    Smallest(**fields | changes).save(folder / "smallest.json")
    return smallest_page.write(folder)


def test_a_page_says_what_was_found(tmp_path: Path) -> None:
    text = an_answer(tmp_path / "gem").read_text(encoding="utf-8")
    for said in (
        "<h1>3.13% of the weights stay near.</h1>",
        "Validation accuracy 97.90%.",
        "8,390 of 268,048 weights kept",
        "97.90%",
        "31.3 KB",
        '<a href="program.safetensors">',
        "looks not within",
        "within 0.5 points",
    ):
        assert said in text, said
    assert "gemminer</title>" in text
    found = re.search(r'id="figures">(.*?)</script>', text)
    assert found is not None
    figures = json.loads(found[1])
    assert set(figures) == {"density", "size", "latency"}
    band = figures["density"]["layout"]["shapes"][0]
    assert (band["y0"], band["y1"]) == (pytest.approx(0.975), pytest.approx(0.98))
    seeds, means = figures["density"]["data"]
    assert seeds["x"] == [0.125, 0.0313, 0.0313, 0.0313, 0.00781]
    assert means["y"][1] == pytest.approx(0.979)
    assert figures["size"]["data"][1]["x"] == [125.0, 31.3, 7.81]


def test_without_an_answer_or_a_program_the_page_says_so(tmp_path: Path) -> None:
    none = {"verdict": "none", "files": {}, "density": None, "test": None, "probes": [probe(0.125, 0.5, bytes=None)]}
    none["probes"][0].latency = None
    text = an_answer(tmp_path / "gem", **none).read_text(encoding="utf-8")
    assert "Nothing answers the question" in text
    assert "Against size" not in text


def test_names_are_no_markup(tmp_path: Path) -> None:
    text = an_answer(tmp_path / "gem", model=HOSTILE, sentence=HOSTILE, notes=[HOSTILE]).read_text(encoding="utf-8")
    assert HOSTILE not in text


def test_a_run_is_not_drawn_over_it(tmp_path: Path) -> None:
    page = an_answer(tmp_path / "gem")
    before = page.read_text(encoding="utf-8")
    with pytest.raises(UsageError, match="holds an answer of gemminer smallest"):
        gemminer.report(tmp_path / "gem")
    assert page.read_text(encoding="utf-8") == before


def test_a_folder_without_an_answer_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(GemminerError, match="pass the folder of an answer"):
        smallest_page.write(tmp_path)


@pytest.mark.parametrize(("width", "scheme"), [(1200, "light"), (360, "dark")])
def test_chromium_shows_every_chart_and_asks_for_nothing(browser: Any, tmp_path: Path, width: int, scheme: str) -> None:
    opened = Opened(browser, an_answer(tmp_path / "gem"), width, scheme)
    assert opened.page.locator(".chart .main-svg").count() >= 3
    assert opened.complaints == []
    assert [url for url in opened.requests if not url.startswith(("file:", "data:"))] == []
    assert opened.overflow() <= 0
    opened.page.close()
