"""What docs and docstrings name exists, and the examples in docstrings are right."""

from __future__ import annotations

import ast
import doctest
import importlib
import pkgutil
import re
from pathlib import Path

import pytest

import gemminer

ROOT = Path(gemminer.__file__).parent
PAGES = [*ROOT.parent.glob("*.md"), *sorted((ROOT.parent / "docs").rglob("*.md"))]
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
