# mypy: disable-error-code="no-untyped-call"
"""The innermost loops of the sparse engine, written as LLVM vectors so that sums stay in registers.

For one tile of a row, and all kept weights j of one filter in one go,

    sum_tile        out[i] = sum over j of value[j] * planes[base + offset[j] * lanes + i]
    gather_tile     sums[j] += grad[i] * planes[base + offset[j] * lanes + i], a vector of sums a weight

at one load and one multiply-add a weight and vector. A plain Numba loop would keep its sums in memory and check for
overlap at each call. A vector is 64 bytes: one AVX-512 register, and LLVM splits it where registers are shorter.

Sums are float32 or float64. Arrays of 16-bit integers hold the bits of bfloat16, which NumPy does not know: `get`,
`put`, `move` and `stream` read and write them as float32. They take an array and a place, since a slice of an array
counts its owners up and down, which takes as long as a short row and, from two threads, longer.

Numba's cache looks at the file of the function it compiles only; `kernels.py` has it look at this one too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import binding, ir
from numba.core import cgutils, types
from numba.extending import intrinsic

# Eight vectors of sums, one of a weight and one of inputs must fit the registers: 32 of 64 bytes, or 16 of 32.
VECTOR_BYTES = 64 if binding.get_host_cpu_features().get("avx512f") else 32
_INDEX = ir.IntType(64)


def _lanes(dtype: Any) -> int:
    return int(VECTOR_BYTES // (dtype.bitwidth // 8))


def _pointer(context: Any, builder: Any, kind: Any, array: Any) -> Any:
    return context.make_array(kind)(context, builder, array).data


def _load(builder: Any, pointer: Any, at: Any, vector: ir.VectorType) -> Any:
    """The vector that starts at element `at`, which need not be aligned."""
    address = builder.bitcast(builder.gep(pointer, [at]), vector.as_pointer())
    return builder.load(address, align=4)


def _splat(builder: Any, scalar: Any, vector: ir.VectorType) -> Any:
    one = builder.insert_element(ir.Constant(vector, ir.Undefined), scalar, ir.Constant(ir.IntType(32), 0))
    zeros = ir.Constant(ir.VectorType(ir.IntType(32), vector.count), [0] * vector.count)
    return builder.shuffle_vector(one, ir.Constant(vector, ir.Undefined), zeros)


def _add_product(builder: Any, x: Any, y: Any, total: Any) -> None:
    """total += x * y, in one instruction where the machine has it."""
    product = builder.fmul(x, y, flags=("contract",))
    builder.store(builder.fadd(builder.load(total), product, flags=("contract",)), total)


def _sum_tile(tiles: int) -> Callable[..., Any]:
    @intrinsic
    def sum_tile(
        typing: Any, planes: Any, base: Any, offset: Any, lanes: Any, value: Any, j0: Any, j1: Any, out: Any, at: Any
    ) -> Any:
        i64 = types.int64
        signature = types.void(planes, i64, offset, i64, value, i64, i64, out, i64)

        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            kinds = signature.args
            scalar = context.get_value_type(kinds[0].dtype)
            width = _lanes(kinds[0].dtype)
            vector = ir.VectorType(scalar, width)
            planes, offset, value, out = (_pointer(context, builder, kinds[k], args[k]) for k in (0, 2, 4, 7))
            base, lanes, j0, j1, at = args[1], args[3], args[5], args[6], args[8]
            sums = [cgutils.alloca_once(builder, vector) for _ in range(tiles)]
            for one in sums:
                builder.store(ir.Constant(vector, None), one)
            with cgutils.for_range_slice(builder, j0, j1, ir.Constant(_INDEX, 1)) as (j, _):
                v = _splat(builder, builder.load(builder.gep(value, [j])), vector)
                shift = builder.sext(builder.load(builder.gep(offset, [j])), _INDEX)
                start = builder.add(base, builder.mul(shift, lanes))
                for k, one in enumerate(sums):
                    x = _load(builder, planes, builder.add(start, ir.Constant(_INDEX, k * width)), vector)
                    _add_product(builder, v, x, one)
            for k, one in enumerate(sums):
                to = builder.gep(out, [builder.add(at, ir.Constant(_INDEX, k * width))])
                builder.store(builder.load(one), builder.bitcast(to, vector.as_pointer()), align=4)
            return context.get_dummy_value()

        return signature, generate

    return sum_tile


def _gather_tile(tiles: int) -> Callable[..., Any]:
    @intrinsic
    def gather_tile(
        typing: Any, grad: Any, at: Any, planes: Any, base: Any, offset: Any, lanes: Any, j0: Any, j1: Any,
        sums: Any, shift: Any,
    ) -> Any:  # fmt: skip
        i64 = types.int64
        signature = types.void(grad, i64, planes, i64, offset, i64, i64, i64, sums, i64)

        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            kinds = signature.args
            width = _lanes(kinds[0].dtype)
            vector = ir.VectorType(context.get_value_type(kinds[0].dtype), width)
            grad, planes, offset, sums = (_pointer(context, builder, kinds[k], args[k]) for k in (0, 2, 4, 8))
            at, base, lanes, j0, j1, first = args[1], args[3], args[5], args[6], args[7], args[9]
            held = [_load(builder, grad, builder.add(at, ir.Constant(_INDEX, k * width)), vector) for k in range(tiles)]
            # Two chains of sums a weight: the next weight's start before they end.
            chains = [cgutils.alloca_once(builder, vector) for _ in range(min(2, tiles))]
            with cgutils.for_range_slice(builder, j0, j1, ir.Constant(_INDEX, 1)) as (j, _):
                place = builder.mul(builder.sub(j, first), ir.Constant(_INDEX, width))
                builder.store(_load(builder, sums, place, vector), chains[0])
                for chain in chains[1:]:
                    builder.store(ir.Constant(vector, None), chain)
                shift = builder.sext(builder.load(builder.gep(offset, [j])), _INDEX)
                start = builder.add(base, builder.mul(shift, lanes))
                for k, g in enumerate(held):
                    x = _load(builder, planes, builder.add(start, ir.Constant(_INDEX, k * width)), vector)
                    _add_product(builder, g, x, chains[k % len(chains)])
                total = builder.load(chains[0])
                for chain in chains[1:]:
                    total = builder.fadd(total, builder.load(chain))
                to = builder.bitcast(builder.gep(sums, [place]), vector.as_pointer())
                builder.store(total, to, align=4)
            return context.get_dummy_value()

        return signature, generate

    return gather_tile


def _copy(past_caches: bool) -> Callable[..., Any]:
    @intrinsic
    def copy(typing: Any, source: Any, at: Any, out: Any, to: Any) -> Any:
        i64 = types.int64
        signature = types.void(source, i64, out, i64)

        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            kinds = signature.args[0].dtype, signature.args[2].dtype
            lanes = min(map(_lanes, kinds))
            was, becomes = (ir.VectorType(context.get_value_type(kind), lanes) for kind in kinds)
            source, out = (_pointer(context, builder, signature.args[k], args[k]) for k in (0, 2))
            address = builder.bitcast(builder.gep(out, [args[3]]), becomes.as_pointer())
            value = _load(builder, source, args[1], was)
            if kinds[0] != kinds[1]:
                value = _narrow(builder, value) if kinds[1] is types.uint16 else _widen(builder, value)
            bytes_ = lanes * kinds[1].bitwidth // 8
            store = builder.store(value, address, align=bytes_ if past_caches else kinds[1].bitwidth // 8)
            if past_caches:
                store.set_metadata("nontemporal", builder.module.add_metadata([ir.Constant(ir.IntType(32), 1)]))
            return context.get_dummy_value()

        return signature, generate

    return copy


@intrinsic
def turn(typing: Any, source: Any, at: Any, gap: Any, out: Any, to: Any, line: Any) -> Any:
    """out[to + i * line + k] = source[at + k * gap + i] for i and k up to a vector's length: a square, transposed."""
    i64 = types.int64

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kinds = signature.args[0].dtype, signature.args[3].dtype
        count = min(map(_lanes, kinds))
        was, becomes = (ir.VectorType(context.get_value_type(kind), count) for kind in kinds)
        source, out = (_pointer(context, builder, signature.args[k], args[k]) for k in (0, 3))
        at, gap, to, line = args[1], args[2], args[4], args[5]
        places = [(_after(builder, at, gap, k), _after(builder, to, line, k)) for k in range(count)]
        rows = [_load(builder, source, place, was) for place, _ in places]
        if kinds[0] != kinds[1] and kinds[0] is types.uint16:
            rows = [_widen(builder, row) for row in rows]
        step = count // 2
        while step:  # swap the upper right with the lower left quarter, of the whole and then of each quarter
            for i in (i for i in range(count) if not i & step):
                a, b = rows[i], rows[i + step]
                lower = [j if not j & step else count + j - step for j in range(count)]
                upper = [j + step if not j & step else count + j for j in range(count)]
                rows[i], rows[i + step] = (_shuffle(builder, a, b, order) for order in (lower, upper))
            step //= 2
        if kinds[0] != kinds[1] and kinds[1] is types.uint16:
            rows = [_narrow(builder, row) for row in rows]
        for row, (_, place) in zip(rows, places, strict=True):
            address = builder.bitcast(builder.gep(out, [place]), becomes.as_pointer())
            builder.store(row, address, align=kinds[1].bitwidth // 8)
        return context.get_dummy_value()

    return types.void(source, i64, i64, out, i64, i64), generate


def _after(builder: Any, first: Any, gap: Any, k: int) -> Any:
    return builder.add(first, builder.mul(gap, ir.Constant(_INDEX, k)))


def _shuffle(builder: Any, a: Any, b: Any, order: list[int]) -> Any:
    return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(ir.IntType(32), len(order)), order))


