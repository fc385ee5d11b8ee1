"""Kernels of a compiled program: an interpreter for a group of images, and the vector loops it calls.

Memory is one scratch array. A plane is a zero-padded map, flattened, `lanes` images innermost:
float[(y * pitch + x) * lanes + image]. The right padding of a row is the left padding of the next, and the lower
padding of a channel the upper one of the next. A kept weight (row, channel, dy, dx) is then value * a stretch of
memory shifted by a constant, whatever the pattern, so a tile of an output row is a loop over the row's weights
with all sums in vector registers: one load and one multiply-add a weight and vector, one store at the end.

The tiles are LLVM vector code (`tiles`). The loop over rows is inside the loop over tiles, so that the input lines a
tile needs stay in the first-level cache. An elementwise function is one row of `FORMULAS`.
"""

from __future__ import annotations

import math
from typing import Any

import numba
import numpy as np

from gemminer.sparse.inference.tiles import (
    VECTOR,
    WIDEST,
    copy_vector,
    fill_vector,
    halve1,
    halve2,
    halve4,
    halve8,
    max_tile,
    power_of_two,
    sum_tile,
)

INPUT, ROWS, SPLIT, OUTPUT, APPLY, NORM, ATTENTION, GATHER, CONSTANT = range(9)  # kinds of instruction
FIELDS = 20
STRETCH = 64  # numbers that a norm takes at a time: its planes' lines then stay in the first-level cache

_jit = numba.njit(nogil=True, cache=True, error_model="numpy")
_part = numba.njit(nogil=True, error_model="numpy", fastmath={"contract"})  # compiled into what calls it


# Elementwise functions: of one number, or of two. All numbers are float32: a plain 0.5 would make them float64.

_f = np.float32
_LOG2E, _LN2_HIGH, _LN2_LOW = _f(1.44269504), _f(0.693359375), _f(-2.12194440e-4)
_ZERO, _HALF, _ONE, _TWO, _THREE, _SIX, _SIXTH = map(_f, (0, 0.5, 1, 2, 3, 6, 1 / 6))
_E2, _E3, _E4, _E5, _E6, _E7 = (_f(1 / math.factorial(k)) for k in range(2, 8))
_LEAST, _MOST = _f(-87), _f(88)  # of an exponent: float32 ends there
_ERF_P, _ERF = _f(0.3275911), tuple(map(_f, (0.254829592, -0.284496736, 1.421413741, -1.453152027, 1.061405429)))
_ERF1, _ERF2, _ERF3, _ERF4, _ERF5 = _ERF
_ROOT_HALF, _TANH_GELU, _CUBE = _f(0.5**0.5), _f((2 / math.pi) ** 0.5), _f(0.044715)
_LINEAR_FROM = _f(20)  # of a softplus: PyTorch's threshold


@_part
def _exp(x):  # type: ignore[no-untyped-def]
    """2^n times the Taylor polynomial of the rest, which is at most half of log 2: 1e-7 relative."""
    x = x if x > _LEAST else _LEAST
    x = x if x < _MOST else _MOST
    n = np.floor(x * _LOG2E + _HALF)
    r = x - n * _LN2_HIGH - n * _LN2_LOW
    p = _ONE + r * (_ONE + r * (_E2 + r * (_E3 + r * (_E4 + r * (_E5 + r * (_E6 + r * _E7))))))
    return p * power_of_two(np.int32(n))


@_part
def _sigmoid(x):  # type: ignore[no-untyped-def]
    return _ONE / (_ONE + _exp(-x))


@_part
def _tanh(x):  # type: ignore[no-untyped-def]
    return _ONE - _TWO / (_exp(_TWO * x) + _ONE)


@_part
def _erf(x):  # type: ignore[no-untyped-def]
    """Abramowitz and Stegun, Handbook of Mathematical Functions, 7.1.26: off by at most 1.5e-7."""
    t = _ONE / (_ONE + _ERF_P * abs(x))
    p = t * (_ERF1 + t * (_ERF2 + t * (_ERF3 + t * (_ERF4 + t * _ERF5))))
    return math.copysign(_ONE - p * _exp(-x * x), x)


