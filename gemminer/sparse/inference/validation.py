"""What a program must be before a kernel follows it: every number bounded, so that no product of two overflows.

The kernels index one scratch array with 64-bit products and offsets of 32 bits. With sizes, strides and windows below
2^31, the codes of strided planes below 2^62 and the scratch array below `FLOATS`, none of these can wrap around.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from gemminer.core.errors import GemminerError
from gemminer.sparse.inference.dense import sizes_of
from gemminer.sparse.inference.kernels import FORMULAS
from gemminer.sparse.inference.operations import (
    Apply,
    Array,
    Attention,
    Dense,
    Entries,
    Gather,
    Norm,
    Operation,
    Planar,
    Pool,
    Shape,
    Sum,
)

MOST = 2**31 - 1  # of a size, a stride, a position: offsets are 32-bit
CODES = 2**62  # codes of strided planes: (channel * stride + row) * stride + column
FLOATS = 2**29  # of the scratch array for one image, 2 GB
CELLS = 2**22  # of a pool's window
OPERATIONS = 2**15
_LARGEST = float(np.finfo(np.float32).max)


def need(right: bool, what: str) -> None:
    """Raise GemminerError where something is not right."""
    if not right:
        raise GemminerError(f"these operations are no program: {what}")


def whole(value: Any, least: int = 0, most: int = MOST) -> int:
    """A whole number of a file in its bounds; GemminerError otherwise.

    >>> whole(3), whole(-1, least=-5)
    (3, -1)
    """
    need(type(value) is int and least <= value <= most, "a number out of bounds")
    return int(value)


def as_map(shape: tuple[int, ...]) -> Shape:
    """The shape of features as a row of pixels, which lie closer in memory than channels of one pixel."""
    return (shape[0], shape[1], shape[2]) if len(shape) == 3 else (1, 1, shape[0])


def check_operations(inputs: tuple[int, ...], outputs: tuple[int, ...], operations: tuple[Operation, ...]) -> None:
    """Raise GemminerError unless every number a kernel would follow is in range."""
    need(len(inputs) in (1, 3) and all(0 < n <= MOST for n in inputs), "the input's shape")
    need(math.prod(inputs) <= FLOATS, "an input too large")
    need(0 < len(operations) <= OPERATIONS, "their number")
    shapes = [as_map(inputs)]
    for op in operations:
        need(len(op.shape) == 3 and all(0 < n <= MOST for n in op.shape[1:]) and 0 <= op.shape[0] <= MOST, "a shape")
        need(math.prod(op.shape) <= FLOATS, "a shape too large")
        if isinstance(op, Pool):
            _check_pool(op, shapes)
        elif isinstance(op, Planar):
            _check_planar(op, shapes)
        else:
            need(op.bias.shape == op.shape[:1] and bool(np.isfinite(op.bias).all()), "a bias")
            need(all(abs(limit) <= _LARGEST or math.isinf(limit) for limit in (op.low, op.high)), "a limit")
            for e in op.entries:
                need(0 <= e.source < len(shapes), "a source")
                _check_stride(e.stride, shapes[e.source])
                _check_entries(op, e, shapes[e.source])
        shapes.append(op.shape)
    need(0 < len(outputs) < 16 and all(0 <= n <= MOST for n in outputs), "the output's shape")
    need(math.prod(outputs) == math.prod(shapes[-1]), "the output's shape")


def check_floats(floats: int) -> None:
    """Raise GemminerError where one image takes more memory than a program may."""
    need(floats <= FLOATS, f"one image would take more than {4 * FLOATS >> 30} GB")


def _check_stride(stride: tuple[int, int], source: Shape) -> None:
    need(len(stride) == 2 and all(0 < s <= MOST for s in stride), "a stride")
    need(max(1, source[0]) * math.prod(stride) < CODES, "a stride too large")


def _whole_numbers(numbers: Array, count: int) -> bool:
    return numbers.shape == (count,) and bool(numbers.dtype.kind == "i")


def _check_entries(op: Sum, e: Entries, source: Shape) -> None:
    if not len(e):
        return
    need(all(_whole_numbers(part, len(e)) for part in (e.row, e.channel, e.dy, e.dx)), "entries")
    need(bool(np.isfinite(e.value).all()), "a weight that is not a finite number")
    need(e.row.min() >= 0 and e.row.max() < op.shape[0], "a row")
    need(e.channel.min() >= 0 and e.channel.max() < source[0], "a channel")
    for d, size, steps, stride in zip((e.dy, e.dx), source[1:], op.shape[1:], e.stride, strict=True):
        # Some output must read inside the map: compile leaves other entries out.
        need(-(steps - 1) * stride <= int(d.min()) and int(d.max()) < size, "a position")


def _check_pool(op: Pool, shapes: list[Shape]) -> None:
    need(0 <= op.source < len(shapes), "a pool's source")
    source = shapes[op.source]
    _check_stride(op.stride, source)
    need(all(len(part) == 2 for part in (op.window, op.padding)), "a pool")
    need(all(0 < n <= MOST for n in op.window) and all(0 <= n <= MOST for n in op.padding), "a pool")
    need(math.prod(op.window) <= CELLS, "a pool's window")
    channels, *size = source
    need(_whole_numbers(op.channel, op.shape[0]), "a pool's channels")
    need(len(op.channel) == 0 or (op.channel.min() >= 0 and op.channel.max() < channels), "a pool's channels")
    phases = math.prod(map(min, op.window, op.stride))  # strided planes of each channel, 16 floats each or more
    need(len(op.channel) * phases <= FLOATS // 16, "a pool's window")
    for n, out, window, stride, padding in zip(size, op.shape[1:], op.window, op.stride, op.padding, strict=True):
        need(2 * padding <= window <= n + 2 * padding and (out - 1) * stride - padding < n, "a pool's window")


def _check_planar(op: Planar, shapes: list[Shape]) -> None:
    sizes = []
    for planes in op.planes:
        need(0 <= planes.source < len(shapes), "a source")
        channels, *size = shapes[planes.source]
        need(_whole_numbers(planes.channel, len(planes.channel)) and len(planes.channel) <= FLOATS, "a channel")
        need(not len(planes.channel) or 0 <= planes.channel.min() <= planes.channel.max() < channels, "a channel")
        sizes.append(size)
    size, counts = list(op.shape[1:]), [len(planes.channel) for planes in op.planes]
    if isinstance(op, Apply):
        need(op.function in FORMULAS and len(sizes) == FORMULAS[op.function][0], "a function")
        need(counts == [op.shape[0]] * len(sizes), "a function's channels")
        need(sizes[0] == size and sizes[-1] in (size, [1, 1]), "a function's operands")
    elif isinstance(op, Norm):
        need(sizes == [size] and counts == [op.shape[0]] and op.shape[0] > 0, "a norm")
        need(0 <= op.eps <= _LARGEST, "a norm's eps")
    elif isinstance(op, Attention):
        _check_attention(op, sizes, counts)
    elif isinstance(op, Gather):
        need(len(sizes) == 1, "an order")
        index, most = op.index, counts[0] * math.prod(sizes[0])
        need(index.dtype.kind == "i" and index.shape == (math.prod(op.shape),), "an order")
        need(not len(index) or 0 <= index.min() <= index.max() < most, "an order")
    elif isinstance(op, Dense):
        counts = [len(planes.channel) * math.prod(size) for planes, size in zip(op.planes, sizes, strict=True)]
        need(counts == [math.prod(form) for form in op.forms], "a dense part's operands")
        sizes_of(op, FLOATS)
    else:
        need(op.data.shape == op.shape and bool(np.isfinite(op.data).all()), "a constant")


def _check_attention(op: Attention, sizes: list[list[int]], counts: list[int]) -> None:
    need(len(sizes) == 3 and sizes[0] == list(op.shape[1:]) and sizes[1] == sizes[2], "an attention's tokens")
    need(0 < op.heads <= MOST and abs(op.scale) <= _LARGEST, "an attention's heads")
    queries, keys, values = counts
    need(0 < queries == keys and 0 < values == op.shape[0], "an attention's channels")
    need(queries % op.heads == 0 and values % op.heads == 0, "an attention's channels")
