"""The name that somebody meant."""

from __future__ import annotations

import dataclasses
import inspect

import pytest

import gemminer
from gemminer import methods
from gemminer.core.spelling import ALIASES, nearest, relation
from gemminer.runs.recipe import Recipe
from gemminer.training.settings import Settings

KNOWN = {
    *Recipe.model_fields,
    *(field.name for field in dataclasses.fields(Settings)),
    *(field.name for name in methods.names() for field in dataclasses.fields(methods.get(name).options)),
    *(name for call in (gemminer.mine, gemminer.train, gemminer.check) for name in inspect.signature(call).parameters),
    "workers",  # of a comparison
}


def test_aliases_are_of_names_that_something_takes_and_hide_none() -> None:
    assert set(ALIASES.values()) <= KNOWN
    # A field of recipes, and train_data of calls; an option of one method, and a loss to PyTorch's users.
    assert {alias for alias in ALIASES if alias in KNOWN} <= {"data", "criterion"}


@pytest.mark.parametrize(
    ("name", "known", "meant"),
    [
        ("acumulate", ("accumulate", "scale"), "accumulate"),
        ("Learning-Rate", ("rate", "lr"), "lr"),
        ("learning_rate", ("rounds",), None),
        ("data", ("data", "train_data"), "data"),
        ("data", ("validation_data", "train_data"), "train_data"),
        ("batch-size", ("batch_size",), "batch_size"),
        ("colour", ("lr", "seed"), None),
    ],
)
def test_the_name_that_was_meant(name: str, known: tuple[str, ...], meant: str | None) -> None:
    assert nearest(name, known) == meant


def test_the_rest_of_what_is_asked_for_is_said_to_be_it() -> None:
    assert relation("sparsity", "density") == "density = 1 - sparsity"
    assert relation("keep_ratio", "density") == ""
