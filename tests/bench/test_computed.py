"""What one finder of dead units finds, the other finds too."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import gemminer
from gemminer import models, sparse
from gemminer.bench.computed import computed_units
from gemminer.core.structure import Structure


def test_a_unit_is_computed_where_its_scaled_weight_is_in_the_program() -> None:
    net = nn.Sequential(nn.Conv2d(1, 3, 1, bias=False), nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 2, 1), nn.Flatten())
    with torch.no_grad():
        net[0].weight[1] = 0.0  # dead, as it reads nothing
        net[3].weight[:, 2] = 0.0  # dead, as nothing reads it
        net[1].running_var.fill_(4.0)
    x = torch.randn(2, 1, 3, 3)
    layers = Structure(net.eval(), (x,), {}).layers
    found = computed_units(net, layers, sparse.compile(net, x))
    assert {name: units.tolist() for name, units in found.items()} == {"0": [True, False, False], "3": [True, True]}


@pytest.mark.parametrize(
    ("name", "width", "method"),
    [
        ("resnet20", 1.0, "erk"),
        pytest.param("vgg16", 0.5, "synflow", marks=pytest.mark.slow),
        pytest.param("mobilenet-v2", 1.0, "synflow", marks=pytest.mark.slow),
    ],
)
def test_every_unit_that_compile_drops_is_dead_for_compact(name: str, width: float, method: str) -> None:
    """At 0.59%, trained, with the constants and the batch statistics that come of it."""
    torch.manual_seed(0)
    net = models.build(name, in_channels=3, classes=10, image_size=32, width=width)
    images, labels = torch.randn(64, 3, 32, 32), torch.randint(10, (64,))
    ticket = gemminer.mine(net, (images, labels), density=0.0059, method=method)
    gemminer.train(net, ticket, (images, labels), epochs=2, batch_size=32)
    layers = Structure(net.eval(), (images[:2],), {}).layers
    computed = computed_units(net, layers, sparse.compile(net, images[:2]))
    assert 0 < sum(int(units.sum()) for units in computed.values()) < sum(map(len, computed.values()))
    missed = {n: int((~units.dead.numpy() & ~computed[n]).sum()) for n, units in layers.items()}
    assert sum(missed.values()) == 0, missed
