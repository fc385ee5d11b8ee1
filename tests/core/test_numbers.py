"""A number is the same number in every type, wherever one is wanted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import gemminer
from gemminer.core.errors import UsageError
from gemminer.core.numbers import fraction, options, plain, seed_of, strings, whole
from gemminer.runs import grid
from gemminer.runs.recipe import Recipe, make
from tests.helpers import Pair, tiny_net

TYPES: dict[str, Callable[[float], Any]] = {
    "int64": np.int64,
    "uint8": np.uint8,
    "array": np.array,
    "choice": lambda n: np.random.default_rng(0).choice([n, n]),
    "tensor": torch.tensor,
}
REALS: dict[str, Callable[[float], Any]] = {
    "float64": np.float64,
    "array": np.array,
    "tensor": lambda x: torch.tensor(x, dtype=torch.float64),
}


@pytest.mark.parametrize("kind", TYPES)
def test_a_seed_of_every_type_is_the_seed(kind: str, pair: Pair) -> None:
    number = TYPES[kind]
    want = gemminer.mine(tiny_net(), pair, 0.25, epochs=2, seed=1, batch_size=32, floor=1)
    how = {name: number(value) for name, value in {"epochs": 2, "seed": 1, "batch_size": 32, "floor": 1}.items()}
    found = gemminer.mine(tiny_net(), pair, 0.25, **how)
    assert found == want
    assert found.provenance == want.provenance
    net, other = tiny_net(), tiny_net()
    gemminer.train(net, want, pair, epochs=1, seed=1, milestones=(1, 2), schedule="multistep")
    gemminer.train(
        other, found, pair, epochs=number(1), seed=number(1), milestones=[number(1), number(2)], schedule="multistep"
    )
    assert torch.equal(net[0].weight, other[0].weight)
    gemminer.check(net, found, pair, pair, seeds=number(1), seed=number(1), epochs=number(1), names="shuffle")
    assert Recipe(seed=number(1), epochs=number(2)).digest == Recipe(seed=1, epochs=2).digest


@pytest.mark.parametrize("kind", REALS)
def test_a_density_and_a_rate_of_every_type(kind: str, pair: Pair) -> None:
    real = REALS[kind]
    want = gemminer.mine(tiny_net(), pair, 0.25, epochs=1, lr=0.3)
    found = gemminer.mine(tiny_net(), pair, real(0.25), epochs=1, lr=real(0.3))
    assert found == want
    assert found.provenance == want.provenance
    assert make({"density": real(0.25), "options": {"lr": real(0.3)}}) == Recipe(density=0.25, options={"lr": 0.3})


def test_axes_of_a_comparison_may_be_arrays() -> None:
    fields = {"data": "digits", "dense": False, "checks": "shuffle"}
    want = grid.make({**fields, "density": [0.1, 0.2], "seed": [0, 1]}).cells()
    for seeds in (np.arange(2), range(2), torch.arange(2), [np.int64(0), np.int64(1)], "0-1"):
        given = {**fields, "density": np.array([0.1, 0.2]), "seed": seeds}
        assert [cell.digest for cell in grid.make(given).cells()] == [cell.digest for cell in want]


@pytest.mark.parametrize("seed", [True, -1, 1.5, "1", None, [1], np.array([1]), np.float64(1), 2**63])
def test_what_is_no_seed_is_refused(seed: Any, pair: Pair) -> None:
    with pytest.raises(UsageError, match=r"^seed must be a whole number of at least 0"):
        gemminer.mine(tiny_net(), pair, 0.2, epochs=1, seed=seed)


@pytest.mark.parametrize("density", [True, "0.1", None, [0.1], float("nan"), 0, -0.1, 1.5, np.array([0.1, 0.2]), 1j])
def test_what_is_no_density_is_refused(density: Any, pair: Pair) -> None:
    with pytest.raises(UsageError, match=r"^density is the fraction of weights kept, above 0 and at most 1; .* is not"):
        gemminer.mine(tiny_net(), pair, density, epochs=1)


def test_booleans_are_no_numbers() -> None:
    for field in ("seed", "epochs", "batch_size"):
        with pytest.raises(UsageError, match=f"{field} must be no boolean, not True"):
            make({field: True})
    with pytest.raises(UsageError, match="lr of training must be a number, not True"):
        options("training", {"lr": True}, {"lr": "float"})
    assert options("training", {"nesterov": True}, {"nesterov": "bool"}) == {"nesterov": True}
    with pytest.raises(UsageError, match="lr of training must be a number, not nan"):
        options("training", {"lr": np.nan}, {"lr": "float"})


def test_one_string_is_a_list_of_one(pair: Pair) -> None:
    want = gemminer.mine(tiny_net(), pair, 0.2, epochs=1, exclude=["5.weight"])
    assert gemminer.mine(tiny_net(), pair, 0.2, epochs=1, exclude="5.weight") == want
    assert make({"exclude": "5.weight", "checks": "erk"}) == Recipe(exclude=("5.weight",), checks=("erk",))
    assert strings("names", np.array(["a", "b"])) == ("a", "b")
    for odd in (5, None, [5], {"a": 1}, ["a", None]):
        with pytest.raises(UsageError, match="exclude must be a string or a list of strings"):
            strings("exclude", odd)


def test_plain_values() -> None:
    assert plain([np.float32(0.5), (torch.tensor(2),), {"a": np.bool_(True)}]) == [0.5, (2,), {"a": True}]
    assert type(whole("n", np.int8(3))) is int
    assert type(fraction("part", np.float32(1))) is float
    assert seed_of(torch.tensor(7)) == 7
    with pytest.raises(UsageError, match="n must be a whole number of at least 1, not a list"):
        whole("n", list(range(99)), least=1)
