"""Comparisons: nothing is run twice, and nothing is lost when one is killed."""

from __future__ import annotations

import contextlib
import csv
import itertools
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gemminer import api, cli
from gemminer.core.errors import GemminerError
from gemminer.runs import compare, execute, record
from gemminer.runs.folder import Busy
from gemminer.runs.grid import Cell
from gemminer.runs.watch import Watch
from tests.runs.helpers import plan


def read(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


# --- a comparison ------------------------------------------------------------------------------------------------


class Log(Watch):
    """What was told, in words."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def started(self, cell: Cell) -> None:
        self.lines.append(f"started {cell.label} {cell.recipe.seed}")

    def failed(self, cell: Cell, sentence: str) -> None:
        self.lines.append(f"failed {cell.label} {cell.recipe.seed}: {sentence}")


def test_finished_cells_are_skipped_and_failed_ones_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, run_recipe = plan(method=["uniform", "snip"], checks=["shuffle"]), execute.run_recipe

    def broken(recipe: Any, *args: Any, **more: Any) -> Any:
        if recipe.method == "snip":
            raise ZeroDivisionError("a bug")
        return run_recipe(recipe, *args, **more)

    monkeypatch.setattr(execute, "run_recipe", broken)
    log = Log()
    first = api.compare(asked, tmp_path, workers=0, threads=1, watch=log)
    assert log.lines[:2] == ["started dense 0", "started uniform 0"]
    assert log.lines[-1] == "failed snip 0: ZeroDivisionError: a bug"
    assert (len(first.records), len(first.failures)) == (2, 1)
    assert "2 of 3 cells are finished, 1 failed" in first.sentence()
    digest = next(c.digest for c in asked.cells() if c.label == "snip")
    error = json.loads((tmp_path / "cells" / digest / "error.json").read_text())
    assert error["error"] == "ZeroDivisionError: a bug"
    assert "Traceback" in error["traceback"]
    assert [row["status"] for row in read(tmp_path / "table.csv")] == ["finished", "finished", "failed"]

    monkeypatch.setattr(execute, "run_recipe", run_recipe)
    before = {d: (tmp_path / "cells" / d / "record.json").stat().st_mtime_ns for d in first.records}
    log = Log()
    second = api.compare(asked, tmp_path, workers=0, watch=log)
    assert log.lines == ["started snip 0"]
    assert not second.failures
    assert not (tmp_path / "cells" / digest / "error.json").exists()
    assert before == {d: (tmp_path / "cells" / d / "record.json").stat().st_mtime_ns for d in before}
    rows = read(tmp_path / "table.csv")
    assert [(row["method"], row["status"]) for row in rows] == [
        ("dense", "finished"),
        ("uniform", "finished"),
        ("snip", "finished"),
    ]
    # The rows say what the records say.
    snip = record.read(tmp_path / "cells" / digest)
    assert float(rows[2]["after"]) == snip.accuracy.after
    assert float(rows[2]["shuffle_difference"]) == snip.checks["shuffle"].difference
    assert rows[0]["shuffle"] == ""
    assert (tmp_path / "report.html").stat().st_size > 0
    assert not list(tmp_path.glob("cells/*/report.html"))  # 4.9 MB each
    assert not (tmp_path / "report.csv").exists()
    links = re.findall(r'href="([^"]*\.(?:csv|md))"', (tmp_path / "report.html").read_text(encoding="utf-8"))
    assert links == ["table.csv", "summary.csv", "table.md"]
    assert all((tmp_path / link).exists() for link in links)
    assert json.loads((tmp_path / "compare.json").read_text())["threads"] == 1  # kept from the first call


def test_a_larger_grid_in_the_same_folder_runs_only_what_is_new(tmp_path: Path) -> None:
    api.compare(plan(method="uniform", checks=[], dense=False), tmp_path, workers=0, threads=1)
    log = Log()
    api.compare(plan(method="uniform", checks=[], dense=False, seed="0-1"), tmp_path, workers=0, watch=log)
    assert log.lines == ["started uniform 1"]
    assert [row["seed"] for row in read(tmp_path / "table.csv")] == ["0", "1"]


def test_a_cell_goes_on_with_the_step_it_was_stopped_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compare, "time", types.SimpleNamespace(monotonic=itertools.count().__next__))  # tells all
    (cell,) = plan(method="gem-miner", dense=False).cells()
    job, told = compare.Job(cell.recipe, tmp_path, 1, "cpu", "auto", None), list[str]()

    def stop(text: str) -> None:
        if text.startswith("check:reinit"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compare.run_cell(job, stop)
    assert compare.finished(cell, tmp_path) is None
    compare.run_cell(job, told.append)
    assert told == ["check:reinit:0 1/1", "check:invert:search 1/1", "check:invert:0 1/1"]
    assert compare.finished(cell, tmp_path) is not None


def test_a_damaged_record_is_made_again(tmp_path: Path) -> None:
    asked = plan(method="uniform", checks=[], dense=False)
    first = api.compare(asked, tmp_path, workers=0, threads=1)
    table = (tmp_path / "table.csv").read_bytes()
    path = tmp_path / "cells" / next(iter(first.records)) / "record.json"
    path.write_text(path.read_text()[:200])
    log = Log()
    api.compare(asked, tmp_path, workers=0, watch=log)
    assert log.lines == ["started uniform 0"]
    assert (tmp_path / "table.csv").read_bytes() == table


def test_a_cell_of_another_process_is_left_to_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def busy(*args: Any, **more: Any) -> None:
        raise Busy("another process is running in X")

    monkeypatch.setattr(execute, "run_recipe", busy)
    asked = plan(method="uniform", checks=[], dense=False)
    outcome = api.compare(asked, tmp_path, workers=0, threads=1)
    assert list(outcome.failures.values()) == ["another process is running in X"]
    assert not list(tmp_path.glob("cells/*/error.json"))


def test_data_that_no_cell_can_read_stops_the_comparison(tmp_path: Path) -> None:
    with pytest.raises(GemminerError):
        api.compare(plan(data=f"folder:{tmp_path / 'none'}"), tmp_path / "out", workers=0)
    assert not (tmp_path / "out").exists()


FLAGS = ["compare", "--model", "lenet-300-100", "--data", "digits", "--limit-train", "300", "--threads", "1"]


def test_dry_run_prints_cells_and_costs_and_runs_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    flags = [*FLAGS, "-m", "gem-miner,imp", "-d", "0.1", "--seed", "0-1", "--epochs", "3", "--out", str(out)]
    assert cli.main([*flags, "--dry-run"]) == 0
    text = capsys.readouterr().out
    assert "6 cells" in text
    assert "nothing was run" in text
    assert cli.main([*flags, "--dry-run", "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(r["method"], r["search"], r["training"], r["checks"]) for r in rows[::2]] == [
        ("dense", 0, 3, 0),
        ("gem-miner", 3, 12, 3),
        ("imp", 30, 12, 30),
    ]
    assert sum(r["share"] for r in rows) == pytest.approx(1)
    assert not out.exists()


def test_command_line_counts_failures_and_exits_with_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = [*FLAGS, "-m", "uniform", "-d", "0.1,1e-7", "--epochs", "1", "--no-checks", "--no-dense"]
    flags += ["--out", str(tmp_path), "--workers", "0", "--json"]
    assert cli.main(flags) == 1
    shown = capsys.readouterr()
    good, bad, end = (json.loads(line) for line in shown.out.splitlines())
    assert (good["status"], bad["status"]) == ("finished", "failed")
    assert "keeps none" in bad["error"]
    assert (end["finished"], len(end["failed"])) == (1, 1)
    assert "1 of 2 cells are finished, 1 failed" in shown.err
    assert cli.main([*flags[: flags.index("-d")], "-d", "0.1", *flags[flags.index("-d") + 2 :]]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[0])["status"] == "skipped"
    assert cli.main([*FLAGS, "-m", "snp", "--out", str(tmp_path)]) == 2
    assert "did you mean 'snip'" in capsys.readouterr().err


# --- killed ------------------------------------------------------------------------------------------------------


# Long enough that not all cells end while a busy machine keeps the test from its signal.
SURVIVE = ["-m", "gem-miner,imp,snip,erk", "-d", "0.1", "--seed", "0-1", "--epochs", "12"]


@contextlib.contextmanager
def started(out: Path, workers: int) -> Iterator[subprocess.Popen[str]]:
    """The comparison as a program, in a process group of its own."""
    command = [sys.executable, "-m", "gemminer.cli", *FLAGS, *SURVIVE, "--out", str(out), "--workers", str(workers)]
    environment = {**os.environ, "GEMMINER_CHECKPOINT_SECONDS": "0", "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def workers_of(pid: int) -> list[int]:
    """The processes of a session that are still there; process `pid` began it."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            name, _, rest = stat.read_text().rpartition(")")
            state, _, _, session = rest.split()[:4]
            if int(session) == pid and state not in "ZX":
                found.append(int(name.split()[0]))
    return found


