# mypy: disable-error-code="no-untyped-def, call-arg, var-annotated"
"""Numba kernels of the sparse engine: convolutions that touch kept weights only, norm and ReLU applied on the way.

Layout. Activations lie in blocks of up to `NB` images, the image innermost: block, row, channel, column, image. So
whatever the pattern, a kept weight is one multiply-add of a row of W * NB contiguous numbers, maps of 2x2 are as fast
as maps of 32x32, and the rows of all channels lie together, so memory is read and written from front to back (with
the channel outside the row, sixteen channels' rows fell on one set of the cache). The last block is as short as the
batch leaves it; nothing is padded in memory.

Each thread copies the rows a tile of outputs reads into its own small planes, padded with zeros and split into
stride x stride phases (even and odd rows and columns for stride 2), so every kept weight is one contiguous run of
them at a fixed offset. Where the planes of a whole map would not fit the second cache they are a window: the rows that
the next tile reads once more slide to the front. On the way the copy applies what came before:
y = relu(scale * z + shift). Backwards the copy forms dz = A * g + B * (z - mean) + C, the gradient of batch norm, in
the same way.

A `Geometry` row of integers describes a layer (`G_*` below). All arrays are flat. What is passed from layer to layer,
activations and their gradients, is of the type of the weights or, half the memory, bfloat16 (in arrays of 16-bit
integers, read by `get` and written by `put`); planes, weights and sums are of the weights' type.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
import numpy as np

from gemminer.sparse.training import vectors
from gemminer.sparse.training.vectors import (
    VECTOR_BYTES,
    add_where,
    gather_1,
    gather_2,
    gather_4,
    gather_8,
    get,
    largest,
    move,
    put,
    stream,
    sum_1,
    sum_2,
    sum_4,
    sum_8,
    take,
    turn,
)

# NaN and infinity keep their meaning: no nnan, no ninf.
_FAST = {"contract", "reassoc", "nsz", "arcp"}
# Kernels that Python launches, and inner functions that only these call, without the slow-to-compile wrappers. They
# allocate nothing, so Numba need not count an array's owners (`_nrt`): it would at each branch that chooses one of two,
# up and down in memory that threads share, which takes five times as long as a short row.
_LAUNCHED: dict[str, Any] = {
    "cache": True, "nogil": True, "error_model": "numpy", "no_cfunc_wrapper": True, "_nrt": False
}  # fmt: skip
_INNER: dict[str, Any] = {**_LAUNCHED, "no_cpython_wrapper": True}
# A kernel's code includes that of `vectors`, which Numba's cache does not check by itself.
_VECTORS = hashlib.sha256(Path(vectors.__file__).read_bytes()).hexdigest()


def _compiled(**options: Any) -> Callable[[Any], Any]:
    """`numba.njit` whose cached code is compiled anew if this file or `vectors.py` has changed."""

    def decorate(function: Any) -> Any:
        made = numba.njit(**options)(function)
        index = made._cache._cache_file
        index._source_stamp = (index._source_stamp, _VECTORS)
        return made

    return decorate


_kernel = _compiled(**_LAUNCHED, fastmath=_FAST)
_inner = _compiled(**_INNER, fastmath=_FAST)
# Called for each row: an array is seven numbers to hand over, seven arrays take longer than the row.
_inline = _compiled(**_INNER, fastmath=_FAST, forceinline=True)
# A layer's few sums, in float64 and in the order written.
_exact = _compiled(**_LAUNCHED)

# Indices into the row of integers that describes a layer on maps of one size.
G_N, G_NB, G_C, G_H, G_W, G_O, G_OH, G_OW, G_KH, G_S, G_PH, G_PW = range(12)
G_XR, G_XC, G_ZR, G_ZC, G_ZTOP, G_ZLEFT, G_TILE = range(12, 19)
G_SIZE = 19

# Arrays of this many bytes are written past the caches.
LARGE = 1 << 20

# Up to this many kept weights, all their vectors of sums stay in the second cache (128 KB).
SMALL = 2048

# Bits of the `source` flags, about a value that is read.
RELU, RESIDUAL, STORE, IDENTITY = 1, 2, 4, 8
# Bits of the backward pass's tasks.
NEED_X, NEED_W, EXTRA, STATS, MASK, MATERIALISED, NORM = 1, 2, 4, 8, 16, 32, 64


@_inner
def _sum_rows(planes, base, offset, lanes, value, start, first, step, filters, out, length, gap):
    """A row of several filters: filter f is row q = first + f * step of the pattern, and of its kept weights j

        out[f * gap + i] = sum of value[j] * planes[base + offset[j] * lanes + i]     for i < length.

    A tile of columns is done for all filters before the next, so the part of the planes it reads stays in the first
    cache. Filters without weights give zeros.
    """
    width = VECTOR_BYTES // planes.itemsize
    i = 0
    while i < length:
        left = length - i
        for f in range(filters):
            q = first + f * step
            j0, j1, to = start[q], start[q + 1], f * gap + i
            if left >= 8 * width:
                sum_8(planes, base + i, offset, lanes, value, j0, j1, out, to)
            elif left >= 4 * width:
                sum_4(planes, base + i, offset, lanes, value, j0, j1, out, to)
            elif left >= 2 * width:
                sum_2(planes, base + i, offset, lanes, value, j0, j1, out, to)
            elif left >= width:
                sum_1(planes, base + i, offset, lanes, value, j0, j1, out, to)
            else:
                for k in range(left):
                    total = planes.dtype.type(0)
                    for j in range(j0, j1):
                        total += value[j] * planes[base + np.int64(offset[j]) * lanes + i + k]
                    out[to + k] = total
        i += _advance(left, width)


@_inner
def _advance(left, width):
    """The length of the next tile, with `left` numbers left."""
    for tiles in (8, 4, 2, 1):
        if left >= tiles * width:
            return tiles * width
    return left


@_inner
def _gather_rows(grad, at, gap, planes, base, offset, lanes, start, first, last, sums, shift, length):
    """Weight gradients of a row for filters first..last-1: a vector of sums a weight, of weight `shift` at 0,

    sums[j - shift] += grad[at + f * gap + i] * planes[base + offset[j] * lanes + i]     for i < length.
    """
    width = VECTOR_BYTES // planes.itemsize
    i = 0
    while i < length:
        left = length - i
        for f in range(first, last):
            j0, j1, dy = start[f], start[f + 1], at + f * gap + i
            if j0 == j1:
                continue
            if left >= 8 * width:
                gather_8(grad, dy, planes, base + i, offset, lanes, j0, j1, sums, shift)
            elif left >= 4 * width:
                gather_4(grad, dy, planes, base + i, offset, lanes, j0, j1, sums, shift)
            elif left >= 2 * width:
                gather_2(grad, dy, planes, base + i, offset, lanes, j0, j1, sums, shift)
            elif left >= width:
                gather_1(grad, dy, planes, base + i, offset, lanes, j0, j1, sums, shift)
            else:
                for j in range(j0, j1):
                    for k in range(left):
                        product = grad[dy + k] * planes[base + np.int64(offset[j]) * lanes + i + k]
                        sums[(j - shift) * width] += product
        i += _advance(left, width)


@_inner
def _reduce(sums, j0, j1, partial):
    """Add each weight's vector of sums to partial[j], and clear it."""
    width = VECTOR_BYTES // sums.itemsize
    zero = sums.dtype.type(0)
    for j in range(j0, j1):
        at = (j - j0) * width
        total = zero
        for k in range(at, at + width):
            total += get(sums, k)
            put(sums, k, zero)
        partial[j] += total


