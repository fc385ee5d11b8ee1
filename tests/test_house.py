"""What holds of the package as a whole."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
import tomllib
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

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


# --- the shape ---------------------------------------------------------------------------------------------------

CHECKOUT = ROOT.parent
ROOMS = {"core", "data", "export", "models", "sparse", "training", "methods", "runs", "reporting", "bench"}
ROOMS |= {"integrations"}
LOTS = {"rows"}  # rooms that may be built; each has its sentence in docs/design.md
DOORS = {"__init__.py", "__main__.py", "api.py", "cli.py", "py.typed"}
FILES = sorted(ROOT.rglob("*.py"))
TREES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in FILES}


def name_of(path: Path) -> str:
    return str(path.relative_to(CHECKOUT))


def test_the_package_is_rooms_and_doors() -> None:
    here = {path.name for path in ROOT.iterdir() if path.name != "__pycache__"}
    assert here >= ROOMS | DOORS
    assert here <= ROOMS | DOORS | LOTS


def test_no_file_is_long_but_the_kernels() -> None:
    files = [*FILES, *sorted((CHECKOUT / "tests").rglob("*.py"))]
    lengths = {name_of(path): path.read_text(encoding="utf-8").count("\n") for path in files}
    assert {name: n for name, n in lengths.items() if n > 500 and not name.endswith("kernels.py")} == {}
    assert lengths["gemminer/api.py"] <= 400  # two thirds are docstrings: what a call does, with its example
    assert lengths["gemminer/cli.py"] <= 450


def test_functions_fit_on_a_screen_and_take_few_parameters() -> None:
    """Outside the sparse engine and the doors: 70 lines and 10 parameters."""
    found = []
    for path, tree in TREES.items():
        if path.relative_to(ROOT).parts[0] in {"sparse", "api.py", "cli.py"}:
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                count = len(node.args.posonlyargs) + len(node.args.args) + len(node.args.kwonlyargs)
                length = (node.end_lineno or node.lineno) - node.lineno + 1
                if count > 10 or length > 70:
                    found.append(f"{name_of(path)}: {node.name} has {count} parameters, {length} lines")
    assert found == []


def public_names(tree: ast.Module) -> list[str]:
    lists = [n.value for n in tree.body if isinstance(n, ast.Assign) and ast.unparse(n.targets[0]) == "__all__"]
    return list(ast.literal_eval(lists[0])) if lists else []


def test_no_public_name_hides_a_module() -> None:
    """`gemminer.train` is a function, so no module is called so; `from gemminer.methods import snip` is the module."""
    for path, tree in TREES.items():
        if path.name == "__init__.py":
            modules = {p.stem for p in path.parent.iterdir() if p.suffix == ".py" or p.is_dir()}
            package = ".".join(path.parent.relative_to(CHECKOUT).parts)
            for node in tree.body:
                if isinstance(node, ast.ImportFrom) and node.module == package:
                    modules -= {alias.name for alias in node.names}
            assert not modules & set(public_names(tree)), name_of(path)


def test_every_public_name_is_there() -> None:
    for name in gemminer.__all__:
        assert getattr(gemminer, name) is not None


@pytest.mark.parametrize(
    ("what", "pattern"),
    [
        ("the schema of records", r'"gemminer\.record/1"'),
        ("the CSV writer", r"\bcsv\.(writer|DictWriter)\b"),
        ("the atomic writer", r"os\.replace\(|\.replace\(self\.path\)|os\.rename\("),
    ],
)
def test_written_once(what: str, pattern: str) -> None:
    assert len([p for p in FILES if re.search(pattern, p.read_text(encoding="utf-8"))]) == 1, what


def test_a_sentence_has_a_cause_only_where_it_is_the_callers() -> None:
    """`from None` or `from cause(error)`: what a library raised adds forty lines in front of our sentence."""
    found = []
    for path, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Raise) and node.cause is not None:
                text, raised = ast.unparse(node.cause), ast.unparse(node.exc) if node.exc else ""
                if text != "None" and not text.startswith("cause(") and not raised.startswith("ImportError"):
                    found.append(f"{name_of(path)}: {text}")
    # A network's failure, in the words of its library; and the cause that the same error had already.
    assert found == ["gemminer/runs/called.py: error.__cause__", "gemminer/training/ranks.py: error"]


def test_generic_code_asks_rows_not_names() -> None:
    """Runs and doors know methods by their registry rows: no isinstance of options, no look for a field."""
    generic = [p for p in FILES if p.relative_to(ROOT).parts[0] in {"runs", "api.py", "cli.py"}]
    pattern = r'isinstance\(options, |hasattr\(options, |"epochs" in \{|facts\.pop\(|import fcntl|import msvcrt'
    assert [name_of(p) for p in generic if re.search(pattern, p.read_text(encoding="utf-8"))] == []


def test_one_contract_of_nine_layers() -> None:
    rules = tomllib.loads((CHECKOUT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]
    assert not any("ignore_imports" in contract for contract in rules["contracts"])
    layers = [c["layers"] for c in rules["contracts"] if c["type"] == "layers"]
    assert len(layers) == 1
    assert [line for line in layers[0] if line != "__main__"][::-1] == [
        *(
            "core",
            "data | export | models | sparse",
            "training",
            "methods",
            "runs",
            "reporting",
            "api",
            "bench | integrations",
            "cli",
        )
    ]


def test_tests_mirror_the_rooms() -> None:
    """test_page.py is of reporting/page.py, test_page_in_browser.py too; test_bench.py is of the whole room."""
    loose = {p.name for p in (CHECKOUT / "tests").glob("test_*.py")}
    assert loose <= {"test_api.py", "test_cli.py", "test_docs.py", "test_readme.py", "test_house.py"}
    modules = {str(p.relative_to(ROOT).with_suffix("")) for p in FILES} | {f"{room}/{room}" for room in ROOMS}
    for path in (CHECKOUT / "tests").rglob("test_*.py"):
        room, words = path.relative_to(CHECKOUT / "tests").parent, path.stem.removeprefix("test_").split("_")
        if room.parts and room.parts[0] in ROOMS:
            own = {str(room / "_".join(words[:n])) for n in range(1, len(words) + 1)}
            assert own & modules, f"{name_of(path)} is named after no module"


def test_results_stay_small() -> None:
    files = [p for p in (CHECKOUT / "results").rglob("*") if p.is_file()]
    assert len(files) <= 60
    assert sum(p.stat().st_size for p in files) <= 3e6


# --- one file each: a method, a check, a recipe field ------------------------------------------------------------

LOT = """
from dataclasses import dataclass

