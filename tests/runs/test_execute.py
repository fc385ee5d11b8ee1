"""Whole recipes: what a run leaves, and that nothing is lost when it is killed at any point."""

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

from gemminer.core.errors import GemminerError, UsageError
from gemminer.core.ticket import Ticket
from gemminer.runs import checks, folder, record
from gemminer.runs.execute import check_ticket, prepare, run_recipe, train_ticket
from gemminer.runs.recipe import DEFAULT_CHECKS, Recipe, make
from gemminer.training import evaluate
from tests.helpers import Notes

TINY = {
    "model": "lenet-300-100",
    "model_options": {"width": 0.1},
    "density": 0.1,
    "epochs": 4,
    "train_epochs": 2,
    "limit_train": 200,
    "batch_size": 32,
    "check_seeds": 2,
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Recipe, Path, record.Record]:
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("runs") / "run"
    recipe = make(TINY)
    return recipe, out, run_recipe(recipe, out, device="cpu")


def test_a_run_leaves_what_it_promises(finished: tuple[Recipe, Path, record.Record]) -> None:
    recipe, out, result = finished
    files = {p.name for p in out.iterdir()}
    assert files == {*folder.FILES, "state"} - {"report.html"}  # the page is written by the command line
    assert record.read(out) == result
    ticket = Ticket.load(out / "ticket.safetensors")
    d = ticket.prunable
    assert (result.density.asked, result.density.kept, result.density.prunable) == (0.1, round(0.1 * d), d)
    assert result.density.realised == ticket.density
    assert 0 < (result.density.live or 0) <= result.density.realised
    assert [row.kept for row in result.layers] == [layer.kept for layer in ticket.per_layer()]
    assert ticket.provenance["recipe"] == recipe.digest == result.recipe_hash
    assert make(result.recipe) == recipe
    assert set(result.checks) == set(DEFAULT_CHECKS)
    assert {c.n for c in result.checks.values()} == {2}
    assert result.checks["shuffle"].ticket_values == result.accuracy.after_values
    assert result.accuracy.n == 2
    assert result.accuracy.after == pytest.approx(sum(result.accuracy.after_values) / 2)
    for value in (result.accuracy.before, result.accuracy.dense, result.accuracy.validation):
        assert value is not None
        assert 0 <= value <= 1
    assert result.per_class is not None
    assert result.per_class.names == tuple("0123456789")
    # Each tenth of the test set is one class, so that the mean over classes is nearly that over examples.
    over_classes = [x for x in result.per_class.after if x is not None]
    assert sum(over_classes) / 10 == pytest.approx(result.accuracy.after, abs=0.01)
    assert set(result.cost) == {"search", "train"}
    assert result.cost["search"].epochs == 4
    assert result.cost["train"].epochs == 2
    assert result.cost["train"].flops_sparse == pytest.approx(0.1 * result.cost["train"].flops_dense, rel=0.5)
    assert result.cost["search"].flops_sparse < result.cost["search"].flops_dense
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    phases = list(dict.fromkeys(row["phase"] for row in rows))
    expected = ["search", "train:0", "train:1", "dense"]
    for name in DEFAULT_CHECKS:
        expected += [f"check:{name}:search"] * (name == "invert") + [f"check:{name}:{i}" for i in (0, 1)]
    assert phases == expected
    assert [row["epoch"] for row in rows if row["phase"] == "search"] == [1, 2, 3, 4]
    assert not list((out / "state").glob("*.pt"))  # checkpoints of finished steps are gone


def test_trained_weights_are_those_of_the_ticket(finished: tuple[Recipe, Path, record.Record]) -> None:
    recipe, out, result = finished
    ticket, trained = Ticket.load(out / "ticket.safetensors"), load_file(out / "trained.safetensors")
    assert set(trained) == set(ticket.initial)
    for name, mask in ticket.masks.items():
        assert trained[name][~mask].count_nonzero() == 0
        assert trained[name][mask].ne(ticket.initial[name][mask]).any()
    bench = prepare(recipe, device="cpu").experiment
    bench.task.model.load_state_dict(trained)
    assert bench.test is not None
    assert evaluate.mean_metric(bench.task, bench.test) == result.accuracy.after_values[0]
    alone = train_ticket(recipe, out / "ticket.safetensors", out.parent / "again.safetensors", device="cpu")
    assert alone["test"] == result.accuracy.after_values[0]
    again = load_file(out.parent / "again.safetensors")
    assert all(torch.equal(t, again[n]) for n, t in trained.items())


