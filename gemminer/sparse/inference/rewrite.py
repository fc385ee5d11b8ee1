"""Rewrites of a traced program, all exact in real arithmetic.

fuse      a Sum without a clamp that one other Sum reads in place, each channel once, becomes part of that: batch norm,
          activation, residual add, zero-padded shortcut and concatenation all vanish into their neighbours;
fold      a row without entries is a constant: it goes into the bias of those that read it, unless some of what
          they read is padding (there it is zero); a row that only copies a channel is that channel;
compact   rows that nothing reads are dropped, and with them what only they read, back to the input.

What a sum of constants comes to and what it reads is decided in `core.folding`, for `gemminer.compact` too. The rest
is not shared: here a network is sums and pools of one image size, batch norms are gone and channels have copies, while
`compact` keeps the model's own layers, for every size and for training, and knows attention and layer norms.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from gemminer.core.folding import foldable, folded, read, settled
from gemminer.sparse.inference.kernels import values_of
from gemminer.sparse.inference.operations import (
    Apply,
    Array,
    Constant,
    Entries,
    Operation,
    Planar,
    Planes,
    Pool,
    Shape,
    Sum,
)


def rewritten(operations: Sequence[Operation], inputs: Shape) -> tuple[Operation, ...]:
    """The same results from fewer operations, rows and entries; values in float32."""
    return tuple(_compacted(_fold(_fuse(_trimmed(operations, inputs)), inputs), inputs))


def _sources(op: Operation) -> list[int]:
    if isinstance(op, Pool):
        return [op.source]
    return [part.source for part in (op.planes if isinstance(op, Planar) else op.entries)]


def _trimmed(operations: Sequence[Operation], inputs: Shape) -> list[Operation]:
    """The operations without entries that read padding only."""

    shapes = [inputs, *(op.shape for op in operations)]

    def trim(op: Sum) -> Sum:
        entries = []
        for e in op.entries:
            kept = e.value != 0
            for d, size, steps, stride in zip((e.dy, e.dx), shapes[e.source][1:], op.shape[1:], e.stride, strict=True):
                first = np.where(d < 0, -(d // stride), 0)  # the first output that reads a row of the map
                kept &= (first < steps) & (first * stride + d < size)
            entries.append(e.take(kept))
        return replace(op, entries=tuple(entries))

    return [trim(op) if isinstance(op, Sum) else op for op in operations]


def _fuse(operations: list[Operation]) -> list[Operation]:
    """Merge a clamp-free Sum into the one Sum that reads it in place; rows nobody reads are removed later."""
    readers = np.bincount([s for op in operations for s in _sources(op)], minlength=len(operations) + 1)
    done: list[Operation] = []
    for op in operations:
        if isinstance(op, Sum):
            entries: list[Entries] = []
            bias = op.bias.copy()
            for e in op.entries:
                inner = done[e.source - 1] if e.source else None
                if isinstance(inner, Sum) and readers[e.source] == 1 and _in_place(op, e, inner):
                    entries += _substituted(e, inner, bias)
                else:
                    entries.append(e)
            op = replace(op, entries=tuple(entries), bias=bias)
        done.append(op)
    return done


def _in_place(op: Sum, e: Entries, inner: Sum) -> bool:
    """Whether `e` reads each channel of an unclamped Sum of the same size once, where it is."""
    return (
        (inner.low, inner.high) == (-math.inf, math.inf)
        and e.stride == (1, 1)
        and inner.shape[1:] == op.shape[1:]
        and not (e.dy.any() or e.dx.any())
        and len(np.unique(e.channel)) == len(e)
    )


def _substituted(e: Entries, inner: Sum, bias: Array) -> list[Entries]:
    """The inner Sum's entries as the outer one's, scaled; adds the inner bias to `bias`."""
    row, scale = np.full(inner.shape[0], -1), np.zeros(inner.shape[0])
    row[e.channel], scale[e.channel] = e.row, e.value
    read = row >= 0
    np.add.at(bias, row[read], scale[read] * inner.bias[read])
    kept = [part.take(read[part.row]) for part in inner.entries]
    return [replace(part, row=row[part.row], value=part.value * scale[part.row]) for part in kept]


@dataclass
class _Channels:
    """Facts about a value's channels: each one's constant (or NaN), and the channel of which it is a copy."""

    constant: Array
    source: Array
    channel: Array
    low: float
    high: float


def _fold(operations: list[Operation], inputs: Shape) -> list[Operation]:
    known: list[_Channels] = []
    done: list[Operation] = []
    known.append(_unknown(0, inputs[0], -math.inf, math.inf))
    shapes = [inputs, *(op.shape for op in operations)]
    # Values whose every row must be right; Sums read no row that is known to be zero.
    whole = {len(operations), *(s for op in operations if not isinstance(op, Sum) for s in _sources(op))}
    for value, op in enumerate(operations, 1):
        if isinstance(op, Pool):
            op, facts = _fold_pool(op, value, known, value in whole)
        elif isinstance(op, Planar):
            facts = _unknown(value, op.shape[0], -math.inf, math.inf)
            facts.constant = _planar_constants(op, known)
        else:
            op = _fold_sum(op, known, shapes)
            facts = _facts(op, value, known, shapes)
        done.append(op)
        known.append(facts)
    return done


def _unknown(value: int, channels: int, low: float, high: float) -> _Channels:
    return _Channels(np.full(channels, np.nan), np.full(channels, value), np.arange(channels), low, high)


def _fold_pool(op: Pool, value: int, known: list[_Channels], whole: bool) -> tuple[Pool, _Channels]:
    """The pool of the one value that its channels are copies of; unless `whole`, rows of zeros may be of any."""
    source = known[op.source]
    constant = source.constant[op.channel]
    origin, channel = source.source[op.channel], source.channel[op.channel]
    matters = (constant != 0) | whole
    if len(np.unique(origin[matters])) == 1:
        channel = np.where(matters, channel, channel[matters][0])
        op = replace(op, source=int(origin[matters][0]), channel=channel)
    padded = op.padding != (0, 0) and not op.largest
    low, high = (min(source.low, 0.0), max(source.high, 0.0)) if padded else (source.low, source.high)
    facts = _unknown(value, op.shape[0], low, high)
    facts.constant = np.where(constant == 0, 0.0, np.nan) if padded else constant
    return op, facts


def _planar_constants(op: Planar, known: list[_Channels]) -> Array:
    """(channels,): what the planes of a formula are whose operands are constants, and planes of one number."""
    constant = np.full(op.shape[0], np.nan)
    if isinstance(op, Apply):
        operands = np.stack([known[p.source].constant[p.channel] for p in op.planes])
        fixed = ~np.isnan(operands).any(0)
        constant[fixed] = values_of(op.function, *operands[:, fixed]) if fixed.any() else 0
        if op.function == "mul":
            constant[(operands == 0).any(0)] = 0
    elif isinstance(op, Constant):
        planes = op.data.reshape(op.shape[0], -1)
        constant = np.where((planes == planes[:, :1]).all(1), planes[:, 0], np.nan)
    return constant


def _fold_sum(op: Sum, known: list[_Channels], shapes: list[Shape]) -> Sum:
    bias, entries = op.bias, []
    for e in op.entries:
        constant = known[e.source].constant[e.channel]
        inside = np.ones(len(e), bool)
        for d, size, steps, stride in zip((e.dy, e.dx), shapes[e.source][1:], op.shape[1:], e.stride, strict=True):
            inside &= (d >= 0) & ((steps - 1) * stride + d < size)
        fixed = foldable(constant, inside)
        bias = folded(bias, e.row, e.value, constant, fixed)
        e = e.take(~fixed)
        source, channel = known[e.source].source[e.channel], known[e.source].channel[e.channel]
        for s in np.unique(source):
            here = source == s
            entries.append(replace(e.take(here), source=int(s), channel=channel[here]))
    return replace(op, entries=tuple(entries), bias=bias)


def _facts(op: Sum, value: int, known: list[_Channels], shapes: list[Shape]) -> _Channels:
    """Constant rows, and rows that copy a channel."""
    facts = _unknown(value, op.shape[0], op.low, op.high)
    rows = np.concatenate([np.zeros(0, np.int64), *(e.row for e in op.entries)])
    count = np.bincount(rows, minlength=op.shape[0])
    facts.constant = np.clip(settled(op.bias, rows), op.low, op.high)
    for e in op.entries:
        source = known[e.source]
        if (
            e.stride == (1, 1)
            and shapes[e.source][1:] == op.shape[1:]
            and op.low <= source.low
            and source.high <= op.high
        ):
            copies = (count[e.row] == 1) & (e.value == 1) & (e.dy == 0) & (e.dx == 0) & (op.bias[e.row] == 0)
            facts.source[e.row[copies]], facts.channel[e.row[copies]] = e.source, e.channel[copies]
    return facts


def _compacted(operations: list[Operation], inputs: Shape) -> list[Operation]:
    """The operations with live rows only, from the last operation back; entries grouped by source and stride."""
    live = [np.zeros(shape[0], bool) for shape in (inputs, *(op.shape for op in operations))]
    live[-1][:] = True
    for value in range(len(operations), 0, -1):
        op, rows = operations[value - 1], live[value]
        if isinstance(op, Pool):
            live[op.source][op.channel[rows]] = True
        elif isinstance(op, Planar):
            rows[:] = rows | (rows.any() and not isinstance(op, Apply | Constant))  # all of them, or none
            for planes in op.planes:
                channel = (
                    planes.channel[rows]
                    if isinstance(op, Apply)
                    else planes.channel[: rows.any() * len(planes.channel)]
                )
                live[planes.source][channel] = True
        else:
            for e in op.entries:
                live[e.source] |= read(e.row, e.channel, rows, len(live[e.source]))
    live[0][:] = True  # the caller gives the whole input
    number = np.cumsum([True, *(rows.any() for rows in live[1:])]) - 1
    place = [np.cumsum(rows) - 1 for rows in live]
    done: list[Operation] = []
    for value, op in enumerate(operations, 1):
        rows = live[value]
        if rows.any():
            done.append(_renumbered(op, rows, place[value], number, place))
    return done


def _renumbered(op: Operation, rows: Array, row_place: Array, number: Array, place: list[Array]) -> Operation:
    shape = (int(rows.sum()), *op.shape[1:])
    if isinstance(op, Pool):
        channel = place[op.source][op.channel[rows]].astype(np.int32)
        return replace(op, shape=shape, source=int(number[op.source]), channel=channel)
    if isinstance(op, Planar):
        mine = rows if isinstance(op, Apply) else slice(None)
        planes = tuple(Planes(int(number[p.source]), place[p.source][p.channel[mine]]) for p in op.planes)
        if isinstance(op, Constant):
            return replace(op, shape=shape, data=op.data[rows].astype(np.float32))
        return replace(op, shape=shape, planes=planes)
    groups: dict[tuple[int, tuple[int, int]], list[Entries]] = {}
    for e in op.entries:
        e = e.take(rows[e.row])
        if len(e):
            moved = replace(e, source=int(number[e.source]), row=row_place[e.row], channel=place[e.source][e.channel])
            groups.setdefault((moved.source, moved.stride), []).append(moved)
    entries = tuple(_joined(source, stride, parts) for (source, stride), parts in groups.items())
    return replace(op, shape=shape, entries=entries, bias=op.bias[rows].astype(np.float32))


def _joined(source: int, stride: tuple[int, int], parts: list[Entries]) -> Entries:
    def column(name: str, kind: Any) -> Array:
        return np.concatenate([getattr(part, name) for part in parts]).astype(kind)

    row, channel, dy, dx = (column(name, np.int32) for name in ("row", "channel", "dy", "dx"))
    return Entries(source, stride, row, channel, dy, dx, column("value", np.float32))
