"""A chain: sparse layers with their batch norms, additions and ReLUs, run as one autograd function.

The tensor between two layers is never normalised in memory. A layer writes its raw sums z and their statistics; the
next one reads y = relu(scale * z + shift) on the fly. Only values read twice (a residual block's) are kept as y.
Backwards, a layer writes g, the gradient behind its input's ReLU, and sums g and g * (z - mean) as it goes; the next
one forms batch norm's dz from those on the fly. That is two passes over memory forwards and four backwards.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from gemminer.sparse.memory import BufferPool
from gemminer.sparse.threads import run_on_threads
from gemminer.sparse.training import kernels as k
from gemminer.sparse.training.patterns import Array, Pattern


class Shortcut(NamedTuple):
    """Every stride-th pixel, with zero channels before and after: He et al.'s option A."""

    stride: int
    before: int
    after: int


class Pool(NamedTuple):
    """The largest of each window of a map: sizes of window, stride and padding, rows first."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]

    def out_size(self, height: int, width: int) -> tuple[int, int]:
        (kh, kw), (sh, sw), (ph, pw) = self
        return (height + 2 * ph - kh) // sh + 1, (width + 2 * pw - kw) // sw + 1


@dataclass(frozen=True)
class Unit:
    """y = relu(norm(layer(source)) + residual), norm, residual and relu being optional; or a shortcut, or a pool.

    Values are numbered: the chain's inputs, then its units in order.
    """

    source: int
    residual: int | None = None
    relu: bool = False
    shortcut: Shortcut | None = None
    pool: Pool | None = None


@dataclass(frozen=True)
class Links:
    """A chain's units and the values it returns."""

    inputs: int
    units: tuple[Unit, ...]
    outputs: tuple[int, ...]

    def consumers(self) -> list[int]:
        """How many units read each value; a chain's output counts once more."""
        counts = [0] * (self.inputs + len(self.units))
        for unit in self.units:
            counts[unit.source] += 1
            if unit.residual is not None:
                counts[unit.residual] += 1
        for value in self.outputs:
            counts[value] += 1
        return counts


class Norm(NamedTuple):
    """The state of a unit's batch norm; with `training` the statistics are the batch's own."""

    mean: Array | None
    var: Array | None
    eps: float
    training: bool
    momentum: float | None  # None: leave the running statistics alone


class Step(NamedTuple):
    """A unit ready to run; with `sift`, as in a search, kept weights that are zero are left out."""

    pattern: Pattern | None
    norm: Norm | None
    unit: Unit
    sift: bool = False

    def rows(self, start: Array, offset: Array, values: Array) -> tuple[Array, Array, Array]:
        """A pattern's rows for the sums, without zeros if `sift`; weight gradients always use the whole pattern."""
        if not self.sift:
            return start, offset, values
        found = np.empty_like(start), np.empty_like(offset), np.empty_like(values)
        k.sift(start, offset, values, *found)
        return found


class Weights(NamedTuple):
    """A unit's parameters, or their gradients: kept weights and bias of the layer, scale and shift of the norm."""

    values: Array | None
    bias: Array | None
    gamma: Array | None
    beta: Array | None


@dataclass
class Value:
    """A map (channels, height, width) of every image: `y`, or z with scale, shift and relu still to be applied."""

    channels: int
    height: int
    width: int
    y: Array | None = None
    z: Array | None = None
    scale: Array | None = None
    shift: Array | None = None
    alive: Array | None = None
    whole: bool = True  # whether all channels are alive
    which: Array | None = None  # of a pool: the place in its window that each number comes from
    mean: Array | None = None
    low: Array | None = None  # the mean, in the kernels' type
    invstd: Array | None = None
    relu: bool = False

    @property
    def area(self) -> int:
        return self.height * self.width

    @property
    def size(self) -> int:
        """Numbers in the map of one image."""
        return self.channels * self.area


# A kernel on fewer numbers is finished before a second thread has woken up.
ALONE = 1 << 18
BOOL = np.dtype(np.bool_)


def threads_for(blocks: int, numbers: int) -> int:
    """The number of threads: PyTorch's, which the user sets, but at most one per block, and one for few numbers."""
    return 1 if numbers < ALONE else max(1, min(torch.get_num_threads(), blocks))