def test_checking_a_file_gives_the_runs_own_figures(finished: tuple[Recipe, Path, record.Record]) -> None:
    recipe, out, result = finished
    verdict = check_ticket(recipe.replace(checks=("shuffle",)), out / "ticket.safetensors", device="cpu")
    assert verdict.checks["shuffle"].values == result.checks["shuffle"].values


def test_a_finished_run_resumes_to_itself(finished: tuple[Recipe, Path, record.Record]) -> None:
    recipe, out, result = finished
    before = {name: (out / name).read_bytes() for name in ("ticket.safetensors", "trained.safetensors")}
    rows = (out / "metrics.jsonl").read_text()
    again = run_recipe(recipe, out, resume=True, device="cpu")
    assert {name: (out / name).read_bytes() for name in before} == before
    assert (out / "metrics.jsonl").read_text() == rows
    assert again.model_dump(exclude={"created"}) == result.model_dump(exclude={"created"})
    with pytest.raises(UsageError, match="holds a run already"):
        run_recipe(recipe, out, device="cpu")
    with pytest.raises(UsageError, match="another recipe"):
        run_recipe(recipe.replace(seed=1), out, resume=True, device="cpu")


def test_a_ticket_swapped_under_a_run_is_noticed(tmp_path: Path) -> None:
    recipe = make({**TINY, "checks": (), "dense": False, "epochs": 1, "train_epochs": 1})
    run_recipe(recipe, tmp_path / "run", device="cpu")
    ticket = Ticket.load(tmp_path / "run" / "ticket.safetensors")
    checks.shuffle(ticket, 0).save(tmp_path / "run" / "ticket.safetensors")
    with pytest.raises(GemminerError, match="is not the ticket this run found"):
        run_recipe(recipe, tmp_path / "run", resume=True, device="cpu")
    result = run_recipe(recipe, tmp_path / "run", overwrite=True, device="cpu")
    assert result.checks == {}
    assert (result.verdict, result.accuracy.dense, result.accuracy.n) == (None, None, 1)


def test_a_loss_that_is_not_finite_keeps_the_folder(tmp_path: Path) -> None:
    recipe = make({**TINY, "checks": (), "train": {"lr": 1e30, "schedule": "constant"}})
    with pytest.raises(GemminerError, match=r"no longer finite in epoch \d of 'train:0': lower the learning rate"):
        run_recipe(recipe, tmp_path / "run", device="cpu")
    assert Ticket.load(tmp_path / "run" / "ticket.safetensors").density == pytest.approx(0.1, abs=1e-3)
    assert (tmp_path / "run" / "metrics.jsonl").stat().st_size > 0
    assert not (tmp_path / "run" / "record.json").exists()


