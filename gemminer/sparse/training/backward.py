"""The backward pass of a chain: each layer's kernel completes the gradient that the layer before it starts from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from gemminer.sparse.training import kernels as k
from gemminer.sparse.training.chain import BOOL, Forward, Norm, Unit, Value, Weights, between, filled, pooled
from gemminer.sparse.training.patterns import Array
from gemminer.sparse.training.vectors import VECTOR_BYTES


@dataclass
class _Gradient:
    """The gradient of a value: the parts from its readers and, once complete, g before its ReLU with its sums."""

    parts: list[Array] = field(default_factory=list)
    g: Array | None = None
    s1: Array | None = None
    s2: Array | None = None


class Backward:
    """The backward pass of a `Forward`.

    Args:
        needs: for each value, whether its gradient is needed.
        weights_needed: for each unit, which of its `Weights` need a gradient.
        release: free each activation once it is used, as there will be no second pass.
    """

    def __init__(
        self,
        done: Forward,
        needs: Sequence[bool],
        weights_needed: Sequence[Sequence[bool]],
        weights: Sequence[Weights],
        release: bool,
    ) -> None:
        self.release = release
        self.done, self.run, self.weights = done, done.run, weights
        self.needs, self.weights_needed = needs, weights_needed
        self.left = list(done.counts)
        self.gradients = [_Gradient() for _ in self.left]

    def __call__(self, outputs: Sequence[Array | None]) -> list[Weights]:
        """Gradients of every unit's weights; those of the inputs are `input_gradient`s afterwards."""
        links, grads = self.done.links, []
        for v, dy in zip(links.outputs, outputs, strict=True):
            self._add_gradient(v, dy)
        for u in reversed(range(len(links.units))):
            grads.append(self._unit(u))
        self.run.scratch = None
        return grads[::-1]

    def _add_gradient(self, v: int, dy: Array | None) -> None:
        """Add one reader's gradient to value v; None is no gradient."""
        self.left[v] -= 1
        if dy is not None:
            self.gradients[v].parts.append(dy)

    def input_gradient(self, v: int) -> Array | None:
        """The gradient of an input of the chain, or None where no unit gave one."""
        parts = self.gradients[v].parts
        return self.run.sum(parts) if parts else None

    def _flags(self, v: int) -> int:
        """The kernel's flags for completing the gradient of value v."""
        if v < self.done.links.inputs:
            return 0
        value, norm = self.done.values[v], self.done.steps[v - self.done.links.inputs].norm
        flags = k.STATS
        flags |= k.MASK if value.relu else 0
        flags |= k.MATERIALISED if value.y is not None else 0
        # No gradient flows through fixed statistics, and without gamma no sum with z is needed.
        gamma = self.weights[v - self.done.links.inputs].gamma
        return flags | (k.NORM if norm and (norm.training or gamma is not None) else 0)

    def _value_arrays(self, value: Value) -> tuple[Array, ...]:
        """(z, y, scale, shift, mean, alive) of a value, as the kernels take them."""
        none, n = self.run.no_map, value.channels
        z, y = none if value.z is None else value.z, none if value.y is None else value.y
        mean = filled(n, self.run.dtype, 0) if value.low is None else value.low
        scale, shift = mean if value.scale is None else value.scale, mean if value.shift is None else value.shift
        return z, y, scale, shift, mean, filled(n, BOOL, 1) if value.alive is None else value.alive

    def _finalise(self, v: int) -> None:
        """Complete the gradient of a value whose last reader was no layer."""
        run, value, gradient = self.run, self.done.values[v], self.gradients[v]
        z, y, scale, shift, mean, alive = self._value_arrays(value)
        # Write g over dy, unless dy is also the gradient of another value, as of a residual.
        ours = len(gradient.parts) > 1 or (v in self.done.links.outputs and self.done.counts[v] == 1)
        dy = self.run.sum(gradient.parts)
        g, stats = dy if ours else run.empty(value), np.zeros((run.blocks, value.channels, 2))
        run.launch(
            k.finalise,
            *(run.batch, run.block, value.channels, value.height, value.width),
            *(dy, z, y, scale, shift, mean, alive, self._flags(v), g, stats, run.work(run.block * value.width)),
        )
        self._finished(v, g, stats)

    def _finished(self, v: int, g: Array, stats: Array) -> None:
        gradient, value = self.gradients[v], self.done.values[v]
        gradient.g, gradient.parts = g, []
        gradient.s1, gradient.s2 = np.add.reduce(stats).T
        if value.mean is not None and value.alive is not None and not value.whole:
            # A dead filter's z is zero and not in memory: the sum is that of g * (0 - mean).
            gradient.s2[~value.alive] = -(gradient.s1 * value.mean)[~value.alive]

    def _unit(self, u: int) -> Weights:
        v = self.done.links.inputs + u
        step, gradient = self.done.steps[u], self.gradients[v]
        if step.pattern is None:
            self._shortcut(v, step.unit) if step.unit.shortcut else self._pool(v, step.unit)
            return Weights(None, None, None, None)
        if gradient.g is None:
            if not gradient.parts:
                self._add_gradient(step.unit.source, None)
                if step.unit.residual is not None:
                    self._add_gradient(step.unit.residual, None)
                return Weights(None, None, None, None)
            self._finalise(v)
        if step.unit.residual is not None:
            self._add_gradient(step.unit.residual, gradient.g)
        grads = self._layer(u)
        gradient.g = None
        if self.release:
            self.done.values[v].z = self.done.values[v].y = None
        return grads

    def _shortcut(self, v: int, unit: Unit) -> None:
        out, source, dy = self.done.values[v], self.done.values[unit.source], self._arrived(v)
        dx = None
        if dy is not None and self.needs[unit.source]:
            assert unit.shortcut is not None
            dx = self.run.empty(source)
            self.run.launch(k.shortcut, *between(self.run, source, out, unit.shortcut), dx, dy, True)
        self._add_gradient(unit.source, dx)

    def _arrived(self, v: int) -> Array | None:
        """The gradient of a value that was neither normed nor cut, from whatever has read it; None without one."""
        gradient, self.gradients[v] = self.gradients[v], _Gradient()
        if gradient.g is not None:
            return gradient.g
        return self.run.sum(gradient.parts) if gradient.parts else None

    def _pool(self, v: int, unit: Unit) -> None:
        run, pool, out, source = self.run, unit.pool, self.done.values[v], self.done.values[unit.source]
        assert pool is not None
        dy = self._arrived(v)
        if dy is None or not self.needs[unit.source]:
            self._add_gradient(unit.source, None)
            return
        todo, extra, stats, last = self._into(unit.source)
        dx = run.empty(source)
        z, y, scale, shift, mean, alive = self._value_arrays(source)
        run.launch(
            k.unpool,
            *(*pooled(run, source, out, pool), dy, out.which, z, y, scale, shift, mean, alive),
            *(todo, extra, dx, stats, run.work(source.width * run.block)),
        )
        self._put(unit.source, dx, stats, last)
        if self.release:
            out.y = out.which = None

    def _into(self, v: int) -> tuple[int, Array, Array, bool]:
        """What a kernel that writes a gradient of v is to do: its flags, what to add, and whether it is the last."""
        todo, extra, stats = 0, self.run.no_map, self.run.no_stats
        self.left[v] -= 1
        last = self.left[v] == 0
        if last:
            todo, arrived = self._flags(v), self.gradients[v].parts
            if arrived:
                extra, todo = self.run.sum(arrived), todo | k.EXTRA
            stats = np.zeros((self.run.blocks, self.done.values[v].channels, 2))
        return todo, extra, stats, last

    def _put(self, v: int, dx: Array, stats: Array, last: bool) -> None:
        """Take what a kernel wrote: the whole gradient of v, or a part of it."""
        if last and v >= self.done.links.inputs:
            self._finished(v, dx, stats)
        else:
            parts = self.gradients[v].parts
            self.gradients[v].parts = [dx] if last else [*parts, dx]

    def _layer(self, u: int) -> Weights:
        step, weight, weights_needed = self.done.steps[u], self.weights[u], self.weights_needed[u]
        v = self.done.links.inputs + u
        run, values, gradient = self.run, self.done.values, self.gradients[v]
        out, source = values[v], values[step.unit.source]
        assert gradient.g is not None
        assert gradient.s1 is not None
        assert gradient.s2 is not None
        a, b, c, fresh = self._norm_gradient(out, step.norm, weight, gradient)
        pattern = step.pattern
        assert pattern is not None
        assert weight.values is not None
        layout = pattern.layout(source.height, source.width, run.block)
        row = layout.at(run.batch)
        todo, extra, dx, stats, last = 0, run.no_map, run.no_map, run.no_stats, False
        if self.needs[step.unit.source]:
            todo, extra, stats, last = self._into(step.unit.source)
            todo |= k.NEED_X
            # dx takes the memory of z, which is in the cache and is read for the last time, each row before its dx.
            reuse = self.release and out.size == source.size
            dx = out.z if reuse and out.z is not None else run.empty(source)
        else:
            self.left[step.unit.source] -= 1
        todo |= k.NEED_W if weights_needed[0] and pattern.o.size else 0
        z, y, scale, shift, mean, alive = self._value_arrays(source)
        read = k.IDENTITY if source.y is not None else k.RELU if source.relu else 0
        partial = np.zeros((run.blocks, pattern.o.size), run.dtype)
        together = pattern.o.size if pattern.o.size <= k.SMALL else pattern.longest
        sums = together * VECTOR_BYTES // run.dtype.itemsize
        mean_out = filled(out.channels, run.dtype, 0) if out.low is None else out.low
        run.launch(
            k.backward,
            *(row, todo, z, y, scale, shift, mean, alive, read, pattern.read_channels),
            *(gradient.g, out.z, a, b, c, mean_out, fresh),
            *(pattern.start, layout.offset),
            *step.rows(pattern.row_start, layout.back_offset, weight.values[pattern.order]),
            *(extra, dx, stats, partial, run.work(layout.back_work * run.block + sums)),
        )
        if todo & k.NEED_X:
            self._put(step.unit.source, dx, stats, last)
        return self._weight_gradients(out, step.norm, weight, weights_needed, partial, a, gradient)

    def _norm_gradient(
        self, out: Value, norm: Norm | None, weight: Weights, gradient: _Gradient
    ) -> tuple[Array, Array, Array, bool]:
        """(a, b, c) of dz = a * g + b * (z - mean) + c, and whether b and c matter."""
        dtype, zero = self.run.dtype, filled(out.channels, self.run.dtype, 0)
        if norm is None or out.invstd is None:
            return filled(out.channels, dtype, 1), zero, zero, False
        a = out.invstd if weight.gamma is None else out.invstd * weight.gamma
        if not norm.training:
            return a.astype(dtype), zero, zero, False
        total = self.run.batch * out.area
        b, c = -a * out.invstd**2 * gradient.s2 / total, -a * gradient.s1 / total
        return a.astype(dtype), b.astype(dtype), c.astype(dtype), True

    def _weight_gradients(
        self,
        out: Value,
        norm: Norm | None,
        weight: Weights,
        weights_needed: Sequence[bool],
        partial: Array,
        a: Array,
        gradient: _Gradient,
    ) -> Weights:
        assert gradient.s1 is not None
        assert gradient.s2 is not None
        dtype = self.run.dtype
        values = np.add.reduce(partial, dtype=np.float64).astype(dtype) if weights_needed[0] else None
        bias = gamma = beta = None
        if weights_needed[1]:  # the mean of the batch removes any bias
            fresh = norm is not None and norm.training
            bias = np.zeros_like(a) if fresh else (a * gradient.s1).astype(dtype)
        if weights_needed[2] and out.invstd is not None:
            gamma = (gradient.s2 * out.invstd).astype(dtype)
        if weights_needed[3]:
            beta = gradient.s1.astype(dtype)
        return Weights(values, bias, gamma, beta)
