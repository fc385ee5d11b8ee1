"""The command line: every command, as text and as JSON; bad input and what stops a run."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from safetensors.torch import load_file, save_file

import gemminer
from gemminer.cli import app, entry, main
from gemminer.core.errors import UsageError
from gemminer.core.ticket import Ticket
from gemminer.runs import execute, recipe

TINY = ["--model", "lenet-300-100", "--model-option", "width=0.1", "--density", "0.1", "--epochs", "2"]
TINY += ["--train-epochs", "1", "--limit-train", "100", "--batch-size", "32", "--device", "cpu", "--threads", "1"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished run."""
    out = tmp_path_factory.mktemp("cli") / "run"
    assert main(["mine", *TINY, "--check-seeds", "1", "--out", str(out)]) == 0
    return out


def printed(capsys: pytest.CaptureFixture[str], *argv: str) -> Any:
    """The JSON object a command prints, and nothing else on stdout."""
    assert main([*argv, "--json"]) == 0
    captured = capsys.readouterr()
    assert len(captured.out.splitlines()) == 1
    return json.loads(captured.out)


# --- every command ---------------------------------------------------------------------------------------------


def test_mine_prints_what_a_person_wants_to_know(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["mine", *TINY, "--check-seeds", "2", "--out", str(tmp_path / "run")]) == 0
    captured = capsys.readouterr()
    ticket = Ticket.load(tmp_path / "run" / "ticket.safetensors")
    first, *progress = captured.err.splitlines()
    assert first == "gem-miner, lenet-300-100 on digits, density 10%, 2 epochs of search, 1 of training, seed 0"
    assert any(line.startswith("search epoch 2, loss") for line in progress)
    assert "loss" not in captured.out
    flat = " ".join(captured.out.split())
    assert f"{ticket.kept} of {ticket.prunable} weights kept" in flat
    for name in ("before training", "after training", "dense network", "sanity checks: ", *recipe.DEFAULT_CHECKS):
        assert name in flat


def test_mine_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    options = ["--option", "repair=0.5", "-o", "optimiser=adam", "--lambda", "0.001", "--train-option", "lr=0.02"]
    options += ["--no-checks", "--no-dense", "--seed", "3", "--initialiser", "kaiming-normal", "--augment", "none"]
    result = printed(capsys, "mine", *TINY, *options, "--out", str(out))
    assert result["out"] == str(out)
    assert {k: v for k, v in result.items() if k != "out"} == json.loads((out / "record.json").read_text())
    assert result["seed"] == 3
    asked = {"ridge": 1e-3, "repair": 0.5, "optimiser": "adam"}
    assert {k: result["options"][k] for k in asked} == asked
    assert result["recipe"]["train"] == {"lr": 0.02}
    assert result["checks"] == {}
    assert result["accuracy"]["dense"] is None
    ticket = Ticket.load(out / "ticket.safetensors")
    assert ticket.draw is not None
    assert (ticket.draw.kind, ticket.draw.seed) == ("kaiming-normal", 3)


def test_mine_chooses_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["mine", *TINY, "--no-checks", "--no-dense"]) == 0
    (folder,) = (tmp_path / "runs").iterdir()
    assert folder.name.startswith("lenet-300-100-digits-0.1-gem-miner-s0-")
    assert (folder / "report.html").exists()


