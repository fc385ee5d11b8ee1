"""What holds of the package as a whole."""

from __future__ import annotations

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import gemminer

ROOT = Path(gemminer.__file__).parent


def imports() -> dict[str, set[str]]:
    """Module -> the modules of the package it imports anywhere: in functions and for the type checker alone, too."""
    files = {
        ".".join(path.relative_to(ROOT.parent).with_suffix("").parts).removesuffix(".__init__"): path
        for path in ROOT.rglob("*.py")
    }
    found: dict[str, set[str]] = {}
    for module, path in files.items():
        names: set[str] = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                inner = (f"{node.module}.{alias.name}" for alias in node.names)
                names |= {name if name in files else node.module for name in inner}
        found[module] = names & set(files) - {module}
    return found


def test_no_modules_import_each_other_in_a_circle() -> None:
    graph = imports()
    assert "gemminer.core.errors" in graph["gemminer.core.ticket"]
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        raise AssertionError(f"a circle: {' -> '.join(error.args[1])}") from None
