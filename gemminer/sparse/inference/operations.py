"""A compiled network's operations: what each computes from the values before it.

Everything linear is a Sum: out[o, y, x] = clamp(bias[o] + sum over its entries of value * in[channel, y * s + dy,
x * s + dx]), zero outside the map. Convolutions, linear layers, folded batch norm, residual adds, strided slices
and concatenation are all entries; a linear layer on tokens is one on pixels, its features being channels. A program
is a list of operations; value 0 is the input and value i + 1 the result of operation i.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

Array = np.ndarray[Any, Any]
Shape = tuple[int, int, int]  # channels, height, width


@dataclass(frozen=True)
class Entries:
    """Weights of a Sum that read one value with one stride: five vectors of equal length."""

    source: int
    stride: tuple[int, int]
    row: Array
    channel: Array
    dy: Array
    dx: Array
    value: Array

    def __len__(self) -> int:
        return len(self.value)

    def take(self, which: Array) -> Entries:
        """A part of the entries, by index or flags."""
        parts = (self.row, self.channel, self.dy, self.dx, self.value)
        return Entries(self.source, self.stride, *(part[which] for part in parts))


@dataclass(frozen=True)
class Sum:
    """clamp(bias + sum of entries, low, high), a row an output channel."""

    shape: Shape
    entries: tuple[Entries, ...]
    bias: Array
    low: float = -math.inf
    high: float = math.inf


@dataclass(frozen=True)
class Pool:
    """The largest or the mean over windows of the given channels of a value."""

    shape: Shape
    source: int
    channel: Array
    largest: bool
    window: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]

    def taps(self) -> tuple[Array, Array]:
        """dy and dx of the window's cells."""
        grid = np.mgrid[: self.window[0], : self.window[1]].reshape(2, -1)
        return grid[0] - self.padding[0], grid[1] - self.padding[1]


@dataclass(frozen=True)
class Planes:
    """Some channels of a value, in order."""

    source: int
    channel: Array


@dataclass(frozen=True)
class Apply:
    """A function of `kernels.FORMULAS`, number by number, of one operand or two (one pixel of it for all)."""

    shape: Shape
    function: str
    planes: tuple[Planes, ...]


@dataclass(frozen=True)
class Norm:
    """(x - mean) / sqrt(variance + eps) at each pixel over the channels, as in a layer norm."""

    shape: Shape
    planes: tuple[Planes, ...]
    eps: float


@dataclass(frozen=True)
class Attention:
    """softmax(scale * keys . queries) values, head by head; a pixel is a token and the planes are q, k and v."""

    shape: Shape
    planes: tuple[Planes, ...]
    heads: int
    scale: float


@dataclass(frozen=True)
class Gather:
    """The numbers of a value in another order; `index`, one for each number of the shape, counts row by row."""

    shape: Shape
    planes: tuple[Planes, ...]
    index: Array


@dataclass(frozen=True)
class Constant:
    """Numbers that no image changes, of the shape."""

    shape: Shape
    data: Array
    planes: tuple[Planes, ...] = ()


@dataclass(frozen=True)
class Dense:
    """Steps of PyTorch's own on tensors of the forms, one image at a time (`dense`)."""

    shape: Shape
    planes: tuple[Planes, ...]
    forms: tuple[tuple[int, ...], ...]
    steps: tuple[Any, ...]
    constants: tuple[Tensor, ...]
    part: str  # of the network
    why: str  # no kernel computes it


Planar = Apply | Norm | Attention | Gather | Constant | Dense  # those that say what they read as planes
Operation = Sum | Pool | Planar
