"""gemminer score from the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gemminer.cli import main
from gemminer.training.scores import Scores

ASKED = ["score", "--model", "lenet-300-100", "--model-option", "width=0.1", "--limit-train", "120", "--device", "cpu"]
ASKED += ["--runs", "2", "--epochs", "1", "-t", "lr=0.1", "-q"]


def test_score_writes_a_file_and_says_what_it_took(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "s.safetensors"
    assert main([*ASKED, "--out", str(out), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    scores = Scores.load(out)
    assert said["checksum"] == scores.checksum
    assert (said["kind"], said["runs"], said["examples"], said["cost"]["epochs"]) == ("el2n", 2, 108, 2)
    assert main([*ASKED, "--out", str(out)]) == 0
    assert "Scores(el2n of 108 examples, 2 networks after 1 epochs), 2 epochs of training" in capsys.readouterr().out
    assert main([*ASKED, "--out", str(out), "--kind", "loss"]) == 2
    assert "holds other scores (kind: el2n there, loss here)" in capsys.readouterr().err


def test_scores_of_untrained_networks_are_not_offered(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*ASKED, "--epochs", "0", "--out", str(tmp_path / "s")]) == 2
    assert "untrained networks follow the norm of the input and do not reproduce" in capsys.readouterr().err
    assert main([*ASKED, "--kind", "el2", "--out", str(tmp_path / "s")]) == 2
    assert "did you mean 'el2n'" in capsys.readouterr().err
    assert not (tmp_path / "s").exists()
