"""What is dead or constant is removed, and nothing else."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from gemminer import models
from gemminer.sparse.inference.compiler import compile
from tests.sparse.inference.helpers import assert_equal, images, masked


@pytest.mark.parametrize("kept", ["no layer", "first only", "last only"])
def test_empty_layers(kept: str) -> None:
    model = models.build("resnet20", image_size=8, width=0.25, norm="affine", bias=True)
    layers = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    alive = {"no layer": -1, "first only": 0, "last only": len(layers) - 1}[kept]
    masked(model, tuple(0.5 * (k == alive) for k in range(len(layers))), dead=0)
    assert_equal(compile(model, input_shape=(3, 8, 8)), model, images(3, 3, 8, 8))


def test_dead_filters_are_removed_with_what_fed_only_them() -> None:
    a, b, c = nn.Conv2d(1, 2, 3, padding=1, bias=False), nn.Conv2d(2, 2, 1, bias=False), nn.Conv2d(2, 1, 3, padding=1)
    with torch.no_grad():
        b.weight[:] = torch.tensor([[1.0, 0.0], [0.0, 3.0]])[:, :, None, None]
        c.weight[:, 0] = 0  # nothing reads filter 0 of b, so nothing filter 0 of a
    model = nn.Sequential(a, nn.ReLU(), b, nn.ReLU(), c)
    program = compile(model, input_shape=(1, 5, 5))
    assert [op.shape[0] for op in program.operations] == [1, 1, 1]
    assert program.entries == 9 + 1 + 9
    assert_equal(program, model, images(2, 1, 5, 5))


def test_a_dead_branch_costs_nothing() -> None:
    """A residual block without weights is the identity: its channels are read where they lie."""
    model = models.build("resnet20", image_size=8, width=0.25)
    with torch.no_grad():
        for name, w in model.named_parameters():
            if name.startswith("layer") and name.endswith("weight"):
                w.zero_()
    program = compile(model, input_shape=(3, 8, 8))
    # The stem, two strided shortcuts, the mean and the classifier.
    assert len(program.operations) == 5
    assert_equal(program, model.eval(), images(3, 3, 8, 8))


def test_constants_are_folded_inside_and_kept_at_borders() -> None:
    dead, read = nn.Conv2d(1, 1, 3, padding=1), nn.Conv2d(1, 2, 3, padding=1)
    with torch.no_grad():
        dead.weight.zero_()
        dead.bias.fill_(2.0)  # type: ignore[union-attr]
        read.weight.fill_(1.0)
        read.weight[1, :, 0] = read.weight[1, :, 2] = read.weight[1, :, :, 0] = read.weight[1, :, :, 2] = 0.0
        read.bias.zero_()  # type: ignore[union-attr]
    program = compile(nn.Sequential(dead, read), input_shape=(1, 4, 4))
    got = program(torch.zeros(1, 1, 4, 4))
    assert got[0, 0].tolist() == [[8, 12, 12, 8], [12, 18, 18, 12], [12, 18, 18, 12], [8, 12, 12, 8]]
    assert got[0, 1].unique().tolist() == [2.0]
    assert program.entries == 8  # the centre is never padding, and all that the second filter reads
