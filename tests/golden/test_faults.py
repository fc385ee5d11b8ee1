"""Each pin can fail: one fault is planted, and it is red."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import pytest

from gemminer import methods
from gemminer.core import prunable
from gemminer.methods import registry
from gemminer.methods.parts import schedules
from gemminer.runs.recipe import Recipe
from gemminer.training import shards, task
from tests.golden import pins
from tests.golden.test_runs import differs
from tests.helpers import EXACT

PINNED = pins.load()
LENET, RESNET = pins.RUNS


def red(label: str) -> bool:
    return pins.masks_digest(pins.search(label, "Plain").masks) != PINNED["tickets"][label]["Plain"]


@pytest.mark.parametrize(
    "label", ["gem-miner:lr=2:slack=1", "gem-miner:lr=2:ridge=0.001", "edge-popup:rung=ridge:clip=0.1"]
)
def test_a_freeze_one_step_later(label: str, monkeypatch: pytest.MonkeyPatch) -> None:
    schedule = schedules.freeze_schedule

    def later(*given: Any, **more: Any) -> dict[int, int]:
        found = schedule(*given, **more)
        return {min(step + 1, max(found)): count for step, count in found.items()}

    assert not red(label)
    monkeypatch.setattr(schedules, "freeze_schedule", later)
    assert red(label)


@pytest.mark.parametrize("method", EXACT)
def test_another_seeds_stream(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Methods that draw nothing and see no data keep a few weights less instead."""
    row = methods.get(method)

    def wrong(task: Any, density: float, options: Any, seed: int) -> Any:
        if method in ("magnitude", "synflow"):
            return row.find(task, 0.9 * density, options, seed)
        batches = copy.copy(task.train)
        batches.seed += 1
        return row.find(dataclasses.replace(task, train=batches), density, options, seed + 1)

    monkeypatch.setitem(registry._METHODS, method, dataclasses.replace(row, find=wrong))
    assert red(method)


@pytest.mark.parametrize("label", list(pins.RUNS))
def test_a_training_with_another_seeds_stream(label: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mixed = shards.mixed

    def other(*keys: object) -> int:
        return mixed(*keys, 1) if "training batches" in keys else mixed(*keys)

    monkeypatch.setattr(shards, "mixed", other)
    found = differs(label, tmp_path)
    assert any(text.startswith("learnt ") for text in found)
    assert not any("mask bits" in text or text.startswith("initial ") for text in found)


def test_a_dropped_layer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = prunable.find_prunable

    def fewer(*given: Any, **more: Any) -> prunable.Prunable:
        table = found(*given, **more)
        return dataclasses.replace(table, weights={name: table.weights[name] for name in list(table.weights)[:-1]})

    monkeypatch.setattr(task, "find_prunable", fewer)
    assert red("snip")
    own = {"masks": {"a": ""}, "initial": {}, "learnt": {}, "record": {}}
    assert pins.run_differs(own, PINNED["runs"][LENET])[0].startswith("masks of ")
    assert pins.tables_differ(pins.tables(tmp_path / "comparison"), PINNED["tables"])


def test_a_field_of_the_record_left_out() -> None:
    pinned = PINNED["runs"][LENET]["record"]
    for wrong in ({k: v for k, v in pinned.items() if k != "engine"}, {**pinned, "recipe_hash": "0" * 12}):
        assert list(pins.values_differ(wrong, pinned, "record"))


def test_a_flag_that_is_called_otherwise() -> None:
    """The command line is made of the recipe's fields, so a sentence changed there is seen in the help."""
    field = Recipe.model_fields["density"]
    assert (field.description or "")[:20].lower() in (pins.HELP / "mine.txt").read_text(encoding="utf-8").lower()
