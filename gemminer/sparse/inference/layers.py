"""Translations of layers to Sums and Pools: MODULES by type, FUNCTIONS by function or method name.

A rule takes the builder, the shape of the result of one image, and the call's own arguments with values as Refs.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gemminer.core.errors import UsageError
from gemminer.sparse.inference.layout import Array, Entries, Operation, Pool, Shape, Sum


@dataclass(frozen=True)
class Ref:
    """A value in the graph; `flat` where the network sees its map as a row of features."""

    value: int
    flat: bool


class Builder:
    """Collects the operations of a network as it is traced; their weights are float64 until they are final."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.operations: list[Operation] = []
        self.shapes: list[Shape] = [(shape[0], shape[1], shape[2]) if len(shape) == 3 else (1, 1, shape[0])]

    def add(self, op: Operation, *, flat: bool = False) -> Ref:
        self.operations.append(op)
        self.shapes.append(op.shape)
        return Ref(len(self.operations), flat)

    def pointwise(self, parts: Sequence[tuple[Ref, float | Array]], bias: Any = 0.0, **limits: float) -> Ref:
        """clamp(bias + sum of scale * value), values of one shape; scale and bias a number or one a channel."""
        first = parts[0][0]
        if len({self.shapes[ref.value] for ref, _ in parts}) > 1:
            if not first.flat:
                raise UsageError("cannot compile an operation on maps of different shapes: broadcasting is not known")
            parts = [(self.features(ref), scale) for ref, scale in parts]
        shape = self.shapes[parts[0][0].value]
        every, zero = np.arange(shape[0]), np.zeros(shape[0], np.int64)
        entries = [
            Entries(ref.value, (1, 1), every, every, zero, zero, np.broadcast_to(np.float64(scale), every.shape))
            for ref, scale in parts
        ]
        start = np.array(np.broadcast_to(np.float64(bias), every.shape))
        return self.add(Sum(shape, tuple(entries), start, **limits), flat=first.flat)

    def features(self, ref: Ref) -> Ref:
        """A flattened map as channels of one pixel."""
        shape = self.shapes[ref.value]
        if shape[1:] == (1, 1):
            return ref
        count = math.prod(shape)
        channel, y, x = np.unravel_index(np.arange(count), shape)
        entries = Entries(ref.value, (1, 1), np.arange(count), channel, y, x, np.ones(count))
        return self.add(Sum((count, 1, 1), (entries,), np.zeros(count)), flat=True)


def _pair(value: Any) -> tuple[int, int]:
    return (int(value), int(value)) if isinstance(value, int) else (int(value[0]), int(value[-1]))


def _numbers(tensor: Any, default: float, count: int) -> Array:
    return np.full(count, default) if tensor is None else tensor.detach().double().numpy()


