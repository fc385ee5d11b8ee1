"""Comparisons: the grid, what it costs, and that nothing but a finished cell is ever skipped, lost or run twice."""

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
from gemminer.core.errors import GemminerError, UsageError
from gemminer.reporting import tables
from gemminer.runs import compare, estimate, execute, grid, record
from gemminer.runs.estimate import Facts, Forecast
from gemminer.runs.folder import Busy, Folder
from gemminer.runs.grid import Cell
from gemminer.runs.watch import Watch
from gemminer.runs.workers import Failure, Tell, _kernel_ends_us, _thread_ends_us, run_all

TINY = {"model": "lenet-300-100", "data": "digits", "epochs": 1, "limit_train": 300, "density": 0.1}


def plan(**fields: Any) -> grid.Grid:
    return compare.plan({**TINY, **fields})


def read(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


# --- the grid ----------------------------------------------------------------------------------------------------


def test_grid_is_every_combination_once_in_the_order_of_the_table() -> None:
    asked = plan(method=["snip", "imp:rewind=warm"], density=[0.1, 0.05], seed="0-1", dense=False)
    cells = asked.cells()
    seen = [(c.recipe.density, c.label, c.recipe.seed) for c in cells]
    assert seen == [(d, m, s) for d in (0.1, 0.05) for m in ("snip", "imp:rewind=warm") for s in (0, 1)]
    assert len({c.digest for c in cells}) == 8
    for cell in cells:
        assert cell.recipe.checks == ("shuffle", "reinit", "invert")
        assert (cell.recipe.check_seeds, cell.recipe.dense) == (1, False)
    assert cells[2].recipe.options == {"rewind": "warm"}


def test_dense_reference_is_a_cell_of_its_own_for_each_model_data_and_seed() -> None:
    cells = plan(model=["lenet-300-100", "conv-2"], density=[0.1, 0.05], seed=[0, 1]).cells()
    dense = [c for c in cells if c.label == "dense"]
    assert [(c.recipe.model, c.recipe.seed) for c in dense] == [
        (m, s) for m in ("lenet-300-100", "conv-2") for s in (0, 1)
    ]
    assert {(c.recipe.method, c.recipe.density, c.recipe.checks) for c in dense} == {("uniform", 1.0, ())}
    assert len(cells) == 4 + 2 * 2 * 2


def test_what_is_asked_twice_is_run_once() -> None:
    once = plan(method=["snip"], seed=[0], dense=False)
    twice = plan(method=["snip", "snip"], seed=[0, "0-0"], density=[0.1, 0.1], dense=False)
    assert twice.cells() == once.cells()
    # At density 1 there is nothing to check, and the dense reference is that same recipe.
    cells = plan(method=["uniform"], density=[1.0]).cells()
    assert [c.label for c in cells] == ["dense"]


def test_all_methods_are_one_word() -> None:
    from gemminer import methods

    assert plan(method="all").axes["method"] == methods.names()
    assert plan(method=["all", "imp:rewind=lr"]).axes["method"] == (*methods.names(), "imp:rewind=lr")


def test_options_by_method_and_label_reach_only_their_cells() -> None:
    cells = plan(method=["imp", "imp:rate=0.5", "snip"], options={"imp": {"rate": 0.3}}, dense=False).cells()
    assert [dict(c.recipe.options) for c in cells] == [{"rate": 0.3}, {"rate": 0.5}, {}]


PARTS = """
method = "all"
seed = "0-1"
[[parts]]
density = [0.1, 0.05]
method = ["snip", "erk"]
[[parts]]
density = 0.1
method = "imp"
seed = 4
checks = ["shuffle"]
"""


def test_several_grids_in_one_file(tmp_path: Path) -> None:
    path = tmp_path / "grid.toml"
    path.write_text(PARTS)
    found = plan(**grid.load(path), dense=False)
    seen = [(c.recipe.density, c.label, c.recipe.seed, len(c.recipe.checks)) for c in found.cells()]
    assert seen == [
        *((d, m, s, 3) for d in (0.1, 0.05) for m in ("snip", "erk") for s in (0, 1)),
        (0.1, "imp", 4, 1),
    ]
    # Written down and read again it is the same; a cell of two parts is run once.
    path.with_suffix(".json").write_text(json.dumps({"grid": found.as_fields(), "threads": 1}))
    assert compare.plan(grid.load(path.with_suffix(".json"))).cells() == found.cells()
    twice = plan(parts=[{"method": "snip"}, {"method": ["snip", "erk"]}], dense=False)
    assert [c.label for c in twice.cells()] == ["snip", "erk"]
    # A dense reference for the seeds of every part.
    assert [c.recipe.seed for c in plan(**grid.load(path)).cells() if c.label == "dense"] == [0, 1, 4]


def test_flags_reach_every_part_of_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "grid.toml"
    path.write_text(PARTS)
    flags = ["--model", "lenet-300-100", "--data", "digits", "--recipe", str(path), "--density", "0.2", "--no-dense"]
    command = [
        "compare",
        *flags,
        "--no-checks",
        "--train-option",
        "lr=0.05",
        "--out",
        str(tmp_path / "out"),
        "--dry-run",
        "--json",
    ]
    assert cli.main(command) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(r["method"], r["density"], r["seed"]) for r in rows if "method" in r] == [
        *((m, 0.2, s) for m in ("snip", "erk") for s in (0, 1)),
        ("imp", 0.2, 4),
    ]