def block_size(batch: int, area: int, width: int, numbers: int) -> int:
    """Images in a block: rows of some 512 numbers, and a block for every thread where the batch allows."""
    lanes = 64 if area == 1 else 16 if width <= 40 else 8 if width <= 80 else 4
    return max(1, min(lanes, -(-batch // threads_for(batch, numbers))))


class Runner:
    """Runs kernels on the images of one batch, whose largest map has `numbers` numbers in all.

    Maps and their gradients are of the type `kept`; what is summed, and the weights, of `dtype`, which is float32 where
    maps are bfloat16: NumPy has no such type, so their bits are integers here.
    """

    def __init__(self, batch: int, block: int, numbers: int, kept: torch.dtype, pool: BufferPool) -> None:
        self.batch, self.block, self.pool = batch, block, pool
        self.kept, self.dtype = kept, np.dtype(np.float64 if kept == torch.float64 else np.float32)
        self.bits = np.dtype(np.uint16) if kept == torch.bfloat16 else self.dtype
        self.blocks = -(-batch // block)
        self.threads = threads_for(self.blocks, numbers)
        self.counts = np.array([min(block, batch - b * block) for b in range(self.blocks)], dtype=np.float64)
        self.scratch: Array | None = None
        self.none, self.no_map = np.empty(0, self.dtype), np.empty(0, self.bits)
        self.no_stats = np.empty((0, 0, 0), np.float64)

    def launch(self, kernel: Callable[..., None], *args: Any) -> None:
        """Run kernel(t, next_block, *args) for every thread t; each takes the next block until there is none.

        So a thread that starts late, or shares its core, takes fewer blocks. Sums are kept for each block, so they do
        not depend on the thread.
        """
        next_block = np.zeros(1, np.int64)
        if self.threads == 1:
            kernel(0, next_block, *args)
        else:
            run_on_threads(lambda t: kernel(t, next_block, *args), self.threads)

    def empty(self, value: Value) -> Array:
        return self.pool.take((self.batch * value.size,), self.bits)

    def sum(self, parts: Sequence[Array]) -> Array:
        """The sum of maps."""
        if len(parts) == 1:
            return parts[0]
        total = self.pool.take(parts[0].shape, self.bits)
        tensors = [torch.from_numpy(part).view(self.kept) for part in (total, *parts)]
        torch.add(tensors[1], tensors[2], out=tensors[0])
        for part in tensors[3:]:
            tensors[0] += part
        return total

    def work(self, size: int) -> Array:
        """Memory for one launch: the last one's, where that is large enough."""
        if self.scratch is None or self.scratch.shape[1] < size:
            # A power of two, so that layers of many sizes share a few buffers.
            self.scratch = self.pool.take((self.threads, 1 << max(6, (size - 1).bit_length())), self.dtype)
        return self.scratch

    def block_in(self, x: Tensor, value: Value) -> Array:
        out = self.empty(value)
        x = x.detach() if value.area > 1 else x.detach().to(self.kept)
        images = x.contiguous().view(torch.uint16) if x.dtype == torch.bfloat16 else x
        if value.area == 1:
            for blocks, rows in self._matrices(out, images.numpy().reshape(self.batch, -1)):
                _copy(rows, blocks)
            return out
        shape = (self.batch, value.channels, value.height, value.width)
        self.launch(k.block, self.block, images.contiguous().numpy().reshape(shape), out, True)
        return out

    def block_out(self, blocked: Array, value: Value, shape: Sequence[int]) -> Tensor:
        out = np.empty((self.batch, value.channels, value.height, value.width), self.bits)
        if value.area == 1:
            for blocks, rows in self._matrices(blocked, out.reshape(self.batch, -1)):
                _copy(blocks, rows)
        else:
            self.launch(k.block, self.block, out, blocked, False)
        tensor = torch.from_numpy(out.reshape(tuple(shape)))  # no view for autograd: it may be changed in place
        return tensor.view(self.kept) if self.kept == torch.bfloat16 else tensor

    def _matrices(self, flat: Array, rows: Array) -> Iterator[tuple[Array, Array]]:
        """Whole blocks of maps of one pixel, and the last, shorter one, each with the rows that it transposes."""
        channels = rows.shape[1]
        whole = self.batch // self.block * self.block
        for images, lanes in ((whole, self.block), (self.batch - whole, self.batch - whole)):
            if images:
                part, flat = flat[: images * channels], flat[images * channels :]
                own, rows = rows[:images], rows[images:]
                yield part.reshape(-1, channels, lanes), own.reshape(-1, lanes, channels).transpose(0, 2, 1)


@functools.lru_cache(1024)
def filled(count: int, dtype: np.dtype[Any], value: int) -> Array:
    """As many zeros or ones, made once, which no kernel writes to: what one takes and does not use, or multiplies by.

    They are not read-only for NumPy, since Numba would compile a kernel once more for that.
    """
    return np.full(count, value, dtype)


def _copy(source: Array, to: Array) -> None:
    """Copy a matrix into another: PyTorch is faster for a large one, and uses its threads."""
    if to.size < ALONE:
        to[...] = source
    else:
        torch.from_numpy(to).copy_(torch.from_numpy(source))


def _source(value: Value, residual: Value | None, run: Runner) -> tuple[tuple[Any, ...], int]:
    """The kernels' arguments that say how to read a value: z, residual, scale, shift, alive, flags."""
    if value.y is not None:
        blank = filled(value.channels, run.dtype, 0)
        return (value.y, run.no_map, blank, blank, filled(value.channels, BOOL, 1)), k.IDENTITY
    flags = k.RELU if value.relu else 0
    res = run.no_map
    if residual is not None:
        assert residual.y is not None
        flags, res = flags | k.RESIDUAL, residual.y
    return (value.z, res, value.scale, value.shift, value.alive), flags


def between(run: Runner, source: Value, out: Value, shortcut: Shortcut) -> tuple[int, ...]:
    """The sizes that the shortcut's kernel takes as arguments."""
    sizes = (run.batch, run.block, source.channels, source.height, source.width, out.channels)
    return (*sizes, shortcut.stride, shortcut.before)


def pooled(run: Runner, source: Value, out: Value, pool: Pool) -> tuple[int, ...]:
    """The sizes that a pool's kernels take as arguments."""
    maps = (source.channels, source.height, source.width, out.height, out.width)
    return (run.batch, run.block, *maps, *pool.kernel, *pool.stride, *pool.padding)


class Forward:
    """One forward pass and what its backward pass needs."""

    def __init__(self, links: Links, steps: Sequence[Step], run: Runner) -> None:
        self.links, self.steps, self.run = links, steps, run
        self.values: list[Value] = []
        self.counts = counts = links.consumers()
        n = links.inputs
        read_as_y = {u.residual for u in links.units} | set(links.outputs)
        read_as_y |= {u.source for u in links.units if u.shortcut}
        # Values kept as y: those read twice, added to others, or returned, and sums.
        self.kept = [
            v in read_as_y or counts[v] > 1 or (v >= n and links.units[v - n].residual is not None)
            for v in range(len(counts))
        ]

    def __call__(self, inputs: Sequence[tuple[Array, Value]], weights: Sequence[Weights]) -> None:
        self.values = [value for _, value in inputs]
        for (blocked, _), value in zip(inputs, self.values, strict=True):
            value.y = blocked
        for step, weight in zip(self.steps, weights, strict=True):
            self._layer(step, weight)
        for v in self.links.outputs:
            self.materialise(v)
        self.run.scratch = None

    def _residual(self, v: int) -> Value | None:
        if v < self.links.inputs or (r := self.steps[v - self.links.inputs].unit.residual) is None:
            return None
        self.materialise(r)
        return self.values[r]

    def materialise(self, v: int) -> None:
        """Write value v out as y, if no layer has."""
        value = self.values[v]
        if value.y is None:
            args, flags = _source(value, self._residual(v), self.run)
            y = self.run.empty(value)
            self.run.launch(
                k.apply, self.run.batch, self.run.block, value.channels, value.height, value.width, *args, flags, y
            )
            value.y = y

    def forget(self, v: int) -> None:
        """Free y, once it is returned, if z holds the same and no unit reads y."""
        value = self.values[v]
        alone = self.counts[v] == 1 and value.z is not None
        if alone and self.links.units[v - self.links.inputs].residual is None:
            value.y = None

    def _layer(self, step: Step, weight: Weights) -> None:
        run, pattern, source = self.run, step.pattern, self.values[step.unit.source]
        if pattern is None:
            self._shortcut(step.unit) if step.unit.shortcut else self._pool(step.unit)
            return
        layout = pattern.layout(source.height, source.width, run.block)
        row = layout.at(run.batch)
        oh, ow = pattern.out_size(source.height, source.width)
        assert weight.values is not None
        rows = step.rows(pattern.start, layout.offset, weight.values)
        alive, whole = pattern.alive, pattern.whole
        if step.sift:
            alive = np.diff(rows[0]) > 0
            whole = bool(alive.all())
        out = Value(pattern.shape[0], oh, ow, alive=alive, whole=whole, relu=step.unit.relu)
        args, flags = _source(source, self._residual(step.unit.source), run)
        y = run.no_map
        if source.y is None and self.kept[step.unit.source]:
            y, flags = run.empty(source), flags | k.STORE
        out.z = run.empty(out)
        fresh = step.norm is not None and step.norm.training
        stats = np.zeros((run.blocks, out.channels, 3)) if fresh else run.no_stats
        run.launch(
            k.forward,
            *(row, *args, flags, pattern.read_channels, y, *rows, out.z, stats),
            run.work(layout.work * run.block),
        )
        if y is not run.no_map:
            source.y = y
        self._normalise(out, step.norm, weight, stats)
        self.values.append(out)

    def _shortcut(self, unit: Unit) -> None:
        self.materialise(unit.source)
        source = self.values[unit.source]
        assert unit.shortcut is not None
        assert source.y is not None
        s, before, after = unit.shortcut
        height, width = -(-source.height // s), -(-source.width // s)
        out = Value(before + source.channels + after, height, width)
        out.y = self.run.empty(out)
        self.run.launch(k.shortcut, *between(self.run, source, out, unit.shortcut), source.y, out.y, False)
        self.values.append(out)

    def _pool(self, unit: Unit) -> None:
        run, source, pool = self.run, self.values[unit.source], unit.pool
        assert pool is not None
        if self.kept[unit.source]:
            self.materialise(unit.source)
        out = Value(source.channels, *pool.out_size(source.height, source.width))
        out.y, out.which = run.empty(out), run.pool.take((run.batch * out.size,), np.uint8)
        args, flags = _source(source, self._residual(unit.source), run)
        work = run.work(pool.kernel[0] * source.width * run.block)
        run.launch(k.pool, *pooled(run, source, out, pool), *args, flags, out.y, out.which, work)
        self.values.append(out)

    def _normalise(self, out: Value, norm: Norm | None, weight: Weights, stats: Array) -> None:
        """Find scale and shift such that norm(z + bias) = scale * z + shift, and move the running statistics."""
        run, n = self.run, out.channels
        if norm is None:
            out.scale = filled(n, run.dtype, 1)
            out.shift = filled(n, run.dtype, 0) if weight.bias is None else weight.bias.astype(run.dtype)
            return
        if norm.training:
            moments, affine = np.empty((2, n)), np.empty((2, n), run.dtype)
            moves = norm.momentum is not None
            given = (weight.bias, weight.gamma, weight.beta, norm.mean if moves else None, norm.var if moves else None)
            arrays = (stats, run.counts * out.area, out.alive, *(run.none if a is None else a for a in given))
            k.normalise(*arrays, norm.momentum or 0.0, norm.eps, moments, affine)
            (out.mean, out.invstd), (out.scale, out.shift) = moments, affine
            out.low = out.mean.astype(run.dtype)
            return
        assert norm.mean is not None
        assert norm.var is not None
        bias = 0.0 if weight.bias is None else weight.bias.astype(np.float64)
        mean, var = norm.mean - bias, norm.var.astype(np.float64)
        out.mean, out.low, out.invstd = mean, mean.astype(run.dtype), 1 / np.sqrt(var + norm.eps)
        scale = out.invstd if weight.gamma is None else out.invstd * weight.gamma
        shift = -mean * scale if weight.beta is None else weight.beta - mean * scale
        out.scale, out.shift = scale.astype(run.dtype), shift.astype(run.dtype)
