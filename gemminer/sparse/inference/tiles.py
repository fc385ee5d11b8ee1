"""Vector loops of a compiled program in LLVM's own code (numba's vectoriser keeps sums in memory).

A tile is some vectors of an output row, computed from all the row's entries with the sums in registers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import llvmlite.binding
import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

VECTOR = 16  # floats; one AVX-512 register, two of AVX2, four of NEON

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


def _power() -> Callable[..., Any]:
    """An intrinsic for 2^n, n a whole number between -126 and 127, made of its bits."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        exponent = builder.add(args[0], ir.Constant(ir.IntType(32), 127))
        return builder.bitcast(builder.shl(exponent, ir.Constant(ir.IntType(32), 23)), _FLOAT)

    @intrinsic
    def power(context: Any, exponent: Any) -> Any:
        return types.float32(types.int32), generate

    return power


sum_tile, max_tile, fill_vector, power_of_two = _tile(False), _tile(True), _filler(), _power()
copy_vector, halve1, halve2, halve4, halve8 = map(_move, (None, 1, 2, 4, 8))