@_inline
def _activate(z, res, at, c, scale, shift, alive, flags, out, to, n):
    """out[to:to+n] = relu(scale[c] * z + shift[c] + res), each part if its flag is set; a dead channel has no z."""
    if flags & IDENTITY:
        _move(z, at, out, to, n)
        return
    a, b = scale[c], shift[c]
    low = scale.dtype.type(0 if flags & RELU else -np.inf)
    if alive[c] and flags & RESIDUAL:
        for i in range(n):
            v = a * get(z, at + i) + b + get(res, at + i)
            put(out, to + i, low if v <= low else v)  # NaN stays NaN, as in PyTorch
    elif alive[c]:
        for i in range(n):
            v = a * get(z, at + i) + b
            put(out, to + i, low if v <= low else v)
    elif flags & RESIDUAL:
        for i in range(n):
            v = b + get(res, at + i)
            put(out, to + i, low if v <= low else v)
    else:
        for i in range(n):
            put(out, to + i, low if b <= low else b)


@_inline
def _move(source, at, out, to, n):
    """out[to : to + n] = source[at : at + n], for short runs."""
    width = VECTOR_BYTES // max(source.itemsize, out.itemsize)
    i = 0
    while i + width <= n:
        move(source, at + i, out, to + i)
        i += width
    while i < n:
        put(out, to + i, get(source, at + i))
        i += 1


