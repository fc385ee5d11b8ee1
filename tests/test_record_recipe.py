"""Recipes: validated, hashed, the paper's by name. Records and run folders: whole, versioned, theirs to keep."""

from __future__ import annotations

import dataclasses
import errno
import gc
import json
import math
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock, Timeout

from gemminer import models
from gemminer.core.errors import GemminerError, UsageError
from gemminer.core.statistics import Check, paired_test
from gemminer.core.ticket import Layer
from gemminer.methods.gem_miner import Options
from gemminer.methods.parts.schedules import freeze_epochs
from gemminer.runs import environment, recipe, record
from gemminer.runs.folder import Busy, Folder
from gemminer.runs.recipe import Recipe, make
from gemminer.runs.record import Record, parsed, read
from gemminer.training.settings import Settings

# --- recipes ---------------------------------------------------------------------------------------------------


def test_a_digest_is_of_what_is_not_the_default() -> None:
    """Adding a field with a default keeps old runs valid; so do fields that are written out."""
    plain = Recipe()
    assert plain.digest == Recipe(density=0.05, model="resnet20", check_seeds=3).digest
    changes: dict[str, Any] = {
        "method": "erk",
        "density": 0.02,
        "model": "conv-2",
        "data": "mnist",
        "seed": 1,
        "epochs": 5,
        "train_epochs": 5,
        "budget": "5s",
        "batch_size": 5,
        "limit_train": 5,
        "validation": 0.2,
        "augment": "none",
        "initialiser": "keep",
        "model_options": {"width": 2},
        "options": {"ridge": 0},
        "train": {"lr": 1},
        "checks": (),
        "check_seeds": 1,
        "dense": False,
        "exclude": ("a",),
        "embeddings": True,
    }
    assert set(changes) == set(Recipe.model_fields)  # a field added later is to be added here
    digests = {make({name: value}).digest for name, value in changes.items()}
    assert len(digests | {plain.digest}) == len(changes) + 1
    assert make({"options": {"a": 1, "b": 2}}).digest == make({"options": {"b": 2, "a": 1}}).digest


def test_copies_with_changes() -> None:
    base = make({"density": 0.1, "options": {"lr": 0.2}, "epochs": 7})
    changed = base.replace(density=0.2, epochs=None, checks=(), dense=False, seed=0)
    assert (changed.density, changed.epochs, changed.options, changed.checks) == (0.2, 7, {"lr": 0.2}, ())
    assert not changed.dense
    assert base.density == 0.1
    with pytest.raises(UsageError):
        base.replace(density=2)
    with pytest.raises(ValueError, match="frozen"):
        base.density = 0.3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"densty": 0.1}, "recipe has no field 'densty'"),
        ({"density": 0}, "density is the fraction of weights kept, above 0 and at most 1; 0 is not"),
        ({"density": 1.5}, "density is the fraction of weights kept, above 0 and at most 1; 1.5 is not"),
        ({"density": float("nan")}, "density is the fraction of weights kept, .* nan is not"),
        ({"density": "much"}, "density: .* not 'much'"),
        ({"seed": -1}, "seed: .* not -1"),
        ({"seed": 2**63}, "seed: .* not 9223372036854775808"),
        ({"seed": 1.5}, "seed: .* not 1.5"),
        ({"epochs": 0}, "epochs: .* not 0"),
        ({"train_epochs": -3}, "train_epochs: .* not -3"),
        ({"batch_size": 0}, "batch_size: .* not 0"),
        ({"limit_train": 1}, "limit_train: .* not 1"),
        ({"validation": 1.0}, "validation: .* not 1.0"),
        ({"check_seeds": 0}, "check_seeds: .* not 0"),
        ({"checks": "shuffle"}, "checks: .* not 'shuffle'"),
        ({"options": [1]}, r"options: .* not \[1\]"),
        ({"model": None}, "model: .* not None"),
    ],
)
def test_recipes_that_cannot_be(fields: Any, text: str) -> None:
    with pytest.raises(UsageError, match=text) as caught:
        make(fields)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", recipe.names())
