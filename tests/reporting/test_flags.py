"""Commands from typed fields."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import typer
from pydantic import Field
from pydantic.fields import FieldInfo

from gemminer import models
from gemminer.cli import main
from gemminer.core.errors import UsageError
from gemminer.reporting.flags import (
    RecipeFields,
    Voice,
    default_in_words,
    kind_of,
    range_of,
    sentence,
    spread,
)
from gemminer.runs import execute, recipe
from gemminer.runs.recipe import Recipe


@dataclass(frozen=True)
class Two:
    left: Annotated[int, typer.Option("--left", "-l", help="One.")] = 1
    right: Annotated[str | None, typer.Option("--right", help="Other.")] = None


def run(*argv: str) -> dict[str, Any]:
    """What a command is called with."""
    app, found = typer.Typer(), {}

    @app.command()
    @spread
    def command(
        *,
        name: Annotated[str, typer.Argument()] = "x",
        given: Annotated[dict[str, Any], RecipeFields("mine", Recipe)],
        two: Two,
    ) -> None:
        found.update(name=name, given=given, two=two)

    app(list(argv), standalone_mode=False)
    return found


def test_a_command_gets_its_groups_of_flags_as_values() -> None:
    assert run() == {"name": "x", "given": {}, "two": Two()}
    called = run("y", "-l", "3", "--density", "0.1", "-o", "lr=1", "--lambda", "0.5", "-o", "name=a=b", "--no-checks")
    options = {"lr": 1, "ridge": 0.5, "name": "a=b"}
    assert called == {"name": "y", "given": {"density": 0.1, "options": options, "checks": []}, "two": Two(3)}
    assert run("--exclude", "a,b", "--exclude", "c")["given"] == {"exclude": ["a", "b", "c"]}
    assert run("--no-dense")["given"] == {"dense": False}
    with pytest.raises(UsageError, match="--train-option takes NAME=VALUE, not 'lr'"):
        run("-t", "lr")


def test_every_field_of_a_recipe_is_a_flag() -> None:
    flags = (
        "--method snip --density 0.1 --model conv-2 --data mnist --seed 4 --epochs 3 --train-epochs 2 --batch-size 8"
    )
    flags += " --limit-train 50 --validation 0.2 --augment none --initialiser keep --model-option width=2 -o batches=2"
    flags += " -t lr=1 --checks shuffle,erk --check-seeds 2 --no-dense --exclude fc*,conv1* --include experts*"
    flags += " --embeddings --budget 5s --within runs/first --accumulate 2 --precision bf16 --max-norm 0.5"
    flags += " --pretrain easiest:50@20 --scores runs/scores.safetensors"
    given = run(*flags.split())["given"]
    assert set(given) == set(Recipe.model_fields)  # a field added later is to be added here
    del given["budget"]  # which stands instead of epochs
    assert set(Recipe().changed(given).model_dump(exclude_defaults=True)) == set(given)
    assert given["exclude"] == ["fc*", "conv1*"]
    assert given["train"] == {"lr": 1, "max_norm": 0.5}
    assert given["checks"] == ["shuffle", "erk"]


def test_a_ticket_knows_what_it_was_searched_with() -> None:
    searched = {"method", "density", "epochs", "budget", "initialiser", "options", "include", "exclude", "embeddings"}
    searched |= {"dense", "within"}
    for command in ("train", "check"):
        names = {p.name for p in RecipeFields(command).flags()}
        assert not names & searched
        assert {"model", "data", "train_epochs", "validation", "train"} <= names


@pytest.mark.parametrize(
    ("field", "words", "kind"),
    [
        (Field(0.1, ge=0, lt=1), "0 to below 1", float),
        (Field(0.1, gt=0, le=1), "above 0, at most 1", float),
        (Field(0.1, ge=0, le=1), "0 to 1", float),
        (Field(1, ge=1), "1 or more", int),
        (Field(1, gt=0), "above 0", int),
        (Field(1, le=9), "at most 9", int),
        (Field(1, lt=9), "below 9", int),
        (Field(0, ge=0, lt=2**63), "0 or more", int),
        (Field("a"), "a, b", Literal["a", "b"]),
        (Field("a"), "", str | int),
    ],
)
def test_bounds_in_words(field: FieldInfo, words: str, kind: Any) -> None:
    field.annotation = kind
    assert range_of(field) == words
    assert kind_of(field) is (kind if kind in (int, float) else str)


def test_words() -> None:
    assert [default_in_words(v) for v in (True, (), ("a", "b"), None, {}, 0.5, 3)] == [
        "yes",
        "",
        "a,b",
        "",
        "",
        "0.5",
        "3",
    ]
    assert sentence("see this") == "See this."
    assert json.dumps(Voice().quiet) == "false"
    with pytest.raises(UsageError, match="opposites"):
        Voice(quiet=True, verbose=True)


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        ("gemminer mine --method s", {"smart-ratio", "snip", "synflow"}),
        ("gemminer models resnet1", {"resnet18"}),
        ("gemminer mine --recipe paper/vgg", {n for n in recipe.names() if n.startswith("paper/vgg")}),
        ("gemminer check run --check e", {"erk"}),
        ("gemminer ben", {"bench"}),
    ],
)
def test_a_shell_completes(
    words: str, wanted: set[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in (("_GEMMINER_COMPLETE", "complete_bash"), ("COMP_WORDS", words)):
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("COMP_CWORD", str(len(words.split()) - 1))
    with pytest.raises(SystemExit):
        main([])
    assert set(capsys.readouterr().out.split()) == wanted


def test_streams_that_are_closed_full_or_narrow(tmp_path: Path) -> None:
    """One process of its own for them all: each has the streams replaced before the program begins."""
    code = """
import os, sys
from gemminer.cli import entry
def run(*argv, out, **more):
    sys.argv = ["gemminer", *argv]
    kept, sys.stdout = sys.stdout, out
    try:
        entry()
    except SystemExit as end:
        code = end.code
    sys.stdout = kept
    return code
read, write = os.pipe()
os.close(read)
codes = [
    run("methods", out=os.fdopen(write, "w")),
    run("methods", out=open("/dev/full", "w")),
    run("methods", "snip", out=open("ascii", "w", encoding="ascii")),
    run("models", out=open("wide", "w")),
    run("methods", "snip", out=None),
]
print(codes)
"""
    environment = {**os.environ, "COLUMNS": "20", "TERM": "dumb"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.stdout == "[141, 2, 0, 0, 0]\n", done.stderr
    assert done.stderr == (
        "gemminer: cannot write: the disk is full (No space left on device): make room, or choose another place\n"
    )
    rows = (tmp_path / "wide").read_text().splitlines()
    assert len(rows) == 1 + len(models.names())
    assert all(name in row for name, row in zip(models.names(), rows[1:], strict=True))


@pytest.mark.parametrize(
    "line",
    [
        "mine --data digits --check shuffle --seeds 1",
        "check gem --model lenet-5 --data digits --checks shuffle --check-seeds 1",
    ],
)
def test_checks_are_spelled_either_way(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Recipe] = []

    def run(recipe: Recipe, *args: Any, **more: Any) -> None:
        seen.append(recipe)
        raise UsageError("seen")

    monkeypatch.setattr(execute, "run_recipe", run)
    monkeypatch.setattr(execute, "check_ticket", run)
    assert main(line.split()) == 2
    assert (seen[0].checks, seen[0].check_seeds) == (("shuffle",), 1)
