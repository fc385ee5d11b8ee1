"""Rules that translate layers and functions to operations; `tables` says which is whose.

A rule takes the builder, the shape of the result with its batch of one image, and the call's own arguments with
values as Refs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gemminer.core.errors import UsageError
from gemminer.sparse.inference.builder import Builder, Ref
from gemminer.sparse.inference.operations import Array, Entries, Planes, Pool, Sum


def _pair(value: Any) -> tuple[int, int]:
    return (int(value), int(value)) if isinstance(value, int) else (int(value[0]), int(value[-1]))


def numbers(tensor: Any, default: float, count: int) -> Array:
    return np.full(count, default) if tensor is None else tensor.detach().double().numpy()


def conv(
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
    planes, _ = b.maps(x)
    dy, dx = ky * dilation[0] - py, kx * dilation[1] - px
    entries = Entries(planes.source, stride, row, planes.channel[channel], dy, dx, value)
    return b.add(Sum(tuple(shape[1:]), (entries,), numbers(bias, 0.0, len(w))), shape)


def conv_module(b: Builder, shape: Any, m: nn.Conv2d, x: Ref) -> Ref:
    if m.padding_mode != "zeros":
        raise UsageError(f"cannot compile a convolution padded with {m.padding_mode!r}: only zeros are known")
    return conv(b, shape, x, m.weight, m.bias, m.stride, m.padding, m.dilation, m.groups)


def linear(b: Builder, shape: Any, x: Ref, weight: Tensor, bias: Any = None) -> Ref:
    """On one pixel numbers are read wherever they lie; on several, tokens, they are channels."""
    w = weight.detach().double().numpy()
    row, feature = np.nonzero(w)
    if math.prod(x.shape) == w.shape[1]:
        cell = b.index(x).reshape(-1).numpy()[feature]
        channel, dy, dx = np.unravel_index(cell, b.shapes[x.value])
        entries, size = Entries(x.value, (1, 1), row, channel, dy, dx, w[row, feature]), (1, 1)
    else:
        planes, size = b.tokens(x, w.shape[1])
        zero = np.zeros(len(row), np.int64)
        entries = Entries(planes.source, (1, 1), row, planes.channel[feature], zero, zero, w[row, feature])
    op = Sum((len(w), *size), (entries,), numbers(bias, 0.0, len(w)))
    return b.add(op, shape, b.token_order(shape, len(w)))


def batch_norm(
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
    count = x.shape[1]
    scale = numbers(weight, 1.0, count) / np.sqrt(numbers(variance, 1.0, count) + eps)
    start = numbers(bias, 0.0, count) - numbers(mean, 0.0, count) * scale
    if len(x.shape) == 2 and x.shape[0] > 1:  # tokens, which the network has put in one row with its images
        planes, size = b.tokens(x, count)
        return b.weighted(size, [(planes, scale)], start, shape=shape, index=b.token_order(shape, count))
    planes, size = b.channels(x)
    return b.weighted(size, [(planes, scale)], start, shape=shape)


def batch_norm_module(b: Builder, shape: Any, m: nn.BatchNorm2d, x: Ref) -> Ref:
    return batch_norm(b, shape, x, m.running_mean, m.running_var, m.weight, m.bias, eps=m.eps)


def clamp(b: Builder, shape: Any, x: Ref, min: Any = None, max: Any = None, inplace: bool = False) -> Ref:
    if isinstance(min, Tensor | Ref) or isinstance(max, Tensor | Ref):
        raise UsageError("cannot compile a clamp to a tensor: only numbers are known")
    low, high = -math.inf if min is None else float(min), math.inf if max is None else float(max)
    return b.clamped(x, low, high)


def relu(b: Builder, shape: Any, x: Ref, inplace: bool = False) -> Ref:
    return clamp(b, shape, x, 0.0)


def relu6(b: Builder, shape: Any, x: Ref, inplace: bool = False) -> Ref:
    return clamp(b, shape, x, 0.0, 6.0)


def hardtanh(b: Builder, shape: Any, x: Ref, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False) -> Ref:
    return clamp(b, shape, x, min_val, max_val)


def leaky_relu(b: Builder, shape: Any, x: Ref, negative_slope: float = 0.01, inplace: bool = False) -> Ref:
    """slope * x + (1 - slope) * relu(x)."""
    return add(b, shape, b.scaled(b.lead(x, x.shape), negative_slope), relu(b, shape, x), alpha=1 - negative_slope)


def hardsigmoid(b: Builder, shape: Any, x: Ref, inplace: bool = False) -> Ref:
    return b.scaled(b.lead(x, x.shape), 1 / 6, 0.5, low=0.0, high=1.0)


def formula(function: str) -> Callable[..., Ref]:
    """The rule of a row of `kernels.FORMULAS` of one operand; the call may say `inplace` and nothing else."""

    def rule(b: Builder, shape: Any, x: Ref, inplace: bool = False) -> Ref:
        return b.applied(function, b.lead(x, x.shape))

    return rule


def gelu(b: Builder, shape: Any, x: Ref, approximate: str = "none") -> Ref:
    return formula({"none": "gelu", "tanh": "gelu_tanh"}[approximate])(b, shape, x)


def elu(b: Builder, shape: Any, x: Ref, alpha: float = 1.0, inplace: bool = False) -> Ref:
    if alpha != 1:
        raise UsageError("cannot compile an ELU with an alpha other than 1")
    return formula("elu")(b, shape, x)


def softplus(b: Builder, shape: Any, x: Ref, beta: float = 1.0, threshold: float = 20.0) -> Ref:
    if (beta, threshold) != (1, 20):
        raise UsageError("cannot compile a softplus with another beta or threshold than PyTorch's own")
    return formula("softplus")(b, shape, x)


def _operands(b: Builder, shape: Any, x: Any, y: Any) -> tuple[Ref, Any, bool]:
    """The operand that has all of the result's numbers or is made to, the other one, and whether they are swapped."""
    swapped = not isinstance(x, Ref) or (isinstance(y, Ref) and x.shape != tuple(shape) == y.shape)
    first, second = (y, x) if swapped else (x, y)
    return b.lead(first, tuple(shape)), second, swapped


