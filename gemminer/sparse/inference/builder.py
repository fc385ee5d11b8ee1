"""Values of a network while it is compiled, and the operations that compute them.

A tensor of the network is some numbers of a value in some order (`Ref`): permutations, reshapes, slices and chunks
change the order and compute nothing. Who reads a tensor asks for it as planes; where it lies so already, as tokens
do whose features are channels, it is read in place, and only what lies otherwise is put in order by a Gather.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gemminer.core.errors import UsageError
from gemminer.sparse.inference.operations import (
    Apply,
    Array,
    Constant,
    Entries,
    Gather,
    Operation,
    Planes,
    Shape,
    Sum,
)


@dataclass(frozen=True)
class Ref:
    """A tensor of the network: the numbers of `value` at `index`, which has its shape; None is all of them in order."""

    value: int
    shape: tuple[int, ...]  # with the batch, which is one image, wherever the network has put it
    index: Tensor | None = None


class Builder:
    """Collects the operations of a network as it is traced; their weights are float64 until they are final."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.operations: list[Operation] = []
        self.shapes: list[Shape] = [(shape[0], shape[1], shape[2]) if len(shape) == 3 else (1, 1, shape[0])]
        self.moves = False  # whether something was read in another order than the network's own

    def add(self, op: Operation, shape: Sequence[int], index: Any = None) -> Ref:
        """The operation's result as a tensor of the network."""
        self.operations.append(op)
        self.shapes.append(op.shape)
        return self._ref(len(self.operations), tuple(shape), index)

    def _ref(self, value: int, shape: tuple[int, ...], index: Any) -> Ref:
        count = math.prod(self.shapes[value])
        if index is not None:
            index = torch.as_tensor(index).reshape(shape)
            if math.prod(shape) == count and torch.equal(index.reshape(-1), torch.arange(count)):
                index = None
        return Ref(value, shape, index)

    def index(self, ref: Ref) -> Tensor:
        """Where each number of the tensor lies in its value."""
        return torch.arange(math.prod(ref.shape)).reshape(ref.shape) if ref.index is None else ref.index

    def viewed(self, ref: Ref, moved: Callable[[Tensor], Any]) -> Any:
        """What a function that only moves numbers makes of the tensor; Refs for a tuple."""
        self.moves = True
        out = moved(self.index(ref))
        if isinstance(out, Tensor):
            return self._ref(ref.value, tuple(out.shape), out)
        return tuple(self._ref(ref.value, tuple(part.shape), part) for part in out)

    # reading tensors as planes

    def planes(self, ref: Ref, cells: Tensor, size: tuple[int, int] | None = None) -> tuple[Planes, tuple[int, int]]:
        """Planes that hold the numbers at `cells`, (channels, pixels), and their size: `size`, if it is given."""
        found = self._in_place(ref.value, cells, size)
        if found is not None:
            return found, self._size(ref.value)
        size = size or (1, cells.shape[1])
        count = self.shapes[ref.value][0]
        whole = Planes(ref.value, np.arange(count))
        op = Gather((len(cells), *size), (whole,), cells.reshape(-1).numpy())
        return Planes(self.add(op, cells.shape).value, np.arange(len(cells))), size

    def _size(self, value: int) -> tuple[int, int]:
        return self.shapes[value][1:]

    def _in_place(self, value: int, cells: Tensor, size: tuple[int, int] | None) -> Planes | None:
        """The planes of a value that are these cells, pixel by pixel."""
        pixels = math.prod(self._size(value))
        if pixels != cells.shape[1] or size not in (None, self._size(value)) or not cells.numel():
            return None
        first = cells[:, 0]
        if bool((first % pixels).any()) or not torch.equal(cells, first[:, None] + torch.arange(pixels)):
            return None
        return Planes(value, (first // pixels).numpy())

    def channels(self, ref: Ref) -> tuple[Planes, tuple[int, int]]:
        """A tensor (1, C), (1, C, L) or (1, C, H, W) as planes."""
        if len(ref.shape) == 4:
            return self.maps(ref)
        ref = self.features(ref) if len(ref.shape) == 2 else ref
        return self.planes(ref, self.index(ref).reshape(ref.shape[1], -1))

    def maps(self, ref: Ref) -> tuple[Planes, tuple[int, int]]:
        """A tensor (1, C, H, W) as planes."""
        if len(ref.shape) != 4 or ref.shape[0] != 1:
            raise UsageError(f"cannot compile an operation on maps with a tensor of shape {ref.shape}")
        size = (ref.shape[2], ref.shape[3])
        if ref.index is None and self.shapes[ref.value] == ref.shape[1:]:
            return Planes(ref.value, np.arange(ref.shape[1])), size
        return self.planes(ref, self.index(ref).reshape(ref.shape[1], -1), size)

    def tokens(self, ref: Ref, features: int) -> tuple[Planes, tuple[int, int]]:
        """The last axes, of so many numbers, as channels; all before them are pixels."""
        return self.planes(ref, self.index(ref).reshape(-1, features).T)

    @staticmethod
    def token_order(shape: Sequence[int], features: int) -> Tensor:
        """The index of a tensor whose last axes are the channels of its value."""
        count = math.prod(shape)
        return torch.arange(count).reshape(features, -1).T.reshape(tuple(shape))

    # sums

    def weighted(
        self,
        size: tuple[int, int],
        parts: Sequence[tuple[Planes, Any]],
        bias: Any = 0.0,
        *,
        shape: Sequence[int],
        index: Any = None,
        **limits: float,
    ) -> Ref:
        """clamp(bias + sum of scale * planes), plane by plane; scale and bias a number or one for each."""
        count = len(parts[0][0].channel)
        every, zero = np.arange(count), np.zeros(count, np.int64)
        entries = [
            Entries(p.source, (1, 1), every, p.channel, zero, zero, np.broadcast_to(np.float64(scale), every.shape))
            for p, scale in parts
        ]
        start = np.array(np.broadcast_to(np.float64(bias), every.shape))
        return self.add(Sum((count, *size), tuple(entries), start, **limits), shape, index)

    def features(self, ref: Ref) -> Ref:
        """A tensor of one pixel a number."""
        count = math.prod(ref.shape)
        if ref.index is None and self._size(ref.value) == (1, 1):
            return ref
        channel, y, x = np.unravel_index(self.index(ref).reshape(-1).numpy(), self.shapes[ref.value])
        entries = Entries(ref.value, (1, 1), np.arange(count), channel, y, x, np.ones(count))
        return self.add(Sum((count, 1, 1), (entries,), np.zeros(count)), ref.shape)

    # arithmetic, number by number

    def lead(self, ref: Ref, shape: tuple[int, ...]) -> Ref:
        """The tensor, broadcast to a shape, so that it is all of a value."""
        count = math.prod(self.shapes[ref.value])
        index = self.index(ref)
        all_of_it = ref.shape == shape and index.numel() == count
        if all_of_it and (ref.index is None or bool((torch.bincount(index.reshape(-1), minlength=count) == 1).all())):
            return ref
        index = index.expand(shape)
        features = shape[1] if len(shape) == 4 else shape[-1] if shape else 1
        if len(shape) == 4:
            planes, size = self.planes(ref, index.reshape(shape[0] * features, -1), (shape[2], shape[3]))
            order = None
        else:
            planes, size = self.planes(ref, index.reshape(-1, features).T)
            order = self.token_order(shape, features)
        return self.weighted(size, [(planes, 1.0)], shape=shape, index=order)

    def beside(self, lead: Ref, other: Ref | Tensor, *, spread: bool) -> Planes | Array:
        """Another operand as planes in the order of `lead`; of one pixel, if it may, where that is all it has.

        Of a constant a number for each channel, (channels,), where that is all it has.
        """
        shape = self.shapes[lead.value]
        order = slice(None) if lead.index is None else torch.argsort(lead.index.reshape(-1))
        if isinstance(other, Tensor):
            data = other.detach().double().expand(lead.shape).reshape(-1)[order].reshape(shape[0], -1)
            if bool((data == data[:, :1]).all()):
                return np.asarray(data[:, 0].numpy())
            value = self.add(Constant(shape, data.reshape(shape).numpy()), shape).value
            return Planes(value, np.arange(shape[0]))
        cells = self.index(other).expand(lead.shape).reshape(-1)[order].reshape(shape[0], -1)
        if spread and cells.shape[1] > 1 and bool((cells == cells[:, :1]).all()):
            return self.planes(other, cells[:, :1])[0]
        return self.planes(other, cells, self._size(lead.value))[0]

    def applied(self, function: str, lead: Ref, *others: Planes) -> Ref:
        """A formula of the whole of a value and of planes beside it."""
        shape = self.shapes[lead.value]
        whole = Planes(lead.value, np.arange(shape[0]))
        return self.add(Apply(shape, function, (whole, *others)), lead.shape, lead.index)

    def scaled(self, lead: Ref, scale: Any, bias: Any = 0.0, **limits: float) -> Ref:
        """clamp(scale * x + bias); numbers, or one for each channel of the value."""
        shape = self.shapes[lead.value]
        whole = Planes(lead.value, np.arange(shape[0]))
        return self.weighted(shape[1:], [(whole, scale)], bias, shape=lead.shape, index=lead.index, **limits)

    def clamped(self, ref: Ref, low: float, high: float) -> Ref:
        return self.scaled(self.lead(ref, ref.shape), 1.0, low=low, high=high)

    def constant(self, data: Tensor, axis: int | None = None) -> Ref:
        """A tensor that no image changes; with an axis, its numbers along it are the pixels of channels."""
        data = data.detach().double()
        if axis is None:
            maps = data.ndim == 4 and len(data) == 1
            shape = (*data.shape[1:3], data.shape[3]) if maps else (1, 1, data.numel())
            return self.add(Constant(shape, data.reshape(shape).numpy()), data.shape)
        moved = data.movedim(axis, -1)
        shape = (data.numel() // data.shape[axis], 1, data.shape[axis])
        order = torch.arange(data.numel()).reshape(moved.shape).movedim(-1, axis)
        return self.add(Constant(shape, moved.reshape(shape).numpy()), data.shape, order)

    def plain(self, ref: Ref) -> Ref:
        """The tensor in its own order."""
        if ref.index is None:
            return ref
        self.moves = True
        cells = self.index(ref).reshape(1, -1)
        planes, size = self.planes(ref, cells)
        if planes.source != ref.value:
            return Ref(planes.source, ref.shape)
        return self.weighted(size, [(planes, 1.0)], shape=ref.shape)