@intrinsic
def largest(
    typing: Any, rows: Any, at: Any, line: Any, gap: Any, height: Any, width: Any, code: Any, codes: Any,
    out: Any, which: Any, to: Any,
) -> Any:  # fmt: skip
    """out[to:] = the largest of rows[at + y * line + x * gap :] for y < height, x < width, NaN before all,

    and which[to:] = the code + y * codes + x of the first that is so large, a vector's length of each.
    """
    i64 = types.int64

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kinds = signature.args
        scalar, count = context.get_value_type(kinds[0].dtype), _lanes(kinds[0].dtype)
        vector, numbers = ir.VectorType(scalar, count), ir.VectorType(ir.IntType(32), count)
        rows, out, which = (_pointer(context, builder, kinds[k], args[k]) for k in (0, 8, 9))
        at, line, gap, height, width, code, codes, to = (args[k] for k in (1, 2, 3, 4, 5, 6, 7, 10))
        best, place = cgutils.alloca_once(builder, vector), cgutils.alloca_once(builder, numbers)
        builder.store(_load(builder, rows, at, vector), best)
        builder.store(_splat(builder, builder.trunc(code, ir.IntType(32)), numbers), place)
        one = ir.Constant(_INDEX, 1)
        rows_of, columns_of = (
            cgutils.for_range_slice(builder, ir.Constant(_INDEX, 0), n, one) for n in (height, width)
        )
        with rows_of as (y, _), columns_of as (x, _):
            start = builder.add(at, builder.add(builder.mul(y, line), builder.mul(x, gap)))
            own = builder.add(code, builder.add(builder.mul(y, codes), x))
            number, held = _load(builder, rows, start, vector), builder.load(best)
            nan = builder.fcmp_unordered("uno", number, number)
            larger = builder.or_(builder.fcmp_ordered(">", number, held), nan)
            builder.store(builder.select(larger, number, held), best)
            owns = _splat(builder, builder.trunc(own, ir.IntType(32)), numbers)
            builder.store(builder.select(larger, owns, builder.load(place)), place)
        number = builder.load(best)
        if kinds[8].dtype is types.uint16:
            number = _narrow(builder, number)
        for array, value, bits in ((out, number, kinds[8].dtype.bitwidth), (which, builder.load(place), 8)):
            if bits == 8:
                value = builder.trunc(value, ir.VectorType(ir.IntType(8), count))
            address = builder.bitcast(builder.gep(array, [to]), value.type.as_pointer())
            builder.store(value, address, align=bits // 8)
        return context.get_dummy_value()

    return types.void(rows, i64, i64, i64, i64, i64, i64, i64, out, which, i64), generate


@intrinsic
def add_where(typing: Any, source: Any, which: Any, at: Any, code: Any, out: Any, to: Any) -> Any:
    """out[to:] += source[at:] where which[at:] is the code, a vector's length of them."""
    i64 = types.int64

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kinds = signature.args
        count = _lanes(kinds[4].dtype)
        codes = ir.VectorType(ir.IntType(8), count)
        was, vector = (ir.VectorType(context.get_value_type(kinds[k].dtype), count) for k in (0, 4))
        source, which, out = (_pointer(context, builder, kinds[k], args[k]) for k in (0, 1, 4))
        number, total = _load(builder, source, args[2], was), _load(builder, out, args[5], vector)
        number = _widen(builder, number) if kinds[0].dtype is types.uint16 else number
        address = builder.bitcast(builder.gep(which, [args[2]]), codes.as_pointer())
        own = _splat(builder, builder.trunc(args[3], ir.IntType(8)), codes)
        here = builder.icmp_unsigned("==", builder.load(address, align=1), own)
        added = builder.fadd(total, builder.select(here, number, ir.Constant(vector, None)))
        builder.store(added, builder.bitcast(builder.gep(out, [args[5]]), vector.as_pointer()), align=4)
        return context.get_dummy_value()

    return types.void(source, which, i64, i64, out, i64), generate


def _like(kind: Any, scalar: ir.Type) -> ir.Type:
    """A type of LLVM, as a vector where `kind` is one."""
    return ir.VectorType(scalar, kind.count) if isinstance(kind, ir.VectorType) else scalar


def _bits(kind: Any, number: int) -> ir.Constant:
    return ir.Constant(kind, [number] * kind.count if isinstance(kind, ir.VectorType) else number)


def _widen(builder: Any, bits: Any) -> Any:
    """Numbers of float32 from the bits of bfloat16, which are its upper half."""
    whole = _like(bits.type, ir.IntType(32))
    return builder.bitcast(builder.shl(builder.zext(bits, whole), _bits(whole, 16)), _like(whole, ir.FloatType()))


def _narrow(builder: Any, number: Any) -> Any:
    """The bits of bfloat16 nearest to numbers of float32, of two as near those that end in 0; NaN stays NaN."""
    whole, half = _like(number.type, ir.IntType(32)), _like(number.type, ir.IntType(16))
    bits = builder.bitcast(number, whole)
    last = builder.and_(builder.lshr(bits, _bits(whole, 16)), _bits(whole, 1))
    rounded = builder.lshr(builder.add(builder.add(bits, last), _bits(whole, 0x7FFF)), _bits(whole, 16))
    nan = builder.fcmp_unordered("uno", number, number)
    return builder.select(nan, _bits(half, 0x7FC0), builder.trunc(rounded, half))


@intrinsic
def get(typing: Any, array: Any, i: Any) -> Any:
    """array[i]; of 16 bits, which are bfloat16's, as float32."""
    half = array.dtype is types.uint16

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        value = builder.load(builder.gep(_pointer(context, builder, signature.args[0], args[0]), [args[1]]))
        return _widen(builder, value) if half else value

    return (types.float32 if half else array.dtype)(array, types.int64), generate


@intrinsic
def put(typing: Any, array: Any, i: Any, value: Any) -> Any:
    """array[i] = value; in 16 bits as bfloat16."""
    half = array.dtype is types.uint16

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        value = _narrow(builder, args[2]) if half else args[2]
        builder.store(value, builder.gep(_pointer(context, builder, signature.args[0], args[0]), [args[1]]))
        return context.get_dummy_value()

    return types.void(array, types.int64, types.float32 if half else array.dtype), generate


@intrinsic
def take(typing: Any, counter: Any) -> Any:
    """counter[0]++, of which no two threads get the same."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer = _pointer(context, builder, signature.args[0], args[0])
        return builder.atomic_rmw("add", pointer, ir.Constant(_INDEX, 1), "monotonic")

    return types.int64(counter), generate


# out[to:] = source[at:], as many as are a vector of the wider type; either may be bfloat16. `stream` goes straight to
# memory, and `out + to` must be aligned to what it stores.
move, stream = _copy(False), _copy(True)
sum_8, sum_4, sum_2, sum_1 = (_sum_tile(n) for n in (8, 4, 2, 1))
gather_8, gather_4, gather_2, gather_1 = (_gather_tile(n) for n in (8, 4, 2, 1))