@pytest.mark.parametrize("suffix", [".toml", ".json"])
def test_grid_from_a_file(tmp_path: Path, suffix: str) -> None:
    toml = 'method = ["gem-miner", "imp"]\ndensity = [0.1, 0.05]\nseed = "0-2"\nepochs = 3\n[options.imp]\nrate = 0.5\n'
    fields = {"method": ["gem-miner", "imp"], "density": [0.1, 0.05], "seed": [0, 1, 2], "epochs": 3}
    path = tmp_path / f"grid{suffix}"
    path.write_text(toml if suffix == ".toml" else json.dumps({**fields, "options": {"imp": {"rate": 0.5}}}))
    found = compare.plan(grid.load(path))
    assert found.cells() == compare.plan({**fields, "options": {"imp": {"rate": 0.5}}}).cells()
    assert len(found.cells()) == 3 + 2 * 2 * 3
    # What a comparison writes down of itself is such a file.
    path.with_name("compare.json").write_text(json.dumps({"grid": found.as_fields(), "threads": 1}))
    assert compare.plan(grid.load(path.with_name("compare.json"))).cells() == found.cells()


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"method": ["snp"]}, "did you mean 'snip'"),
        ({"model": ["resnet-20"]}, "did you mean 'resnet20'"),
        ({"data": ["digit"]}, "did you mean 'digits'"),
        ({"data": [3]}, "data takes names, not 3"),
        ({"seeds": [1]}, "did you mean 'seed'"),
        ({"seed": [-1]}, "seed"),
        ({"density": [1.5]}, "above 0 and at most 1"),
        ({"density": []}, "density has no values"),
        ({"checks": ["shufle"]}, "did you mean 'shuffle'"),
        ({"method": "imp:rewnd=warm"}, "did you mean 'rewind'"),
        ({"method": "imp:warm"}, "NAME:OPTION=VALUE"),
        ({"method": "imp", "options": {"rewind": "warm"}}, "by method"),
        ({"method": "imp", "options": {"snip": {}}}, "'snip'"),
        ({"train": {"lr": -1.0}}, "learning rate"),
        ({"epochs": 0}, "epochs"),
        ({"dense": "yes"}, "dense"),
        ({"parts": {"seed": 1}}, "a list of fields"),
        ({"parts": []}, "a list of fields"),
        ({"parts": [{"seeds": 1}]}, "did you mean 'seed'"),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_run(fields: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        plan(**fields)


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("grid.yaml", "", "toml or .json"),
        ("grid.toml", "density = [", "not valid TOML"),
        ("grid.json", "[1]", "fields by name"),
        ("grid.json", None, "cannot read"),
    ],
)
def test_files_that_are_no_grid(tmp_path: Path, name: str, text: str | None, sentence: str) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(UsageError, match=sentence):
        grid.load(tmp_path / name)


# --- costs -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "search", "training", "inverted"),
    [
        ({"method": "gem-miner", "epochs": 10}, 10, 10 * 4, 10),
        ({"method": "edge-popup", "epochs": 10, "train_epochs": 5}, 10, 5 * 4, 10),
        ({"method": "imp", "epochs": 10}, 10 * 10, 10 * 4, 10 * 10),  # 0.8^10 = 0.107
        ({"method": "imp:rate=0.5", "epochs": 10}, 10 * 3, 10 * 4, 10 * 3),  # 0.5^3 = 0.125
        ({"method": "snip", "epochs": 10}, 0, 10 * 4, 0),
        ({"method": "snip", "epochs": 10, "checks": [], "check_seeds": 3}, 0, 10, 0),
        ({"method": "gem-miner", "epochs": 10, "checks": ["shuffle"], "check_seeds": 3}, 10, 10 * 3 * 2, 0),
    ],
)
def test_estimated_epochs(fields: dict[str, Any], search: float, training: int, inverted: float) -> None:
    (cell,) = plan(**fields, dense=False).cells()
    found = estimate.estimate_recipe(cell.recipe, Facts(examples=100, prunable=10_000, flops=7.0))
    assert (found.search, found.training, found.checks) == (search, training, inverted)
    assert found.flops == 3 * 100 * 7 * (search + training + inverted)


