"""The indices of a layer's kept weights, and the offsets at which kernels find the inputs they multiply."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from gemminer.sparse.training import kernels

Array = np.ndarray[Any, Any]
# Floats of one run: long enough to hide the cost of starting it.
TILE = 2048
# Bytes that the windows of input and gradient may use: most of a second-level cache.
CACHE = 768 * 1024


@dataclass(frozen=True)
class LayerLayout:
    """A layer's layout on maps of one size: `row` holds the kernels' integers (`G_*`) but for the batch's size."""

    row: Array
    offset: Array
    back_offset: Array
    work: int  # numbers of memory that a thread needs for each image: forwards, and backwards
    back_work: int
    rows: dict[int, Array] = field(default_factory=dict)

    def at(self, batch: int) -> Array:
        """The row of integers for a batch; callers must not change it."""
        if batch not in self.rows:
            self.rows[batch] = self.row.copy()
            self.rows[batch][kernels.G_N] = batch
        return self.rows[batch]


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
        self._layouts: dict[tuple[int, int, int], LayerLayout] = {}

    def out_size(self, height: int, width: int) -> tuple[int, int]:
        """The output map's size; not positive where the kernel does not fit."""
        kh, kw = self.shape[2:]
        (ph, pw), s = self.padding, self.stride
        return (height + 2 * ph - kh) // s + 1, (width + 2 * pw - kw) // s + 1

    def layout(self, height: int, width: int, block: int) -> LayerLayout:
        """The layout for maps of this size in blocks of so many images."""
        if (height, width, block) not in self._layouts:
            self._layouts[height, width, block] = self._lay_out(height, width, block)
        return self._layouts[height, width, block]

    def _lay_out(self, height: int, width: int, block: int) -> LayerLayout:
        (ph, pw), s = self.padding, self.stride
        kh, kw = self.shape[2:]
        oh, ow = self.out_size(height, width)
        # Rows and columns of a plane that an output reads besides its own.
        before, beside = (kh - 1) // s, (kw - 1) // s
        columns = ow + beside
        left = max(0, beside - pw // s)
        z_columns = max(left + ow, (width - 1 + pw) // s + left + 1)
        tile = self._tile(oh, ow, before, block * (self.channels * s**2 * columns + self.shape[0] * z_columns), block)
        # Input: a plane a phase, of as many rows as a tile of outputs reads.
        rows = tile + before
        phase = (self.c * s + self.ky % s) * s + self.kx % s
        offset = (phase * rows + self.ky // s) * columns + self.kx // s
        # Gradient: row y of phase plane (y + padding) // s reads gradient rows y - ky // s; in a window some are of the
        # tile before.
        top = max(0, before - ph // s) if tile == oh else before
        z_rows = top + tile + max(0, (height - 1 + ph) // s + 1 - oh)
        back = (self.o * z_rows + top - self.ky // s) * z_columns + left - self.kx // s
        row = np.zeros(kernels.G_SIZE, dtype=np.int64)
        row[1:] = (
            *(block, self.channels, height, width, self.shape[0], oh, ow, kh, s, ph, pw),
            *(rows, columns, z_rows, z_columns, top, left, tile),
        )
        planes = self.channels * s**2 * rows * columns
        work = planes + width + self.shape[0] * ow
        back_work = planes + self.shape[0] * z_rows * z_columns + 2 * self.channels * width
        return LayerLayout(row, offset.astype(np.int32), back[self.order].astype(np.int32), work, back_work)

    @staticmethod
    def _tile(rows: int, width: int, before: int, line: int, block: int) -> int:
        """How many of a map's rows of outputs are computed before what they have read is left behind.

        `line` is the numbers of a row of all planes. A window of few rows stays in the cache, but the rows before each
        tile are copied for the next; it must save a quarter of the planes to be worth that.
        """
        tile = max(CACHE // (4 * line) - before, -(-TILE // (width * block)), 1)
        return tile if 4 * (tile + before) <= 3 * (rows + before) else rows
