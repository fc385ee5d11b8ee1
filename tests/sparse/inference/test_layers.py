"""Every kind of layer equals eager evaluation."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from gemminer.sparse.inference.compiler import compile
from tests.sparse.inference.helpers import Net, assert_equal, images, masked

LAYERS: dict[str, tuple[tuple[int, ...], nn.Module]] = {
    "stride and dilation": ((4, 13, 11), nn.Conv2d(4, 6, 3, (2, 1), (3, 2), (1, 2))),
    "even kernel": ((3, 8, 9), nn.Conv2d(3, 5, 4, 3, 1)),
    "same": ((3, 7, 7), nn.Conv2d(3, 5, 4, padding="same")),
    "groups": ((6, 7, 7), nn.Conv2d(6, 9, 3, padding=1, groups=3)),
    "depthwise, stride": ((6, 7, 8), nn.Conv2d(6, 6, 5, 2, 2, groups=6)),
    "padding wider than the map": ((2, 2, 3), nn.Conv2d(2, 3, 5, padding=4)),
    "to one pixel": ((3, 4, 4), nn.Conv2d(3, 4, 4)),
    "one pixel, padded": ((3, 1, 1), nn.Conv2d(3, 4, 3, padding=1)),
    "1x1, stride": ((3, 9, 9), nn.Conv2d(3, 4, 1, 4)),
    "max pool, padded": ((3, 9, 8), nn.Sequential(nn.Conv2d(3, 4, 1), nn.MaxPool2d(3, 2, 1))),
    "max pool, ceiling": ((3, 9, 8), nn.MaxPool2d(2, 2, ceil_mode=True)),
    "max pool, overlapping": ((3, 9, 8), nn.MaxPool2d(3, 1, 1)),
    "mean pool, padded": ((3, 9, 8), nn.AvgPool2d(3, 2, 1)),
    "adaptive": ((3, 8, 6), nn.AdaptiveAvgPool2d((4, 2))),
    "norm first": ((3, 5, 5), nn.Sequential(nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 4, 3, padding=1))),
    "norm of features": ((2, 3, 3), nn.Sequential(nn.Flatten(), nn.BatchNorm1d(18), nn.Linear(18, 4))),
    "features": ((12,), nn.Sequential(nn.Linear(12, 9), nn.BatchNorm1d(9), nn.ReLU(), nn.Linear(9, 4))),
    "activations": (
        (3, 6, 6),
        nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU6(), nn.Conv2d(8, 8, 1), nn.Hardtanh(-0.5, 0.7), nn.Dropout(),
                      nn.Conv2d(8, 4, 1), nn.LeakyReLU(0.2), nn.Identity()),
    ),
    "nothing": ((3, 4, 4), nn.Identity()),
    "result is a map": ((3, 4, 4), nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU())),
    "affine, dead filters and padding": (
        (3, 6, 6),
        nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(3, 1, 1),
                      nn.Conv2d(8, 4, 3, padding=1), nn.AvgPool2d(3, 1, 1), nn.Conv2d(4, 3, 3)),
    ),
    "concatenation": (
        (3, 6, 6),
        Net(lambda m, x: torch.cat([m.a(x), x, F.relu(m.b(x))], 1), a=nn.Conv2d(3, 4, 3, padding=1),
            b=nn.Conv2d(3, 2, 1)),
    ),
    "shortcut by padding": (
        (3, 7, 7),
        Net(lambda m, x: F.relu(m.a(x) + F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 1, 2))), a=nn.Conv2d(3, 6, 3, 2, 1)),
    ),
    "slices and pads": (
        (4, 7, 7),
        Net(lambda m, x: m.a(F.pad(x[:, 1:3, 1:, 2:6:3], (1, 2, 0, 1))), a=nn.Conv2d(2, 3, 3)),
    ),
    "numbers": (
        (3, 4, 4),
        Net(lambda m, x: m.a((x - 0.5) * 2 / 3 + 1).clamp(min=-0.1) - x, a=nn.Conv2d(3, 3, 3, padding=1)),
    ),
    "same value twice": ((3, 4, 4), Net(lambda m, x: F.relu(m.a(x)) + F.relu(m.a(x)) + x, a=nn.Conv2d(3, 3, 1))),
    "value read again": (
        (3, 4, 4),
        Net(lambda m, x: (y := m.a(x)) + m.b(F.relu(m.n(y))), a=nn.Conv2d(3, 3, 1), b=nn.Conv2d(3, 3, 3, padding=1),
            n=nn.BatchNorm2d(3)),
    ),
    "in place": (
        (3, 4, 4),
        Net(lambda m, x: (y := m.a(x)) + m.b(m.r(y)) + y, a=nn.Conv2d(3, 3, 1), b=nn.Conv2d(3, 3, 1),
            r=nn.ReLU(inplace=True)),
    ),
    "means and views": (
        (3, 4, 6),
        Net(lambda m, x: m.b(m.a(x).mean((2, 3))) + m.c(x.view(x.size(0), -1)), a=nn.Conv2d(3, 5, 3), b=nn.Linear(5, 4),
            c=nn.Linear(72, 4)),
    ),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning")
@pytest.mark.parametrize("case", LAYERS)
@pytest.mark.parametrize("dead", [0.0, 0.4])
def test_layers_equal_eager(case: str, dead: float) -> None:
    shape, model = LAYERS[case]
    for seed in range(3):
        net = masked(copy.deepcopy(model), 0.7, dead=dead, seed=seed)
        program = compile(net, input_shape=shape)
        for batch in (1, 5, 37):
            assert_equal(program, net, images(batch, *shape, seed=seed), threads=1)