import torch

from gemminer.core.selection import keep_highest, target
from gemminer.methods import Found, register
from gemminer.runs import checks
from gemminer.training.loop import fit
from gemminer.training.rules import KeepMask
from gemminer.training.settings import Settings


@dataclass(frozen=True)
class Options(Settings):
    rounds: int = 2
    invert: bool = False


@register("twice", Options, summary="two rounds of training", source="a test", trains=True,
          cost=lambda options, density, total: options.rounds * options.epochs)
def find(task, density, options, seed):
    weights = task.prunable()
    target(density, sum(w.numel() for w in weights.values()))
    masks = {name: torch.ones_like(w, dtype=torch.bool) for name, w in weights.items()}
    total, rows = sum(w.numel() for w in weights.values()), []
    for number in range(1, options.rounds + 1):
        with torch.no_grad():
            for name, w in weights.items():
                w.mul_(masks[name])
        own = fit(task, KeepMask(task.model, masks), options, seed=seed, phase=f"{task.phase}:round{number}")
        before = rows[-1]["seconds"] if rows else 0.0
        kept = [int(mask.sum()) for mask in masks.values()]
        rows += [{**row, "seconds": before + row["seconds"], "layers_kept": kept} for row in own]
        sign = -1.0 if options.invert else 1.0
        ranking = {n: (sign * w.detach().abs()).masked_fill(~masks[n], -torch.inf) for n, w in weights.items()}
        masks = keep_highest(ranking, target(density ** (number / options.rounds), total))
    return Found(masks, rows=rows)


@checks.register("reversed", "every mask turned back to front")
def back_to_front(experiment, ticket, seed):
    masks = {n: m.flatten().flip(0).view(m.shape) for n, m in ticket.masks.items()}
    return ticket.replace(masks=masks, check="reversed")
"""


@pytest.fixture(scope="module")
def lot(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a process in which the file above is the plug-in `lot`."""
    folder = tmp_path_factory.mktemp("lot")
    (folder / "lot.py").write_text(LOT)
    (folder / "gem.py").write_text("import sys, lot\nfrom gemminer.cli import main\nsys.exit(main(sys.argv[1:]))\n")
    path = os.pathsep.join([str(folder), str(CHECKOUT), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "PYTHONPATH": path, "GEM": str(folder / "gem.py"), "COLUMNS": "200", "OMP_NUM_THREADS": "1"}


def said(lot: dict[str, str], *argv: str) -> str:
    run = subprocess.run([sys.executable, lot["GEM"], *argv], env=lot, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    return run.stdout


def test_the_conformance_suite_takes_up_a_new_method(lot: dict[str, str]) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "lot", "-p", "no:cacheprovider", "-k", "twice"]
    run = subprocess.run(
        [*command, "tests/conformance"], cwd=CHECKOUT, env=lot, capture_output=True, text=True, timeout=600
    )
    assert run.returncode == 0, run.stdout[-2000:]
    assert int(re.findall(r"(\d+) passed", run.stdout)[0]) >= 20


def test_the_command_line_takes_up_a_new_method_and_check(lot: dict[str, str]) -> None:
    assert "two rounds of training" in said(lot, "methods")
    assert "rounds" in said(lot, "methods", "twice")
    assert "every mask turned back to front" in said(lot, "checks")
    assert "reversed" in said(lot, "check", "--help")
    axes = ["-m", "twice", "-d", "0.1", "--model", "lenet-300-100", "--data", "digits", "--no-dense"]
    cells = said(
        lot, "compare", *axes, "--checks", "reversed", "--epochs", "3", "--out", "nowhere", "--dry-run", "--json"
    )
    row = json.loads(cells.splitlines()[0])
    assert (row["method"], row["search"], row["training"]) == ("twice", 6, 6)  # two rounds; the ticket and its check


def test_a_run_and_its_page_take_up_a_new_method_and_check(lot: dict[str, str], tmp_path: Path) -> None:
    short = ["--model", "lenet-300-100", "--density", "0.1", "--epochs", "1", "--limit-train", "200", "--no-dense"]
    asked = [
        "mine",
        "-m",
        "twice",
        *short,
        "--checks",
        "reversed",
        "--check-seeds",
        "1",
        "--out",
        str(tmp_path / "run"),
    ]
    said(lot, *asked)
    record = json.loads((tmp_path / "run" / "record.json").read_text())
    assert record["method"] == "twice"
    assert list(record["checks"]) == ["reversed"]
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "every mask turned back to front" in page