@_inline
def _stream(source, at, out, to, n):
    """out[to : to + n] = source[at : at + n]: past the caches, if `out` is too large for them to hold until it is read.

    An ordinary store loads the line it writes into, a third of what a forward pass moves through memory.
    """
    width = VECTOR_BYTES // max(source.itemsize, out.itemsize)
    i = np.int64(0)
    if out.size * out.itemsize >= LARGE and (out.ctypes.data + to * out.itemsize) % (width * out.itemsize) == 0:
        while i + width <= n:
            stream(source, at + i, out, to + i)
            i += width
    _move(source, at + i, out, to + i, n - i)


@_inner
def _fill(g, lanes, first, last, t0, z, res, base, scale, shift, alive, flags, want, y, planes, row):
    """Rows first..last-1 of every wanted channel, activated, into the padded phase planes (and into y to keep).

    The planes begin with what output row t0 reads.
    """
    w, s, ph, pw, rows, columns = g[G_W], g[G_S], g[G_PH], g[G_PW], g[G_XR], g[G_XC]
    n = w * lanes
    channels, store = g[G_C], flags & STORE
    for r in range(first, last):
        for c in range(channels):
            if not want[c] and not store:
                continue
            at = base + (r * channels + c) * n
            down, py = (r + ph) // s - t0, (r + ph) % s
            straight = s == 1 and want[c]
            held = planes if straight else row
            to = ((c * rows + down) * columns + pw) * lanes if straight else 0
            _activate(z, res, at, c, scale, shift, alive, flags, held, to, n)
            if store:
                _stream(held, to, y, at, n)
            if straight or not want[c] or not 0 <= down < rows:
                continue
            for x in range(w):
                right, px = (x + pw) // s, (x + pw) % s
                if right < columns:
                    to = ((((c * s + py) * s + px) * rows + down) * columns + right) * lanes
                    _move(row, x * lanes, planes, to, lanes)


@_inline
def _zero(out, at, end):
    for i in range(at, end):
        put(out, i, out.dtype.type(0))


@_inner
def _clear(planes, n, rows, columns, top, left, height, width, lanes):
    """Write zeros around the (height x width) middle of n planes."""
    right, below = left + width, top + height
    for p in range(n):
        base = p * rows * columns * lanes
        _zero(planes, base, base + top * columns * lanes)
        _zero(planes, base + below * columns * lanes, base + rows * columns * lanes)
        for r in range(top, below):
            at = base + r * columns * lanes
            _zero(planes, at, at + left * lanes)
            _zero(planes, at + right * lanes, at + columns * lanes)


@_inner
def _slide(planes, n, rows, line, tile, kept):
    """In n planes of rows of `line` numbers, put the `kept` rows behind the tile to the front."""
    for p in range(n):
        base = p * rows * line
        for i in range(kept):
            _move(planes, base + (tile + i) * line, planes, base + i * line, line)


@_inner
def _zero_rows(planes, n, rows, line, first, last):
    for p in range(n):
        _zero(planes, (p * rows + first) * line, (p * rows + last) * line)


@_inner
def _next_input(g, lanes, t0, planes):
    """Let the window of the input begin with what output row t0 reads; rows beyond the map are zero."""
    s, rows, line = g[G_S], g[G_XR], g[G_XC] * lanes
    if t0 > 0:
        _slide(planes, g[G_C] * s * s, rows, line, g[G_TILE], rows - g[G_TILE])
    for p in range(rows):
        for py in range(s):
            if not g[G_PH] <= (p + t0) * s + py < g[G_PH] + g[G_H]:
                for c in range(g[G_C]):
                    for px in range(s):
                        at = (((c * s + py) * s + px) * rows + p) * line
                        _zero(planes, at, at + line)


