"""Resolve the defaults of a recipe or a call: options, epochs, device and initial draw."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from pydantic import TypeAdapter, ValidationError

from gemminer import methods
from gemminer.core import numbers
from gemminer.core.draw import Draw, kinds
from gemminer.core.errors import UsageError, unknown
from gemminer.runs.recipe import Recipe, budget_of, explain
from gemminer.training.settings import Settings

T = TypeVar("T")


def options_of(kind: type[T], fields: Mapping[str, Any], where: str, elsewhere: Mapping[str, str] | None = None) -> T:
    """A dataclass of settings from plain fields; raises UsageError with one sentence that names the field at fault.

    Args:
        elsewhere: names that stand in another place, as `unknown` takes them.
    """
    known = _names(kind)
    for name in fields:
        if name not in known:
            raise unknown(f"option of {where}", name, known, elsewhere)
    types = {f.name: str(f.type) for f in dataclasses.fields(kind)}  # type: ignore[arg-type]
    adapter = TypeAdapter(kind)
    try:
        return adapter.validate_python(numbers.options(where, fields, types))
    except ValidationError as error:
        raise UsageError(explain(error, where)) from None


def _names(kind: Any) -> list[str]:
    return [field.name for field in dataclasses.fields(kind)]


def default_epochs(examples: int) -> int:
    """The default number of epochs: 40 on small data, fewer on larger (11 on 54,000 examples), at least 5."""
    return max(5, min(40, round(600_000 / max(1, examples))))


def check_length(row: methods.Method, epochs: int | None, budget: str | None, accumulate: int) -> None:
    """Raise UsageError where a method that takes no steps is given a number of them."""
    if not row.trains and (epochs is not None or budget is not None):
        raise UsageError(f"the method {row.name!r} has no epochs to set")
    if not row.trains and accumulate != 1:
        raise UsageError(f"the method {row.name!r} takes no optimiser steps to accumulate for: leave accumulate out")


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
    """The draw for an initialiser's name: "default" (or None) is the method's own, "keep" is None."""
    if name == "keep":
        return None
    if name in (None, "default"):
        return Draw(method.initialiser, seed, density if method.fan_scaled else 1.0)
    if name not in kinds():
        raise unknown("initialiser", name, ("default", "keep", *kinds()))
    return Draw(name, seed)


@dataclass(frozen=True)
class Resolved:
    """The options and settings of a run, with the defaults of a recipe or call filled in.

    Args:
        options: the method's options; where `seconds` is given, their epochs are still the default.
        settings: the settings of the ticket's training.
        seconds: the time the search may take, if its budget is a time.
    """

    options: Any
    settings: Settings
    seconds: float | None = None


def resolve(
    method: str,
    examples: int,
    *,
    epochs: int | None = None,
    train_epochs: int | None = None,
    budget: str | None = None,
    options: Mapping[str, Any] | None = None,
    train: Mapping[str, Any] | None = None,
) -> Resolved:
    """The settings of a search and of the training of its ticket, for data of so many examples.

        training   train_epochs, else epochs, else `default_epochs(examples)`
        search     epochs, else `budget` times the training's, else `default_epochs(examples)`

    Raises UsageError, with one sentence that names it, for an invalid setting.
    """
    row = methods.get(method)
    if epochs is not None and budget is not None:
        raise UsageError("a search has epochs or a budget, not both: leave one out")
    usual = default_epochs(examples)
    seconds, part = (None, None) if budget is None else budget_of(budget)
    training = next(n for n in (train_epochs, epochs, usual) if n is not None)
    search = epochs if epochs is not None else usual if part is None else max(1, round(part * training))
    own = {"epochs": search, **(options or {})} if row.trains else dict(options or {})
    beside = {name: f"{name!r}, beside options and train and not in them" for name in Recipe.model_fields}
    of_train = {name: f"{name!r} of train" for name in _names(Settings)}
    of_options = {name: f"{name!r} of options" for name in _names(row.options)}
    return Resolved(
        options_of(row.options, own, method, of_train | beside),
        options_of(Settings, {"epochs": training, **(train or {})}, "training", of_options | beside),
        seconds if row.trains else None,
    )


def resolve_recipe(recipe: Recipe, examples: int) -> Resolved:
    """The settings of a recipe on data of so many examples."""
    return resolve(
        recipe.method,
        examples,
        epochs=recipe.epochs,
        train_epochs=recipe.train_epochs,
        budget=recipe.budget,
        options=recipe.options,
        train=recipe.train,
    )


MOST_THREADS = 1024  # or the cores, if they are more: PyTorch ends the process where so many cannot be started


def checked_threads(count: int) -> int:
    """A number of CPU threads; raises UsageError for none, or for more than a machine has use for.

    >>> checked_threads(2)
    2
    """
    count, most = numbers.whole("threads", count), max(MOST_THREADS, os.cpu_count() or 1)
    if not 1 <= count <= most:
        raise UsageError(f"threads must be 1 to {most}, not {count}: give --threads")
    return count