@_part
def _silu(x):  # type: ignore[no-untyped-def]
    return x * _sigmoid(x)


@_part
def _hardswish(x):  # type: ignore[no-untyped-def]
    y = x + _THREE
    y = y if y > _ZERO else _ZERO
    y = y if y < _SIX else _SIX
    return x * y * _SIXTH


@_part
def _gelu(x):  # type: ignore[no-untyped-def]
    return _HALF * x * (_ONE + _erf(x * _ROOT_HALF))


@_part
def _gelu_tanh(x):  # type: ignore[no-untyped-def]
    return x * _sigmoid(_TWO * _TANH_GELU * (x + _CUBE * x * x * x))


@_part
def _elu(x):  # type: ignore[no-untyped-def]
    return x if x > _ZERO else _exp(x) - _ONE


@_part
def _softplus(x):  # type: ignore[no-untyped-def]
    return x if x > _LINEAR_FROM else math.log1p(_exp(x))


@_part
def _mish(x):  # type: ignore[no-untyped-def]
    return x * _tanh(_softplus(x))


@_part
def _abs(x):  # type: ignore[no-untyped-def]
    return abs(x)


@_part
def _square(x):  # type: ignore[no-untyped-def]
    return x * x


@_part
def _sqrt(x):  # type: ignore[no-untyped-def]
    return math.sqrt(x)


@_part
def _add(x, y):  # type: ignore[no-untyped-def]
    return x + y


@_part
def _mul(x, y):  # type: ignore[no-untyped-def]
    return x * y


@_part
def _div(x, y):  # type: ignore[no-untyped-def]
    return x / y


# name -> (number of operands, formula); files name functions, so a row may be added but not renamed.
FORMULAS: dict[str, tuple[int, Any]] = {
    "sigmoid": (1, _sigmoid),
    "tanh": (1, _tanh),
    "exp": (1, _exp),
    "silu": (1, _silu),
    "hardswish": (1, _hardswish),
    "gelu": (1, _gelu),
    "gelu_tanh": (1, _gelu_tanh),
    "elu": (1, _elu),
    "softplus": (1, _softplus),
    "mish": (1, _mish),
    "abs": (1, _abs),
    "square": (1, _square),
    "sqrt": (1, _sqrt),
    "add": (2, _add),
    "mul": (2, _mul),
    "div": (2, _div),
}
NUMBERS = {name: number for number, name in enumerate(FORMULAS)}  # in instructions


def _loop(operands: int, formula: Any) -> Any:
    """A loop over `count` numbers for one row of the table.

    The second operand begins anew every `period` numbers: `count` where it has as many, the lanes of one pixel else.
    """

    @_part
    def one(scratch, to, a, b, count, period):  # type: ignore[no-untyped-def]
        x, out = scratch[a : a + count], scratch[to : to + count]
        for i in range(count):
            out[i] = formula(x[i])

    @_part
    def two(scratch, to, a, b, count, period):  # type: ignore[no-untyped-def]
        if period == 1:
            x, out, same = scratch[a : a + count], scratch[to : to + count], scratch[b]
            for i in range(count):
                out[i] = formula(x[i], same)
        else:
            y = scratch[b : b + period]
            for begin in range(0, count, period):
                x, out = scratch[a + begin : a + begin + period], scratch[to + begin : to + begin + period]
                for i in range(period):
                    out[i] = formula(x[i], y[i])

    return one if operands == 1 else two


_LOOPS = [_loop(*row) for row in FORMULAS.values()]
_CHOICES = "\n".join(f"    if which == {k}: loop{k}(scratch, to, a, b, count, period)" for k in range(len(_LOOPS)))
_found: dict[str, Any] = {f"loop{k}": loop for k, loop in enumerate(_LOOPS)}
exec(f"def _choose(which, scratch, to, a, b, count, period):\n{_CHOICES}", _found)  # numba has no table of functions
_loops = _part(_found["_choose"])


