"""The indices of a layer's kept weights, and the offsets at which kernels find the inputs they multiply."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from gemminer.sparse.training import kernels

Array = np.ndarray[Any, Any]
# Floats of one run: long enough to hide the cost of starting it.
TILE = 2048
# Bytes of input and gradient planes a tile may use: most of a second-level cache.
CACHE = 768 * 1024


@dataclass(frozen=True)
class LayerLayout:
    """A layer's layout on maps of one size: `row` holds the kernels' integers (`G_*`) but for batch and block size."""

    row: Array
    offset: Array
    back_offset: Array
    work: int  # numbers of memory that a thread needs for each image: forwards, and backwards
    back_work: int
    rows: dict[tuple[int, int], Array] = field(default_factory=dict)

    def at(self, batch: int, block: int) -> Array:
        """The row of integers for a batch in blocks of `block` images; callers must not change it."""
        if (batch, block) in self.rows:
            return self.rows[batch, block]
        row = self.rows[batch, block] = self.row.copy()
        k = kernels
        row[k.G_N], row[k.G_NB] = batch, block
        row_floats = int(row[k.G_OW]) * block
        line = block * (int(row[k.G_C] * row[k.G_XC]) * int(row[k.G_S]) + int(row[k.G_O] * row[k.G_ZC]))
        fits = max(CACHE // (4 * line) - int(row[k.G_KH]) + 1, TILE // 4 // row_floats, 1)
        row[k.G_TILE] = min(int(row[k.G_OH]), -(-TILE // row_floats), fits)
        return row


class Pattern:
    """The kept weights of one convolution (a linear layer is one of 1x1 on maps of 1x1).

    Args:
        kept: their indices in the flattened weight, ascending.
        shape: the weight's shape (O, C / groups, KH, KW).
    """

    def __init__(
        self, kept: Array, shape: tuple[int, int, int, int], groups: int, stride: int, padding: tuple[int, int]
    ) -> None:
        self.shape, self.groups, self.stride, self.padding = shape, groups, stride, padding
        o, c, ky, kx = np.unravel_index(kept.astype(np.int64), shape)
        self.o, self.ky, self.kx = o, ky, kx
        self.c = c + o // (shape[0] // groups) * shape[1]
        self.channels = shape[1] * groups
        self.start = np.searchsorted(o, np.arange(shape[0] + 1)).astype(np.int64)
        counts = np.diff(self.start)
        self.alive = counts > 0  # filters with a kept weight
        self.whole = bool(self.alive.all())
        self.longest = int(counts.max(initial=0))
        self.read_channels = np.zeros(self.channels, dtype=np.bool_)  # channels that a kept weight reads
        self.read_channels[self.c] = True
        # The transposed pattern, a row for each channel and phase of the stride.
        row = (self.c * stride + ky % stride) * stride + kx % stride
        self.order = np.argsort(row, kind="stable")
        self.row_start = np.searchsorted(row[self.order], np.arange(self.channels * stride**2 + 1)).astype(np.int64)
        self._layouts: dict[tuple[int, int], LayerLayout] = {}

    def out_size(self, height: int, width: int) -> tuple[int, int]:
        """The output map's size; not positive where the kernel does not fit."""
        kh, kw = self.shape[2:]
        (ph, pw), s = self.padding, self.stride
        return (height + 2 * ph - kh) // s + 1, (width + 2 * pw - kw) // s + 1

    def layout(self, height: int, width: int) -> LayerLayout:
        if (height, width) not in self._layouts:
            self._layouts[height, width] = self._lay_out(height, width)
        return self._layouts[height, width]

    def _lay_out(self, height: int, width: int) -> LayerLayout:
        (ph, pw), s = self.padding, self.stride
        kh, kw = self.shape[2:]
        oh, ow = self.out_size(height, width)
        # Input: a plane a phase, as large as the outputs read it.
        rows, columns = oh + (kh - 1) // s, ow + (kw - 1) // s
        phase = (self.c * s + self.ky % s) * s + self.kx % s
        offset = (phase * rows + self.ky // s) * columns + self.kx // s
        # Gradient: output row y of phase plane (y + padding) // s reads gradient rows y - ky // s.
        top, left = (max(0, (k - 1) // s - p // s) for k, p in ((kh, ph), (kw, pw)))
        z_rows = max(top + oh, (height - 1 + ph) // s + top + 1)
        z_columns = max(left + ow, (width - 1 + pw) // s + left + 1)
        back = (self.o * z_rows + top - self.ky // s) * z_columns + left - self.kx // s
        row = np.zeros(kernels.G_SIZE, dtype=np.int64)
        row[2 : kernels.G_TILE] = (
            *(self.channels, height, width, self.shape[0], oh, ow, kh, s, ph, pw),
            *(rows, columns, z_rows, z_columns, top, left),
        )
        planes = self.channels * s**2 * rows * columns
        work = planes + width + self.shape[0] * ow
        back_work = planes + self.shape[0] * z_rows * z_columns + 2 * self.channels * width
        return LayerLayout(row, offset.astype(np.int32), back[self.order].astype(np.int32), work, back_work)
