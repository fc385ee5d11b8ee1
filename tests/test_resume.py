"""Killed at any point, nothing is lost: SIGKILL at random moments, and the same bits in the end."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from gemminer.core.ticket import Ticket
from gemminer.runs import record

MINE = ["mine", "--model", "lenet-300-100", "--data", "digits", "--density", "0.05", "--epochs", "8"]
MINE += ["--train-epochs", "4", "--check-seeds", "1", "--device", "cpu", "--threads", "1"]

KILLS = 24
PHASES = ["start", "search", "training", "checks"]
PLAN = ["start", "search", "search", "training", "training", "checks", "checks", "checks"]  # a run's kills
FILES = {"ticket.safetensors", "trained.safetensors", "record.json", "metrics.jsonl", "report.html", "state"}


def _mine(out: str, log: str, *more: str) -> None:
    """In a process of its own: the command, its words in a file."""
    with Path(log).open("a", encoding="utf-8") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        from gemminer.cli import main

        sys.exit(main([*MINE, "--out", out, *more]))


def _context() -> Any:
    """Processes forked from a server that has imported everything and run nothing: they begin at once."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["gemminer.cli", "gemminer.runs.execute", "sklearn.datasets", "test_resume"])
    return context


def _where(out: Path) -> str:
    """The phase of a run, by what it has finished."""
    if not (out / "state" / "search.pt").exists() and not (out / "state" / "steps.jsonl").exists():
        return "start"
    text = (out / "state" / "steps.jsonl").read_text() if (out / "state" / "steps.jsonl").exists() else ""
    done = [json.loads(line)["step"] for line in text.splitlines() if line.endswith("}}")]
    return "checks" if "dense" in done else "training" if "search" in done else "search"


def _rows(out: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows]


def _same(out: Path, straight: Path) -> None:
    """All that two runs have computed is the same, bit for bit."""
    assert Ticket.load(out / "ticket.safetensors") == Ticket.load(straight / "ticket.safetensors")
    for name in ("ticket.safetensors", "trained.safetensors", "state/inverted.safetensors"):
        ours, theirs = load_file(out / name), load_file(straight / name)
        assert set(ours) == set(theirs)
        for key, tensor in ours.items():
            assert torch.equal(tensor.reshape(-1).view(torch.uint8), theirs[key].reshape(-1).view(torch.uint8)), key
    ours, theirs = record.read(out), record.read(straight)
    for found in (ours, theirs):
        for cost in found.cost.values():
            cost.seconds = 0.0
    leave = {"created", "command", "hardware"}
    assert ours.model_dump(exclude=leave) == theirs.model_dump(exclude=leave)
    assert _rows(out) == _rows(straight)  # every epoch once, in order
    assert {p.name for p in out.iterdir()} == FILES  # nothing half-written is left
    assert not list((out / "state").glob("*.pt"))


@pytest.mark.slow
def test_killed_at_random_moments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At least 24 times, in the search, the trainings and the checks, over as many runs as that takes."""
    monkeypatch.setenv("GEMMINER_CHECKPOINT_SECONDS", "0")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    context, source = _context(), random.Random(0)
    straight, log = tmp_path / "straight", tmp_path / "log"
    took = []
    for out in (tmp_path / "warm", straight):
        process = context.Process(target=_mine, args=(str(out), str(log)))
        begun = time.monotonic()
        process.start()
        process.join(120)
        assert process.exitcode == 0, log.read_text()
        took.append(time.monotonic() - begun)
    _same(tmp_path / "warm", straight)  # without a kill two runs are the same, too

    killed: Counter[str] = Counter()
    finished, span, limit = 0, took[1] / 20, time.monotonic() + 240
    while sum(killed.values()) < KILLS:
        out = tmp_path / f"run{finished}"
        for goal in [*PLAN, None]:  # the last one may end
            process = context.Process(target=_mine, args=(str(out), str(log), "--resume"))
            process.start()
            while goal and process.exitcode is None and PHASES.index(_where(out)) < PHASES.index(goal):
                assert time.monotonic() < limit, f"not done in time: {killed} in {finished} runs"
                process.join(0.005)
            process.join(source.uniform(0.0, span) if goal else 120)
            process.kill()
            process.join()
            if process.exitcode != -9:  # it was done before
                assert process.exitcode == 0, log.read_text()[-2000:]
                break
            killed[_where(out)] += 1
        _same(out, straight)
        finished += 1
    print(f"killed {dict(killed)} in {finished} runs of {took[1]:.1f} s")
    assert min(killed[phase] for phase in PHASES[1:]) >= 3


@pytest.mark.slow
def test_the_command_itself_killed_and_resumed(tmp_path: Path) -> None:
    """The same with `python -m gemminer.cli`, as a person runs it, killed once its first epoch is on the disk."""
    command = [sys.executable, "-m", "gemminer.cli", *MINE, "--no-checks", "--no-dense"]
    environment = {**os.environ, "GEMMINER_CHECKPOINT_SECONDS": "0", "OMP_NUM_THREADS": "1"}
    out, straight = tmp_path / "killed", tmp_path / "straight"
    with subprocess.Popen([*command, "--out", str(out)], env=environment, stdout=subprocess.DEVNULL) as process:
        limit = time.monotonic() + 120
        while not (out / "state" / "search.pt").exists() and time.monotonic() < limit and process.poll() is None:
            time.sleep(0.002)
        process.kill()
    assert process.returncode == -9
    assert _where(out) != "start"
    assert not (out / "record.json").exists()
    said = []
    for folder, more in ((out, ["--resume"]), (straight, [])):
        again = [*command, "--out", str(folder), *more]
        done = subprocess.run(again, env=environment, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        said.append("resumed after epoch" in done.stdout)
    assert said == [True, False]
    assert _rows(out) == _rows(straight)
    for name in ("ticket.safetensors", "trained.safetensors"):
        assert (out / name).read_bytes() == (straight / name).read_bytes()
