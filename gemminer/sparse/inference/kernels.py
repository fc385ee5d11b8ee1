"""Kernels of a compiled program: an interpreter for a group of images, and the vector loops it calls.

Memory is one scratch array. A plane is a zero-padded map, flattened, `lanes` images innermost:
float[(y * pitch + x) * lanes + image]. The right padding of a row is the left padding of the next, and the lower
padding of a channel the upper one of the next. A kept weight (row, channel, dy, dx) is then value * a stretch of
memory shifted by a constant, whatever the pattern, so a tile of an output row is a loop over the row's weights
with all sums in vector registers: one load and one multiply-add a weight and vector, one store at the end.

The tiles are LLVM vector code (numba's own vectoriser keeps the sums in memory). The loop over rows is inside the
loop over tiles, so that the input lines a tile needs stay in the first-level cache.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import llvmlite.binding
import numba
import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

VECTOR = 16  # floats; one AVX-512 register, two of AVX2, four of NEON
INPUT, ROWS, SPLIT, OUTPUT = range(4)  # kinds of instruction
FIELDS = 20

_FLOAT, _INT = ir.FloatType(), ir.IntType(64)
_VEC = ir.VectorType(_FLOAT, VECTOR)


def _widest() -> int:
    """The most vectors a tile: half of AVX-512's 32 registers; elsewhere a vector takes two of 16, or four of 32."""
    try:
        features = llvmlite.binding.get_host_cpu_features()
    except RuntimeError:  # a machine LLVM does not know
        return 4
    return 16 if features.get("avx512f") else 4


WIDEST = _widest()


def _splat(builder: Any, value: Any) -> Any:
    single = builder.insert_element(ir.Constant(_VEC, ir.Undefined), value, ir.Constant(ir.IntType(32), 0))
    zeros = ir.Constant(ir.VectorType(ir.IntType(32), VECTOR), [0] * VECTOR)
    return builder.shuffle_vector(single, ir.Constant(_VEC, ir.Undefined), zeros)


def _load(builder: Any, pointer: Any, kind: Any = _VEC) -> Any:
    return builder.load(builder.bitcast(pointer, kind.as_pointer()), align=4)


def _larger(builder: Any, a: Any, b: Any) -> Any:
    """max(a, b); b where one of them is not a number."""
    return builder.select(builder.fcmp_ordered(">", a, b), a, b)


