"""Every elementwise function equals eager evaluation, as itself, as a layer and among layers."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from gemminer.sparse.inference.compiler import compile
from gemminer.sparse.inference.kernels import FORMULAS, values_of
from gemminer.sparse.inference.operations import Apply
from tests.sparse.inference.helpers import Net, assert_equal, images, masked

EXACT = {
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "exp": torch.exp,
    "silu": F.silu,
    "hardswish": F.hardswish,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "elu": F.elu,
    "softplus": F.softplus,
    "mish": F.mish,
    "abs": torch.abs,
    "square": torch.square,
    "sqrt": torch.sqrt,
    "add": torch.add,
    "mul": torch.mul,
    "div": torch.div,
}


@pytest.mark.parametrize("name", FORMULAS)
def test_formulas_are_pytorch_s(name: str) -> None:
    low = 0.01 if name in ("sqrt", "div") else -20
    operands = [np.linspace(low, 20, 2003, dtype=np.float32), np.linspace(20, low, 2003, dtype=np.float32)]
    operands = operands[: FORMULAS[name][0]]
    want = EXACT[name](*(torch.from_numpy(x).double() for x in operands)).numpy()  # type: ignore[operator]
    np.testing.assert_allclose(values_of(name, *operands), want, rtol=1e-5, atol=2e-6)
    assert len(values_of(name, *(x[:0] for x in operands))) == 0


@pytest.mark.parametrize("name", [name for name, (operands, _) in FORMULAS.items() if operands == 1])
def test_far_numbers_stay_numbers(name: str) -> None:
    far = np.array([-1e4, -200, 0, 200, 1e4], np.float32)
    got = values_of(name, np.abs(far) if name == "sqrt" else far)
    assert np.isfinite(got).all()


LAYERS = {
    "sigmoid": nn.Sigmoid(),
    "tanh": nn.Tanh(),
    "silu": nn.SiLU(inplace=True),
    "hardswish": nn.Hardswish(inplace=True),
    "hardsigmoid": nn.Hardsigmoid(),
    "gelu": nn.GELU(),
    "gelu by tanh": nn.GELU(approximate="tanh"),
    "elu": nn.ELU(),
    "softplus": nn.Softplus(),
    "mish": nn.Mish(),
}


@pytest.mark.parametrize("name", LAYERS)
def test_activations_among_layers(name: str) -> None:
    """Dead filters before one are constants behind it, paddings behind it are zero whatever it makes of zero."""
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), LAYERS[name], nn.Conv2d(8, 4, 3, 2, padding=1))
    for dead in (0.0, 0.4):
        net = masked(copy.deepcopy(model), 0.7, dead=dead)
        program = compile(net, input_shape=(3, 7, 9))
        assert sum(isinstance(op, Apply) for op in program.operations) == (name != "hardsigmoid")
        for batch in (1, 5, 37):
            assert_equal(program, net, images(batch, 3, 7, 9), threads=1)


FUNCTIONS = {
    "second argument in place": Net(lambda m, x: F.hardswish(x, True) + x),
    "methods": Net(lambda m, x: x.sigmoid().tanh() - x.abs().sqrt() + (x * 0.1).exp().square()),
    "method in place": Net(lambda m, x: m.a(x).mul_(2).sigmoid_() * x, a=nn.Conv2d(3, 3, 1)),
    "product": Net(lambda m, x: -x * m.a(x) / (2 + x.sigmoid()), a=nn.Conv2d(3, 3, 3, padding=1)),
    "a pixel for all": Net(lambda m, x: (y := x.mean((2, 3), keepdim=True)) * x + y - x / (2 + y.sigmoid())),
    "all for a pixel": Net(lambda m, x: x.mean((2, 3), keepdim=True) / (2 + x.sigmoid())),
    "channels for all": Net(lambda m, x: (x.mean(1, keepdim=True) * x + x.mean(1, keepdim=True) * 0.5) * x[:, :1]),
    "rows for all": Net(lambda m, x: x * x.mean(3, keepdim=True) + x.mean(2, keepdim=True)),
    "constants": Net(lambda m, x: torch.arange(3.0).reshape(3, 1, 1) * x / 2 + torch.arange(20.0).reshape(4, 5) * x),
    "a constant less": Net(lambda m, x: 1 - x + torch.sub(torch.ones(4, 5), x, alpha=2)),
}


@pytest.mark.parametrize("case", FUNCTIONS)
def test_functions_of_one_operand_and_two(case: str) -> None:
    net = masked(FUNCTIONS[case], 0.9)
    for batch in (1, 2, 5, 37):
        assert_equal(compile(net, input_shape=(3, 4, 5)), net, images(batch, 3, 4, 5), threads=1)


def test_squeeze_and_excite() -> None:
    squeeze = nn.Sequential(
        nn.AdaptiveAvgPool2d(1), nn.Conv2d(6, 2, 1), nn.ReLU(), nn.Conv2d(2, 6, 1), nn.Hardsigmoid()
    )
    model = masked(
        Net(lambda m, x: m.c((y := m.a(x)) * m.s(y)), a=nn.Conv2d(3, 6, 3), s=squeeze, c=nn.Conv2d(6, 2, 3)), 0.8
    )
    program = compile(model, input_shape=(3, 8, 8))
    assert sum(isinstance(op, Apply) for op in program.operations) == 1
    for lanes in (1, 2, 8, 64):
        program._most_lanes = lanes
        assert_equal(program, model, images(lanes + 1, 3, 8, 8), threads=1)
