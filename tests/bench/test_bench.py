"""The benchmarks print what machines need; their figures are not judged here."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from gemminer.cli import main

ROOT = Path(__file__).parents[2]

FIELDS = {"bench", "model", "density", "batch", "baseline", "ratio", "low", "high", "runs", "device", "versions"}


def lines(capsys: pytest.CaptureFixture[str], *argv: str) -> list[dict]:
    """What `gemminer bench` prints for LeNet-300-100."""
    assert main(["bench", *argv, "--model", "lenet-300-100", "--batch-size", "8", "--runs", "2", "--json"]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


@pytest.mark.parametrize(
    ("argv", "baselines"),
    [
        (["search"], ["dense NCHW", "fastest of dense NCHW"]),
        (["train", "--no-memory"], ["dense NCHW", "fastest of dense NCHW"]),
        (
            ["infer", "--no-compile"],
            ["PyTorch eager", "scipy CSR", "onnxruntime", "fastest of PyTorch eager and onnxruntime"],
        ),
        (["end-to-end", "--epochs", "1", "--examples", "16"], ["dense training", "imp"]),
    ],
    ids=lambda value: value[0],
)
def test_a_benchmark_prints_an_object_a_line(
    argv: list[str], baselines: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    found = lines(capsys, *argv)
    assert [line["baseline"] for line in found] == baselines
    for line in found:
        assert set(line) >= FIELDS
        assert (line["bench"], line["model"], line["batch"], line["runs"]) == (argv[0], "lenet-300-100", 8, 2)
        assert 0 < line["low"] <= line["ratio"] <= line["high"]


def test_every_batch_size_asked_for_is_measured(capsys: pytest.CaptureFixture[str]) -> None:
    sizes = {line["batch"] for line in lines(capsys, "infer", "--no-compile", "--batch-size", "1")}
    assert sizes == {1, 8}


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["serch"], "did you mean 'search'"),
        (["search", "--model", "conv-2"], "no benchmark of 'conv-2'"),
        (["train", "--batch-size", "1"], "a training step needs a batch size of 2 or more, not 1"),
        (["infer", "--batch-size", "0"], "batch must be 1 or more, not 0"),
        (["end-to-end", "--batch-size", "64", "--examples", "64"], "examples must be two batches or more, 128, not 64"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_what_cannot_be_measured(argv: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", *argv]) == 2
    assert said in capsys.readouterr().err


def test_contestants_of_other_environments_take_turns() -> None:
    """Another version's package, another Python; what does not start is named and left out."""
    asked = ["ours", "dense:bf16", f"before=ours@{ROOT}", f"same=ours@{sys.executable}", "ours@/nowhere/python"]
    sizes = ["--batch", "16", "--threads", "1", "--rounds", "2", "--steps", "2", "--dry"]
    command = [sys.executable, "benchmarks/turns.py", "train", "lenet-300-100", *asked, *sizes]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in done.stdout.splitlines()[2:]]
    assert [row[4] for row in rows] == ["ours", "dense:bf16", "before", "same"]
    assert len({row[7] for row in rows if row[4] != "dense:bf16"}) == 1  # the same losses: the same network and ticket
    assert all(float(row[5]) > 0 for row in rows)
    assert "ours was left out: [Errno 2]" in done.stderr
