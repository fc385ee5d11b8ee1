"""One place makes pruned weights zero: nothing else does, and every training of the package goes through it."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import torch
from torch import nn

import gemminer
from gemminer.core.zeros import Held, Zeros
from tests.helpers import drawn_ticket, tiny_data

PACKAGE = Path(gemminer.__file__).parent
IN_PLACE = {"mul_", "multiply_", "_foreach_mul_", "masked_fill_", "logical_and_"}


def mixed_net() -> nn.Module:
    """A layer that the kernels of the sparse engine know, and one that stays dense."""
    return nn.Sequential(nn.Linear(6, 16), nn.Unflatten(1, (4, 4)), nn.ConvTranspose1d(4, 3, 2), nn.Flatten(1))


def test_no_other_module_multiplies_by_a_mask_in_place() -> None:
    found = [
        f"{file.relative_to(PACKAGE)}:{node.lineno}"
        for file in sorted(PACKAGE.rglob("*.py"))
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in IN_PLACE
        and any("mask" in ast.unparse(part) for part in (node.func.value, *node.args, *node.keywords))
    ]
    assert found
    assert {place.split(":")[0] for place in found} == {"core/zeros.py"}, found


@pytest.mark.parametrize("engine", ["dense", "sparse"])
@pytest.mark.parametrize("at_work", [True, False])
def test_training_with_each_engine_is_held_there(engine: str, at_work: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not at_work:
        monkeypatch.setattr(Zeros, "mask_gradients", lambda self: None)
        monkeypatch.setattr(Held, "_masked", lambda self, gradient, i: gradient)
    net = mixed_net()
    ticket = drawn_ticket(net, 0.3)
    gemminer.train(net, ticket, tiny_data(), epochs=1, batch_size=32, engine=engine)
    pruned = {name: net.get_parameter(name).detach()[~mask] for name, mask in ticket.masks.items()}
    moved = {name: int(weights.count_nonzero()) for name, weights in pruned.items()}
    assert (moved["2.weight"] == 0) == at_work
    assert (moved["0.weight"] == 0) == (at_work or engine == "sparse")  # the sparse engine has no pruned ones there


def test_gradients_that_are_asked_for_are_masked_and_keep_their_graph() -> None:
    layer, x = nn.Linear(3, 2, bias=False), torch.randn(4, 3)
    mask = torch.eye(2, 3).bool()
    Held([(layer, "weight")], [mask])
    (gradient,) = torch.autograd.grad(layer(x).pow(3).sum(), layer.weight, create_graph=True)
    assert gradient[~mask].count_nonzero() == 0
    assert torch.autograd.grad(gradient.square().sum(), layer.weight)[0][mask].count_nonzero() > 0