def test_every_named_recipe_can_be_run(name: str) -> None:
    found = recipe.load(name)
    options = Options(**{"epochs": found.epochs, **found.options})
    settings = Settings(**{"epochs": found.train_epochs or found.epochs, **found.train})
    assert found.model in models.names()
    models.describe(found.model)
    if name.startswith("paper/"):
        assert settings.epochs == found.train_epochs == found.epochs
        assert len(freeze_epochs(options.epochs, options.freeze_every)) > 10
        assert options.weight_decay == 0
        assert options.momentum == 0.9
        assert settings.schedule == "multistep"
        assert settings.milestones in ((80, 120), (100, 150), (150, 250))
        assert found.initialiser == "signed-constant"


def test_the_papers_table() -> None:
    """Three rows of the appendix as printed, and the number of rows."""
    assert len([n for n in recipe.names() if n.startswith("paper/")]) == 5 + 3 + 4 + 4 + 1
    row = recipe.load("paper/resnet20-cifar10-1.44")
    assert (row.model, row.data, row.density, row.epochs, row.batch_size) == ("resnet20", "cifar10", 0.0144, 150, 128)
    assert row.options == {"optimiser": "sgd", "lr": 0.1, "freeze_every": 5, "ridge": 1e-4}
    assert row.train == {"lr": 0.01, "schedule": "multistep", "milestones": (80, 120), "weight_decay": 1e-4}
    assert row.model_options == {"norm": "non-affine"}
    wide = recipe.load("paper/wideresnet-28-2-cifar10-1.4")
    assert wide.options == {"optimiser": "sgd", "lr": 0.5, "freeze_every": 10, "ridge": 1e-5}
    tiny = recipe.load("paper/resnet18-tiny-imagenet-1.4")
    assert (tiny.batch_size, tiny.epochs, tiny.train["lr"]) == (256, 200, 0.1)
    assert tiny.options == {"optimiser": "adam", "lr": 1e-3, "freeze_every": 5, "ridge": 9e-6}
    assert tiny.model_options == {"norm": "non-affine", "stem": "small"}


def test_recipes_from_files(tmp_path: Path) -> None:
    wanted = make({"density": 0.02, "options": {"lr": 0.5}, "checks": ("shuffle",)})
    (tmp_path / "r.toml").write_text('density = 0.02\nchecks = ["shuffle"]\n[options]\nlr = 0.5\n')
    (tmp_path / "r.json").write_text(json.dumps(wanted.model_dump(mode="json", exclude_defaults=True)))
    assert recipe.load(str(tmp_path / "r.toml")) == wanted
    assert recipe.load(str(tmp_path / "r.json")).digest == wanted.digest


@pytest.mark.parametrize(
    ("name", "content", "text"),
    [
        ("r.toml", b"density = ", "not valid TOML"),
        ("r.json", b"{", "not valid JSON"),
        ("r.json", b"[0.05]", "must hold fields by name"),
        ("r.json", b'"x"', "must hold fields by name"),
        ("r.json", b'{"densty": 1}', "has no field 'densty'"),
        ("r.toml", b"\xff\xfe", "cannot read the recipe"),
        ("r.toml", None, "cannot read the recipe .*: No such file or directory"),
        ("paper", None, "unknown recipe"),
    ],
)
def test_recipe_files_that_cannot_be(tmp_path: Path, name: str, content: bytes | None, text: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UsageError, match=text) as caught:
        recipe.load(str(tmp_path / name))
    assert "\n" not in str(caught.value)


def test_an_unknown_recipe_names_the_nearest() -> None:
    with pytest.raises(UsageError, match=r"did you mean 'paper/resnet20-cifar10-1.44'"):
        recipe.load("paper/resnet20-cifar10-1.4")


def test_recipes_import_nothing_heavy() -> None:
    code = "import sys, types; sys.modules['gemminer'] = m = types.ModuleType('gemminer'); "
    code += f"m.__path__ = [{str(Path(recipe.__file__).parent.parent)!r}]; import gemminer.runs.grid; "
    code += "print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "False"


# --- records ---------------------------------------------------------------------------------------------------