def add(b: Builder, shape: Any, x: Any, y: Any, *, alpha: float = 1.0) -> Ref:
    lead, other, swapped = _operands(b, shape, x, y)
    own, theirs = (alpha, 1.0) if swapped else (1.0, alpha)
    if not isinstance(other, Ref | Tensor):
        return b.scaled(lead, own, float(other) * theirs)
    beside = b.beside(lead, other, spread=own == theirs == 1)
    if not isinstance(beside, Planes):
        return b.scaled(lead, own, beside * theirs)
    channels, *size = b.shapes[lead.value]
    if b.shapes[beside.source][1:] != tuple(size):
        return b.applied("add", lead, beside)
    parts = [(Planes(lead.value, np.arange(channels)), own), (beside, theirs)]
    return b.weighted((size[0], size[1]), parts, shape=lead.shape, index=lead.index)


def sub(b: Builder, shape: Any, x: Any, y: Any, *, alpha: float = 1.0) -> Ref:
    return add(b, shape, x, y, alpha=-alpha)


def mul(b: Builder, shape: Any, x: Any, y: Any) -> Ref:
    lead, other, _ = _operands(b, shape, x, y)
    if not isinstance(other, Ref | Tensor):
        return b.scaled(lead, float(other))
    beside = b.beside(lead, other, spread=True)
    return b.applied("mul", lead, beside) if isinstance(beside, Planes) else b.scaled(lead, beside)


def div(b: Builder, shape: Any, x: Any, y: Any) -> Ref:
    if not isinstance(x, Ref):
        raise UsageError("cannot compile a division by a value")
    lead = b.lead(x, tuple(shape))
    if not isinstance(y, Ref | Tensor):
        return b.scaled(lead, 1 / float(y))
    beside = b.beside(lead, y, spread=True)
    return b.applied("div", lead, beside) if isinstance(beside, Planes) else b.scaled(lead, 1 / beside)


