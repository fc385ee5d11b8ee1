"""Grids: every combination once, from flags and files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gemminer import cli
from gemminer.core.errors import UsageError
from gemminer.runs import compare, grid
from tests.helpers import EXACT
from tests.runs.helpers import plan


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
    # Layers that are removed by their number are something to check.
    cells = plan(method=["layers:remove=3"], density=[1.0], checks=["shuffle"]).cells()
    assert [(c.label, c.recipe.checks) for c in cells] == [("dense", ()), ("layers:remove=3", ("shuffle",))]


def test_all_methods_are_one_word() -> None:
    assert plan(method="all").axes["method"] == EXACT
    assert plan(method=["all", "imp:rewind=lr"]).axes["method"] == (*EXACT, "imp:rewind=lr")


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
        ({"seed": "0-100000000000"}, "seed takes at most 100,000 values"),
        ({"seed": range(10**18)}, "seed takes at most 100,000 values"),
        ({"seed": "0-9999", "density": [0.1 + i / 100 for i in range(20)]}, "at most 100,000 cells"),
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