@pytest.fixture
def result() -> Record:
    return Record(
        created=environment.now(),
        command="gemminer mine",
        method="gem-miner",
        options={"lr": 0.1},
        model="resnet20",
        model_options={},
        data="digits",
        data_options={},
        seed=0,
        recipe={},
        recipe_hash="abc",
        metric="accuracy",
        density=record.Density(asked=0.1, realised=0.1, kept=1, prunable=10),
        layers=[],
        accuracy=record.Accuracy(before=0.5, after=0.75, after_values=(0.7, 0.8), n=2),
        checks={},
        cost={"search": record.Cost(epochs=1, seconds=1.5, flops_dense=10, flops_sparse=5)},
        hardware=environment.hardware(),
        versions=environment.versions(),
        git=None,
    )


def test_a_record_comes_back(result: Record, tmp_path: Path) -> None:
    path = result.save(tmp_path / "record.json")
    assert read(path) == result
    assert read(str(tmp_path)) == result
    fields = json.loads(path.read_text())
    assert fields["schema"] == "gemminer.record/1"
    assert fields["accuracy"]["after"] == 0.75


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("{", "is not a gemminer record"),
        ("[]", "is not a gemminer record"),
        ("7", "is not a gemminer record"),
        ("{}", "has schema None; this version reads 'gemminer.record/1'"),
        ('{"schema": "gemminer.record/2"}', "has schema 'gemminer.record/2'; this version reads"),
        ('{"schema": "gemminer.record/1"}', "is not a gemminer record"),
        (b"\xff\xfe", "is not a gemminer record"),
    ],
)
def test_what_is_no_record_is_refused(tmp_path: Path, text: str | bytes, sentence: str) -> None:
    (tmp_path / "record.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(GemminerError, match=sentence) as caught:
        read(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_missing_record_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(GemminerError, match=r"cannot read the record .*record\.json: No such file"):
        read(tmp_path)


# --- folders ---------------------------------------------------------------------------------------------------


def test_a_folder_holds_one_recipes_run(tmp_path: Path) -> None:
    out = tmp_path / "a" / "run"
    first = Folder(out, "abc")
    first.finish("search", {"test": 0.5})
    with pytest.raises(UsageError, match=r"holds a run already: add --resume .* --overwrite .* --out"):
        Folder(out, "abc")
    with pytest.raises(UsageError, match=r"another recipe \(abc, not xyz\)"):
        Folder(out, "xyz", resume=True)
    assert Folder(out, "abc", resume=True).steps == {"search": {"test": 0.5}}
    (out / "mine.txt").write_text("the user's own")
    (out / "ticket.safetensors").write_text("old")
    assert Folder(out, "xyz", overwrite=True).steps == {}
    assert (out / "mine.txt").exists()
    assert not (out / "ticket.safetensors").exists()
    assert Folder(out, "xyz", resume=True).steps == {}


def test_a_finished_run_without_state_is_a_run(tmp_path: Path) -> None:
    (tmp_path / "record.json").write_text("{}")
    with pytest.raises(UsageError, match="holds a run already"):
        Folder(tmp_path, "abc")
    with pytest.raises(UsageError, match=r"another recipe \(unknown, not abc\)"):
        Folder(tmp_path, "abc", resume=True)
    assert (tmp_path / "record.json").exists()


def test_a_folder_that_cannot_be_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="is a file: give another folder with --out"):
        Folder(tmp_path / "file", "abc")
    with pytest.raises(GemminerError, match="cannot use the folder"):
        Folder(tmp_path / "file" / "run", "abc")
    with pytest.raises(GemminerError, match="cannot use the folder"):
        Folder(Path("/proc/run"), "abc")


HOLD = """
import sys
from pathlib import Path
from gemminer.runs.folder import Busy, Folder
held = Folder(Path(sys.argv[1]), "abc", resume=True)
print("held", flush=True)
sys.stdin.readline()
"""


def other_process(out: Path) -> subprocess.Popen[str]:
    """A process that holds the folder until it is killed."""
    command = [sys.executable, "-c", HOLD, str(out)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    assert process.stdout.readline() == "held\n"
    return process


def test_a_folder_is_one_processs_however_that_ends(tmp_path: Path) -> None:
    other = other_process(tmp_path)
    begun = time.monotonic()
    with pytest.raises(Busy, match=r"another process is running in .*: wait for it, or give another folder") as caught:
        Folder(tmp_path, "abc", resume=True)
    assert time.monotonic() - begun >= 3
    assert isinstance(caught.value, UsageError)
    other.kill()
    other.communicate()
    first = Folder(tmp_path, "abc", resume=True)
    second = Folder(tmp_path, "abc", resume=True)  # no process locks itself out
    del first
    gc.collect()
    assert second.path == tmp_path
    with pytest.raises(Timeout):
        FileLock(tmp_path / "state" / "lock", timeout=0).acquire()
    del second
    gc.collect()
    other_process(tmp_path).communicate("")


def test_a_process_may_use_another_threads_folder(tmp_path: Path) -> None:
    held = Folder(tmp_path, "abc")
    found: list[Folder] = []
    thread = threading.Thread(target=lambda: found.append(Folder(tmp_path, "abc", resume=True)))
    thread.start()
    thread.join()
    assert [folder.path for folder in found] == [held.path]


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_will_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    fcntl = pytest.importorskip("fcntl")

    def none(*_: Any) -> None:
        raise OSError(number, "no locks here")

    monkeypatch.setattr(fcntl, "flock", none)
    folder = Folder(tmp_path, "abc")
    assert folder.finish("search", {"n": 1}) == {"n": 1}
    assert [path.name for path in folder.state.glob("lock*")] == ["lock"], "a lock file would outlive a kill"


def test_lines_that_a_kill_cut_short(tmp_path: Path) -> None:
    folder = Folder(tmp_path, "abc")
    folder.finish("search", {"n": 1})
    folder.log({"phase": "search", "epoch": 1})
    for file in (tmp_path / "state" / "steps.jsonl", tmp_path / "metrics.jsonl"):
        with file.open("a") as stream:
            stream.write('{"phase": "sea')
    again = Folder(tmp_path, "abc", resume=True)
    assert again.steps == {"search": {"n": 1}}
    again.finish("train:0", {"n": 2})
    assert Folder(tmp_path, "abc", resume=True).steps == {"search": {"n": 1}, "train:0": {"n": 2}}
    again.forget_after("search", 1)  # what a resumed phase begins with
    again.log({"phase": "search", "epoch": 2})
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [1, 2]


def test_rows_behind_the_last_checkpoint_are_written_anew(tmp_path: Path) -> None:
    folder = Folder(tmp_path, "abc")
    for phase, epoch in (("search", 1), ("search", 2), ("train:0", 1), ("train:0", 2), ("train:0", 3)):
        folder.log({"phase": phase, "epoch": epoch})
    folder.forget_after("train:0", 1)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(r["phase"], r["epoch"]) for r in rows] == [("search", 1), ("search", 2), ("train:0", 1)]
    before = (tmp_path / "metrics.jsonl").stat().st_mtime_ns
    folder.forget_after("train:0", 1)
    assert (tmp_path / "metrics.jsonl").stat().st_mtime_ns == before


def test_what_a_kill_left_of_atomic_writes_is_swept_away(tmp_path: Path) -> None:
    folder = Folder(tmp_path, "abc")
    left = [tmp_path / ".ticket.safetensors.x7", tmp_path / "state" / ".train-0.pt.q", tmp_path / ".report.html.1.tmp"]
    kept = [tmp_path / ".gitignore", folder.state / "recipe", tmp_path / "ticket.safetensors"]
    for path in left + kept[::2]:
        path.write_text("")
    Folder(tmp_path, "abc", resume=True)
    assert not any(path.exists() for path in left)
    assert all(path.exists() for path in kept)


def test_a_step_has_a_checkpoint_of_its_own(tmp_path: Path) -> None:
    folder = Folder(tmp_path, "abc")
    paths = {folder.checkpoint(s).path for s in ("search", "train:0", "train:1", "check:invert:search")}
    assert len(paths) == 4
    assert all(path.parent == folder.state for path in paths)


def test_a_log_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    folder = Folder(tmp_path, "abc")
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(GemminerError, match=r"cannot write .*metrics\.jsonl: Is a directory"):
        folder.log({})


# --- the machine -----------------------------------------------------------------------------------------------


def test_the_machine_and_its_versions() -> None:
    machine = environment.hardware("cpu", 2)
    assert machine["threads"] == 2
    assert machine["cores"] >= 1
    assert machine["cpu"]
    assert {"python", "torch", "numpy"} <= set(environment.versions())
    assert "T" in environment.now()


def test_the_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert environment.git_revision() is None
    monkeypatch.setenv("PATH", "")
    assert environment.git_revision() is None


def test_the_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/usr/bin/gemminer", "mine", "--seed", "3"])
    assert environment.command() == "gemminer mine --seed 3"


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("/home/jane/lottery/runs/gem", "runs/gem"),
        ("/home/jane/lottery", "."),
        ("/home/jane/data/mnist", "../data/mnist"),
        ("/home/jane", ".."),
        ("/scratch/jane/mnist", "mnist"),
        ("--out=/home/jane/lottery/runs/gem", "--out=runs/gem"),
        ("folder:/home/jane/lottery/images@32", "folder:images@32"),
        ("--data=folder:/srv/jane/images@32", "--data=folder:images@32"),
        ("digits,folder:/srv/jane/images,mnist", "digits,folder:images,mnist"),
        ("checkpoint=/srv/jane/a.pt", "checkpoint=a.pt"),
        ("runs/gem", "runs/gem"),
        ("--density", "--density"),
        ("imp:rewind=warm:rate=0.3", "imp:rewind=warm:rate=0.3"),
        ("https://example.org/a/b", "https://example.org/a/b"),
        ("1/2", "1/2"),
        ("", ""),
    ],
)
def test_a_record_says_nothing_about_somebodys_folders(argument: str, said: str) -> None:
    assert environment.without_places(argument, Path("/home/jane/lottery")) == said


