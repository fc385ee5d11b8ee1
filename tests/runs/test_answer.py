"""The answer's figures as text and as a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gemminer.core.errors import GemminerError, UsageError
from gemminer.runs import answer, saying
from gemminer.runs.answer import Probe, Question, Smallest, Spread


def probe(**changes: Any) -> Probe:
    spread = Spread(values=(0.97, 0.98, 0.96), mean=0.97, std=0.01)
    fields = {"density": 0.0313, "kept": 1571, "validation": spread, "difference": -0.002, "std": 0.001}
    return Probe(**fields | {"low": -0.004, "high": 0.001, "verdict": "within", "bytes": 9100} | changes)


def found(**changes: Any) -> Smallest:
    dense = Spread(values=(0.972, 0.973, 0.971), mean=0.972, std=0.001)
    fields = {"question": Question(within=0.5), "verdict": "within", "sentence": "It does.", "prunable": 50_200}
    fields |= {"probes": [probe()], "ladder": (0.5, 0.0313), "dense": dense, "validation_examples": 288}
    return Smallest(**fields | {"method": "snip", "model": "net", "data": "digits", "seed": 0} | changes)


@pytest.mark.parametrize(("text", "count"), [("60KB", 60_000), ("60 kib", 61_440), (800, 800), ("2MB", 2_000_000)])
def test_sizes_are_read(text: Any, count: int) -> None:
    assert answer.bytes_of(text) == count


@pytest.mark.parametrize("text", ["60XB", "", "-3KB", True, 0, "KB", None, 0.2])
def test_what_is_no_size_is_refused(text: Any) -> None:
    with pytest.raises(UsageError, match="size is bytes"):
        answer.bytes_of(text)


@pytest.mark.parametrize("within", [-1, True, "a lot", float("nan"), float("inf")])
def test_what_may_be_lost_is_a_number(within: Any) -> None:
    with pytest.raises(UsageError, match="within is what may be lost"):
        answer.question(within, None, 3)


def test_points_are_of_accuracies_alone() -> None:
    assert Question(within=0.5).margin("accuracy") == 0.005
    assert Question(within=0.5).margin("minus loss") == 0.5


def test_an_answer_is_read_back(tmp_path: Path) -> None:
    found().save(tmp_path / "smallest.json")
    again = answer.read(tmp_path)
    assert again.model_dump() == found().model_dump()
    assert again.folder == tmp_path


@pytest.mark.parametrize("text", ["", "[1]", '{"schema": "gemminer.smallest/2"}', '{"schema": "gemminer.smallest/1"}'])
def test_a_bad_file_is_one_sentence(tmp_path: Path, text: str) -> None:
    (tmp_path / "smallest.json").write_text(text)
    with pytest.raises(GemminerError):
        answer.read(tmp_path)
    with pytest.raises(GemminerError, match="pass the folder of an answer"):
        answer.read(tmp_path / "nowhere.json")


def test_texts_have_every_density() -> None:
    assert len(repr(found())) < 80
    lines = str(found()).splitlines()
    assert lines[0] == "It does."
    assert lines[-1].split() == [
        *("3.13%", "1,571", "97.00%", "±", "1.00", "−0.20", "(at", "least", "−0.40)", "9.1", "KB", "within")
    ]
    assert "&lt;" in found(sentence="<b>")._repr_html_()


SAID = {
    "within": "3.13% of the weights (1,571) stay within 0.5 points of the dense network, and its program of 9.1 KB "
    "fits into 10 KB.",
    "undecided": "Undecided: 3.13% of the weights (1,571) may stay within 0.5 points of the dense network",
    "none": "No density looked at stays within 0.5 points of the dense network: even 3.13%",
    "too large": "No ticket is both: the sparsest within 0.5 points of the dense network keeps 3.13%",
}


@pytest.mark.parametrize("verdict", SAID)
def test_each_verdict_has_its_sentence(verdict: str) -> None:
    asked = Question(within=0.5, size=10_000)
    said = saying.sentence(verdict, asked, probe(), metric="accuracy", last=False, denser=None)
    assert said.startswith(SAID[verdict])


def test_a_size_alone_says_what_the_next_denser_one_has() -> None:
    asked = Question(size=10_000)
    said = saying.sentence("fits", asked, probe(), metric="accuracy", last=False, denser=12_400)
    assert said.endswith("fit into 10 KB: the program has 9.1 KB; the next denser one has about 12.4 KB.")
    said = saying.sentence("none", asked, probe(), metric="accuracy", last=True, denser=None)
    assert said.startswith("No program fits into 10 KB")


def test_undecided_says_what_decides() -> None:
    said = saying.evidence("undecided", probe(), dense=Spread(mean=0.972), metric="accuracy")
    assert said == (
        "Validation accuracy 97.00%, dense 97.20%: −0.20 ± 0.10 points over 3 seeds; at 95% no less than −0.40, no "
        "more than +0.10; more seeds (--seeds) or more validation data decide it."
    )


def test_few_validation_examples_are_said() -> None:
    said = saying.resolution(288, Question(within=0.5), "accuracy")
    assert said is not None
    assert said.startswith("there are 288 validation examples, each worth 0.35 points, of 0.5 that may be lost")
    assert saying.resolution(10_000, Question(within=0.5), "accuracy") is None
    assert saying.resolution(288, Question(within=0.5), "minus loss") is None
