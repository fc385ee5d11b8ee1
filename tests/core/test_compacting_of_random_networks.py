"""`compact` on networks that nobody wrote: sums, concatenations, groups, padding, norms and gates at random."""

from __future__ import annotations

import copy
import random

import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import gemminer

STEPS = ("conv", "conv1x1", "depthwise", "grouped", "norm", "relu", "relu_", "gelu", "sigmoid", "sum", "sum_", "concat",
         "avg_pool", "max_pool", "gate", "pad", "dropout", "half", "scale", "tokens")  # fmt: skip


class Net(nn.Module):
    """Maps that are made from maps, by steps drawn from a seed."""

    def __init__(self, seed: int, length: int) -> None:
        super().__init__()
        draw = random.Random(seed)
        self.plan: list[tuple[str, int, int]] = []
        self.layers = nn.ModuleDict()
        widths = [3]
        for step in range(length):
            kind, a = draw.choice(STEPS), draw.choice((len(widths) - 1, draw.randrange(len(widths))))
            alike = [i for i, width in enumerate(widths) if width == widths[a]]
            b = draw.choice(alike) if kind != "concat" else draw.randrange(len(widths))
            width, made = widths[a], draw.choice((2, 4, 6))
            layer: nn.Module | None = None
            if kind in ("conv", "conv1x1"):
                size, bias = (3, 1)[kind == "conv1x1"], draw.random() < 0.5
                layer, width = nn.Conv2d(width, made, size, padding=size // 2, bias=bias), made
            elif kind == "depthwise":
                times = draw.choice((1, 1, 2))
                layer, width = nn.Conv2d(width, width * times, 3, padding=1, groups=width), width * times
            elif kind == "grouped" and width % 2 == 0:
                layer, width = nn.Conv2d(width, made, 1, groups=2), made
            elif kind == "norm":
                layer = nn.BatchNorm2d(width, affine=draw.random() < 0.7)
            elif kind == "gate":
                layer = nn.Conv2d(width, width, 1)
            elif kind == "tokens":
                layer = nn.LayerNorm(width)
            elif kind == "concat":
                width += widths[b]
            elif kind == "pad":
                width += 2
            elif kind == "half" and width > 2:
                width = 2
            if layer is not None:
                self.layers[str(step)] = layer
            self.plan.append((kind, a, b))
            widths.append(width)
        self.head = nn.Linear(widths[-1] * 16, 5)

    def forward(self, x: Tensor) -> Tensor:
        values = [x]
        for step, (kind, a, b) in enumerate(self.plan):
            x, y = values[a], values[b]
            layer = self.layers[str(step)] if str(step) in self.layers else nn.Identity()
            if kind in ("relu", "gelu"):
                x = getattr(F, kind)(x)
            elif kind == "relu_":
                x = (x + 0).relu_()
            elif kind == "sigmoid":
                x = x.sigmoid()
            elif kind == "sum":
                x = x + 0.5 * y
            elif kind == "sum_":
                x = x.clone()
                x += y
            elif kind == "concat":
                x = torch.cat([x, y], 1)
            elif kind in ("avg_pool", "max_pool"):
                x = getattr(F, f"{kind}2d")(x, 3, 1, 1)
            elif kind == "gate":
                x = x * layer(x.mean((2, 3), keepdim=True)).sigmoid()
            elif kind == "pad":
                x = F.pad(x, (0, 0, 0, 0, 1, 1))
            elif kind == "dropout":
                x = F.dropout(x, 0.5, training=False)
            elif kind == "half":
                x = x[:, :2]
            elif kind == "scale":
                x = 2 * x - 1
            elif kind == "tokens":
                x = layer(x.flatten(2).transpose(1, 2)).transpose(1, 2).unflatten(2, (4, 4))
            else:
                x = layer(x)
            values.append(x)
        return self.head(values[-1].flatten(1))


def pruned(seed: int, length: int, density: float, settled: bool) -> Net:
    """A random network with random zeros; `settled`: batch norms have the statistics of what they see."""
    torch.manual_seed(seed)
    net = Net(seed, length).double()
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                module.weight *= torch.rand_like(module.weight) < density
                rows = torch.rand(len(module.weight)) < 0.3
                module.weight[rows] = 0
            if isinstance(module, nn.BatchNorm2d):
                if module.affine:
                    module.weight.uniform_(0.5, 1.5)
                    module.bias.uniform_(-1, 1)
                if not settled:
                    module.running_mean.uniform_(-1, 1)
                    module.running_var.uniform_(0.5, 2)
                else:
                    module.momentum = 1.0
        if settled:
            net.train()
            for _ in range(length + 1):
                net(torch.randn(8, 3, 4, 4, dtype=torch.float64))
    return net


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.integers(0, 10**6), st.integers(1, 14), st.floats(0.02, 0.9), st.booleans(), st.booleans(), st.booleans())
def test_results_are_the_same_in_both_modes(
    seed: int, length: int, density: float, settled: bool, eval_only: bool, every: bool
) -> None:
    net = pruned(seed, length, density, settled)
    before = copy.deepcopy(net.state_dict())
    small = gemminer.compact(net, None, torch.randn(3, 3, 4, 4).double(), eval_only=eval_only, every=every)
    assert every or not any("Gapped" in type(module).__name__ for module in small.modules())
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert "channels between layers" not in small.removed.left  # nothing was found that did not hold
    x = torch.randn(5, 3, 4, 4).double()
    for mode in (False, True)[: 1 if eval_only else 2]:
        net.train(mode)
        small.train(mode)
        with torch.no_grad():
            want, got = copy.deepcopy(net)(x), copy.deepcopy(small)(x)
        assert float((want - got).abs().max()) <= 1e-9 * max(float(want.abs().max()), 1e-9)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.integers(0, 10**6), st.integers(1, 14), st.floats(0.02, 0.5))
def test_what_is_compact_cannot_be_made_smaller(seed: int, length: int, density: float) -> None:
    """Nothing dead is left but what is named: each unit that stays has a weight, or stands for a whole layer."""
    net = pruned(seed, length, density, settled=False)
    small = gemminer.compact(net, None, torch.randn(3, 3, 4, 4).double(), eval_only=True)
    left = set(small.removed.left)
    for name, module in small.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear) and name not in left and getattr(module, "groups", 1) == 1:
            empty = (module.weight.flatten(1) == 0).all(1)
            assert not bool(empty.any()), (name, module)
