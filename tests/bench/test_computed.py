"""What one finder of dead units finds, the other finds too."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

import gemminer
from gemminer import models
from gemminer.bench.computed import missed_units
from gemminer.core.structure import Structure


def test_a_unit_that_the_program_drops_and_the_structure_does_not_is_missed() -> None:
    net = nn.Sequential(nn.Conv2d(1, 4, 1, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1), nn.Flatten())
    with torch.no_grad():
        net[0].weight[1] = 0.0  # dead, as it reads nothing
        net[3].weight[:, 2] = 0.0  # dead, as nothing reads it
        net[1].running_var.fill_(4.0)
    x = torch.randn(2, 1, 3, 3)
    layers = Structure(net.eval(), (x,), {}).layers
    assert missed_units(net, layers, x) == {}
    blind = {name: replace(units, dead=torch.zeros_like(units.dead)) for name, units in layers.items()}
    assert missed_units(net, blind, x) == {"0": [1, 2]}


def test_a_number_that_is_scaled_by_another_norm_is_found() -> None:
    """As in a DenseNet, whose norms read concatenations."""

    class Joined(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.norm, self.head = (
                nn.Conv2d(1, 2, 1),
                nn.Conv2d(1, 2, 1),
                nn.BatchNorm2d(4),
                nn.Conv2d(4, 2, 1),
            )

        def forward(self, x: Tensor) -> Tensor:
            return self.head(torch.relu(self.norm(torch.cat([self.a(x), self.b(x)], 1)))).flatten(1)  # type: ignore[no-any-return]

    net, x = Joined().eval(), torch.randn(2, 1, 3, 3)
    net.norm.running_var.fill_(3.0)
    assert missed_units(net, Structure(net, (x,), {}).layers, x) == {}


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
    dead = sum(int(units.dead.sum()) for units in layers.values())
    assert 0 < dead < sum(len(units.dead) for units in layers.values())
    assert missed_units(net, layers, images[:2]) == {}
