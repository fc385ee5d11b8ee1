"""What a command line asks for, from a file and the flags that were given."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gemminer.core.errors import UsageError
from gemminer.runs import asked, recipe
from gemminer.runs.recipe import Recipe


def test_nothing_but_a_seed_is_the_recipe_digits() -> None:
    for given in ({}, {"seed": 4}):
        found = asked.to_mine(given)
        assert found == asked.Asked(recipe.load("digits").replace(**given), "recipe digits")
        assert found.says("what it means") == "recipe digits: what it means"


def test_any_other_field_is_on_top_of_the_defaults() -> None:
    for given in ({"density": 0.05}, {"data": "digits"}, {"options": {"lr": 1}}):  # also where it is the default
        found = asked.to_mine(given)
        assert found == asked.Asked(Recipe(**given))  # type: ignore[arg-type]
        assert found.says("what it means") == "what it means"


def test_a_named_recipe_is_changed_name_by_name() -> None:
    name = "paper/resnet20-cifar10-1.44"
    found = asked.to_mine({"train": {"lr": 1}, "checks": [], "seed": 2}, name)
    base = recipe.load(name)
    assert found.recipe.train == {**base.train, "lr": 1}
    assert found.title == f"recipe {name} with train lr=1, checks none"
    assert base.train["lr"] != 1


def test_a_ticket_is_trained_as_its_record_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ticket = tmp_path / "ticket.safetensors"
    with pytest.raises(UsageError, match="there is no ticket"):
        asked.of_ticket(ticket, {"model": "conv-2"})
    ticket.touch()
    with pytest.raises(UsageError, match="say which --model and --data"):
        asked.of_ticket(ticket, {"model": "conv-2"})
    assert asked.of_ticket(ticket, {"model": "conv-2", "data": "mnist"}) == Recipe(model="conv-2", data="mnist")
    assert asked.of_ticket(ticket, {"train_epochs": 2}, "digits") == recipe.load("digits").replace(train_epochs=2)
    (tmp_path / "record.json").write_text("{}")
    monkeypatch.setattr("gemminer.runs.record.read", lambda path: Recorded())
    assert asked.ticket_of(tmp_path) == ticket
    assert asked.of_ticket(tmp_path, {"validation": 0.2}) == Recipe(density=0.2, checks=(), validation=0.2)
    assert asked.of_ticket(tmp_path, {}, leave=("checks",)) == Recipe(density=0.2)


class Recorded:
    recipe = {"density": 0.2, "checks": []}  # noqa: RUF012


def test_flags_reach_every_part_of_a_comparison(tmp_path: Path) -> None:
    file = tmp_path / "c.json"
    file.write_text(json.dumps({"train": {"lr": 1}, "parts": [{"density": 0.1}, {"density": 0.2, "epochs": 3}]}))
    fields = asked.to_compare({"epochs": 2, "train": {"momentum": 0}}, file)
    both = {"train": {"lr": 1, "momentum": 0}, "epochs": 2}
    assert fields == {"parts": [{**both, "density": 0.1}, {**both, "density": 0.2}]}
    assert asked.to_compare({"seed": ["0-1"]}) == {"parts": [{"seed": ["0-1"]}]}


def test_a_comparisons_defaults() -> None:
    found = asked.compared()
    assert (found.checks, found.check_seeds, found.dense) == (("shuffle", "reinit", "invert"), 1, True)


def test_smallest_takes_no_pretraining(tmp_path: Path) -> None:
    file = tmp_path / "r.json"
    file.write_text('{"pretrain": "all@20"}')
    with pytest.raises(UsageError, match="at initialisation"):
        asked.to_smallest({}, str(file))
