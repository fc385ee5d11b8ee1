"""Initial distributions: their moments, and draws that depend on seed and name alone."""

from __future__ import annotations

import math

import pytest
import torch

from gemminer.core.draw import Draw, kinds
from gemminer.core.errors import UsageError
from gemminer.core.layout import Layout
from gemminer.core.randomness import mixed

SHAPE = torch.Size([256, 32, 3, 3])  # fan_in 288, fan_out 2304
FAN_IN, FAN_OUT = 32 * 9, 256 * 9

# Variance, and the largest value where there is one: He et al. 2015, Glorot & Bengio 2010, Ramanujan et al. 2020.
EXPECTED = {
    "signed-constant": (2 / FAN_IN, math.sqrt(2 / FAN_IN)),
    "kaiming-normal": (2 / FAN_IN, None),
    "kaiming-uniform": (2 / FAN_IN, math.sqrt(6 / FAN_IN)),
    "xavier-normal": (2 / (FAN_IN + FAN_OUT), None),
    "xavier-uniform": (2 / (FAN_IN + FAN_OUT), math.sqrt(6 / (FAN_IN + FAN_OUT))),
}


def drawn(kind: str, seed: int = 0, fan_scale: float = 1.0, shape: torch.Size = SHAPE) -> torch.Tensor:
    return Draw(kind, seed, fan_scale).weights({"w": shape})["w"]


def test_every_kind_is_known() -> None:
    assert kinds() == tuple(EXPECTED)


@pytest.mark.parametrize("kind", EXPECTED)
def test_moments(kind: str) -> None:
    weights, (variance, largest) = drawn(kind), EXPECTED[kind]
    n = weights.numel()
    assert weights.dtype == torch.float32
    assert abs(float(weights.mean())) < 5 * math.sqrt(variance / n)
    assert float(weights.var()) == pytest.approx(variance, rel=5 * math.sqrt(2 / n))
    if largest is None:
        # A normal: 68.27% lie within one standard deviation.
        within = float((weights.abs() < math.sqrt(variance)).double().mean())
        assert within == pytest.approx(0.6827, abs=5 * math.sqrt(0.2 / n))
    else:
        assert float(weights.abs().max()) == pytest.approx(largest, rel=1e-3)


def test_signed_constants_have_one_magnitude_and_as_many_of_each_sign() -> None:
    weights = drawn("signed-constant")
    assert weights.abs().unique().numel() == 1
    assert abs(float((weights > 0).double().mean()) - 0.5) < 5 * 0.5 / math.sqrt(weights.numel())


@pytest.mark.parametrize("kind", EXPECTED)
def test_fan_scale_multiplies_fan_in(kind: str) -> None:
    assert torch.allclose(drawn(kind, fan_scale=0.25), 2 * drawn(kind))  # 1 / sqrt(0.25)


@pytest.mark.parametrize("kind", EXPECTED)
def test_a_draw_depends_on_seed_and_name_alone(kind: str) -> None:
    shape = torch.Size([8, 8])
    alone = Draw(kind, 5).weights({"b": shape})["b"]
    torch.rand(3)  # whatever was drawn before
    together = Draw(kind, 5).weights({"a": shape, "b": shape})
    assert torch.equal(together["b"], alone)
    assert not torch.equal(together["a"], together["b"])
    assert not torch.equal(Draw(kind, 0).weights({"b": shape})["b"], Draw(kind, 1).weights({"b": shape})["b"])


def test_fans_are_those_of_the_layout() -> None:
    """fan_in of a weight stored as (inputs, outputs), of gates, of experts; fan_out of one gate of four."""
    layouts = {"conv1d": Layout(1, 0), "lstm": Layout(gates=4), "experts": Layout(output=2, input=1, matrices=0)}
    shapes = {"conv1d": torch.Size([8, 32]), "lstm": torch.Size([64, 8]), "experts": torch.Size([3, 8, 5])}
    for weight in Draw().weights(shapes, layouts).values():
        assert float(weight.abs().max()) == pytest.approx(math.sqrt(2 / 8))
    wide = Draw("xavier-uniform").weights({"lstm": torch.Size([64, 8])}, layouts)["lstm"]
    assert math.sqrt(6 / 24) * 0.9 < float(wide.abs().max()) <= math.sqrt(6 / 24)


def test_draws_are_the_same_in_every_version() -> None:
    """Pinned: a ticket without weights relies on it. A change here breaks the files of users."""
    assert drawn("signed-constant", 0, shape=torch.Size([2, 4])).sign().int().tolist() == [[1, -1, 1, 1], [1, 1, 1, 1]]
    assert mixed(0, "initial", "w") == 47227168513245658


def test_no_global_generator_moves() -> None:
    before = torch.get_rng_state()
    for kind in kinds():
        drawn(kind)
    assert torch.equal(torch.get_rng_state(), before)


def test_what_cannot_be_drawn_is_refused() -> None:
    with pytest.raises(UsageError, match="unknown initialiser 'kaiming-norma'; did you mean 'kaiming-normal'"):
        Draw("kaiming-norma")
    for scale in (0.0, -1.0, math.nan):
        with pytest.raises(UsageError, match="fan_scale must be above 0"):
            Draw(fan_scale=scale)
