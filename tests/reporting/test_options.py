"""Options in words: sentences from docstrings, bounds from what is refused."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import pytest

from gemminer import methods, models
from gemminer.core.errors import UsageError
from gemminer.reporting.options import Option, arguments, of_dataclass, of_model
from gemminer.training.settings import Settings


@dataclass(frozen=True)
class Base:
    """What every one has.

    Args:
        rate: the part that goes, of `Base.rate`.
        first, second: of two at once.
    """

    rate: float = 0.5
    first: int = 1
    second: int | None = None

    def __post_init__(self) -> None:
        if not 0 < self.rate <= 1:
            raise UsageError("rate")
        if self.first < 1:
            raise UsageError("first")


@dataclass(frozen=True)
class Child(Base):
    """Another.

    Args:
        rate: the part that stays (`core.rate`): all
            of it. Not more.
        kind: "a" or "b"; see nothing.
        on: whether.

    Raises:
        this: is no option.
    """

    kind: Literal["a", "b"] = "a"
    on: bool = False
    steps: tuple[int, ...] = ()
    name: str = "x"


def test_options_of_a_dataclass_with_those_it_inherits() -> None:
    assert of_dataclass(Child) == [
        Option("rate", 0.5, "above 0, at most 1", "The part that stays: all of it."),
        Option("first", 1, "1 or more", "Of two at once."),
        Option("second", None, "a whole number", "Of two at once."),
        Option("kind", "a", "a | b", '"a" or "b"; see nothing.', ("a", "b")),
        Option("on", False, "true | false", "Whether."),
        Option("steps", (), "a list, as [80, 120]", ""),
        Option("name", "x", "text", ""),
    ]
    assert [o.said for o in of_dataclass(Child)] == ["0.5", "1", "not set", "a", "false", "none", "x"]
    assert arguments(Base)["rate"] == "The part that goes, of Base.rate."
    assert arguments(int) == {}


@pytest.mark.parametrize(
    ("kind", "name", "values"),
    [
        (Settings, "lr", "above 0"),
        (Settings, "momentum", "0 to below 1"),
        (methods.get("imp").options, "rate", "above 0, below 1"),
        (methods.get("smart-ratio").options, "classifier", "0 to 1"),
        (methods.get("gem-miner").options, "ridge", "0 or more"),
        (methods.get("gem-miner").options, "start", "above 0, at most 1"),
        (methods.get("gem-miner").options, "slack", "1 or more"),
        (methods.get("edge-popup").options, "freeze_every", "0 or more"),  # in some of its rungs
    ],
)
def test_bounds_are_what_is_refused(kind: type, name: str, values: str) -> None:
    assert next(o for o in of_dataclass(kind) if o.name == name).values == values


@pytest.mark.parametrize("name", models.names())
def test_options_of_a_network(name: str) -> None:
    options = of_model(name)
    assert [o.name for o in options] == models.describe(name).partition("options: ")[2].split(", ")
    models.build(name, **{o.name: o.default for o in options})  # what is said to be the default can be asked for