@_jit
def apply_formula(which, scratch, to, a, b, count, period):  # type: ignore[no-untyped-def]
    """A formula over a stretch of memory, as the kernels compute it."""
    _loops(which, scratch, to, a, b, count, period)


def values_of(function: str, *operands: Any) -> Any:
    """A formula of float32 vectors of one length, in the kernels' own bits."""
    count = len(operands[0])
    scratch = np.concatenate([np.zeros(count), *operands]).astype(np.float32)
    apply_formula(NUMBERS[function], scratch, 0, count, (len(operands) - 1) * count + count, count, max(1, count))
    return scratch[:count]


@_jit
def _clear(scratch, begin, end):  # type: ignore[no-untyped-def]
    for i in range(begin, end):
        scratch[i] = 0.0


@_jit
def _read(f, images, first, count, lanes, scratch):  # type: ignore[no-untyped-def]
    """Images (N, C * H * W) into planes, `count` of the lanes filled."""
    channels, height, width, origin, plane, pitch = f[1], f[2], f[3], f[4], f[5], f[6]
    _clear(scratch, origin - f[7], origin)
    for c in range(channels):
        for y in range(height):
            to, source = origin + c * plane + y * pitch * lanes, (c * height + y) * width
            if lanes == 1:
                for x in range(width):
                    scratch[to + x] = images[first, source + x]
            else:
                for lane in range(count):
                    for x in range(width):
                        scratch[to + x * lanes + lane] = images[first + lane, source + x]
            _clear(scratch, to + width * lanes, to + pitch * lanes)
        _clear(scratch, origin + c * plane + height * pitch * lanes, origin + (c + 1) * plane)


@_jit
def _write(f, logits, first, count, lanes, scratch):  # type: ignore[no-untyped-def]
    """Planes out as rows of logits (N, C * H * W)."""
    channels, height, width, origin, plane, pitch = f[1], f[2], f[3], f[4], f[5], f[6]
    for lane in range(count):
        for c in range(channels):
            for y in range(height):
                source, to = origin + c * plane + y * pitch * lanes + lane, (c * height + y) * width
                for x in range(width):
                    logits[first + lane, to + x] = scratch[source + x * lanes]