@dataclass(frozen=True)
class _Emitter:
    """Writes the code of a tile: `width` vectors of one output row from its entries."""

    builder: Any
    scratch: Any
    offsets: Any
    values: Any
    base: Any
    largest: bool

    def combine(self, total: Any, value: Any, weight: Any) -> Any:
        if self.largest:
            return _larger(self.builder, value, total)
        kind = ir.FunctionType(_VEC, [_VEC] * 3)
        insert: Any = cgutils.get_or_insert_function
        fma = insert(self.builder.module, kind, f"llvm.fmuladd.v{VECTOR}f32")
        return self.builder.call(fma, [weight, value, total])

    def loop(self, step: int, width: int, first: Any, end: Any, sums: list[Any]) -> tuple[Any, list[Any]]:
        """While first + step <= end: entry first + u into sums[u * width] and the `width` - 1 behind it."""
        builder, before = self.builder, self.builder.basic_block
        head, body, after = (builder.function.append_basic_block() for _ in range(3))
        builder.branch(head)
        builder.position_at_end(head)
        phis = [builder.phi(_INT), *(builder.phi(_VEC) for _ in sums)]
        for phi, start in zip(phis, [first, *sums], strict=True):
            phi.add_incoming(start, before)
        j, *totals = phis
        following = builder.add(j, ir.Constant(_INT, step))
        builder.cbranch(builder.icmp_signed("<=", following, end), body, after)
        builder.position_at_end(body)
        new = list(totals)
        for u in range(step):
            at = builder.add(j, ir.Constant(_INT, u))
            offset = builder.sext(builder.load(builder.gep(self.offsets, [at]), align=4), _INT)
            weight = None if self.largest else _splat(builder, builder.load(builder.gep(self.values, [at]), align=4))
            pointer = builder.gep(self.scratch, [builder.add(offset, self.base)])
            for t in range(width):
                value = _load(builder, builder.gep(pointer, [ir.Constant(_INT, t * VECTOR)]))
                new[u * width + t] = self.combine(new[u * width + t], value, weight)
        builder.branch(head)
        for phi, value in zip(phis, [following, *new], strict=True):
            phi.add_incoming(value, body)
        builder.position_at_end(after)
        return j, totals

    def sums(self, width: int, begin: Any, end: Any, bias: Any) -> list[Any]:
        """The sums of a row's entries; narrow tiles keep several of each, for want of independent ones."""
        unroll = max(1, min(4, WIDEST // 2 // width))
        lowest = ir.Constant(_VEC, [-np.inf] * VECTOR)
        start = lowest if self.largest else _splat(self.builder, bias)
        neutral = lowest if self.largest else ir.Constant(_VEC, [0.0] * VECTOR)
        j, sums = self.loop(unroll, width, begin, end, [start] * width + [neutral] * (width * (unroll - 1)))
        join = partial(_larger, self.builder) if self.largest else self.builder.fadd
        for u in range(1, unroll):
            sums[:width] = [join(a, b) for a, b in zip(sums, sums[u * width : (u + 1) * width], strict=False)]
        return self.loop(1, width, j, end, sums[:width])[1] if unroll > 1 else sums


def _tile(largest: bool) -> Callable[..., Any]:
    """An intrinsic for 1 to WIDEST vectors of an output row: mask & clamp(bias + sum, or max, over the entries)."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        arrays = zip(signature.args[:4], args, strict=False)
        scratch, offsets, values, masks = (context.make_array(t)(context, builder, a).data for t, a in arrays)
        base, begin, end, bias, low, high, mask_at, out_at, width = args[4:]
        emitter = _Emitter(builder, scratch, offsets, values, base, largest)
        low, high = _splat(builder, low), _splat(builder, high)
        out, mask = builder.gep(scratch, [out_at]), builder.gep(masks, [mask_at])
        bits = ir.VectorType(ir.IntType(32), VECTOR)
        done = builder.function.append_basic_block("done")
        switch = builder.switch(width, done)
        for wide in range(1, WIDEST + 1):
            case = builder.function.append_basic_block(f"wide{wide}")
            switch.add_case(ir.Constant(_INT, wide), case)
            builder.position_at_end(case)
            for t, total in enumerate(emitter.sums(wide, begin, end, bias)):
                here = [ir.Constant(_INT, t * VECTOR)]
                value = builder.select(builder.fcmp_ordered("<", total, low), low, total)
                value = builder.select(builder.fcmp_ordered(">", value, high), high, value)
                kept = builder.and_(builder.bitcast(value, bits), _load(builder, builder.gep(mask, here), bits))
                builder.store(kept, builder.bitcast(builder.gep(out, here), bits.as_pointer()), align=4)
            builder.branch(done)
        builder.position_at_end(done)
        return context.get_dummy_value()

    @intrinsic
    def tile(
        context: Any,
        scratch: Any,
        offsets: Any,
        values: Any,
        masks: Any,
        base: Any,
        begin: Any,
        end: Any,
        bias: Any,
        low: Any,
        high: Any,
        mask_at: Any,
        out_at: Any,
        width: Any,
    ) -> Any:
        where, number = types.int64, types.float32
        arrays = (scratch, offsets, values, masks)
        return types.void(*arrays, *[where] * 3, *[number] * 3, *[where] * 3), generate

    return tile


def _move(lanes: int | None) -> Callable[..., Any]:
    """An intrinsic that copies a vector or, of two vectors, every other run of `lanes` floats."""
    every_other = [i for i in range(2 * VECTOR) if i // (lanes or 1) % 2 == 0]

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        scratch = context.make_array(signature.args[0])(context, builder, args[0]).data
        source = builder.gep(scratch, [args[2]])
        value = _load(builder, source)
        if lanes:
            second = _load(builder, builder.gep(source, [ir.Constant(_INT, VECTOR)]))
            mask = ir.Constant(ir.VectorType(ir.IntType(32), VECTOR), every_other)
            value = builder.shuffle_vector(value, second, mask)
        builder.store(value, builder.bitcast(builder.gep(scratch, [args[1]]), _VEC.as_pointer()), align=4)
        return context.get_dummy_value()

    @intrinsic
    def move(context: Any, scratch: Any, to: Any, source: Any) -> Any:
        return types.void(scratch, types.int64, types.int64), generate

    return move


def _filler() -> Callable[..., Any]:
    """An intrinsic that writes one number to a whole vector."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        scratch = context.make_array(signature.args[0])(context, builder, args[0]).data
        target = builder.bitcast(builder.gep(scratch, [args[1]]), _VEC.as_pointer())
        builder.store(_splat(builder, args[2]), target, align=4)
        return context.get_dummy_value()

    @intrinsic
    def fill(context: Any, scratch: Any, to: Any, value: Any) -> Any:
        return types.void(scratch, types.int64, types.float32), generate

    return fill


_sum, _max, _fill = _tile(False), _tile(True), _filler()
_copy, _halve1, _halve2, _halve4, _halve8 = map(_move, (None, 1, 2, 4, 8))

_jit = numba.njit(nogil=True, cache=True, error_model="numpy")


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
                _fill(scratch, to + x, fill)
                x += VECTOR
            if inside:
                line = source + (y * pitch + (first - left) * step_x + rx) * lanes
                _gather(scratch, to + first * lanes, line, (last - first) * lanes, step_x, lanes)
                x, end = last * lanes, columns * lanes
                while x < end:
                    _fill(scratch, to + x, fill)
                    x += VECTOR


@_jit
def _gather(scratch, to, source, floats, step, lanes):  # type: ignore[no-untyped-def]
    """Every step-th of some pixels."""
    x = 0
    if step == 2 and lanes == 1:
        while x < floats:
            _halve1(scratch, to + x, source + 2 * x)
            x += VECTOR
    elif step == 2 and lanes == 2:
        while x < floats:
            _halve2(scratch, to + x, source + 2 * x)
            x += VECTOR
    elif step == 2 and lanes == 4:
        while x < floats:
            _halve4(scratch, to + x, source + 2 * x)
            x += VECTOR
    elif step == 2 and lanes == 8:
        while x < floats:
            _halve8(scratch, to + x, source + 2 * x)
            x += VECTOR
    elif step == 1:
        while x < floats:
            _copy(scratch, to + x, source + x)
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
                _max(scratch, offsets, values, masks, base, a, b, bias[r], low, high, mask + at, out, width)
            else:
                _sum(scratch, offsets, values, masks, base, a, b, bias[r], low, high, mask + at, out, width)
    for r in range(count):
        _clear(scratch, origin + r * plane + vectors * VECTOR, origin + (r + 1) * plane)


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