@_inner
def _next_gradient(g, lanes, t0, planes):
    """Let the window of the gradient begin G_ZTOP rows before t0; rows beyond the map are zero."""
    rows, line, top = g[G_ZR], g[G_ZC] * lanes, g[G_ZTOP]
    if t0 > 0:
        _slide(planes, g[G_O], rows, line, g[G_TILE], top)
    else:
        _zero_rows(planes, g[G_O], rows, line, np.int64(0), top)
    if t0 + g[G_TILE] >= g[G_OH]:
        _zero_rows(planes, g[G_O], rows, line, top + g[G_OH] - t0, rows)


@_inner
def _clear_input(g, lanes, planes):
    s = g[G_S]
    if s == 1 and g[G_TILE] < g[G_OH]:
        _clear(planes, g[G_C], g[G_XR], g[G_XC], np.int64(0), g[G_PW], g[G_XR], g[G_W], lanes)
    elif s == 1:
        _clear(planes, g[G_C], g[G_XR], g[G_XC], g[G_PH], g[G_PW], g[G_H], g[G_W], lanes)
    else:
        _zero(planes, np.int64(0), g[G_C] * s * s * g[G_XR] * g[G_XC] * lanes)


@_kernel
def forward(t, next_block, g, z_in, res, scale, shift, alive, flags, want, y, start, offset, value, out, stats, work):
    blocks = (g[G_N] + g[G_NB] - 1) // g[G_NB]
    c_in, h, w, c_out, oh, ow = g[G_C], g[G_H], g[G_W], g[G_O], g[G_OH], g[G_OW]
    s, ph, kh, columns, tile = g[G_S], g[G_PH], g[G_KH], g[G_XC], g[G_TILE]
    size = g[G_C] * s * s * g[G_XR] * g[G_XC] * g[G_NB]
    planes, row, sums = work[t, :size], work[t, size:], work[t, size + w * g[G_NB] :]
    cleared = 0
    zero = work.dtype.type(0)
    none, one = np.int64(0), np.int64(1)  # a literal argument would compile what it is given to once more
    for _ in range(blocks):
        b = take(next_block)
        if b >= blocks:
            break
        lanes = min(g[G_NB], g[G_N] - b * g[G_NB])
        if lanes != cleared:
            _clear_input(g, lanes, planes)
            cleared = lanes
        from_, to = b * g[G_NB] * c_in * h * w, b * g[G_NB] * c_out * oh * ow
        filled = none
        for t0 in range(0, oh, tile):
            t1 = min(oh, t0 + tile)
            last = min(h, (t1 - 1) * s - ph + kh)
            if t1 == oh and flags & STORE:
                last = h
            if tile < oh:
                _next_input(g, lanes, t0, planes)
            if last > filled:
                _fill(g, lanes, filled, last, t0, z_in, res, from_, scale, shift, alive, flags, want, y, planes, row)
                filled = last
            n = ow * lanes
            for r in range(t0, t1):
                _sum_rows(planes, (r - t0) * columns * lanes, offset, lanes, value, start, none, one, c_out, sums, n, n)
                for o in range(c_out):
                    _stream(sums, o * n, out, to + (r * c_out + o) * n, n)
                    if stats.shape[0] == 0 or start[o] == start[o + 1]:
                        continue  # a dead filter: its reader uses the constant
                    # Sums of z minus one of its values: no cancellation, and a constant map has variance 0 exactly.
                    at = o * n
                    if r == 0:
                        stats[b, o, 0] = get(sums, at)
                    pivot = work.dtype.type(stats[b, o, 0])
                    s1, s2 = zero, zero
                    for i in range(at, at + n):
                        d = get(sums, i) - pivot
                        s1 += d
                        s2 += d * d
                    stats[b, o, 1] += s1
                    stats[b, o, 2] += s2