def _conv(
    b: Builder,
    shape: Any,
    x: Ref,
    weight: Tensor,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Ref:
    stride, dilation = _pair(stride), _pair(dilation)
    if padding == "same":  # PyTorch pads the odd pixel after the map
        padding = tuple(d * (k - 1) // 2 for d, k in zip(dilation, weight.shape[2:], strict=True))
    py, px = _pair(0 if padding == "valid" else padding)
    w = weight.detach().double().numpy()
    row, channel, ky, kx = np.nonzero(w)
    value = w[row, channel, ky, kx]
    channel = channel + row // (len(w) // groups) * w.shape[1]
    entries = Entries(x.value, stride, row, channel, ky * dilation[0] - py, kx * dilation[1] - px, value)
    return b.add(Sum(tuple(shape), (entries,), _numbers(bias, 0.0, len(w))))


def _conv_module(b: Builder, shape: Any, m: nn.Conv2d, x: Ref) -> Ref:
    if m.padding_mode != "zeros":
        raise UsageError(f"cannot compile a convolution padded with {m.padding_mode!r}: only zeros are known")
    return _conv(b, shape, x, m.weight, m.bias, m.stride, m.padding, m.dilation, m.groups)


def _linear(b: Builder, shape: Any, x: Ref, weight: Tensor, bias: Any = None) -> Ref:
    if not x.flat:
        raise UsageError("cannot compile a linear layer on maps: flatten them first")
    w = weight.detach().double().numpy()
    row, feature = np.nonzero(w)
    channel, dy, dx = np.unravel_index(feature, b.shapes[x.value])
    entries = Entries(x.value, (1, 1), row, channel, dy, dx, w[row, feature])
    return b.add(Sum((len(w), 1, 1), (entries,), _numbers(bias, 0.0, len(w))), flat=True)


def _batch_norm(
    b: Builder,
    shape: Any,
    x: Ref,
    mean: Any,
    variance: Any,
    weight: Any = None,
    bias: Any = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Ref:
    if training or mean is None or variance is None:
        raise UsageError("cannot compile a batch norm without running statistics: its result depends on the batch")
    x = b.features(x) if x.flat else x
    count = b.shapes[x.value][0]
    scale = _numbers(weight, 1.0, count) / np.sqrt(_numbers(variance, 1.0, count) + eps)
    return b.pointwise([(x, scale)], _numbers(bias, 0.0, count) - _numbers(mean, 0.0, count) * scale)


def _batch_norm_module(b: Builder, shape: Any, m: nn.BatchNorm2d, x: Ref) -> Ref:
    return _batch_norm(b, shape, x, m.running_mean, m.running_var, m.weight, m.bias, eps=m.eps)


def _clamp(b: Builder, shape: Any, x: Ref, min: Any = None, max: Any = None, inplace: bool = False) -> Ref:
    if isinstance(min, Tensor | Ref) or isinstance(max, Tensor | Ref):
        raise UsageError("cannot compile a clamp to a tensor: only numbers are known")
    low, high = -math.inf if min is None else float(min), math.inf if max is None else float(max)
    return b.pointwise([(x, 1.0)], low=low, high=high)


def _relu(b: Builder, shape: Any, x: Ref, inplace: bool = False) -> Ref:
    return _clamp(b, shape, x, 0.0)


def _relu6(b: Builder, shape: Any, x: Ref, inplace: bool = False) -> Ref:
    return _clamp(b, shape, x, 0.0, 6.0)


def _hardtanh(
    b: Builder, shape: Any, x: Ref, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False
) -> Ref:
    return _clamp(b, shape, x, min_val, max_val)


def _leaky_relu(b: Builder, shape: Any, x: Ref, negative_slope: float = 0.01, inplace: bool = False) -> Ref:
    """slope * x + (1 - slope) * relu(x)."""
    return b.pointwise([(x, negative_slope), (_relu(b, shape, x), 1 - negative_slope)])


def _add(b: Builder, shape: Any, x: Any, y: Any, *, alpha: float = 1.0) -> Ref:
    if isinstance(x, Ref) and isinstance(y, Ref):
        return b.pointwise([(x, 1.0), (y, alpha)])
    ref, other = (x, y) if isinstance(x, Ref) else (y, x)
    return b.pointwise([(ref, 1.0 if ref is x else alpha)], _number(other) * (alpha if ref is x else 1.0))


def _sub(b: Builder, shape: Any, x: Any, y: Any, *, alpha: float = 1.0) -> Ref:
    return _add(b, shape, x, y, alpha=-alpha)


def _mul(b: Builder, shape: Any, x: Any, y: Any) -> Ref:
    ref, other = (x, y) if isinstance(x, Ref) else (y, x)
    return b.pointwise([(ref, _number(other))])


def _div(b: Builder, shape: Any, x: Any, y: Any) -> Ref:
    if not isinstance(x, Ref):
        raise UsageError("cannot compile a division by a value")
    return b.pointwise([(x, 1 / _number(y))])


def _number(other: Any) -> float:
    if isinstance(other, int | float):
        return float(other)
    raise UsageError("cannot compile arithmetic of a value with a tensor or another value: only numbers and adds")


def _pool(b: Builder, x: Ref, shape: Any, largest: bool, window: Any, stride: Any, padding: Any) -> Ref:
    channels = np.arange(shape[0], dtype=np.int32)
    return b.add(Pool(tuple(shape), x.value, channels, largest, _pair(window), _pair(stride), _pair(padding)))


def _max_pool(
    b: Builder,
    shape: Any,
    x: Ref,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Ref:
    if _pair(dilation) != (1, 1) or return_indices:
        raise UsageError("cannot compile a max pool with dilation or indices")
    return _pool(b, x, shape, True, kernel_size, stride or kernel_size, padding)


def _max_pool_module(b: Builder, shape: Any, m: nn.MaxPool2d, x: Ref) -> Ref:
    return _max_pool(b, shape, x, m.kernel_size, m.stride, m.padding, m.dilation, m.ceil_mode, m.return_indices)


def _avg_pool(
    b: Builder,
    shape: Any,
    x: Ref,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: Any = None,
) -> Ref:
    if ceil_mode or divisor_override is not None or (_pair(padding) != (0, 0) and not count_include_pad):
        raise UsageError("cannot compile a mean pool whose divisor varies (ceil_mode, count_include_pad) or is given")
    return _pool(b, x, shape, False, kernel_size, stride or kernel_size, padding)


def _avg_pool_module(b: Builder, shape: Any, m: nn.AvgPool2d, x: Ref) -> Ref:
    rest = (m.ceil_mode, m.count_include_pad, m.divisor_override)
    return _avg_pool(b, shape, x, m.kernel_size, m.stride, m.padding, *rest)


def _adaptive(b: Builder, shape: Any, x: Ref, output_size: Any = None) -> Ref:
    sizes = b.shapes[x.value][1:]
    if any(n % out for n, out in zip(sizes, shape[1:], strict=True)):
        raise UsageError(f"cannot compile an adaptive pool from {sizes} to {shape[1:]}: sizes must divide")
    window = (sizes[0] // shape[1], sizes[1] // shape[2])
    return _pool(b, x, shape, False, window, window, 0)


def _mean(b: Builder, shape: Any, x: Ref, dim: Any = None, keepdim: bool = False, **_: Any) -> Ref:
    axes = {d % 4 for d in ([dim] if isinstance(dim, int) else dim or ())}
    if x.flat or axes != {2, 3}:
        raise UsageError("cannot compile a mean other than over height and width")
    ref = _pool(b, x, (b.shapes[x.value][0], 1, 1), False, b.shapes[x.value][1:], 1, 0)
    return ref if keepdim else Ref(ref.value, True)


def _same(b: Builder, shape: Any, x: Ref, *_: Any, **__: Any) -> Ref:
    return x


def _reshape(b: Builder, shape: Any, x: Ref, *_: Any, **__: Any) -> Ref:
    """A flattening, or a reshape to the same shape; others are refused where shapes are compared."""
    return Ref(x.value, len(shape) == 1)


def _cut(b: Builder, shape: Any, x: Ref, index: Any) -> Ref:
    """x[:, a:b, ::s, ::t]."""
    index = index if isinstance(index, tuple) else (index,)
    if x.flat or not all(isinstance(i, slice) for i in index) or index[0] != slice(None):
        raise UsageError("cannot compile an index that is not a slice of channels, rows or columns")
    sizes = b.shapes[x.value]
    full = [range(n)[i] for n, i in zip(sizes, [*index[1:], *[slice(None)] * (4 - len(index))], strict=True)]
    channel = np.array(full[0])
    one = np.ones(len(channel), np.int64)
    entries = Entries(
        x.value, (full[1].step, full[2].step), np.arange(len(channel)), channel, full[1].start * one,
        full[2].start * one, one.astype(np.float64),
    )  # fmt: skip
    return b.add(Sum(tuple(shape), (entries,), np.zeros(len(channel))))


def _pad(b: Builder, shape: Any, x: Ref, pad: Sequence[int], mode: str = "constant", value: Any = None) -> Ref:
    left, _, top, _, before, _ = (*pad, *[0] * (6 - len(pad)))
    if x.flat or len(pad) > 6 or mode != "constant" or value:
        raise UsageError("cannot compile a pad other than zeros around channels, rows or columns")
    sizes = b.shapes[x.value]
    channel = np.arange(max(0, -before), min(sizes[0], shape[0] - before))
    one = np.ones(len(channel), np.int64)
    entries = Entries(x.value, (1, 1), channel + before, channel, -top * one, -left * one, one.astype(np.float64))
    return b.add(Sum(tuple(shape), (entries,), np.zeros(shape[0])))


def _cat(b: Builder, shape: Any, tensors: Any, dim: int = 0, **_: Any) -> Ref:
    if dim not in (1, -3 if len(shape) == 3 else -1) or not all(isinstance(t, Ref) for t in tensors):
        raise UsageError("cannot compile a concatenation other than of values along channels")
    flat = tensors[0].flat
    refs = [b.features(t) if flat else t for t in tensors]
    entries, row = [], 0
    for ref in refs:
        every = np.arange(b.shapes[ref.value][0])
        zero = np.zeros(len(every), np.int64)
        entries.append(Entries(ref.value, (1, 1), every + row, every, zero, zero, np.ones(len(every))))
        row += len(every)
    whole = (row, 1, 1) if flat else tuple(shape)
    return b.add(Sum(whole, tuple(entries), np.zeros(row)), flat=flat)


MODULES: dict[type, Callable[..., Ref]] = {
    nn.Conv2d: _conv_module,
    nn.Linear: lambda b, shape, m, x: _linear(b, shape, x, m.weight, m.bias),
    nn.BatchNorm2d: _batch_norm_module,
    nn.BatchNorm1d: _batch_norm_module,
    nn.ReLU: lambda b, shape, m, x: _relu(b, shape, x),
    nn.ReLU6: lambda b, shape, m, x: _relu6(b, shape, x),
    nn.Hardtanh: lambda b, shape, m, x: _clamp(b, shape, x, m.min_val, m.max_val),
    nn.LeakyReLU: lambda b, shape, m, x: _leaky_relu(b, shape, x, m.negative_slope),
    nn.MaxPool2d: _max_pool_module,
    nn.AvgPool2d: _avg_pool_module,
    nn.AdaptiveAvgPool2d: lambda b, shape, m, x: _adaptive(b, shape, x),
    nn.ZeroPad2d: lambda b, shape, m, x: _pad(b, shape, x, m.padding),
    nn.Flatten: lambda b, shape, m, x: _reshape(b, shape, x),
    **dict.fromkeys((nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d), lambda b, shape, m, x: x),
}

# Functions by themselves, methods by name.
FUNCTIONS: dict[Any, Callable[..., Ref]] = {
    F.conv2d: _conv,
    F.linear: _linear,
    F.batch_norm: _batch_norm,
    F.hardtanh: _hardtanh,
    F.leaky_relu: _leaky_relu,
    F.pad: _pad,
    **dict.fromkeys((F.relu6,), _relu6),
    **dict.fromkeys((F.relu, torch.relu, torch.relu_, "relu", "relu_"), _relu),
    **dict.fromkeys((torch.clamp, "clamp", "clip"), _clamp),
    **dict.fromkeys((operator.add, operator.iadd, torch.add, "add", "add_"), _add),
    **dict.fromkeys((operator.sub, torch.sub, "sub"), _sub),
    **dict.fromkeys((operator.mul, torch.mul, "mul"), _mul),
    **dict.fromkeys((operator.truediv, torch.div, "div"), _div),
    **dict.fromkeys((F.max_pool2d, torch.max_pool2d), _max_pool),
    F.avg_pool2d: _avg_pool,
    F.adaptive_avg_pool2d: _adaptive,
    **dict.fromkeys((torch.mean, "mean"), _mean),
    **dict.fromkeys((torch.flatten, torch.reshape, "flatten", "view", "reshape", torch.squeeze, "squeeze"), _reshape),
    **dict.fromkeys((F.dropout, F.dropout2d, "contiguous", "float", "clone", "detach"), _same),
    operator.getitem: _cut,
    **dict.fromkeys((torch.cat, torch.concat), _cat),
}
