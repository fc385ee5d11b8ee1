"""How the axes of a weight are read: which holds outputs, which inputs, and what stands beside them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from torch import Tensor

from gemminer.core.errors import GemminerError, UsageError


@dataclass(frozen=True)
class Layout:
    """The axes of a weight. The default is that of linear layers and convolutions, (outputs, inputs, kernel ...).

    Args:
        output: the axis of the output units, the filters.
        input: the axis of the inputs; what is neither is the kernel.
        matrices: an axis of independent matrices, as of fused experts, or None.
        gates: matrices that stand one upon another along the output axis, as in an LSTM.
        groups: groups along the input axis, in which a transposed convolution has them.

    >>> Layout().matrix((16, 8, 3, 3)), Layout(output=1, input=0).matrix((8, 16)), Layout(gates=4).matrix((64, 8))
    ((16, 8, 3, 3), (16, 8), (16, 8))
    """

    output: int = 0
    input: int = 1
    matrices: int | None = None
    gates: int = 1
    groups: int = 1

    def matrix(self, shape: Sequence[int]) -> tuple[int, ...]:
        """(outputs, inputs, kernel ...) of one of the matrices in a weight of this shape."""
        beside = [size for axis, size in enumerate(shape) if axis not in (self.output, self.input, self.matrices)]
        return (shape[self.output] * self.groups // self.gates, shape[self.input] // self.groups, *beside)

    def fans(self, shape: Sequence[int]) -> tuple[int, int]:
        """(fan in, fan out) = (inputs, outputs) x kernel size of one matrix.

        It is PyTorch's convention where the layout is the default: groups are not in a convolution's fan out.
        Strides are in neither.
        """
        if len(shape) < 2:
            raise UsageError(f"initial weights are drawn for two and more dimensions, not for {tuple(shape)}")
        outputs, inputs, *kernel = self.matrix(shape)
        return max(1, inputs * math.prod(kernel)), max(1, outputs * math.prod(kernel))

    def units(self, mask: Tensor) -> Tensor:
        """Whether each output unit has a kept weight: a boolean for each unit of each matrix."""
        if mask.dim() < 2:
            return mask.reshape(-1)
        if self.groups == 1:
            front = [axis for axis in (self.matrices, self.output) if axis is not None]
        else:
            mask = mask.unflatten(self.input, (self.groups, -1))
            front = [self.input, self.output + (self.output > self.input)]
        moved = mask.movedim(front, list(range(len(front))))
        units: Tensor = moved.flatten(len(front)).any(dim=-1).reshape(-1)
        return units

    def as_json(self) -> dict[str, int]:
        """The fields that are not the default."""
        return {f.name: value for f in fields(self) if (value := getattr(self, f.name)) != f.default}

    @classmethod
    def from_json(cls, given: Any, shape: Sequence[int]) -> Layout:
        """The layout of a weight of this shape; raises GemminerError where it cannot be one."""
        names = {f.name for f in fields(cls)}
        if isinstance(given, Mapping) and given.keys() <= names and all(type(v) is int for v in given.values()):
            layout = cls(**given)
            axes = [axis for axis in (layout.output, layout.input, layout.matrices) if axis is not None]
            if len({*axes}) == len(axes) and all(0 <= axis < len(shape) for axis in axes):
                parts = ((layout.gates, shape[layout.output]), (layout.groups, shape[layout.input]))
                if all(part >= 1 and size % part == 0 for part, size in parts):
                    return layout
        raise GemminerError(f"it has a layout that a weight of shape {tuple(shape)} cannot have: {given!r}")