def neg(b: Builder, shape: Any, x: Ref) -> Ref:
    return mul(b, shape, x, -1.0)


def pool(b: Builder, x: Ref, shape: Any, largest: bool, window: Any, stride: Any, padding: Any) -> Ref:
    planes, _ = b.maps(x)
    geometry = (_pair(window), _pair(stride), _pair(padding))
    return b.add(Pool(tuple(shape[1:]), planes.source, planes.channel, largest, *geometry), shape)


def max_pool(
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
    return pool(b, x, shape, True, kernel_size, stride or kernel_size, padding)


def max_pool_module(b: Builder, shape: Any, m: nn.MaxPool2d, x: Ref) -> Ref:
    return max_pool(b, shape, x, m.kernel_size, m.stride, m.padding, m.dilation, m.ceil_mode, m.return_indices)


def avg_pool(
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
    return pool(b, x, shape, False, kernel_size, stride or kernel_size, padding)


def avg_pool_module(b: Builder, shape: Any, m: nn.AvgPool2d, x: Ref) -> Ref:
    rest = (m.ceil_mode, m.count_include_pad, m.divisor_override)
    return avg_pool(b, shape, x, m.kernel_size, m.stride, m.padding, *rest)


def adaptive(b: Builder, shape: Any, x: Ref, output_size: Any = None) -> Ref:
    sizes, out = tuple(x.shape[-2:]), tuple(shape[-2:])
    if len(x.shape) != 4 or any(n % o for n, o in zip(sizes, out, strict=True)):
        raise UsageError(f"cannot compile an adaptive pool from {sizes} to {out}: sizes must divide")
    window = (sizes[0] // out[0], sizes[1] // out[1])
    return pool(b, x, shape, False, window, window, 0)


def mean(b: Builder, shape: Any, x: Ref, dim: Any = None, keepdim: bool = False, **_: Any) -> Ref:
    """Over pixels a pool of all; over channels a sum."""
    axes = sorted({d % len(x.shape) for d in ([dim] if isinstance(dim, int) else dim or range(len(x.shape)))})
    kept = [d for d in range(len(x.shape)) if d not in axes]
    index = b.index(x).permute(*kept, *axes).reshape(math.prod(x.shape[d] for d in kept), -1)
    channels, count = index.shape
    size = b.shapes[x.value][1:]
    together = torch.equal(index, index[:1] + torch.arange(channels)[:, None])
    if math.prod(size) == channels and together and bool((index[0] % channels == 0).all()):
        channel, zero = (index[0] // channels).numpy(), np.zeros(count, np.int64)
        entries = Entries(x.value, (1, 1), zero, channel, zero, zero, np.full(count, 1 / count))
        return b.add(Sum((1, *size), (entries,), np.zeros(1)), shape)
    planes, size = b.planes(x, index)
    return b.add(Pool((channels, 1, 1), planes.source, planes.channel, False, size, (1, 1), (0, 0)), shape)


def same(b: Builder, shape: Any, x: Ref, *_: Any, **__: Any) -> Ref:
    return x


def moved(function: Any) -> Callable[..., Any]:
    """The rule of a function or method that only moves numbers: it is run on their places."""

    def rule(b: Builder, shape: Any, x: Ref, *args: Any, **kwargs: Any) -> Any:
        # What a view needs of the tensor's memory has nothing to do with the places' memory.
        run = getattr(Tensor, {"view": "reshape"}.get(function, function)) if isinstance(function, str) else function
        plain = [torch.empty(part.shape, device="meta") if isinstance(part, Ref) else part for part in args]
        return b.viewed(x, lambda index: run(index, *plain, **kwargs))

    return rule


def cut(b: Builder, shape: Any, x: Any, index: Any) -> Any:
    """x[:, a:b, ::s, ::t] of maps is a sum like a convolution; other indices move numbers."""
    if isinstance(x, tuple):
        return x[index]
    full = index if isinstance(index, tuple) else (index,)
    if len(x.shape) != 4 or len(shape) != 4 or not all(isinstance(i, slice) for i in full) or full[0] != slice(None):
        return b.viewed(x, lambda places: places[index])
    planes, sizes = b.maps(x)
    rest = [*full[1:], *[slice(None)] * (4 - len(full))]
    ranges = [range(n)[i] for n, i in zip((len(planes.channel), *sizes), rest, strict=True)]
    channel = planes.channel[np.array(ranges[0])]
    one = np.ones(len(channel), np.int64)
    entries = Entries(
        planes.source, (ranges[1].step, ranges[2].step), np.arange(len(channel)), channel, ranges[1].start * one,
        ranges[2].start * one, one.astype(np.float64),
    )  # fmt: skip
    return b.add(Sum(tuple(shape[1:]), (entries,), np.zeros(len(channel))), shape)


def pad(b: Builder, shape: Any, x: Ref, pad: Sequence[int], mode: str = "constant", value: Any = None) -> Ref:
    left, _, top, _, before, _ = (*pad, *[0] * (6 - len(pad)))
    if len(x.shape) != 4 or len(pad) > 6 or mode != "constant" or value:
        raise UsageError("cannot compile a pad other than zeros around channels, rows or columns")
    planes, _ = b.maps(x)
    channel = np.arange(max(0, -before), min(len(planes.channel), shape[1] - before))
    one = np.ones(len(channel), np.int64)
    where = (channel + before, planes.channel[channel], -top * one, -left * one, one.astype(np.float64))
    return b.add(Sum(tuple(shape[1:]), (Entries(planes.source, (1, 1), *where),), np.zeros(shape[1])), shape)


def cat(b: Builder, shape: Any, tensors: Any, dim: int = 0, **_: Any) -> Ref:
    """Of maps along channels, rows of a sum; along another axis its numbers are columns, a part's behind the last's."""
    axis = dim % len(shape)
    maps, rows = len(shape) == 4 and axis == 1, math.prod(shape) // shape[axis]
    entries, at = [], 0
    for tensor in tensors:
        ref = tensor if isinstance(tensor, Ref) else b.constant(tensor, None if maps else axis)
        count = ref.shape[axis]
        every, zero = np.arange(count), np.zeros(count, np.int64)
        if maps:
            planes, _size = b.maps(ref)
            part: tuple[Any, ...] = (planes.source, every + at, planes.channel, zero, zero)
        elif rows == 1:
            part = (ref.value, every + at, *np.unravel_index(b.index(ref).reshape(-1).numpy(), b.shapes[ref.value]))
        else:
            planes, _size = b.planes(ref, b.index(ref).movedim(axis, -1).reshape(rows, count), (1, count))
            zero = np.zeros(rows, np.int64)
            part = (planes.source, np.arange(rows), planes.channel, zero, zero - at)
        entries.append(Entries(part[0], (1, 1), part[1], part[2], part[3], part[4], np.ones(len(part[1]))))
        at += count
    whole = tuple(shape[1:]) if maps else (at, 1, 1) if rows == 1 else (rows, 1, at)
    moved = [*(n for d, n in enumerate(shape) if d != axis), at]
    order = None if maps else torch.arange(math.prod(shape)).reshape(moved).movedim(-1, axis)
    return b.add(Sum(whole, tuple(entries), np.zeros(whole[0])), shape, order)


def stack(b: Builder, shape: Any, tensors: Any, dim: int = 0) -> Ref:
    """A concatenation along an axis of one."""
    axis = dim % len(shape)
    parts = [t if isinstance(t, Ref) else b.constant(t) for t in tensors]
    return cat(b, shape, [b.viewed(ref, lambda places: places.unsqueeze(axis)) for ref in parts], axis)