@_jit
def _split(f, table, lanes, fill, scratch):  # type: ignore[no-untyped-def]
    """Every stride-th row and column of some channels into planes of their own; `fill` outside the map.

    table[p]: offset of the channel, first row, first column. Whole vectors are written: the excess of one is
    overwritten by the next of the row, the next row or the next plane.
    """
    height, width, pitch, step_y, step_x = f[1], f[2], f[3], f[4], f[5]
    base, plane, to_pitch, top, left, rows, columns = f[6], f[7], f[8], f[9], f[10], f[11], f[12]
    first = min(columns, left)
    for p in range(f[14]):
        source, ry, rx = table[f[13] + p, 0], table[f[13] + p, 1], table[f[13] + p, 2]
        # columns i, counted from the left padding, whose (i - left) * step_x + rx is inside the map
        last = max(first, min(columns, left + (width - 1 - rx) // step_x + 1))
        for i in range(rows):
            y = (i - top) * step_y + ry
            to = base + p * plane + i * to_pitch * lanes
            inside = 0 <= y < height
            x, end = 0, (first if inside else columns) * lanes
            while x < end:
                fill_vector(scratch, to + x, fill)
                x += VECTOR
            if inside:
                line = source + (y * pitch + (first - left) * step_x + rx) * lanes
                _halved(scratch, to + first * lanes, line, (last - first) * lanes, step_x, lanes)
                x, end = last * lanes, columns * lanes
                while x < end:
                    fill_vector(scratch, to + x, fill)
                    x += VECTOR


@_jit
def _halved(scratch, to, source, floats, step, lanes):  # type: ignore[no-untyped-def]
    """Every step-th of some pixels."""
    x = 0
    if step == 2 and lanes == 1:
        while x < floats:
            halve1(scratch, to + x, source + 2 * x)
            x += VECTOR
    elif step == 2 and lanes == 2:
        while x < floats:
            halve2(scratch, to + x, source + 2 * x)
            x += VECTOR
    elif step == 2 and lanes == 4:
        while x < floats:
            halve4(scratch, to + x, source + 2 * x)
            x += VECTOR
    elif step == 2 and lanes == 8:
        while x < floats:
            halve8(scratch, to + x, source + 2 * x)
            x += VECTOR
    elif step == 1:
        while x < floats:
            copy_vector(scratch, to + x, source + x)
            x += VECTOR
    else:
        while x < floats:
            for k in range(lanes):
                scratch[to + x + k] = scratch[source + x * step + k]
            x += lanes


@_jit
def _rows(f, low, high, rows, bias, offsets, values, masks, scratch):  # type: ignore[no-untyped-def]
    """Output planes of f[5] vectors from entries; rows[r]: first and last entry, and what to add to their offsets."""
    first, count, origin, plane, vectors, mask, largest = f[1], f[2], f[3], f[4], f[5], f[6], f[8] == 1
    _clear(scratch, origin - f[7], origin)
    for v in range(0, vectors, WIDEST):
        width, at = min(WIDEST, vectors - v), v * VECTOR
        for r in range(first, first + count):
            a, b, base, out = rows[r, 0], rows[r, 1], rows[r, 2] + at, origin + (r - first) * plane + at
            if largest:
                max_tile(scratch, offsets, values, masks, base, a, b, bias[r], low, high, mask + at, out, width)
            else:
                sum_tile(scratch, offsets, values, masks, base, a, b, bias[r], low, high, mask + at, out, width)
    for r in range(count):
        _clear(scratch, origin + r * plane + vectors * VECTOR, origin + (r + 1) * plane)


@_jit
def _rest(f, c, lanes, scratch):  # type: ignore[no-untyped-def]
    """Zeros beside and below the rows of channel c: the paddings that sums read."""
    height, width, plane, pitch, to = f[2], f[3], f[5], f[6], f[4] + c * f[5]
    if pitch > width:
        for y in range(height):
            _clear(scratch, to + (y * pitch + width) * lanes, to + (y + 1) * pitch * lanes)
    _clear(scratch, to + height * pitch * lanes, to + plane)


@_jit
def _apply(f, table, lanes, scratch):  # type: ignore[no-untyped-def]
    """A formula over each row of each plane; table[c]: where both operands' channels begin."""
    channels, height, width, origin, plane, pitch = f[1], f[2], f[3], f[4], f[5], f[6]
    function, first, spread = f[8], f[9], f[10] == 1
    _clear(scratch, origin - f[7], origin)
    count = width * lanes
    period = lanes if spread else count
    for c in range(channels):
        a, b = table[first + c, 0], table[first + c, 1]
        for y in range(height):
            line = y * pitch * lanes
            there = b if spread else b + line
            apply_formula(function, scratch, origin + c * plane + line, a + line, there, count, period)
        _rest(f, c, lanes, scratch)


@_part
def _norm_stretch(scratch, table, first, channels, line, n, eps, origin, plane, work):  # type: ignore[no-untyped-def]
    """The norm of n numbers side by side; `work` has room for two vectors of them."""
    mean, scale = scratch[work : work + n], scratch[work + n : work + 2 * n]
    share = _ONE / np.float32(channels)
    for i in range(n):
        mean[i] = scale[i] = _ZERO
    for c in range(channels):
        a = table[first + c, 0] + line
        x = scratch[a : a + n]
        for i in range(n):
            mean[i] += x[i]
    for i in range(n):
        mean[i] *= share
    for c in range(channels):
        a = table[first + c, 0] + line
        x = scratch[a : a + n]
        for i in range(n):
            off = x[i] - mean[i]
            scale[i] += off * off
    for i in range(n):
        scale[i] = _ONE / math.sqrt(scale[i] * share + eps)
    for c in range(channels):
        a, to = table[first + c, 0] + line, origin + c * plane + line
        x, out = scratch[a : a + n], scratch[to : to + n]
        for i in range(n):
            out[i] = (x[i] - mean[i]) * scale[i]


@_jit
def _norm(f, eps, table, lanes, scratch):  # type: ignore[no-untyped-def]
    """Each pixel less its mean over the planes, by its deviation."""
    channels, height, width, origin, plane, pitch = f[1], f[2], f[3], f[4], f[5], f[6]
    _clear(scratch, origin - f[7], origin)
    for y in range(height):
        for x in range(0, width * lanes, STRETCH):
            n = min(STRETCH, width * lanes - x)
            _norm_stretch(scratch, table, f[9], channels, y * pitch * lanes + x, n, eps, origin, plane, f[8])
    for c in range(channels):
        _rest(f, c, lanes, scratch)


@_part
def _bring(scratch, to, step, source, height, width, pitch, lanes, scale):  # type: ignore[no-untyped-def]
    """A plane of one image to every step-th number from `to`."""
    at = to
    for y in range(height):
        for x in range(width):
            scratch[at] = scratch[source + (y * pitch + x) * lanes] * scale
            at += step


@_part
def _softmax(scratch, score, tokens, line, most_at, total_at):  # type: ignore[no-untyped-def]
    """Scores to exp(score - the query's largest), a key a line, and each query's total."""
    most, total = scratch[most_at : most_at + line], scratch[total_at : total_at + line]
    for i in range(line):
        most[i], total[i] = -np.inf, _ZERO
    for u in range(tokens):
        x = scratch[score + u * line : score + (u + 1) * line]
        for i in range(line):
            most[i] = most[i] if most[i] > x[i] else x[i]
    for u in range(tokens):
        x = scratch[score + u * line : score + (u + 1) * line]
        for i in range(line):
            x[i] = _exp(x[i] - most[i])
            total[i] += x[i]


@_jit
def _mixed(scratch, offsets, weights, masks, base, count, mask, out, line):  # type: ignore[no-untyped-def]
    """A line of the weighted sum of `count` lines."""
    low, high = np.float32(-np.inf), np.float32(np.inf)
    for t in range(0, line, WIDEST * VECTOR):
        tile = min(WIDEST, (line - t) // VECTOR)
        sum_tile(scratch, offsets, weights, masks, base + t, 0, count, _ZERO, low, high, mask, out + t, tile)


@_jit
def _attention(f, scale, table, masks, offsets, lanes, scratch):  # type: ignore[no-untyped-def]
    """softmax(keys queries) values, a head of an image at a time, the scores of a key for all queries side by side.

    The scores are sums with the keys' numbers for weights, as the result is one of the scores with the values' for
    weights, so both are tiles. table: the planes of the queries, of the keys, of the values.
    """
    channels, height, width, origin, plane, pitch = f[1], f[2], f[3], f[4], f[5], f[6]
    heads, depth, first, work, rows, columns, key_pitch, mask, offset = (
        f[8], f[9], f[10], f[11], f[12], f[13], f[14], f[15], f[16],
    )  # fmt: skip
    wide = channels // heads
    tokens, count = rows * columns, height * width
    line = -(-count // VECTOR) * VECTOR
    query, key = work, work + depth * line
    value = key + depth * tokens
    score = value + wide * tokens
    out = score + tokens * line
    most, total = out + line, out + 2 * line
    _clear(scratch, origin - f[7], origin)
    _clear(scratch, query, query + depth * line)
    for h in range(heads):
        for lane in range(lanes):
            for j in range(depth):
                at = first + h * depth + j
                _bring(scratch, query + j * line, 1, table[at, 0] + lane, height, width, pitch, lanes, scale)
                at += heads * depth
                _bring(scratch, key + j, depth, table[at, 0] + lane, rows, columns, key_pitch, lanes, _ONE)
            for j in range(wide):
                at = first + 2 * heads * depth + h * wide + j
                _bring(scratch, value + j * tokens, 1, table[at, 0] + lane, rows, columns, key_pitch, lanes, _ONE)
            places = offsets[offset : offset + depth]
            for u in range(tokens):
                weights = scratch[key + u * depth : key + (u + 1) * depth]
                _mixed(scratch, places, weights, masks, query, depth, mask, score + u * line, line)
            _softmax(scratch, score, tokens, line, most, total)
            places = offsets[offset : offset + tokens]
            for j in range(wide):
                weights = scratch[value + j * tokens : value + (j + 1) * tokens]
                _mixed(scratch, places, weights, masks, score, tokens, mask, out, line)
                at, to = out, origin + (h * wide + j) * plane + lane
                for y in range(height):
                    for x in range(width):
                        scratch[to + (y * pitch + x) * lanes] = scratch[at] / scratch[total + at - out]
                        at += 1
    for c in range(channels):
        _rest(f, c, lanes, scratch)


@_jit
def _gather(f, offsets, values, lanes, scratch):  # type: ignore[no-untyped-def]
    """Numbers from where the offsets say, or, of a constant, the values."""
    channels, height, width, origin, plane, pitch = f[1], f[2], f[3], f[4], f[5], f[6]
    constant, at = f[0] == CONSTANT, f[8]
    _clear(scratch, origin - f[7], origin)
    for c in range(channels):
        for y in range(height):
            to = origin + c * plane + y * pitch * lanes
            for x in range(width):
                if constant:
                    for k in range(lanes):
                        scratch[to + x * lanes + k] = values[at]
                else:
                    for k in range(lanes):
                        scratch[to + x * lanes + k] = scratch[offsets[at] + k]
                at += 1
        _rest(f, c, lanes, scratch)


@_jit
def run(images, logits, begin, end, lanes, code, limits, rows, bias, offsets, values, masks, splits, scratch):  # type: ignore[no-untyped-def]
    """The whole program for images begin ... end, a group of `lanes` at a time; `scratch` is this thread's."""
    for first in range(begin, end, lanes):
        count = min(lanes, end - first)
        for i in range(code.shape[0]):
            f = code[i]
            if f[0] == ROWS:
                _rows(f, limits[i, 0], limits[i, 1], rows, bias, offsets, values, masks, scratch)
            elif f[0] == SPLIT:
                _split(f, splits, lanes, limits[i, 0], scratch)
            elif f[0] == INPUT:
                _read(f, images, first, count, lanes, scratch)
            else:
                _write(f, logits, first, count, lanes, scratch)


@_jit
def run_all(images, logits, begin, end, lanes, code, limits, rows, bias, offsets, values, masks, splits, scratch):  # type: ignore[no-untyped-def]
    """`run` with all kinds of instruction: apart, as it takes three times as long to compile, once on a machine."""
    for first in range(begin, end, lanes):
        count = min(lanes, end - first)
        for i in range(code.shape[0]):
            f = code[i]
            if f[0] == ROWS:
                _rows(f, limits[i, 0], limits[i, 1], rows, bias, offsets, values, masks, scratch)
            elif f[0] == SPLIT:
                _split(f, splits, lanes, limits[i, 0], scratch)
            elif f[0] == INPUT:
                _read(f, images, first, count, lanes, scratch)
            elif f[0] == OUTPUT:
                _write(f, logits, first, count, lanes, scratch)
            elif f[0] == APPLY:
                _apply(f, splits, lanes, scratch)
            elif f[0] == NORM:
                _norm(f, limits[i, 0], splits, lanes, scratch)
            elif f[0] == ATTENTION:
                _attention(f, limits[i, 0], splits, masks, offsets, lanes, scratch)
            else:
                _gather(f, offsets, values, lanes, scratch)
