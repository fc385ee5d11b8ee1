"""Recipes: validated, hashed, from files, and budgets in them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from gemminer.core.errors import UsageError
from gemminer.runs import recipe
from gemminer.runs.recipe import Recipe, budget_of, make
from tests.mutations.kinds import mutate


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
        "accumulate": 2,
        "precision": "bf16",
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
        "include": ("a",),
        "exclude": ("a",),
        "embeddings": True,
        "within": "runs/first",
        "pretrain": "all@200",
        "scores": "runs/scores.safetensors",
    }
    assert set(changes) == set(Recipe.model_fields)  # a field added later is to be added here
    digests = {make({name: value}).digest for name, value in changes.items()}
    assert len(digests | {plain.digest}) == len(changes) + 1
    assert make({"options": {"a": 1, "b": 2}}).digest == make({"options": {"b": 2, "a": 1}}).digest


def test_other_defaults_are_another_digest(monkeypatch: pytest.MonkeyPatch) -> None:
    before = Recipe().digest
    monkeypatch.setattr(recipe, "DEFAULTS", recipe.DEFAULTS + 1)
    assert Recipe().digest != before


def test_an_option_whose_runs_mean_something_else_now_has_another_digest(monkeypatch: pytest.MonkeyPatch) -> None:
    """A warm ticket was trained from step 0 before: such a run is not gone on with, and no other run is touched."""
    warm, cold = (make({"method": "imp", "options": {"rewind": kind}}) for kind in ("warm", "lr"))
    other = make({"method": "gem-miner"})
    before = [r.digest for r in (warm, cold, other)]
    monkeypatch.setattr(recipe, "REVISED", {})
    after = [r.digest for r in (warm, cold, other)]
    assert before[0] != after[0]
    assert before[1:] == after[1:]


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
        ({"densty": 0.1}, "unknown field of recipe 'densty'; did you mean 'density'"),
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
        ({"options": [1]}, r"options: .* not \[1\]"),
        ({"model": None}, "model: .* not None"),
    ],
)
def test_recipes_that_cannot_be(fields: Any, text: str) -> None:
    with pytest.raises(UsageError, match=text) as caught:
        make(fields)
    assert "\n" not in str(caught.value)


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
        ("r.json", b'{"densty": 1}', "'densty'; did you mean 'density'?"),
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


@pytest.mark.parametrize("text", ["", "s", "-1", "0s", "fast", "nan", "inf"])
def test_a_budget_that_cannot_be(text: str) -> None:
    with pytest.raises(UsageError, match="budget is seconds, as 120s, or a part"):
        budget_of(text)


def test_mutated_recipes_are_refused_in_one_sentence_or_made_ready(tmp_path: Path) -> None:
    found, faults = mutate("recipes", range(150), tmp_path)
    assert not faults
    assert found["made ready"] + found["planned"] > 10
