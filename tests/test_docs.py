"""What docs and docstrings name exists, and the examples in docstrings are right."""

from __future__ import annotations

import ast
import contextlib
import doctest
import importlib
import pkgutil
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest

import gemminer
from gemminer.cli import main

ROOT = Path(gemminer.__file__).parent
PAGES = [*ROOT.parent.glob("*.md"), ROOT.parent / "results/README.md", *sorted((ROOT.parent / "docs").rglob("*.md"))]
MODULES = sorted(m.name for m in pkgutil.walk_packages([str(ROOT)], "gemminer.") if not m.name.endswith("__main__"))
DOTTED = re.compile(r"\bgemminer(?:\.[A-Za-z_]\w*)+\b(?!/\d)")  # gemminer.record/1 is a format, not a name
FILES = re.compile(r"\.(html|py|toml|json|md|sh|txt|yml)$")


def resolves(dotted: str) -> bool:
    """Whether a dotted name is a module, or an attribute of one, fields of classes included."""
    parts = dotted.split(".")
    for cut in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:cut]))
        except ModuleNotFoundError:
            continue
        for name in parts[cut:]:
            fields = {**getattr(found, "__dataclass_fields__", {}), **getattr(found, "model_fields", {})}
            if not hasattr(found, name) and name not in fields:
                return False
            found = getattr(found, name, None)
        return True
    return False


def docstrings(path: Path) -> str:
    """All docstrings and comments of a file."""
    text = path.read_text(encoding="utf-8")
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    found = [ast.get_docstring(node) or "" for node in ast.walk(ast.parse(text)) if isinstance(node, kinds)]
    return "\n".join([*found, *re.findall(r"#.*", text)])


def test_a_name_that_does_not_exist_is_noticed() -> None:
    assert not resolves("gemminer.train.Settings")
    assert resolves("gemminer.training.settings.Settings.lr")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_names_in_the_docs_exist(page: Path) -> None:
    names = {name for name in DOTTED.findall(page.read_text(encoding="utf-8")) if not FILES.search(name)}
    assert [name for name in sorted(names) if not resolves(name)] == []


def test_names_in_docstrings_exist() -> None:
    lost = []
    for path in sorted(ROOT.rglob("*.py")):
        names = {name for name in DOTTED.findall(docstrings(path)) if not FILES.search(name)}
        lost += [f"{path.relative_to(ROOT)}: {name}" for name in sorted(names) if not resolves(name)]
    assert lost == []


@pytest.mark.parametrize("module", MODULES)
def test_examples_in_docstrings(module: str) -> None:
    failed, _ = doctest.testmod(importlib.import_module(module))
    assert failed == 0


# --- commands ----------------------------------------------------------------------------------------------------


def commands(page: Path) -> list[str]:
    """The `gemminer` commands of a page, in its code and between backquotes; without names of commands alone, FILE
    and the like, and what would change the reader's shell."""
    text = page.read_text(encoding="utf-8")
    blocks = re.findall(r"```(?:sh|bash|console)\n(.*?)```", text, flags=re.DOTALL)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    said = (" ".join(code.split()) for code in re.findall(r"(?<!`)`(gemminer [^`]+)`(?!`)", text))
    lines += [line for line in said if len(line.split()) > 2]
    left_out = re.compile(r"\b[A-Z][A-Z_]*\b|\.\.\.|--install-completion")
    lines = [line.split("  #")[0].strip() for line in lines]
    return [line for line in lines if line.startswith("gemminer ") and not left_out.search(line)]


COMMANDS = sorted({line for page in PAGES for line in commands(page)})


class Reached(Exception):
    """The command was understood and would now be carried out."""


def reached(*given: Any, **more: Any) -> None:
    raise Reached


@pytest.mark.parametrize("line", COMMANDS)
def test_commands_of_the_docs_are_understood(line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every flag and name in them exists; `tests/test_readme.py` carries out those of the README."""
    importlib.import_module("gemminer.runs.compare")  # or, imported while a name is replaced, it would keep that
    for name in ("first", "five-seconds"):
        shutil.copytree(ROOT.parent / "tests/golden/old/run", tmp_path / "runs" / name)
    for folder in ("benchmarks", "results"):
        (tmp_path / folder).symlink_to(ROOT.parent / folder)
    monkeypatch.chdir(tmp_path)
    for name in ("run_recipe", "train_ticket", "check_ticket"):
        monkeypatch.setattr(f"gemminer.runs.execute.{name}", reached)
    monkeypatch.setattr("gemminer.runs.seeking.smallest_of", reached)
    monkeypatch.setattr("gemminer.runs.exporting.export_run", reached)
    monkeypatch.setattr("gemminer.runs.scoring_runs.score_recipe", reached)
    monkeypatch.setattr("gemminer.runs.stability_runs.instability_of", reached)
    for name in ("compare", "draw"):
        monkeypatch.setattr(f"gemminer.api.{name}", reached)
    monkeypatch.setattr("gemminer.bench.run", reached)
    monkeypatch.setattr("gemminer.runs.estimate.estimates", reached)
    with contextlib.suppress(Reached):
        assert main(shlex.split(line)[1:]) == 0


def test_there_are_commands_in_the_docs() -> None:
    assert len(COMMANDS) > 15