@_inline
def _finish(dx, first, n, extra, z, y, at, scale, shift, mean, alive, flags, out):
    """Write g = dx + extra, zero where y = relu(...) is zero, to out; returns sum g and sum g * (z - mean).

    `dx`, n numbers from `first`, is scratch.
    """
    zero = dx.dtype.type(0)
    s1, s2 = zero, zero
    if flags & EXTRA:
        for i in range(n):
            put(dx, first + i, get(dx, first + i) + get(extra, at + i))
    if flags & MASK and alive and flags & NORM:  # nearly always: one pass
        if flags & MATERIALISED:
            for i in range(n):
                d = zero if get(y, at + i) <= zero else get(dx, first + i)
                put(out, at + i, d)
                s1 += d
                s2 += d * (get(z, at + i) - mean)
        else:
            for i in range(n):
                x = get(z, at + i)
                d = zero if scale * x + shift <= zero else get(dx, first + i)
                put(out, at + i, d)
                s1 += d
                s2 += d * (x - mean)
        return s1, s2
    if flags & MASK:
        if flags & MATERIALISED:
            for i in range(n):
                put(dx, first + i, zero if get(y, at + i) <= zero else get(dx, first + i))
        elif alive:
            for i in range(n):
                put(dx, first + i, zero if scale * get(z, at + i) + shift <= zero else get(dx, first + i))
        elif shift <= zero:
            _zero(dx, first, first + n)
    for i in range(n):
        d = get(dx, first + i)
        put(out, at + i, d)
        s1 += d
    if alive and flags & NORM:
        for i in range(n):
            s2 += get(dx, first + i) * (get(z, at + i) - mean)
    return s1, s2


@_inner
def _fill_gradient(g, lanes, first, last, grad, z, base, a, b, c, mean, norm, start, planes):
    """Rows first..last-1, a tile, of dz = a * g + b * (z - mean) + c (batch norm's gradient) into padded planes."""
    ow, rows, columns, top, left = g[G_OW], g[G_ZR], g[G_ZC], g[G_ZTOP], g[G_ZLEFT]
    n = ow * lanes
    c_out = g[G_O]
    for r in range(first, last):
        for o in range(c_out):
            if start[o] == start[o + 1]:
                continue
            at = base + (r * c_out + o) * n
            to = ((o * rows + top + r - first) * columns + left) * lanes
            a_o = a[o]
            if norm:
                b_o, c_o, mean_o = b[o], c[o], mean[o]
                for i in range(n):
                    put(planes, to + i, a_o * get(grad, at + i) + b_o * (get(z, at + i) - mean_o) + c_o)
            else:
                for i in range(n):
                    put(planes, to + i, a_o * get(grad, at + i))


