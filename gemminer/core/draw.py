"""Initial weights that can be drawn again: the distributions of the literature, one generator a parameter.

Every parameter is drawn on the CPU in float32 from a generator seeded by (seed, parameter name), so a draw does
not depend on the order of the layers, the device, or what was drawn before. A ticket that records its `Draw` can
leave its initial weights out of its file.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from gemminer.core.errors import UsageError, unknown
from gemminer.core.randomness import drawing, generator


def _fans(shape: torch.Size) -> tuple[int, int]:
    """(fan in, fan out) by PyTorch's own convention: dimension 0 is the output, 1 the input, the rest the kernel."""
    if len(shape) < 2:
        raise UsageError(f"initial weights are drawn for two and more dimensions, not for {tuple(shape)}")
    kernel = math.prod(shape[2:])
    return max(1, shape[1] * kernel), max(1, shape[0] * kernel)


def _signed_constant(shape: torch.Size, generator: torch.Generator) -> Tensor:
    fan_in, _ = _fans(shape)
    signs = torch.randn(shape, generator=generator).sign()
    signs[signs == 0] = 1.0
    return signs * math.sqrt(2.0 / fan_in)


def _kaiming_normal(shape: torch.Size, generator: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=generator) * math.sqrt(2.0 / _fans(shape)[0])


def _kaiming_uniform(shape: torch.Size, generator: torch.Generator) -> Tensor:
    return (2 * torch.rand(shape, generator=generator) - 1) * math.sqrt(6.0 / _fans(shape)[0])


def _xavier_normal(shape: torch.Size, generator: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=generator) * math.sqrt(2.0 / sum(_fans(shape)))


def _xavier_uniform(shape: torch.Size, generator: torch.Generator) -> Tensor:
    return (2 * torch.rand(shape, generator=generator) - 1) * math.sqrt(6.0 / sum(_fans(shape)))


_KINDS: dict[str, Callable[[torch.Size, torch.Generator], Tensor]] = {
    "signed-constant": _signed_constant,
    "kaiming-normal": _kaiming_normal,
    "kaiming-uniform": _kaiming_uniform,
    "xavier-normal": _xavier_normal,
    "xavier-uniform": _xavier_uniform,
}


def kinds() -> tuple[str, ...]:
    """The names of the initial distributions."""
    return tuple(_KINDS)


@dataclass(frozen=True)
class Draw:
    """A distribution of initial weights and the seed they were drawn with.

    `kind` is one of `kinds()`: with fan_in = inputs x kernel size,

        signed-constant   w = sign(z) * sqrt(2 / fan_in), z ~ N(0, 1)     (Ramanujan et al. 2020)
        kaiming-normal    w ~ N(0, 2 / fan_in)                            (He et al. 2015)
        kaiming-uniform   w ~ U(-b, b), b = sqrt(6 / fan_in)
        xavier-*          the same with (fan_in + fan_out) / 2 for fan_in (Glorot & Bengio 2010)

    `fan_scale` multiplies fan_in: Edge-Popup scales it by the density.

    >>> Draw("signed-constant", seed=0).weights({"fc.weight": torch.Size([2, 8])})["fc.weight"].abs().unique()
    tensor([0.5000])
    """

    kind: str = "signed-constant"
    seed: int = 0
    fan_scale: float = 1.0

    def __post_init__(self) -> None:
        if not isinstance(self.kind, str) or self.kind not in _KINDS:
            raise unknown("initialiser", self.kind, kinds())
        if not isinstance(self.fan_scale, (int, float)) or not 0 < self.fan_scale < 1e300:
            raise UsageError(f"fan_scale must be above 0, not {self.fan_scale!r}")

    @drawing()
    def weights(self, shapes: Mapping[str, torch.Size]) -> dict[str, Tensor]:
        """The weights of the parameters with these names and shapes (at least two dimensions each)."""
        scale = 1.0 / math.sqrt(self.fan_scale)
        return {
            name: _KINDS[self.kind](torch.Size(shape), generator(self.seed, "initial", name)) * scale
            for name, shape in shapes.items()
        }