def wait_for(process: subprocess.Popen[str], wanted: str) -> str:
    """The first line of the program's output with `wanted` in it."""
    assert process.stdout is not None
    before = []
    for line in process.stdout:
        if wanted in line:
            return line
        before.append(line)
    raise AssertionError(f"it ended with code {process.wait()} and no line with {wanted!r}: {''.join(before[-20:])}")


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for the workers in /proc")
def test_killed_and_restarted_gives_the_same_table_bit_for_bit(tmp_path: Path) -> None:
    fields = {"method": ["gem-miner", "imp", "snip", "erk"], "seed": "0-1", "epochs": 12}
    whole = api.compare(plan(**fields), tmp_path / "whole", workers=0, threads=1)
    assert len(whole.records) == 10

    out, delay = tmp_path / "killed", random.Random(0)
    halves = 0
    for how in (signal.SIGKILL, signal.SIGINT, signal.SIGKILL):
        with started(out, workers=2) as process:
            assert wait_for(process, "left")  # a cell is finished, two are running
            time.sleep(delay.uniform(0, 0.3))
            if how == signal.SIGINT:
                os.killpg(process.pid, how)  # as a terminal does, to the workers too
                assert "cells done; the same command goes on from there" in wait_for(process, "stopped")
                assert process.wait(20) == 130
            else:
                process.send_signal(how)
                process.wait()
            last = time.monotonic() + 10
            while workers_of(process.pid) and time.monotonic() < last:
                time.sleep(0.05)
            assert not workers_of(process.pid)
        halves += sum(not (cell / "record.json").exists() for cell in out.glob("cells/*"))
    assert halves >= 3  # else nothing was interrupted
    with started(out, workers=2) as process:
        assert "finished before" in wait_for(process, "finished before")
        assert wait_for(process, "report.html")
        assert process.wait() == 0
    for name in ("table.csv", "table.md", "summary.csv"):
        assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert not list(out.glob("cells/*/error.json"))
