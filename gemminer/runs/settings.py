"""What a recipe or a call leaves open: the options, epochs, device and initial draw that are meant."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from pydantic import TypeAdapter, ValidationError

from gemminer import methods
from gemminer.core.draw import Draw
from gemminer.core.errors import UsageError, unknown
from gemminer.runs.recipe import Recipe, budget_of, explain
from gemminer.training.settings import Settings

T = TypeVar("T")


def options_of(kind: type[T], fields: Mapping[str, Any], where: str) -> T:
    """A dataclass of settings from plain fields; raises UsageError with one sentence that names the field at fault."""
    known = [f.name for f in dataclasses.fields(kind)]  # type: ignore[arg-type]
    for name in fields:
        if name not in known:
            raise unknown(f"option of {where}", name, known)
    adapter = TypeAdapter(kind)
    try:
        return adapter.validate_python(dict(fields))
    except ValidationError as error:
        raise UsageError(explain(error, where)) from None


def default_epochs(examples: int) -> int:
    """Epochs where none are asked for: 40 on small data, fewer as it grows (11 on 54,000 examples), at least 5."""
    return max(5, min(40, round(600_000 / max(1, examples))))


def device_of(name: str) -> torch.device:
    """The device of this name; "auto" is a GPU if there is one. Raises UsageError for one this machine lacks."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == "meta":
        raise UsageError("device 'meta' holds no numbers to compute with: use cpu, cuda, cuda:1 or auto")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError):
        raise UsageError(f"device {name!r} is not on this machine: use cpu, cuda, cuda:1 or auto") from None
    return device


def draw_of(name: str | None, method: methods.Method, density: float, seed: int) -> Draw | None:
    """The draw of an initialiser's name: "default" (or None) is the method's own, "keep" none at all."""
    if name == "keep":
        return None
    if name in (None, "default"):
        return Draw(method.initialiser, seed, density if method.fan_scaled else 1.0)
    return Draw(name, seed)


def settings_of(recipe: Recipe, epochs: int) -> tuple[Any, Settings]:
    """The settings of a recipe's search and of its training, where `epochs` are meant if none are asked for."""
    kind, own = methods.get(recipe.method).options, dict(recipe.options)
    if "epochs" in {f.name for f in dataclasses.fields(kind)}:
        own = {"epochs": recipe.epochs or epochs, **own}
    trained = {"epochs": recipe.train_epochs or recipe.epochs or epochs, **recipe.train}
    return options_of(kind, own, recipe.method), options_of(Settings, trained, "training")


def search_epochs(budget: str | None, examples: int, affordable: Callable[[float], int]) -> int:
    """Those of a search that is given none: by default, or as many as the budget allows.

    `affordable` says how many take about so many seconds.
    """
    seconds, part = (None, 1.0) if budget is None else budget_of(budget)
    if seconds is not None:
        return affordable(seconds)
    return max(1, round((part or 1.0) * default_epochs(examples)))
