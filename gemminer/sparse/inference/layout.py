"""Where a program's values lie in memory, and the instructions of the kernels.

A Layout places the values in one scratch array for groups of `lanes` images (see `kernels`), reusing the memory
of values no longer needed. Entries read a value where it lies if output and value have one size and the stride is 1,
or if the output is 1x1; else they read planes split off by stride.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from gemminer.sparse.inference import kernels
from gemminer.sparse.inference.dense import computed
from gemminer.sparse.inference.operations import (
    Apply,
    Array,
    Attention,
    Constant,
    Dense,
    Gather,
    Norm,
    Operation,
    Planar,
    Pool,
    Shape,
    Sum,
)
from gemminer.sparse.inference.tiles import VECTOR, WIDEST


def _up(n: int) -> int:
    return -(-n // VECTOR) * VECTOR


@dataclass(frozen=True)
class _Maps:
    """A value in memory: value[c, y, x] of image i is at origin + c * plane + (y * pitch + x) * lanes + i."""

    origin: int
    plane: int
    pitch: int
    lead: int  # floats of upper padding before the first channel, zero
    work: int  # where its operation has room for itself


@dataclass
class _Split:
    """Planes of every stride-th row and column of a value, laid out for outputs of one size.

    An output at (y, x) with an entry at dy = stride * a + r reads row y + a of the plane that begins at row r.
    """

    source: int
    stride: tuple[int, int]
    size: tuple[int, int]
    fill: float
    first: int  # operation
    last: int
    planes: Array  # sorted codes (channel * stride + first row) * stride + first column
    low: tuple[int, int] = (0, 0)  # the least and greatest a, by y and x
    high: tuple[int, int] = (0, 0)
    base: int = 0
    origin: int = 0
    plane: int = 0


def _direct(op: Operation, source: Shape, stride: tuple[int, int]) -> bool:
    """Whether entries can read the value where it lies."""
    if op.shape[1:] == (1, 1):
        return not isinstance(op, Pool) or op.padding == (0, 0)
    return isinstance(op, Sum) and stride == (1, 1) and op.shape[1:] == source[1:]


class Plan:
    """The part of a layout that every number of lanes shares: paddings of each map size, splits, lifetimes."""

    def __init__(self, shape: Shape, operations: tuple[Operation, ...]) -> None:
        self.shapes = [shape, *(op.shape for op in operations)]
        self.operations = operations
        self.pad: dict[tuple[int, int], list[int]] = {s[1:]: [0, 0] for s in self.shapes}
        self.last = [0] * len(self.shapes)
        self.last[-1] = len(operations)
        self.splits: dict[Any, _Split] = {}
        for i, op in enumerate(operations):
            if isinstance(op, Pool):
                dy, dx = op.taps()
                self._reads(i, op, op.source, op.stride, op.channel, dy, dx)
            elif isinstance(op, Planar):
                for planes in op.planes:
                    self.last[planes.source] = max(self.last[planes.source], i)
            else:
                for e in op.entries:
                    self._reads(i, op, e.source, e.stride, e.channel, e.dy, e.dx)
        for split in self.splits.values():
            pad = self.pad[split.size]
            pad[1] = max(pad[1], max(0, -split.low[1]) + max(0, split.high[1]))

    def work(self, i: int) -> int:
        """Floats that operation `i` needs beside its operands and its result."""
        op = self.operations[i]
        if isinstance(op, Norm):
            return 2 * kernels.STRETCH
        if not isinstance(op, Attention):
            return 0
        queries, keys = (math.prod(self.shapes[v][1:]) for v in (i + 1, op.planes[1].source))
        depth, wide = len(op.planes[0].channel) // op.heads, op.shape[0] // op.heads
        return _up(depth * _up(queries) + (depth + wide) * keys + (keys + 3) * _up(queries)) + VECTOR

    @staticmethod
    def key(i: int, op: Operation, source: int, stride: tuple[int, int]) -> Any:
        return (source, stride, op.shape[1:], i if isinstance(op, Pool) else -1)

    def _reads(
        self, i: int, op: Operation, source: int, stride: tuple[int, int], channel: Array, dy: Array, dx: Array
    ) -> None:
        """Note what operation `i` reads: entries one by one, or of a pool each of its channels at each cell."""
        if not len(channel):
            return
        if _direct(op, self.shapes[source], stride):
            self.last[source] = max(self.last[source], i)
            if op.shape[1:] == self.shapes[source][1:]:
                pad = self.pad[op.shape[1:]]
                pad[:] = max(pad[0], int(np.abs(dy).max())), max(pad[1], int(np.abs(dx).max()))
            return
        (ay, ry), (ax, rx) = np.divmod(dy, stride[0]), np.divmod(dx, stride[1])
        if isinstance(op, Pool):
            phases = np.unique(ry * stride[1] + rx)
            planes = np.unique(channel.astype(np.int64)[:, None] * (stride[0] * stride[1]) + phases)
        else:
            planes = np.unique((channel.astype(np.int64) * stride[0] + ry) * stride[1] + rx)
        key = self.key(i, op, source, stride)
        fill = -math.inf if isinstance(op, Pool) and op.largest else 0.0
        if key not in self.splits:
            self.splits[key] = _Split(source, stride, op.shape[1:], fill, i, i, planes)
            self.last[source] = max(self.last[source], i)
        split = self.splits[key]
        split.last, split.planes = i, np.union1d(split.planes, planes)
        split.low = min(split.low[0], int(ay.min())), min(split.low[1], int(ax.min()))
        split.high = max(split.high[0], int(ay.max())), max(split.high[1], int(ax.max()))

    def place(self, lanes: int) -> tuple[list[_Maps], int]:
        """Every value's and split's place for groups of `lanes` images, and the floats all take."""
        space, maps, end = _Space(), [], 0
        by_time: list[tuple[int, int, int]] = [(v - 1, 1, v) for v in range(len(self.shapes))]
        splits = list(self.splits.values())
        for time, kind, which in sorted(by_time + [(s.first, 0, k) for k, s in enumerate(splits)]):
            if kind == 0:
                split = splits[which]
                pitch = split.size[1] + self.pad[split.size][1]
                top, left = max(0, -split.low[0]), max(0, -split.low[1])
                split.plane = _up((top + split.size[0] + max(0, split.high[0])) * pitch * lanes)
                split.base = space.take(len(split.planes) * split.plane + VECTOR, time, split.last)
                split.origin = split.base + (top * pitch + left) * lanes
                continue
            channels, height, width = self.shapes[which]
            ph, pw = self.pad[height, width]
            pitch = width + pw
            lead, plane = _up((ph * pitch + pw) * lanes), _up((height + ph) * pitch * lanes)
            base = space.take(lead + channels * plane, time, self.last[which])
            work = space.take(needed, time, time) if time >= 0 and (needed := self.work(time)) else 0
            maps.append(_Maps(base + lead, plane, pitch, lead, work))
            end = max(end, (ph * pitch + pw) * lanes)  # the last vectors may read past the last plane
        return maps, space.size + end + 2 * WIDEST * VECTOR


class _Space:
    """Allocates floats of the scratch array, first fit by lifetime."""

    def __init__(self) -> None:
        self.taken: list[tuple[int, int, int]] = []  # begin, end, last use
        self.size = 0

    def take(self, floats: int, time: int, last: int) -> int:
        self.taken = sorted(t for t in self.taken if t[2] >= time)
        at = 0
        for begin, end, _ in self.taken:
            if at + floats <= begin:
                break
            at = max(at, end)
        self.taken.append((at, at + floats, last))
        self.size = max(self.size, at + floats)
        return at


class Layout:
    """A program's instructions and tables for groups of `lanes` images."""

    def __init__(self, plan: Plan, lanes: int) -> None:
        self.lanes = lanes
        self.maps, self.floats = plan.place(lanes)
        self.plan = plan
        self.scratch: list[Array] = []  # not in use
        self._dense: list[tuple[int, int, Dense]] = []  # before which instruction, operation
        self._code: list[list[int]] = []
        self._limits: list[tuple[float, float]] = []
        self._rows: list[Array] = []
        self._bias: list[Array] = []
        self._offsets: list[Array] = []
        self._values: list[Array] = []
        self._table: list[Array] = []
        self._counts = {"rows": 0, "entries": 0, "table": 0}
        self._masks: dict[tuple[int, int], int] = {}
        self._mask_parts: list[Array] = []
        self._emit(kernels.INPUT, *self._whole(0))
        for i, op in enumerate(plan.operations):
            for split in plan.splits.values():
                if split.first == i:
                    self._split(split)
            if isinstance(op, Pool):
                self._pool(i, op)
            elif isinstance(op, Sum):
                self._sum(i, op)
            elif isinstance(op, Dense):
                self._dense.append((len(self._code), i, op))
            else:
                self._planar(i, op)
        self._emit(kernels.OUTPUT, *self._whole(-1))
        self.kernel: Any = kernels.run_all if any(isinstance(op, Planar) for op in plan.operations) else kernels.run

        def joined(parts: list[Array], dtype: Any, *columns: int) -> Array:
            return np.ascontiguousarray(np.concatenate([np.empty((0, *columns)), *parts]), dtype=dtype)

        code = np.zeros((len(self._code), kernels.FIELDS), np.int64)
        for k, fields in enumerate(self._code):
            code[k, : len(fields)] = fields
        self.tables = (
            code,
            np.array(self._limits, np.float32),
            joined(self._rows, np.int64, 3),
            joined(self._bias, np.float32),
            joined(self._offsets, np.int32),
            joined(self._values, np.float32),
            joined(self._mask_parts, np.int32),
            joined(self._table, np.int64, 3),
        )

    def _emit(self, *fields: int, low: float = 0.0, high: float = 0.0) -> None:
        self._code.append(list(fields))
        self._limits.append((low, high))

    def _whole(self, value: int) -> tuple[int, ...]:
        (channels, height, width), maps = self.plan.shapes[value], self.maps[value]
        if maps.pitch == width:
            height, width = 1, height * width  # one long row
        pitch = maps.pitch if height > 1 else width
        return channels, height, width, maps.origin, maps.plane, pitch, maps.lead

    def _planar(self, i: int, op: Apply | Norm | Attention | Gather | Constant) -> None:
        """An instruction with a table of where each operand's planes begin."""
        tables = [
            self.maps[p.source].origin + p.channel.astype(np.int64) * self.maps[p.source].plane for p in op.planes
        ]
        first, whole = self._counts["table"], self._whole(i + 1)
        if isinstance(op, Apply):
            spread = len(op.planes) == 2 and self.plan.shapes[op.planes[1].source][1:] != op.shape[1:]
            self._emit(kernels.APPLY, *whole, kernels.NUMBERS[op.function], first, int(spread))
            table = np.stack(tables * (3 - len(tables)), 1)
        elif isinstance(op, Norm):
            self._emit(kernels.NORM, *whole, self.maps[i + 1].work, first, low=op.eps)
            table = np.stack(tables * 2, 1)
        elif isinstance(op, Attention):
            table = np.concatenate(tables)
            table = np.stack([table, table], 1)
            self._attention(i, op, whole, first)
        else:
            self._numbers(op, whole)
            return
        self._table.append(np.pad(table, ((0, 0), (0, 1))))
        self._counts["table"] += len(table)

    def _attention(self, i: int, op: Attention, whole: tuple[int, ...], first: int) -> None:
        keys = op.planes[1].source
        (_, rows, columns), pitch = self.plan.shapes[keys], self.maps[keys].pitch
        depth, line = len(op.planes[0].channel) // op.heads, _up(math.prod(op.shape[1:]))
        mask = sum(map(len, self._mask_parts))
        self._mask_parts.append(np.full(line, -1, np.int32))
        fields = (op.heads, depth, first, self.maps[i + 1].work, rows, columns, pitch, mask, self._counts["entries"])
        self._emit(kernels.ATTENTION, *whole, *fields, low=op.scale)
        self._append(np.arange(max(depth, rows * columns)) * line, None)

    def _numbers(self, op: Gather | Constant, whole: tuple[int, ...]) -> None:
        kind = kernels.CONSTANT if isinstance(op, Constant) else kernels.GATHER
        self._emit(kind, *whole, self._counts["entries"])
        if isinstance(op, Constant):
            self._append(None, op.data.reshape(-1))
            return
        (planes,) = op.planes
        source = self.maps[planes.source]
        _, height, width = self.plan.shapes[planes.source]
        which, y, x = np.unravel_index(op.index.reshape(-1), (len(planes.channel), height, width))
        self._append(source.origin + planes.channel[which] * source.plane + (y * source.pitch + x) * self.lanes, None)

    def _append(self, offset: Array | None, value: Array | None) -> None:
        """Offsets or values without the other."""
        count = len(value if offset is None else offset)  # type: ignore[arg-type]
        self._offsets.append(np.zeros(count, np.int64) if offset is None else offset)
        self._values.append(np.zeros(count, np.float32) if value is None else value)
        self._counts["entries"] += count

    def _split(self, split: _Split) -> None:
        (sy, sx), source = split.stride, self.maps[split.source]
        channel, phase = np.divmod(split.planes, sy * sx)
        table = np.stack([source.origin + channel * source.plane, *np.divmod(phase, sx)], 1)
        _, height, width = self.plan.shapes[split.source]
        top, left = max(0, -split.low[0]), max(0, -split.low[1])
        rows, columns = top + split.size[0] + max(0, split.high[0]), left + split.size[1] + max(0, split.high[1])
        pitch = split.size[1] + self.plan.pad[split.size][1]
        self._emit(
            *(kernels.SPLIT, height, width, source.pitch, sy, sx, split.base, split.plane, pitch),
            *(top, left, rows, columns, self._counts["table"], len(table)),
            low=split.fill,
        )
        self._table.append(table)
        self._counts["table"] += len(table)

    def _at(
        self, i: int, op: Operation, source: int, stride: tuple[int, int], channel: Array, dy: Array, dx: Array
    ) -> Array:
        """Offsets that entries read for the output at (0, 0)."""
        channel = channel.astype(np.int64)
        if _direct(op, self.plan.shapes[source], stride):
            maps = self.maps[source]
            direct: Array = maps.origin + channel * maps.plane + (dy * maps.pitch + dx) * self.lanes
            return direct
        split = self.plan.splits[self.plan.key(i, op, source, stride)]
        (ay, ry), (ax, rx) = np.divmod(dy, stride[0]), np.divmod(dx, stride[1])
        which = np.searchsorted(split.planes, (channel * stride[0] + ry) * stride[1] + rx)
        pitch = split.size[1] + self.plan.pad[split.size][1]
        offsets: Array = split.origin + which * split.plane + (ay * pitch + ax) * self.lanes
        return offsets

    def _sum(self, i: int, op: Sum) -> None:
        entries = [e for e in op.entries if len(e)]
        rows = np.concatenate([np.empty(0, np.int64), *(e.row for e in entries)])
        offsets = [self._at(i, op, e.source, e.stride, e.channel, e.dy, e.dx) for e in entries]
        offset = np.concatenate([np.empty(0, np.int64), *offsets])
        order = np.lexsort((offset, rows))
        starts = np.searchsorted(rows[order], np.arange(op.shape[0] + 1)) + self._counts["entries"]
        bounds = np.stack([starts[:-1], starts[1:], np.zeros(op.shape[0], np.int64)], 1)
        values = np.concatenate([np.empty(0, np.float32), *(e.value for e in entries)])
        self._output(i, bounds, op.bias, offset[order], values[order], op.low, op.high)

    def _pool(self, i: int, op: Pool) -> None:
        dy, dx = op.taps()
        begin = self._counts["entries"]
        bounds = np.empty((len(op.channel), 3), np.int64)
        offsets = np.empty(0, np.int64)
        if len(op.channel):
            where = (i, op, op.source, op.stride)
            offsets = self._at(*where, np.repeat(op.channel[:1], len(dy)), dy, dx)
            first = self._at(*where, op.channel, np.repeat(dy[:1], len(op.channel)), np.repeat(dx[:1], len(op.channel)))
            bounds[:, 0], bounds[:, 1], bounds[:, 2] = begin, begin + len(dy), first - first[0]
        bias = np.zeros(op.shape[0], np.float32)
        values = np.full(len(offsets), 1 / len(dy), np.float32)
        self._output(i, bounds, bias, offsets, values, -math.inf, math.inf, largest=op.largest)

    def _output(
        self,
        i: int,
        bounds: Array,
        bias: Array,
        offset: Array,
        value: Array,
        low: float,
        high: float,
        *,
        largest: bool = False,
    ) -> None:
        _, height, width = self.plan.shapes[i + 1]
        maps = self.maps[i + 1]
        vectors = _up(((height - 1) * maps.pitch + width) * self.lanes) // VECTOR
        if (height, width) not in self._masks:
            self._masks[height, width] = sum(map(len, self._mask_parts))
            mask = np.zeros(vectors * VECTOR, np.int32)
            row = np.repeat(-(np.arange(maps.pitch) < width).astype(np.int32), self.lanes)
            rows = np.tile(row, height)[: len(mask)]
            mask[: len(rows)] = rows
            self._mask_parts.append(mask)
        self._emit(
            *(kernels.ROWS, self._counts["rows"], len(bounds), maps.origin, maps.plane, vectors),
            *(self._masks[height, width], maps.lead, int(largest)),
            low=low,
            high=high,
        )
        for parts, part in (
            (self._rows, bounds),
            (self._bias, bias),
            (self._offsets, offset),
            (self._values, value),
        ):
            parts.append(part)
        self._counts["rows"] += len(bounds)
        self._counts["entries"] += len(value)

    def memory(self) -> Array:
        """A new scratch array, aligned to whole vectors."""
        memory = np.zeros(self.floats + VECTOR, np.float32)
        skip = -memory.ctypes.data % (4 * VECTOR) // 4
        return memory[skip : skip + self.floats]

    def run(self, images: Array, logits: Array, begin: int, end: int) -> None:
        try:
            scratch = self.scratch.pop()
        except IndexError:
            scratch = self.memory()
        if not self._dense:
            self.kernel(images, logits, begin, end, self.lanes, *self.tables, scratch)
        for first in range(begin, end, self.lanes) if self._dense else ():
            self._by_parts(images, logits, first, min(end, first + self.lanes), scratch)
        self.scratch.append(scratch)

    def _by_parts(self, images: Array, logits: Array, begin: int, end: int, scratch: Array) -> None:
        """A group of images: instructions up to a dense part, that part, and so on."""
        code, limits, *rest = self.tables
        at = 0
        for until, i, op in [*self._dense, (len(code), -1, None)]:
            if until > at:
                part = slice(at, until)
                self.kernel(images, logits, begin, end, self.lanes, code[part], limits[part], *rest, scratch)
            if op is not None:
                self._compute(i, op, end - begin, scratch)
            at = until

    def _compute(self, i: int, op: Dense, count: int, scratch: Array) -> None:
        """A dense part, image by image; what lies beside its result is zero."""
        out, maps = self._view(i + 1, scratch), self.maps[i + 1]
        scratch[maps.origin - maps.lead : maps.origin + op.shape[0] * maps.plane] = 0
        planes = [self._view(p.source, scratch)[p.channel] for p in op.planes]
        with torch.no_grad():
            for lane in range(count):
                numbers = [np.ascontiguousarray(part[..., lane]) for part in planes]
                operands = [torch.from_numpy(n).reshape(form) for n, form in zip(numbers, op.forms, strict=True)]
                out[..., lane] = computed(op, operands).numpy().reshape(op.shape)

    def _view(self, value: int, scratch: Array) -> Array:
        """(channels, height, width, lanes) of a value where it lies."""
        (channels, height, width), maps = self.plan.shapes[value], self.maps[value]
        steps = [4 * n for n in (maps.plane, maps.pitch * self.lanes, self.lanes, 1)]
        return np.lib.stride_tricks.as_strided(scratch[maps.origin :], (channels, height, width, self.lanes), steps)