@_inner
def _interleave(phase, m, lanes, row, x0, s, channels, n):
    """Write a phase of each channel's row into its columns x0, x0 + s, ..."""
    for c in range(channels):
        for x in range(m // lanes):
            to, at = c * n + (x0 + s * x) * lanes, c * m + x * lanes
            _move(phase, at, row, to, lanes)


@_kernel
def backward(
    t, next_block, g, todo,
    z_in, y_in, scale, shift, mean, alive, in_flags, want,
    grad, z_out, a, b_z, b_c, mean_out, norm,
    start, offset, row_start, back_offset, back_value,
    extra, out, stats, partial, work,
):  # fmt: skip
    blocks = (g[G_N] + g[G_NB] - 1) // g[G_NB]
    c_in, h, w, c_out, oh, ow = g[G_C], g[G_H], g[G_W], g[G_O], g[G_OH], g[G_OW]
    s, ph, pw, kh, tile = g[G_S], g[G_PH], g[G_PW], g[G_KH], g[G_TILE]
    x_size = c_in * s * s * g[G_XR] * g[G_XC] * g[G_NB]
    z_size = c_out * g[G_ZR] * g[G_ZC] * g[G_NB]
    x_planes, z_planes = work[t, :x_size], work[t, x_size : x_size + z_size]
    row_size = c_in * w * g[G_NB]
    row, phase = work[t, x_size + z_size :], work[t, x_size + z_size + row_size :]
    small = offset.shape[0] <= SMALL
    together = offset.shape[0] if small else 0
    for o in range(0 if small else c_out):
        together = max(together, start[o + 1] - start[o])
    first_sum = x_size + z_size + 2 * row_size
    sums = work[t, first_sum : first_sum + together * (VECTOR_BYTES // work.itemsize)]
    sums[:] = 0
    source = y_in if in_flags & IDENTITY else z_in
    cleared = 0
    for _ in range(blocks):
        b = take(next_block)
        if b >= blocks:
            break
        lanes = min(g[G_NB], g[G_N] - b * g[G_NB])
        if lanes != cleared:
            _clear_input(g, lanes, x_planes)
            z_top, z_height = (g[G_ZTOP], oh) if tile == oh else (np.int64(0), g[G_ZR])
            _clear(z_planes, c_out, g[G_ZR], g[G_ZC], z_top, g[G_ZLEFT], z_height, ow, lanes)
            cleared = lanes
        from_, to = b * g[G_NB] * c_in * h * w, b * g[G_NB] * c_out * oh * ow
        filled, done = np.int64(0), np.int64(0)  # literals would compile `_fill` once more
        for t0 in range(0, oh, tile):
            t1 = min(oh, t0 + tile)
            if tile < oh:
                _next_gradient(g, lanes, t0, z_planes)
            _fill_gradient(g, lanes, t0, t1, grad, z_out, to, a, b_z, b_c, mean_out, norm, start, z_planes)
            if todo & NEED_W:
                last = min(h, (t1 - 1) * s - ph + kh)
                if tile < oh:
                    _next_input(g, lanes, t0, x_planes)
                if last > filled:
                    _fill(
                        g, lanes, filled, last, t0, source, source, from_, scale, shift, alive, in_flags, want,
                        out, x_planes, row,
                    )  # fmt: skip
                    filled = last
                z_gap, x_line = g[G_ZR] * g[G_ZC] * lanes, g[G_XC] * lanes
                # Few weights: all filters on one tile of columns, while it is in the first cache. Many, hence small
                # maps: filter by filter, so that its sums are.
                for o in range(1 if small else c_out):
                    f0, f1 = (0, c_out) if small else (o, o + 1)
                    if start[f0] == start[f1]:
                        continue
                    for r in range(t1 - t0):
                        dz = ((g[G_ZTOP] + r) * g[G_ZC] + g[G_ZLEFT]) * lanes
                        _gather_rows(
                            z_planes, dz, z_gap, x_planes, r * x_line, offset, lanes,
                            start, f0, f1, sums, start[f0], ow * lanes,
                        )  # fmt: skip
                    if not small or t1 == oh:
                        _reduce(sums, start[f0], start[f1], partial[b])
            if todo & NEED_X:
                ready = h if t1 == oh else max(done, min(h, s * t1 - ph))
                n = w * lanes
                for r in range(done, ready):
                    q, line = (r + ph) % s * s, ((r + ph) // s - t0) * g[G_ZC]
                    for px in range(s):
                        x0 = (px - pw) % s
                        m = (w - x0 + s - 1) // s * lanes
                        base = (line + (x0 + pw) // s) * lanes
                        _sum_rows(
                            z_planes, base, back_offset, lanes, back_value, row_start, q + px, s * s, c_in,
                            row if s == 1 else phase, m, n if s == 1 else m,
                        )  # fmt: skip
                        if s > 1:
                            _interleave(phase, m, lanes, row, x0, s, c_in, n)
                    for c in range(c_in):
                        at = from_ + (r * c_in + c) * n
                        s1, s2 = _finish(
                            row, c * n, n, extra, z_in, y_in, at, scale[c], shift[c], mean[c], alive[c], todo, out
                        )  # fmt: skip
                        if todo & STATS:
                            stats[b, c, 0] += s1
                            stats[b, c, 1] += s2
                done = ready


# Per layer


@_exact
def sift(start, offset, value, to_start, to_offset, to_value):
    """Copy the rows of a pattern without the weights whose value is zero."""
    n = 0
    for q in range(start.shape[0] - 1):
        to_start[q] = n
        for j in range(start[q], start[q + 1]):
            if value[j] != 0:
                to_offset[n], to_value[n] = offset[j], value[j]
                n += 1
    to_start[start.shape[0] - 1] = n


@_compiled(**_INNER)
def _batch_statistics(stats, counts, alive, mean, var):
    """Write each channel's mean and biased variance, from each block's (pivot, sum, sum of squares) about its pivot."""
    total = counts.sum()
    for c in range(mean.shape[0]):
        mean[c], var[c] = 0.0, 0.0
        if not alive[c]:
            continue
        for b in range(counts.shape[0]):
            mean[c] += stats[b, c, 0] * counts[b] + stats[b, c, 1]
        mean[c] /= total
        for b in range(counts.shape[0]):
            own = stats[b, c, 1] / counts[b]
            away = stats[b, c, 0] + own - mean[c]
            var[c] += stats[b, c, 2] - own * stats[b, c, 1] + counts[b] * away * away
        var[c] = max(var[c] / total, 0.0) if var[c] == var[c] else var[c]


@_exact
def normalise(stats, counts, alive, bias, gamma, beta, running_mean, running_var, momentum, eps, moments, affine):
    """Write (mean, 1 / sqrt(var + eps)) and (scale, shift) of a batch's norm; moves the running statistics, if given.

    norm(z + bias) = scale * z + shift; arrays that do not exist are empty. Plain NumPy takes five times as long.
    """
    _batch_statistics(stats, counts, alive, moments[0], moments[1])
    total = counts.sum()
    for c in range(moments.shape[1]):
        mean, var = moments[0, c], moments[1, c]
        if running_mean.shape[0]:
            seen = mean + bias[c] if bias.shape[0] else mean
            running_mean[c] = (1 - momentum) * running_mean[c] + momentum * seen
            running_var[c] = (1 - momentum) * running_var[c] + momentum * var * (total / (total - 1))
        moments[1, c] = 1 / np.sqrt(var + eps)
        scale = moments[1, c] * gamma[c] if gamma.shape[0] else moments[1, c]
        affine[0, c] = scale
        affine[1, c] = beta[c] - mean * scale if beta.shape[0] else -mean * scale


# Values at the edges of a chain, which have a pass of their own


@_kernel
def apply(t, next_block, n, nb, channels, height, width, z, res, scale, shift, alive, flags, y):
    blocks = (n + nb - 1) // nb
    for _ in range(blocks):
        b = take(next_block)
        if b >= blocks:
            break
        lanes = min(nb, n - b * nb)
        at = b * nb * channels * height * width
        for _ in range(height):
            for c in range(channels):
                _activate(z, res, at, c, scale, shift, alive, flags, y, at, width * lanes)
                at += width * lanes


@_kernel
def finalise(
    t, next_block, n, nb, channels, height, width, dy, z, y, scale, shift, mean, alive, todo, out, stats, work
):
    blocks = (n + nb - 1) // nb
    for _ in range(blocks):
        b = take(next_block)
        if b >= blocks:
            break
        m = min(nb, n - b * nb) * width
        scratch = work[t, :m]
        at = b * nb * channels * height * width
        for _ in range(height):
            for c in range(channels):
                _move(dy, at, scratch, np.int64(0), m)
                s1, s2 = _finish(
                    scratch, np.int64(0), m, dy, z, y, at, scale[c], shift[c], mean[c], alive[c], todo, out
                )  # fmt: skip
                if todo & STATS:
                    stats[b, c, 0] += s1
                    stats[b, c, 1] += s2
                at += m


@_kernel
def block(t, next_block, nb, images, blocked, inwards):
    """Copy between (N, C, H, W) and blocks of nb images, image innermost."""
    n, channels, height, width = images.shape
    blocks = (n + nb - 1) // nb
    apart = channels * height * width
    square = VECTOR_BYTES // max(images.itemsize, blocked.itemsize)
    for _ in range(blocks):
        b = take(next_block)
        if b >= blocks:
            break
        lanes = min(nb, n - b * nb)
        at = b * nb * apart
        for r in range(height):
            for c in range(channels):
                row = ((b * nb * channels + c) * height + r) * width
                k = 0
                while k + square <= lanes and square <= width:
                    x = 0
                    while x < width:
                        x = min(x, width - square)  # the last square may lie over the one before
                        if inwards:
                            turn(images, row + k * apart + x, apart, blocked, at + x * lanes + k, lanes)
                        else:
                            turn(blocked, at + x * lanes + k, lanes, images, row + k * apart + x, apart)
                        x += square
                    k += square
                while k < lanes:
                    own = row + k * apart
                    if inwards:
                        for x in range(width):
                            put(blocked, at + x * lanes + k, get(images, own + x))
                    else:
                        for x in range(width):
                            put(images, own + x, get(blocked, at + x * lanes + k))
                    k += 1
                at += width * lanes


@_kernel
def shortcut(t, next_block, n, nb, c_in, h, w, c_out, stride, before, full, small, back):
    """small = every stride-th pixel of full between zero channels, `before` of them in front; back is its adjoint."""
    oh, ow = (h + stride - 1) // stride, (w + stride - 1) // stride
    blocks = (n + nb - 1) // nb
    for _ in range(blocks):
        b = take(next_block)
        if b >= blocks:
            break
        lanes = min(nb, n - b * nb)
        big, little = b * nb * c_in * h * w, b * nb * c_out * oh * ow
        if back:
            _zero(full, big, big + lanes * c_in * h * w)
        for r in range(oh):
            for c in range(c_out):
                to = little + (r * c_out + c) * ow * lanes
                k = c - before
                if 0 <= k < c_in:
                    at = big + (r * stride * c_in + k) * w * lanes
                    for x in range(ow):
                        if back:
                            _move(small, to + x * lanes, full, at + x * stride * lanes, lanes)
                        else:
                            _move(full, at + x * stride * lanes, small, to + x * lanes, lanes)
                elif not back:
                    _zero(small, to, to + ow * lanes)


@_kernel
def pool(
    t, next_block, n, nb, channels, h, w, oh, ow, kh, kw, sh, sw, ph, pw,
    z, res, scale, shift, alive, flags, out, which, work,
):  # fmt: skip
    """out = the largest of each window, NaN before all, and which = its place there: the first, as PyTorch's."""
    blocks = (n + nb - 1) // nb
    width = VECTOR_BYTES // work.itemsize
    rows = work[t]
    for _ in range(blocks):
        b = take(next_block)
        if b >= blocks:
            break
        lanes = min(nb, n - b * nb)
        from_, to = b * nb * channels * h * w, b * nb * channels * oh * ow
        for r in range(oh):
            top = r * sh - ph
            first, last = max(0, top), min(h, top + kh)
            for c in range(channels):
                for y in range(first, last):
                    at = from_ + (y * channels + c) * w * lanes
                    _activate(z, res, at, c, scale, shift, alive, flags, rows, (y - first) * w * lanes, w * lanes)
                for x in range(ow):
                    left = x * sw - pw
                    x0, x1 = max(0, left), min(w, left + kw)
                    own = to + ((r * channels + c) * ow + x) * lanes
                    code = (first - top) * kw + x0 - left
                    k = 0
                    while k + width <= lanes:
                        start = x0 * lanes + k
                        largest(rows, start, w * lanes, lanes, last - first, x1 - x0, code, kw, out, which, own + k)
                        k += width
                    while k < lanes:
                        m, place = get(rows, x0 * lanes + k), code
                        for y in range(last - first):
                            for q in range(x1 - x0):
                                v = get(rows, (y * w + x0 + q) * lanes + k)
                                if v > m or v != v:
                                    m, place = v, code + y * kw + q
                        put(out, own + k, m)
                        which[own + k] = place
                        k += 1


@_kernel
def unpool(
    t, next_block, n, nb, channels, h, w, oh, ow, kh, kw, sh, sw, ph, pw,
    dy, which, z, y, scale, shift, mean, alive, todo, extra, out, stats, work,
):  # fmt: skip
    """The gradient of what a pool has read, completed as `_finish` does."""
    blocks = (n + nb - 1) // nb
    width = VECTOR_BYTES // work.itemsize
    row = work[t]
    for _ in range(blocks):
        b = take(next_block)
        if b >= blocks:
            break
        lanes = min(nb, n - b * nb)
        to, from_ = b * nb * channels * h * w, b * nb * channels * oh * ow
        for r in range(h):
            first, last = max(0, (r + ph - kh) // sh + 1), min(oh, (r + ph) // sh + 1)
            for c in range(channels):
                _zero(row, np.int64(0), w * lanes)
                for p in range(first, last):
                    for x in range(ow):
                        own = from_ + ((p * channels + c) * ow + x) * lanes
                        left = x * sw - pw
                        for q in range(max(0, left), min(w, left + kw)):
                            code, at = (r + ph - p * sh) * kw + q - left, q * lanes
                            k = 0
                            while k + width <= lanes:
                                add_where(dy, which, own + k, code, row, at + k)
                                k += width
                            while k < lanes:
                                if which[own + k] == code:
                                    put(row, at + k, get(row, at + k) + get(dy, own + k))
                                k += 1
                at = to + (r * channels + c) * w * lanes
                s1, s2 = _finish(
                    row, np.int64(0), w * lanes, extra, z, y, at, scale[c], shift[c], mean[c], alive[c], todo, out
                )  # fmt: skip
                if todo & STATS:
                    stats[b, c, 0] += s1
                    stats[b, c, 1] += s2
