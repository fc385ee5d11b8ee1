"""The picture of a pre-training's examples, and that weights of step k are no gems."""

from __future__ import annotations

from typing import Any

from gemminer.reporting import aggregate, run_charts, tables
from gemminer.runs.grid import make
from gemminer.runs.record import Record, Start, parsed
from tests.reporting.fakes import fake_record


def fake() -> Record:
    return parsed(fake_record(), "a record")


def started(**pretrain: Any) -> Record:
    found = fake()
    return found.model_copy(update={"start": Start(step=200, pretrain=pretrain)})


def test_the_scores_of_all_examples_and_of_those_chosen() -> None:
    counts = {"low": 0.0, "high": 1.0, "all": [5, 3, 2, 0], "chosen": [4, 0, 0, 0], "infinite": [0, 0]}
    figure = run_charts.examples(started(kind="el2n", histogram=counts))
    assert figure is not None
    everything, chosen = figure["data"]
    assert (everything["y"], chosen["y"]) == ([5, 3, 2, 0], [4, 0, 0, 0])
    assert everything["x"] == [0.125, 0.375, 0.625, 0.875]
    assert run_charts.examples(started(kind="el2n")) is None
    assert run_charts.examples(fake()) is None


def test_a_result_before_training_is_of_gems_alone() -> None:
    gem, moved = fake(), started(steps=200)
    assert aggregate.before(gem) == gem.accuracy.before is not None
    assert aggregate.before(moved) is None
    assert aggregate.read("a", moved).before is None
    cell = make({"dense": False}).cells()[0]
    assert tables.row(cell, gem)["before"] == gem.accuracy.before
    assert tables.row(cell, moved)["before"] is None