def test_facts_are_those_of_the_network_and_the_data() -> None:
    (cell,) = plan(dense=False, validation=0.0).cells()
    known = estimate.facts(cell.recipe)
    weights = 64 * 300 + 300 * 100 + 100 * 10  # digits are 8x8
    assert known.examples == 300
    assert known.prunable == weights + 0 * 64
    assert known.flops == 2 * weights


def _cells(count: int) -> list[Cell]:
    return plan(seed=f"0-{count - 1}", dense=False).cells()


def test_time_left_is_the_remaining_flops_at_the_speed_so_far(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(estimate, "time", types.SimpleNamespace(monotonic=lambda: clock[0]))
    cells = _cells(4)
    expected = {c.digest: estimate.Estimate(1, 1, 0, flops) for c, flops in zip(cells, (10, 20, 30, 40), strict=True)}
    forecast = Forecast(cells, expected, workers=2)
    forecast.start(cells[0].digest)
    assert forecast.seconds() is None
    costs = {"search": {"flops_dense": 5.0, "seconds": 1.0}, "train": {"flops_dense": 5.0, "seconds": 1.0}}
    done = types.SimpleNamespace(cost={k: types.SimpleNamespace(**v) for k, v in costs.items()})
    forecast.finish(cells[0].digest, done)  # type: ignore[arg-type]
    assert forecast.seconds() == pytest.approx((4 + 6 + 8) / 2)  # 5 FLOPs a second
    forecast.start(cells[3].digest)
    clock[0] = 2.0
    assert forecast.seconds() == pytest.approx((4 + 6 + 6) / 2)
    for cell in cells[1:3]:
        forecast.finish(cell.digest, None)
    assert forecast.seconds() == pytest.approx(6)  # one cell keeps one worker


# --- processes ---------------------------------------------------------------------------------------------------


def work(job: str, tell: Tell) -> str:
    """What the tests ask of a worker."""
    if job == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if job == "usage":
        raise UsageError("ask for less")
    if job == "bug":
        raise ZeroDivisionError("a bug")
    if job == "unsendable":
        return lambda: None  # type: ignore[return-value]
    tell(f"doing {job}")
    return job.upper()


@pytest.mark.parametrize("workers", [0, 2])
def test_jobs_that_fail_are_outcomes_and_the_rest_goes_on(workers: int) -> None:
    jobs = ["a", "usage", "bug", "b"] + (["die", "unsendable", "c"] if workers else ["c"])
    events = list(run_all(jobs, work, workers))
    ends = {jobs[e.index]: e.value for e in events if e.kind in ("done", "failed")}
    assert {job: ends[job] for job in "abc"} == {"a": "A", "b": "B", "c": "C"}
    assert [jobs[e.index] for e in events if e.kind == "started"] == jobs
    assert sorted(e.value for e in events if e.kind == "told") == ["doing a", "doing b", "doing c"]
    assert ends["usage"] == Failure("ask for less", "UsageError")
    assert ends["bug"].sentence == "ZeroDivisionError: a bug"
    assert "test_compare.py" in ends["bug"].trace
    if workers:
        assert "killed by signal 9 (SIGKILL)" in ends["die"].sentence
        assert "cannot be sent" in ends["unsendable"].sentence


class _Ray(types.ModuleType):
    """As much of Ray as is asked of it: tasks are done when waited for, the last first."""

    def __init__(self) -> None:
        super().__init__("ray")
        self.most, self.cancelled, self.tasks = 0, 0, dict[int, Any]()
        self.options: dict[str, Any] = {}

    def is_initialized(self) -> bool:
        return True

    def remote(self, **options: Any) -> Any:
        self.options = options

        def decorate(function: Any) -> Any:
            def start(*args: Any) -> int:
                self.tasks[len(self.tasks)] = (function, args)
                return len(self.tasks) - 1

            return types.SimpleNamespace(remote=start)

        return decorate

    def wait(self, running: list[int], num_returns: int) -> tuple[list[int], list[int]]:
        self.most = max(self.most, len(running))
        return running[-1:], running[:-1]

    def get(self, task: int) -> Any:
        function, args = self.tasks[task]
        if args[1] == "lost":
            raise RuntimeError("the node died\nof something")
        return function(*args)

    def cancel(self, task: int, force: bool) -> None:
        self.cancelled += 1


def test_ray_runs_the_same_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = _Ray()
    monkeypatch.setitem(sys.modules, "ray", fake)
    jobs = ["a", "usage", "lost", "b", "c"]
    events = list(run_all(jobs, work, 2, backend="ray", threads=3))
    ends = {jobs[e.index]: e.value for e in events if e.kind in ("done", "failed")}
    assert {job: ends[job] for job in "abc"} == {"a": "A", "b": "B", "c": "C"}
    assert (ends["usage"].sentence, ends["lost"].sentence) == ("ask for less", "the node died")
    assert (fake.most, fake.options["num_cpus"]) == (2, 3)
    events_left = run_all(jobs, work, 2, backend="ray")
    next(events_left)
    events_left.close()
    assert fake.cancelled == 1


def test_no_ray_and_no_such_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UsageError, match=r"pip install 'gemminer\[ray\]'"):
        list(run_all(["a"], work, 1, backend="ray"))
    with pytest.raises(UsageError, match="unknown backend"):
        run_all(["a"], work, 1, backend="slurm")
    with pytest.raises(UsageError, match="workers"):
        run_all(["a"], work, -1)