def test_the_command_line_of_a_module_in_this_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    argv = ["/x/gemminer/__main__.py", "mine", "--out", str(tmp_path / "runs" / "a"), "--recipe", "/y/z/r.toml"]
    monkeypatch.setattr(sys, "argv", argv)
    assert environment.command() == "gemminer mine --out runs/a --recipe r.toml"


def test_rows_of_a_ticket_and_its_checks_are_rows_of_the_record(result: Record, tmp_path: Path) -> None:
    """The same classes, so that there is no second list of their fields."""
    layer = Layer("a", (2, 3), 6, 2, 1 / 3, 2, 1)
    check = paired_test([0.9, 0.8], [0.5, 0.6])
    path = result.model_copy(update={"layers": [layer], "checks": {"shuffle": check}}).save(tmp_path / "record.json")
    again = read(path)
    assert again.layers == [layer]
    assert again.checks == {"shuffle": check}
    rows = json.loads(path.read_text())
    assert list(rows["layers"][0]) == [field.name for field in dataclasses.fields(Layer)]
    assert list(rows["checks"]["shuffle"]) == [field.name for field in dataclasses.fields(Check)]


def test_a_record_that_lacks_what_is_optional_is_read(tmp_path: Path) -> None:
    fields = {
        "schema": "gemminer.record/1",
        "method": "x",
        "model": "y",
        "data": "z",
        "density": {"asked": 0.1, "realised": 0.1},
        "layers": [{"name": "a", "kept": 0, "density": 0.0, "filters": None}],
        "accuracy": {"before": None, "n": None},
        "checks": {"shuffle": {"mean": 0.5, "verdict": "perhaps"}, "erk": {"mean": 0.5, "difference": None}},
        "cost": {"search": {"epochs": 1, "seconds": None}},
        "git": None,
        "of a later version": 1,
    }
    (tmp_path / "record.json").write_text(json.dumps(fields))
    found = read(tmp_path)
    assert found.layers == [Layer("a", (), 0, 0, 0.0, 0, 0)]
    assert (found.metric, found.seed, found.notes, found.accuracy.n) == ("accuracy", None, [], 0)
    assert [check.verdict for check in found.checks.values()] == ["not decided"] * 2
    assert math.isnan(found.checks["erk"].difference)
    assert math.isnan(found.cost["search"].seconds)
    with pytest.raises(GemminerError, match=r"no usable 'layers.0.kept'.*run the command that made it again"):
        parsed({**fields, "layers": [{"name": "a"}]}, "record.json")
