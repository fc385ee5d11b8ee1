"""The recipe, or the comparison's fields, that a command line asks for by a file and flags."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gemminer.core.errors import UsageError
from gemminer.runs import grid
from gemminer.runs import recipe as recipes
from gemminer.runs.recipe import Recipe

HELD_OUT = 0.2  # of the training data, where a ticket's density is chosen on it: twice a run's
BESIDE_IDENTITY = {"seed"}  # fields that make another run of the same recipe


@dataclass(frozen=True)
class Asked:
    """A recipe and its title: "recipe digits", "recipe digits with density 0.02", or "" where it has no name."""

    recipe: Recipe
    title: str = ""

    def says(self, resolved: str) -> str:
        """The first line that a run prints, from a sentence about the resolved recipe."""
        return f"{self.title}: {resolved}" if self.title else resolved


def to_mine(given: Mapping[str, Any], base: str | None = None) -> Asked:
    """The fields `given` on top of the recipe `base`; where no field but the seed is given, the recipe `digits`.

    >>> to_mine({"seed": 3}).title, to_mine({"density": 0.02}).title, to_mine({"density": 0.02}, "digits").title
    ('recipe digits', '', 'recipe digits with density 0.02')
    """
    changes = {name: value for name, value in given.items() if name not in BESIDE_IDENTITY}
    if base is None and not changes:
        base = recipes.DEFAULT
    if given.get("scores") and not given.get("pretrain") and (base is None or recipes.load(base).pretrain is None):
        raise UsageError("--scores are for a pre-training on some of the examples: add --pretrain, as easiest:2048@200")
    if base is None:
        return Asked(Recipe().changed(given))
    words = ", ".join(f"{name} {_in_words(value)}" for name, value in changes.items())
    return Asked(recipes.load(base).changed(given), f"recipe {base}" + (f" with {words}" if words else ""))


def to_smallest(given: Mapping[str, Any], base: str | None = None) -> Recipe:
    """The fields `given` on top of the recipe `base`, or of none, of which no density and no check is asked for.

    More is held out than by a run, unless that is said: the choice is made on it.
    """
    start = Recipe(validation=HELD_OUT) if base is None else recipes.load(base)
    if start.pretrain is not None:
        raise UsageError("smallest searches at initialisation: leave pretrain out of the recipe")
    return start.changed({"density": Recipe().density, "checks": (), **given})


def sought() -> Recipe:
    """What is sought where nothing is asked for."""
    return Recipe.model_construct(validation=HELD_OUT)


def folder_of_smallest(recipe: Recipe) -> Path:
    """The folder of an answer if none is named."""
    return recipe.folder.with_name(f"smallest-{recipe.folder.name}")


def _in_words(value: Any) -> str:
    if isinstance(value, Mapping):
        return " ".join(f"{name}={item}" for name, item in value.items())
    return ",".join(map(str, value)) or "none" if isinstance(value, (list, tuple)) else str(value)


def ticket_of(path: Path) -> Path:
    """The ticket's file, from its own path or its run's folder."""
    return path / "ticket.safetensors" if path.is_dir() else path


def of_ticket(path: Path, given: Mapping[str, Any], base: str | None = None, leave: tuple[str, ...] = ()) -> Recipe:
    """The fields `given` on top of the recipe `base`, or of the recipe in the record beside the ticket.

    The fields in `leave` are not taken from the record. Raises UsageError where there is neither, and `given` names no
    model and data for the ticket.
    """
    if base is not None:
        return recipes.load(base).changed(given)
    record = ticket_of(path).with_name("record.json")
    start: dict[str, Any] = {}
    why = f"there is no record beside {path}"
    if record.exists():
        from gemminer.runs.record import read

        found = read(record)
        start = {name: value for name, value in found.recipe.items() if name not in leave}
        why = "" if found.recipe or found.recipe_hash else f"{path} is of a model and data that Python was given"
    if why and not {"model", "data"} <= set(given):
        if not ticket_of(path).exists():
            raise UsageError(f"there is no ticket {path}")
        raise UsageError(f"{why}: say which --model and --data it is of")
    return recipes.make(start).changed(given)


def to_compare(given: Mapping[str, Any], file: Path | None = None) -> dict[str, Any]:
    """A comparison's fields for `compare.plan`: those `given` on top of each part of the file."""
    parts = grid.parts_of(grid.load(file) if file else {})
    return {grid.PARTS: [recipes.on_top(part, given) for part in parts]}


def compared() -> Recipe:
    """What a comparison's cells are where nothing is asked for; `dense` says whether there are dense cells."""
    return Recipe.model_construct(**grid.CELL)
