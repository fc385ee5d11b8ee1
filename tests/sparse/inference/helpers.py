"""Networks with random masks and lived-in norms, and programs that equal them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from gemminer.core.randomness import generator
from gemminer.sparse.inference.program import Program

# Published by the Rare Gems authors for ResNet-20 at 1.44% (percent kept, layer by layer).
RESNET20 = (34.49, 7.16, 8.25, 8.68, 7.16, 6.94, 6.38, 4.10, 3.21, 3.15, 2.71, 2.27, 1.83, 0.68, 0.63, 0.37, 0.66,
            0.33, 0.70, 25.94)  # fmt: skip


def masked(
    model: nn.Module, density: float | tuple[float, ...] = 0.1, *, dead: float = 0.2, seed: int = 0
) -> nn.Module:
    """Random masks with dead filters, weights scaled so that signals live, and statistics as after training."""
    source = generator("inference test", str(seed))
    layers = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    densities = density if isinstance(density, tuple) else (density,) * len(layers)
    with torch.no_grad():
        for layer, kept in zip(layers, densities, strict=True):
            w = layer.weight
            w *= torch.rand(w.shape, generator=source) < kept
            w[torch.rand(len(w), generator=source) < dead] = 0
            w *= (w.numel() / max(1, int((w != 0).sum()))) ** 0.5
        for norm in (m for m in model.modules() if isinstance(m, nn.BatchNorm2d | nn.BatchNorm1d)):
            norm.running_mean.normal_(generator=source).mul_(0.3)  # type: ignore[union-attr]
            norm.running_var.uniform_(0.5, 1.5, generator=source)  # type: ignore[union-attr]
            if norm.affine:
                norm.weight.uniform_(0.5, 1.5, generator=source)
                norm.bias.normal_(generator=source).mul_(0.3)
    return model.eval()


def images(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=generator("inference images", str(seed)))


def assert_equal(program: Program, model: nn.Module, x: Tensor, tolerance: float = 1e-5, **options: Any) -> None:
    """Equal to eager in float64 within `tolerance` of the largest output."""
    with torch.no_grad():
        want = copy.deepcopy(model).double().eval()(x.double())
    got = program(x, **options)
    assert got.dtype == torch.float32
    assert got.shape == want.shape
    scale = want.abs().max().item()
    assert scale > 0 or len(x) == 1  # of one image nothing may be left behind a ReLU, of many something is
    assert (got.double() - want).abs().max().item() <= tolerance * scale


class Net(nn.Module):
    """A forward in a line, with the modules it needs."""

    def __init__(self, forward: Callable[..., Tensor], **modules: nn.Module) -> None:
        super().__init__()
        self.body = forward
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self, x)