def test_mine_resumes_and_overwrites(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    again = printed(capsys, "mine", *TINY, "--check-seeds", "1", "--out", str(out), "--resume")
    assert again["accuracy"] == json.loads((finished / "record.json").read_text())["accuracy"]
    fresh = printed(capsys, "mine", *TINY, "--check-seeds", "1", "--out", str(out), "--overwrite", "--seed", "1")
    assert fresh["seed"] == 1


def test_a_recipe_file_and_what_the_command_line_adds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fields = {"model": "lenet-300-100", "model_options": {"width": 0.1}, "density": 0.2, "options": {"lr": 0.3}}
    fields |= {"epochs": 1, "limit_train": 100, "checks": [], "dense": False, "batch_size": 32}
    (tmp_path / "r.json").write_text(json.dumps(fields))
    argv = ["mine", "--recipe", str(tmp_path / "r.json"), "--density", "0.1", "-o", "ridge=0", "--device", "cpu"]
    result = printed(capsys, *argv, "--out", str(tmp_path / "run"))
    assert result["density"]["asked"] == 0.1
    assert (result["options"]["lr"], result["options"]["ridge"], result["options"]["epochs"]) == (0.3, 0, 1)


def test_train(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without any option: as the record beside the ticket says, so with the same result."""
    record = json.loads((finished / "record.json").read_text())
    result = printed(capsys, "train", str(finished), "--out", str(tmp_path / "w"), "--threads", "1")
    assert result["test"] == record["accuracy"]["after"]
    theirs, ours = load_file(finished / "trained.safetensors"), load_file(tmp_path / "w")
    assert all(torch.equal(t, ours[n]) for n, t in theirs.items())
    argv = ["train", str(finished / "ticket.safetensors"), "--out", str(tmp_path / "w"), "--epochs", "2"]
    assert main([*argv, "-t", "lr=0.01"]) == 0
    text = capsys.readouterr().out
    assert "accuracy after training" in text
    assert str(tmp_path / "w") in text


def test_train_a_ticket_without_a_record(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copy(finished / "ticket.safetensors", tmp_path / "gem")
    (tmp_path / "r.toml").write_text("limit_train = 100\nepochs = 1\n")
    argv = ["train", str(tmp_path / "gem"), "--model", "lenet-300-100", "--model-option", "width=0.1"]
    result = printed(capsys, *argv, "--data", "digits", "--recipe", str(tmp_path / "r.toml"))
    assert 0 <= result["test"] <= 1
    assert (tmp_path / "trained.safetensors").exists()


def test_check(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = json.loads((finished / "record.json").read_text())
    result = printed(capsys, "check", str(finished), "--seeds", "1", "--check", "shuffle", "--check", "erk")
    assert list(result["checks"]) == ["shuffle", "erk"]
    assert result["verdict"] == "not decided"
    assert result["checks"]["shuffle"]["values"] == record["checks"]["shuffle"]["values"]
    assert main(["check", str(finished), "--seeds", "1", "--check", "shuffle"]) == 0
    assert "sanity checks: not decided" in capsys.readouterr().out


def test_inspect(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ticket = Ticket.load(finished / "ticket.safetensors")
    found = printed(capsys, "inspect", str(finished))
    assert (found["kept"], found["prunable"], found["digest"]) == (ticket.kept, ticket.prunable, ticket.digest)
    assert [layer["name"] for layer in found["layers"]] == list(ticket.masks)
    assert found["draw"]["kind"] == "signed-constant"
    assert main(["inspect", str(finished / "ticket.safetensors")]) == 0
    text = capsys.readouterr().out
    for layer in ticket.per_layer():
        assert f"{layer.kept}" in text
    assert "found by gem-miner, seed 0" in text
    assert "signed-constant, seed 0" in text


# --- what is run ------------------------------------------------------------------------------------------------


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[recipe.Recipe]:
    """The recipes that `gemminer mine` would run."""
    found: list[recipe.Recipe] = []

    def run(chosen: recipe.Recipe, out: Path, **more: Any) -> None:
        found.append(chosen)
        more["announce"]("what it means")
        raise UsageError("nothing is run here")

    monkeypatch.setattr(execute, "run_recipe", run)
    return found


@pytest.mark.parametrize(
    ("flags", "title"),
    [
        ("", "recipe digits: "),
        ("--seed 3", "recipe digits: "),
        ("--out x --resume --overwrite --device cpu --engine dense --threads 1 --data-root . --download --json -v", ""),
        ("--recipe digits", "recipe digits: "),
        (
            "--recipe digits --density 0.1 -o lr=1 --no-checks",
            "recipe digits with density 0.1, options lr=1, checks none: ",
        ),
    ],
)
def test_mine_without_a_flag_of_a_recipes_identity_is_the_recipe_digits(
    flags: str, title: str, asked: list[recipe.Recipe], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["mine", *flags.split()]) == 2
    assert capsys.readouterr().err.splitlines()[0] == f"{title or 'recipe digits: '}what it means"
    digits = recipe.load("digits").replace(seed=3 if "--seed" in flags else 0)
    assert (asked[0] == digits) == ("--density" not in flags)


def test_any_other_flag_leaves_the_defaults(asked: list[recipe.Recipe], capsys: pytest.CaptureFixture[str]) -> None:
    for flags, field in (("-d 0.1", "density"), ("--no-dense", "dense"), ("--exclude a*,b", "exclude")):
        assert main(["mine", *flags.split()]) == 2
        assert capsys.readouterr().err.splitlines()[0] == "what it means"
        assert set(asked.pop().model_dump(exclude_defaults=True)) == {field}


def test_a_field_added_to_recipe_is_a_flag_and_a_key_everywhere(tmp_path: Path) -> None:
    (tmp_path / "added.py").write_text(FIELD)
    command = [sys.executable, str(tmp_path / "added.py"), str(tmp_path / "out")]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    mine, compare, train, cells, printed, identity = map(json.loads, run.stdout.splitlines())
    for text in (mine, compare):
        assert "--noise <float> Fraction of labels flipped. [0; 0 to 1]" in text
        assert "--twice / --no-twice Do it twice. [no]" in text
    assert "--noise" not in train
    assert cells == {"dense": 0.25, "gem-miner": 0.25}
    assert printed["noise"] == 0.5
    assert identity is True


FIELD = """
import contextlib, io, json, sys
from pydantic.fields import Field
from gemminer.runs.recipe import Recipe
for name, kind, field in (
    ("noise", float, Field(0.0, ge=0, le=1, description="fraction of labels flipped")),
    ("twice", bool, Field(False, description="do it twice")),
):
    field.annotation = kind
    Recipe.model_fields[name] = field
Recipe.model_rebuild(force=True)
from gemminer.cli import main
from gemminer.runs import asked, grid

def said(*argv):
    with contextlib.redirect_stdout(io.StringIO()) as out:
        assert main([*argv]) == 0
    return out.getvalue()

for command in ("mine", "compare", "train"):
    print(json.dumps(" ".join(said(command, "--help").split())))
out = sys.argv[1]
grid_of = grid.make(asked.to_compare({"noise": 0.25}))
print(json.dumps({cell.label: cell.recipe.noise for cell in grid_of.cells()}))
said("compare", "--noise", "0.25", "--model", "lenet-300-100", "--dry-run", "--out", out)
with open(out + ".json", "w") as file:
    json.dump({"noise": 0.5}, file)
print(json.dumps(json.loads(said("recipes", out + ".json"))))
print(json.dumps(Recipe().digest != Recipe(noise=0.5).digest and Recipe().changed({"noise": 0.5}).noise == 0.5))
"""


# --- manners ----------------------------------------------------------------------------------------------------


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"gemminer {gemminer.__version__}\n"


def test_short_help(capsys: pytest.CaptureFixture[str]) -> None:
    for argv in ([], ["mine"], ["bench"]):
        assert main([*argv, "-h"]) == 0
        short = capsys.readouterr().out
        assert main([*argv, "--help"]) == 0
        assert capsys.readouterr().out == short


def test_quiet_and_verbose(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["mine", *TINY, "--no-checks", "--no-dense", "--overwrite", "--out", str(tmp_path / "run")]
    assert main([*argv, "-q"]) == 0
    quiet = capsys.readouterr()
    assert quiet.err == ""
    assert main([*argv, "-v"]) == 0
    verbose = capsys.readouterr()
    assert verbose.out == quiet.out
    assert [" ".join(line.split()[:3]) for line in verbose.err.splitlines()][1:] == [
        "search epoch 1,",
        "search epoch 2,",
        "train:0 epoch 1,",
    ]


def test_every_option_is_documented(capsys: pytest.CaptureFixture[str]) -> None:
    group = typer.main.get_command(app)
    assert {"mine", "train", "check", "inspect", "methods", "models", "data", "recipes"} <= set(group.commands)  # type: ignore[attr-defined]
    for name, command in group.commands.items():  # type: ignore[attr-defined]
        assert command.help, name
        for parameter in command.params:
            assert getattr(parameter, "help", None), f"{name} {parameter.name}"
        assert main([name, "--help"]) == 0
        assert "Usage" in capsys.readouterr().out


# --- bad input -------------------------------------------------------------------------------------------------


# {run} is a finished run, {tmp} an empty folder with a few broken files in it.
BAD: dict[str, tuple[str, str]] = {
    "no such command": ("mien", "mien"),
    "no such option": ("mine --densty 0.1", "--densty"),
    "an option without its value": ("mine --density", "--density"),
    "density that is no number": ("mine --density abc", "--density"),
    "density 0": ("mine --density 0", "density is the fraction of weights kept"),
    "density below 0": ("mine --density -0.1", "density is the fraction of weights kept"),
    "density above 1": ("mine --density 1.44", "density is the fraction of weights kept"),
    "density nan": ("mine --density nan", "density is the fraction of weights kept"),
    "density that keeps no weight": ("mine --density 1e-9 --device cpu", "keeps none of"),
    "unknown method": ("mine --method gem-mine", "did you mean 'gem-miner'"),
    "unknown model": ("mine --model resnet-20", "did you mean 'resnet20'"),
    "unknown data": ("mine --data digit", "digits"),
    "unknown recipe": ("mine --recipe paper/resnet20", "unknown recipe"),
    "unknown initialiser": ("mine --initialiser kaiming", "unknown initialiser"),
    "unknown augmentation": ("mine --augment rotate", "augmentation"),
    "unknown option of the method": ("mine -o rigde=1", "did you mean 'ridge'"),
    "unknown option of the training": ("mine -t leraning=1", "unknown option of training"),
    "unknown option of the network": ("mine --model-option depth=3", "depth"),
    "method option that is no number": ("mine -o lr=fast", "lr"),
    "method option out of range": ("mine -o repair=2", "repair"),
    "method option without a value": ("mine -o lr", "--option takes NAME=VALUE, not 'lr'"),
    "method option without a name": ("mine -o =1", "--option takes NAME=VALUE"),
    "training option out of range": ("mine -t momentum=1.5", "momentum"),
    "network option out of range": ("mine --model-option width=-1", "width"),
    "unknown optimiser": ("mine -o optimiser=lion", "optimiser"),
    "nesterov with adam": ("mine {tiny} -o optimiser=adam -o nesterov=true --out {tmp}/new", "nesterov needs"),
    "lambda below 0": ("mine --lambda -1", "lambda"),
    "freezes that do not fit": ("mine --epochs 5 --freeze-every 5", "leave no time to freeze"),
    "seed below 0": ("mine --seed -1", "seed"),
    "seed that is no whole number": ("mine --seed 1.5", "--seed"),
    "no epochs": ("mine --epochs 0", "epochs"),
    "no training epochs": ("mine --train-epochs 0", "train_epochs"),
    "batch size 0": ("mine --batch-size 0", "batch_size"),
    "one training image": ("mine --limit-train 1", "limit_train"),
    "no check seeds": ("mine --check-seeds 0", "check_seeds"),
    "no threads": ("mine --threads 0", "threads"),
    "a device this machine lacks": ("mine --device cuda:77", "is not on this machine"),
    "a device that does not exist": ("mine --device tpu", "is not on this machine"),
    "data that is not there": ("mine --data cifar10 --data-root {tmp}", "cifar"),
    "an image folder that is not there": ("mine --data {tmp}/pictures", "pictures"),
    "a data function that is not there": ("mine --data no_such_module:data", "no_such_module"),
    "out is a file": ("mine {tiny} --out {tmp}/text", "is a file"),
    "out below a file": ("mine {tiny} --out {tmp}/text/run", "cannot use the folder"),
    "out cannot be written to": ("mine {tiny} --out /proc/run", "cannot use the folder /proc/run"),
    "out holds a run": ("mine {tiny} --out {run}", "holds a run already"),
    "resume of another recipe": ("mine {tiny} --seed 7 --out {run} --resume", "another recipe"),
    "recipe file that is not there": ("mine --recipe {tmp}/none.toml", "cannot read the recipe"),
    "recipe file that is no TOML": ("mine --recipe {tmp}/bad.toml", "not valid TOML"),
    "recipe file that is no JSON": ("mine --recipe {tmp}/bad.json", "not valid JSON"),
    "recipe file with an unknown field": ("mine --recipe {tmp}/field.json", "'densty'; did you mean 'density'?"),
    "recipe file that is a list": ("mine --recipe {tmp}/list.json", "must hold fields by name"),
    "inspect without a ticket": ("inspect", "ticket"),
    "ticket that is not there": ("inspect {tmp}/none.safetensors", "there is no ticket file"),
    "ticket in an empty folder": ("inspect {tmp}", "there is no ticket file"),
    "ticket that is truncated": ("inspect {tmp}/cut.safetensors", "truncated"),
    "ticket with a flipped bit": ("inspect {tmp}/flipped.safetensors", "not those saved: damaged"),
    "safetensors that are no ticket": ("inspect {run}/trained.safetensors", "not a gemminer ticket"),
    "text that is no ticket": ("inspect {tmp}/text", "not a ticket"),
    "ticket of a newer version": ("inspect {tmp}/newer.safetensors", "format 'gemminer.ticket/9'"),
    "training a ticket without a record": ("train {tmp}/gem.safetensors", "say which --model and --data"),
    "training a ticket of another model": ("train {run} --model conv-2 --out {tmp}/w", "of another model"),
    "training a ticket of another width": ("train {run} --model-option width=0.2 --out {tmp}/w", "of another model"),
    "training where weights are": ("train {run}", "say with --out"),
    "training a ticket that is not there": ("train {tmp}/none --model conv-2 --data digits", "there is no ticket file"),
    "training beside a damaged record": ("train {tmp}/damaged", "is not a gemminer record"),
    "training without any epoch": ("train {run} --epochs 0", "train_epochs"),
    "weights that cannot be written": ("train {run} --epochs 1 --out {tmp}/text/w", "cannot write"),
    "unknown check": ("check {run} --check shufle", "did you mean 'shuffle'"),
    "checks without seeds": ("check {run} --seeds 0", "--seeds"),
    "options of an unknown method": ("methods gem", "unknown method"),
    "options of an unknown network": ("models resnet19", "unknown model"),
    "an unknown data set": ("data digit", "unknown data set"),
    "both quiet and verbose": ("mine -q -v", "opposites"),
    "validation above 1": ("mine --validation 1.5", "validation"),
    "weights to leave dense that are none": ("mine {tiny} --exclude convolution*", "convolution*"),
    "an unknown recipe to print": ("recipes nothing", "unknown recipe"),
}


BEGUN = ("nesterov with adam", "weights that cannot be written")  # so that there is progress on stderr before


@pytest.fixture(scope="module")
def broken(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of broken files."""
    tmp = tmp_path_factory.mktemp("broken")
    whole = (finished / "ticket.safetensors").read_bytes()
    (tmp / "text").write_text("text")
    (tmp / "bad.toml").write_text("density =")
    (tmp / "bad.json").write_text("{density")
    (tmp / "list.json").write_text("[1]")
    (tmp / "field.json").write_text('{"densty": 0.1}')
    (tmp / "gem.safetensors").write_bytes(whole)
    (tmp / "cut.safetensors").write_bytes(whole[: len(whole) // 2])
    # Near the end are weights: whichever tensor that is, a low bit of it is another number.
    (tmp / "flipped.safetensors").write_bytes(_flip(tmp / "gem.safetensors"))
    (tmp / "newer.safetensors").write_bytes(whole.replace(b"gemminer.ticket/1", b"gemminer.ticket/9"))
    (tmp / "damaged").mkdir()
    (tmp / "damaged" / "ticket.safetensors").write_bytes(whole)
    (tmp / "damaged" / "record.json").write_text("{")
    return tmp


def _flip(path: Path) -> bytes:
    """The ticket with one bit of one initial weight flipped."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    tensors = load_file(path)
    name = next(n for n in tensors if n.startswith("initial/"))
    tensors[name].view(torch.int32).reshape(-1)[0] ^= 1
    changed = path.with_name("changed")
    save_file(tensors, changed, metadata=metadata)
    return changed.read_bytes()


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_sentence_and_exit_code_2(
    name: str,
    finished: Path,
    broken: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    line, text = BAD[name]
    before = {p: p.stat().st_mtime_ns for p in finished.rglob("*") if p.is_file()}
    argv = [arg.format(run=finished, tmp=broken) for arg in line.replace("{tiny}", " ".join(TINY)).split()]
    assert main(argv) == 2
    captured = capsys.readouterr()
    *progress, last = captured.err.splitlines(keepends=True)
    sentence = last.removeprefix("gemminer: ")
    assert last.startswith("gemminer: ")
    assert last.endswith("\n")
    assert not any(line.startswith("gemminer: ") for line in progress)  # one sentence
    assert not progress or name in BEGUN
    assert text in sentence
    assert "Traceback" not in captured.err + captured.out
    assert 15 < len(sentence) < 600
    assert {p: p.stat().st_mtime_ns for p in finished.rglob("*") if p.is_file()} == before
    if "{tmp}/new" not in line:
        assert list(tmp_path.iterdir()) == []  # nothing is begun before the input is found good


def test_there_are_enough_bad_cases() -> None:
    assert len(BAD) >= 30


def test_no_arguments_at_all_print_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    main([])
    captured = capsys.readouterr()
    assert "Usage" in captured.out + captured.err
    assert not captured.err.startswith("gemminer: ")


def test_a_loss_that_is_not_finite_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["mine", *TINY, "--no-checks", "-t", "lr=1e30", "-t", "schedule=constant", "--train-epochs", "3"]
    assert main([*argv, "--out", str(tmp_path / "run")]) == 2
    captured = capsys.readouterr()
    assert "no longer finite" in captured.err.splitlines()[-1]
    assert captured.err.count("gemminer: ") == 1
    assert (tmp_path / "run" / "ticket.safetensors").exists()


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (KeyboardInterrupt(), 130, "gemminer: stopped; a run goes on with --resume"),
        (typer.Abort(), 130, "gemminer: stopped"),
        (OSError(28, "No space left on device", "runs/x"), 2, "runs/x: the disk is full (No space left on device)"),
    ],
    ids=["ctrl-c", "abort", "disk"],
)
def test_what_stops_a_run(
    error: BaseException, code: int, text: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stopped(*args: Any, **kwargs: Any) -> None:
        raise error

    monkeypatch.setattr(execute, "run_recipe", stopped)
    assert main(["mine"]) == code
    captured = capsys.readouterr()
    assert text in captured.err
    assert captured.err.count("\n") == 1


def test_a_bug_of_ours_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any, **kwargs: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(execute, "run_recipe", broken)
    with pytest.raises(ZeroDivisionError):
        main(["mine"])


def test_the_console_script_ends_with_the_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["gemminer", "methods", "nothing"])
    with pytest.raises(SystemExit) as caught:
        entry()
    assert caught.value.code == 2


def test_the_package_is_a_program() -> None:
    command = [sys.executable, "-m", "gemminer", "recipes", "digits"]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(run.stdout)["density"] == 0.0059