def hold(job: tuple[Path, str], tell: Tell) -> None:
    """A worker that runs in a folder for longer than the test."""
    folder, how = job
    if how == "thread":
        assert _kernel_ends_us(0)  # no signal: as on other systems
        _thread_ends_us()
    held = Folder(folder, "abc", resume=True)
    tell(str(held.path))
    time.sleep(60)


HOLD = """
import sys
from pathlib import Path
from gemminer.runs.workers import run_all
from test_compare import hold

if __name__ == "__main__":
    jobs = [(Path(sys.argv[1]) / how, how) for how in ("kernel", "thread")]
    for event in run_all(jobs, hold, 2):
        if event.kind == "told":
            print("held", flush=True)
"""


def test_a_folder_is_one_process_s_and_workers_die_with_their_parent(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(HOLD)
    command = [sys.executable, str(tmp_path / "program.py"), str(tmp_path)]
    paths = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    other = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    assert other.stdout is not None
    try:
        assert [other.stdout.readline() for _ in range(2)] == ["held\n"] * 2
        for ask in ({"resume": True}, {"overwrite": True}):
            with pytest.raises(Busy, match="another process is running in"):
                Folder(tmp_path / "kernel", "abc", **ask)
        other.kill()  # and with it the workers, and with them their locks
        for how in ("kernel", "thread"):
            mine = Folder(tmp_path / how, "abc", resume=True)
            assert Folder(tmp_path / how, "abc", resume=True).steps == mine.steps == {}  # not against itself
            assert Folder(tmp_path / how, "other", overwrite=True).steps == {}
    finally:
        other.kill()
        other.wait()
        other.stdout.close()


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
    (tmp_path / "cells" / next(iter(first.records)) / "record.json").write_text("{")
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


def test_summary_is_mean_and_deviation_over_seeds_and_pairs() -> None:
    cells = _cells(3)

    def fake(after: float, shuffled: float) -> Any:
        check = types.SimpleNamespace(values=(shuffled,), ticket_values=(after,))
        costs = types.SimpleNamespace(epochs=2.0, flops_sparse=10.0)
        return types.SimpleNamespace(
            accuracy=types.SimpleNamespace(before=0.5, after=after),
            cost={"search": costs, "train": costs},
            checks={"shuffle": check},
        )

    figures = zip(cells, (fake(0.9, 0.5), fake(0.8, 0.5), fake(0.7, 0.3)), strict=True)
    (line,) = tables.summary(cells, {c.digest: r for c, r in figures})
    assert line["n"] == 3
    assert (line["after"], line["after_std"]) == (pytest.approx(0.8), pytest.approx(0.1))
    assert line["shuffle_difference"] == pytest.approx((0.4 + 0.3 + 0.4) / 3)
    assert (line["shuffle_verdict"], line["flops_sparse"]) == ("pass", 20.0)
    assert tables.spread(line, "after") == "0.8000 +- 0.1000"


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
