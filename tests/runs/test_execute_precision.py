"""Precision, accumulation and clipping from the command line and recipe files, as far as the record and the page."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import gemminer
from gemminer.cli import main
from gemminer.runs import record
from gemminer.runs.compare import plan, run_cells
from gemminer.runs.recipe import Recipe
from gemminer.training.precision import native

TINY = ["--model", "lenet-300-100", "--model-option", "width=0.1", "--density", "0.1", "--epochs", "2", "--no-checks"]
TINY += ["--train-epochs", "2", "--limit-train", "100", "--batch-size", "32", "--device", "cpu", "--threads", "1"]
ASKED = ["--precision", "bf16", "--accumulate", "2", "--max-norm", "0.5", "-o", "max_norm=0.1"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("precision") / "run"
    assert main(["mine", *TINY, *ASKED, "--out", str(out)]) == 0
    return out


def test_the_record_and_the_page_say_them(run: Path) -> None:
    found = record.read(run)
    assert (found.precision, found.accumulate) == ("bf16", 2)
    asked = {"precision": "bf16", "accumulate": 2, "train": {"max_norm": 0.5}, "options": {"max_norm": 0.1}}
    assert {name: found.recipe[name] for name in asked} == asked
    assert found.rates["train:0"].max_norm == found.rates["dense"].max_norm == 0.5
    assert found.options["max_norm"] == 0.1
    assert sum("emulates bf16" in note for note in found.notes) == (not native())
    facts = gemminer.Ticket.load(run / "ticket.safetensors").provenance
    assert (facts["precision"], facts["accumulate"]) == ("bf16", 2)
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "batches a step" in page
    assert "bf16" in page
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if row["phase"] == "search"] == [2, 4]  # 90 examples: 2 steps of 64


def test_the_first_line_says_them(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["mine", *TINY, *ASKED, "--no-dense", "--out", str(tmp_path / "run")]) == 0
    assert ", 2 of training, bf16, steps of 2 batches, seed 0" in capsys.readouterr().err.splitlines()[0]


def test_a_ticket_is_trained_as_its_record_says(run: Path, tmp_path: Path) -> None:
    trained = {}
    for name, argv in {"as it was": (), "fp32": ("--precision", "fp32"), "each": ("--accumulate", "1")}.items():
        assert main(["train", str(run), "--out", str(tmp_path / name), "--threads", "1", *argv]) == 0
        trained[name] = (tmp_path / name).read_bytes()
    assert trained["as it was"] == (run / "trained.safetensors").read_bytes()
    assert len(set(trained.values())) == 3


def test_fields_of_a_recipe_and_its_identity(tmp_path: Path) -> None:
    assert Recipe().digest == Recipe(precision="fp32", accumulate=1).digest
    assert len({Recipe().digest, Recipe(precision="bf16").digest, Recipe(accumulate=2).digest}) == 3
    file = tmp_path / "r.toml"
    file.write_text('precision = "bf16"\naccumulate = 4\ntrain = {max_norm = 1.0}\n')
    assert main(["recipes", str(file)]) == 0


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--precision", "fp16"], "precision"),
        (["--accumulate", "0"], "accumulate"),
        (["--accumulate", "1.5"], "--accumulate"),
        (["--max-norm", "0"], "max_norm, the longest gradient, must be above 0"),
    ],
)
@pytest.mark.parametrize("command", ["mine", "compare"])
def test_what_cannot_be_is_one_sentence(
    command: str, flags: list[str], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([command, "--model", "lenet-300-100", *flags, "--out", str(tmp_path / "new")]) == 2
    said = capsys.readouterr().err
    assert sentence in said
    assert "Traceback" not in said
    assert not (tmp_path / "new").exists()


def test_a_comparison_runs_in_them(tmp_path: Path) -> None:
    fields = {"model": "lenet-300-100", "model_options": {"width": 0.1}, "limit_train": 100, "batch_size": 32}
    fields |= {"density": 0.1, "epochs": 1, "train_epochs": 1, "checks": (), "precision": "bf16", "accumulate": 2}
    outcome = run_cells(plan({**fields, "method": ["gem-miner", "snip"]}), tmp_path / "c", workers=0, threads=1)
    assert outcome.failures == {}
    assert {(r.precision, r.accumulate) for r in outcome.records.values()} == {("bf16", 2)}
