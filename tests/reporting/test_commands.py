"""The commands that show what there is, as text and as JSON."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from gemminer import methods, models
from gemminer.cli import main
from gemminer.runs import checks, recipe


@pytest.mark.parametrize(
    ("command", "names"),
    [
        ("methods", methods.names()),
        ("models", models.names()),
        ("data", ("digits",)),
        ("recipes", recipe.names()),
        ("checks", checks.names()),
    ],
)
def test_lists(command: str, names: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {row["name"] for row in rows} >= set(names)
    assert main([command]) == 0
    assert names[0] in capsys.readouterr().out


@pytest.mark.parametrize(
    ("command", "name"),
    [*(("methods", n) for n in methods.names()), *(("models", n) for n in models.names()), ("data", "cifar10")],
)
def test_what_there_is_to_choose(command: str, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A line an option: its name, one sentence, its default and what it may be; nothing that only Python knows."""
    assert main([command, name]) == 0
    head, *said = capsys.readouterr().out.splitlines()
    lines = said[len(said) - said[::-1].index("") :]
    assert (command == "models") == ("prunable weights in" in said[0])
    assert head.startswith(f"{name}: ")
    assert main([command, name, "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(rows) == len(lines) > 0
    for line, row in zip(lines, rows, strict=True):
        assert set(row) == {"option", "default", "type", "sentence"}
        assert re.fullmatch(rf"  {row['option']} +[A-Za-z0-9\"].*\. \[.+\]", line), line
        assert not re.search(r"`|\w\.[a-z_]+|None|True|False|__", row["sentence"]), line


def test_methods_are_listed_with_their_variants(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["methods", "--json"]) == 0
    rows = {row["name"]: row for row in map(json.loads, capsys.readouterr().out.splitlines())}
    named = ["gem-miner", "edge-popup", "imp", "snip", "grasp", "synflow", "prospr", "magnitude", "random", "uniform"]
    assert set(rows) >= {*named, "erk", "smart-ratio"}
    assert rows["edge-popup"]["choices"]["rung"] == ["layer", "global", "gradual", "ridge"]
    assert rows["imp"]["choices"]["rewind"] == ["cold", "warm", "lr"]
    assert rows["imp"]["options"]["rate"] == 0.2
    assert main(["methods", "imp"]) == 0
    assert "cold | warm | lr" in capsys.readouterr().out


def test_a_printed_recipe_is_a_file_that_recipe_takes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = "paper/resnet20-cifar10-1.44"
    assert main(["recipes", name]) == 0
    (tmp_path / "r.json").write_text(capsys.readouterr().out)
    assert recipe.load(str(tmp_path / "r.json")).digest == recipe.load(name).digest
