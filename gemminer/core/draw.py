"""Initial weights that can be drawn again: the distributions of the literature, one generator a parameter.

Every parameter is drawn on the CPU in float32 from a generator seeded by (seed, parameter name), so a draw does
not depend on the order of the layers, the device, or what was drawn before. A ticket that records its `Draw` can
leave its initial weights out of its file.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from gemminer.core.errors import UsageError, unknown
from gemminer.core.layout import Layout
from gemminer.core.randomness import drawing, generator

Fans = tuple[int, int]  # in, out


def _signed_constant(shape: torch.Size, fans: Fans, generator: torch.Generator) -> Tensor:
    signs = torch.randn(shape, generator=generator).sign()
    signs[signs == 0] = 1.0
    return signs * math.sqrt(2.0 / fans[0])


def _kaiming_normal(shape: torch.Size, fans: Fans, generator: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=generator) * math.sqrt(2.0 / fans[0])


def _kaiming_uniform(shape: torch.Size, fans: Fans, generator: torch.Generator) -> Tensor:
    return (2 * torch.rand(shape, generator=generator) - 1) * math.sqrt(6.0 / fans[0])


def _xavier_normal(shape: torch.Size, fans: Fans, generator: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=generator) * math.sqrt(2.0 / sum(fans))


def _xavier_uniform(shape: torch.Size, fans: Fans, generator: torch.Generator) -> Tensor:
    return (2 * torch.rand(shape, generator=generator) - 1) * math.sqrt(6.0 / sum(fans))


_KINDS: dict[str, Callable[[torch.Size, Fans, torch.Generator], Tensor]] = {
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

    `fan_scale` multiplies fan_in: Edge-Popup scales it by the density. `names` are those that parameters were drawn
    under, where they have come to be called otherwise.

    >>> Draw("signed-constant", seed=0).weights({"fc.weight": torch.Size([2, 8])})["fc.weight"].abs().unique()
    tensor([0.5000])
    """

    kind: str = "signed-constant"
    seed: int = 0
    fan_scale: float = 1.0
    names: Mapping[str, str] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        if not isinstance(self.kind, str) or self.kind not in _KINDS:
            raise unknown("initialiser", self.kind, kinds())
        if not isinstance(self.fan_scale, (int, float)) or not 0 < self.fan_scale < 1e300:
            raise UsageError(f"fan_scale must be above 0, not {self.fan_scale!r}")
        if not isinstance(self.names, Mapping) or not all(isinstance(name, str) for name in self.names.values()):
            raise UsageError("a draw's names must be names by name")

    @drawing()
    def weights(
        self, shapes: Mapping[str, torch.Size], layouts: Mapping[str, Layout] | None = None
    ) -> dict[str, Tensor]:
        """The weights of the parameters with these names and shapes (at least two dimensions each).

        Args:
            layouts: how the axes of some are read; of the others the first is the output, the second the input.
        """
        scale, layouts, kind = 1.0 / math.sqrt(self.fan_scale), layouts or {}, _KINDS[self.kind]
        return {
            name: kind(
                torch.Size(shape),
                layouts.get(name, Layout()).fans(shape),
                generator(self.seed, "initial", self.names.get(name, name)),
            )
            * scale
            for name, shape in shapes.items()
        }