@pytest.mark.parametrize(
    "fields",
    [{"method": "gem"}, {"checks": ("none",)}, {"data": "digit"}, {"options": {"x": 1}}, {"density": 1e-9}],
    ids=str,
)
def test_what_cannot_be_is_said_before_anything_is_written(tmp_path: Path, fields: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        run_recipe(make({**TINY, **fields}), tmp_path / "run", device="cpu")
    assert list(tmp_path.iterdir()) == []


def test_going_on_with_nothing_is_said(tmp_path: Path) -> None:
    recipe = make({**TINY, "checks": (), "dense": False})
    for said in (True, False):
        notes = Notes()
        run_recipe(recipe, tmp_path / "run", resume=True, device="cpu", monitor=notes)
        assert any("holds no run to go on with" in note for note in notes.notes) == said


def test_warnings_survive_a_resume(tmp_path: Path) -> None:
    recipe = make({**TINY, "density": 0.0005, "checks": (), "dense": False})
    first = run_recipe(recipe, tmp_path / "run", device="cpu")
    assert first.notes, "the test needs a ticket with an empty layer"
    assert run_recipe(recipe, tmp_path / "run", resume=True, device="cpu").notes == first.notes


def test_layers_left_dense_by_a_recipe(tmp_path: Path) -> None:
    recipe = make({**TINY, "exclude": ("*3*",), "checks": ("invert", "erk"), "check_seeds": 1, "dense": False})
    names = [name for name, _ in prepare(make(TINY), device="cpu").experiment.task.model.named_parameters()]
    if not any("3" in name for name in names):
        recipe = recipe.replace(exclude=(next(n for n in reversed(names) if n.endswith("weight")),))
    result = run_recipe(recipe, tmp_path / "run", device="cpu")
    assert len(result.layers) == 2
    assert set(result.checks) == {"invert", "erk"}


def test_a_recipe_searches_and_checks_inside_another_runs_ticket(tmp_path: Path) -> None:
    fields = {"method": "random", "epochs": None, "density": 0.5, "dense": False, "checks": ()}
    run_recipe(make(TINY | fields), tmp_path / "first", device="cpu")
    old = Ticket.load(tmp_path / "first" / "ticket.safetensors")
    (first := tmp_path / "first").rename(tmp_path / "moved")
    inner = {"method": "snip", "density": 0.1, "checks": ("uniform",), "check_seeds": 1}
    with pytest.raises(GemminerError, match="there is no ticket file"):
        run_recipe(make(TINY | fields | inner | {"within": str(first)}), tmp_path / "run", device="cpu")
    recipe = make(TINY | fields | inner | {"within": str(tmp_path / "moved")})
    run_recipe(recipe, tmp_path / "run", device="cpu")
    ticket = Ticket.load(tmp_path / "run" / "ticket.safetensors")
    assert ticket.within is not None
    assert ticket.kept == round(0.1 * ticket.prunable)
    for name, mask in old.masks.items():
        assert torch.equal(ticket.within[name], mask)
        assert not (ticket.masks[name] & ~mask).any()
    (tmp_path / "moved").rename(first)  # a check needs the ticket only
    assert check_ticket(recipe, tmp_path / "run" / "ticket.safetensors", device="cpu").verdict == "not decided"


def test_a_recipe_with_a_random_method_and_kept_weights(tmp_path: Path) -> None:
    recipe = make({**TINY, "method": "erk", "initialiser": "keep", "checks": ("invert", "reinit"), "dense": False})
    result = run_recipe(recipe, tmp_path / "run", device="cpu")
    assert result.density.live is None
    assert result.cost["search"].epochs == 0
    assert Ticket.load(tmp_path / "run" / "ticket.safetensors").draw is None
    assert result.checks["invert"].values != result.accuracy.after_values


# --- killed ----------------------------------------------------------------------------------------------------


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
    context.set_forkserver_preload(
        ["gemminer.cli", "gemminer.runs.execute", "sklearn.datasets", "tests.runs.test_execute"]
    )
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
    found = [{k: v for k, v in row.items() if k != "seconds"} for row in rows]
    return [{**row, "rate": {**row["rate"], "seconds": 0}} if "rate" in row else row for row in found]


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
        for timed in (*found.cost.values(), *found.rates.values()):
            timed.seconds = 0.0
    leave = {"created", "command", "hardware"}
    assert ours.model_dump(exclude=leave) == theirs.model_dump(exclude=leave)
    assert _rows(out) == _rows(straight)  # every epoch once, in order
    assert {p.name for p in out.iterdir()} == FILES  # nothing half-written is left
    assert not list((out / "state").glob("*.pt"))


@pytest.mark.slow
def test_killed_at_random_moments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At least 24 times, and three times each in the search, the trainings and the checks."""
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
    finished, span, limit = 0, took[1] / 20, time.monotonic() + 480
    while sum(killed.values()) < KILLS or min(killed[phase] for phase in PHASES[1:]) < 3:
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
    for place, more in ((out, ["--resume"]), (straight, [])):
        again = [*command, "--out", str(place), *more]
        done = subprocess.run(again, env=environment, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        said.append("goes on after epoch" in done.stderr)
    assert said == [True, False]
    assert _rows(out) == _rows(straight)
    for name in ("ticket.safetensors", "trained.safetensors"):
        assert (out / name).read_bytes() == (straight / name).read_bytes()
