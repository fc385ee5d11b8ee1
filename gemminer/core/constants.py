"""Which numbers inside a network are constants, whatever comes in: each value as a tensor, NaN where it depends.

A constant is one in eval mode and while training alike: a batch norm gives (c - mean) / sqrt(variance + eps) * scale
+ shift of a constant channel in eval mode and its shift while training, and where these differ its result is not one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gemminer.core.folding import foldable, folded, settled
from gemminer.core.tracing import Call, Ref, Trace

ELEMENTWISE = {
    "add", "sub", "rsub", "mul", "div", "neg", "relu", "relu6", "hardtanh", "leaky_relu", "elu", "selu", "celu", "gelu",
    "silu", "mish", "sigmoid", "tanh", "hardswish", "hardsigmoid", "softplus", "softsign", "exp", "log", "sqrt",
    "rsqrt", "square", "abs", "pow", "clamp", "erf", "sin", "cos", "maximum", "minimum", "masked_fill",
}  # fmt: skip
SAME = {"contiguous", "clone", "detach", "data", "to", "float", "double", "half", "bfloat16", "type", "type_as"}
DROPOUTS = {"dropout", "dropout1d", "dropout2d", "dropout3d", "feature_dropout"}
STRUCTURAL = {
    "view", "reshape", "flatten", "unflatten", "permute", "transpose", "t", "T", "mT", "swapaxes", "squeeze",
    "unsqueeze", "expand", "getitem", "select", "narrow", "cat", "stack", "unbind", "split", "chunk", "pad", "flip",
    "roll", "movedim", "repeat",
}  # fmt: skip
REDUCTIONS = {"mean", "sum"}
POOLS = {f"{kind}_pool{n}d" for kind in ("max", "avg", "adaptive_avg", "adaptive_max") for n in (1, 2, 3)}
CONVOLUTIONS = {"conv1d", "conv2d", "conv3d"}
# A constant in eval mode and in training is the same if they differ by less, relative to the larger or to 1.
AGREE = 1e-12


def structural(call: Call) -> bool:
    """Whether a call only moves numbers, each output being an input or zero."""
    if call.name == "pad":
        return call.argument(2, "mode", "constant") != "constant" or not call.argument(3, "value")
    return call.name in STRUCTURAL and not call.writes


class Constants:
    """The constants of every value of a trace, in float64.

    Args:
        trace: of the model in eval mode.
        training: whether constants must be constants while training too.
    """

    def __init__(self, trace: Trace, *, training: bool = True) -> None:
        self.trace, self.training = trace, training
        self.differ: set[str] = set()  # modules whose constants differ between eval mode and training
        self.values: dict[int, Tensor] = {}
        self.means: set[int] = set()  # weights of attention: they add up to 1 along the last axis
        for index, leaf in trace.leaves.items():
            self.values[index] = leaf.cpu().double() if leaf.is_floating_point() else leaf.cpu()
        with torch.no_grad():
            for call in trace.calls:
                self._note(call)
                for index, value in zip(call.outputs, self._results(call), strict=True):
                    if value is not None:
                        self.values[index] = value

    def __getitem__(self, index: int) -> Tensor:
        """(the value's shape): the constants, NaN where there is none."""
        if index in self.values:
            return self.values[index].double()
        return torch.full(self.trace.shapes[index], math.nan, dtype=torch.float64)

    def known(self, index: int) -> Tensor:
        """(the value's shape): where it is a constant."""
        if index in self.values and not self.values[index].is_floating_point():
            return torch.ones(self.trace.shapes[index], dtype=torch.bool)
        return ~self[index].isnan()

    def weight(self, call: Call, place: int, name: str) -> Tensor | None:
        """A parameter of a call in float64; None where it has none, or where it is no constant of the model."""
        ref = call.argument(place, name)
        return self[ref.index] if isinstance(ref, Ref) and self.fixed(ref.index) else None

    def fixed(self, index: int) -> bool:
        """Whether all of a value is constant."""
        return index in self.values and bool(self.known(index).all())

    def _results(self, call: Call) -> list[Tensor | None]:
        """The constants of what a call gives; None where nothing of it is one."""
        rule = _RULES.get(call.name)
        given = any(index in self.values for index in call.inputs)
        if not call.outputs or not (given or call.name == "pad"):  # a border of zeros is constant beside what varies
            return [None] * len(call.outputs)
        found: Any = None
        if structural(call):
            found = (
                call.run(lambda i: self[i] if self.trace.floats[i] else self.values[i]) if self.whole(call) else None
            )
        elif rule is not None:
            found = rule(self, call)
        elif call.name in ELEMENTWISE:
            found = self._elementwise(call)
        found = (found,) if isinstance(found, Tensor) else found
        if not found or len(found) != len(call.outputs):
            return [None] * len(call.outputs)
        shapes = [self.trace.shapes[index] for index in call.outputs]
        return [x if x.shape == s and not _nothing(x) else None for x, s in zip(found, shapes, strict=True)]

    def _note(self, call: Call) -> None:
        last = call.name == "softmax" and call.argument(1, "dim", 0) in (-1, len(self.trace.shapes[call.inputs[0]]) - 1)
        drops = call.name in DROPOUTS and not (self.training and call.argument(1, "p", 0.5) > 0)
        if last or ((drops or call.name in SAME) and call.inputs[:1] and call.inputs[0] in self.means):
            self.means |= set(call.outputs)

    def whole(self, call: Call) -> bool:
        """Whether every tensor of integers that a call reads is known."""
        return all(self.trace.floats[index] or index in self.values for index in call.inputs)

    def _elementwise(self, call: Call) -> Tensor | None:
        if not self.whole(call):
            return None

        def number(index: int) -> Tensor:
            # A copy, for functions that work in place.
            return self[index].nan_to_num(nan=0.0) if self.trace.floats[index] else self.values[index].clone()

        def unknown(index: int) -> Tensor:
            return ~self.known(index)

        (value,) = call.run(number)
        missing = torch.zeros(value.shape, dtype=torch.bool)
        for index in call.inputs:
            here = unknown(index)
            if call.name == "mul" and len(call.inputs) == 2:  # zero times whatever is zero
                other = sum(call.inputs) - index
                here = here & ~(self.known(other) & (self[other] == 0))
            missing = missing | here
        return value.masked_fill(missing, math.nan) if value.is_floating_point() else None

    def channels(self, index: int, axis: int) -> Tensor:
        """(channels,): the constant that is the same all over a channel, NaN for the others."""
        flat = self[index].movedim(axis, 0).flatten(1)
        return flat[:, 0].masked_fill(~(flat == flat[:, :1]).all(1), math.nan)

    def per_channel(self, index: int) -> Tensor:
        """The value with NaN wherever it is no constant that is the same all over its channel."""
        shape = [1] * len(self.trace.shapes[index])
        shape[1] = -1
        return self.channels(index, 1).view(shape).expand(self.trace.shapes[index])

    def agreed(self, call: Call, in_eval: Tensor, in_training: Tensor) -> Tensor:
        """Constants of both modes; NaN where they differ."""
        if not self.training:
            return in_eval
        scale = in_eval.abs().maximum(in_training.abs()).clamp(min=1.0)
        same = (in_eval - in_training).abs() <= AGREE * scale
        if bool((~same & ~in_eval.isnan()).any()):
            self.differ.add(call.module)
        return in_eval.masked_fill(~same, math.nan)


def _nothing(x: Tensor) -> bool:
    return x.is_floating_point() and bool(x.isnan().all())


def always_inside(call: Call, kernel: torch.Size) -> Tensor:
    """(kernel ...): the places of a convolution's kernel that never read padding, whatever the map's size."""
    spatial = len(kernel)
    padding, dilation = (
        _several(call.argument(place, name, default), spatial)
        for place, name, default in ((4, "padding", 0), (5, "dilation", 1))
    )
    inside = torch.ones(kernel, dtype=torch.bool)
    for axis, (size, pad, step) in enumerate(zip(kernel, padding, dilation, strict=True)):
        at = torch.arange(size) * step - pad
        ok = (at >= 0) & (at <= step * (size - 1) - 2 * pad)
        inside &= ok.view([-1 if a == axis else 1 for a in range(spatial)])
    return inside


class Taps:
    """The weights of a convolution that are not zero, as entries of a sum (`folding`), groups counted in.

    Args:
        call: the convolution.
        weight: (out, in of a group, kernel ...).
    """

    def __init__(self, call: Call, weight: Tensor) -> None:
        self.row, inner, *place = (weight != 0).nonzero().numpy().T
        self.value = weight.numpy()[self.row, inner, *place]
        self.inside = always_inside(call, weight.shape[2:]).numpy()[tuple(place)]
        group = self.row // max(1, len(weight) // call.argument(6, "groups", 1))
        self.channel = inner + group * weight.shape[1]


def _several(value: Any, count: int) -> tuple[int, ...]:
    if isinstance(value, str):  # "same" pads; "valid" does not
        return (0,) * count if value == "valid" else (10**6,) * count
    return (value,) * count if isinstance(value, int) else tuple(value) * (count if len(value) == 1 else 1)


def _convolution(c: Constants, call: Call) -> Tensor | None:
    """Constant where all that it reads is, and the padding too: nothing but zero stands before a padded border."""
    weight, bias = c.weight(call, 1, "weight"), call.argument(2, "bias")
    if (
        weight is None
        or not isinstance(x := call.argument(0, "input"), Ref)
        or weight.dim() != len(c.trace.shapes[x.index])
    ):
        return None
    taps = Taps(call, weight)
    constant = c.channels(x.index, 1).numpy()[taps.channel]
    start = c[bias.index].numpy() if isinstance(bias, Ref) else np.zeros(len(weight))
    fixed = foldable(constant, taps.inside)
    result = settled(folded(start, taps.row, taps.value, constant, fixed), taps.row[~fixed])
    return _over(torch.from_numpy(result), c.trace.shapes[call.outputs[0]])


def _over(channels: Tensor, shape: torch.Size) -> Tensor:
    return channels.view(1, -1, *[1] * (len(shape) - 2)).expand(shape)


def _linear(c: Constants, call: Call) -> Tensor | None:
    weight, bias = c.weight(call, 1, "weight"), call.argument(2, "bias")
    x = call.argument(0, "input")
    if weight is None or not isinstance(x, Ref):
        return None
    value = c[x.index]
    unknown = value.isnan().double() @ (weight != 0).double().mT > 0
    result = value.nan_to_num(nan=0.0) @ weight.mT
    if isinstance(bias, Ref):
        result = result + c[bias.index]
    return result.masked_fill(unknown, math.nan)


def _matmul(c: Constants, call: Call) -> Tensor | None:
    if len(call.inputs) == 2 and call.inputs[0] in c.means:
        return _mean_of(c, call, call.inputs[1])
    if len(call.inputs) != 2 or min(len(c.trace.shapes[i]) for i in call.inputs) < 2:
        return None
    a, b = (c[index] for index in call.inputs)
    unknown_a, unknown_b = a.isnan(), b.isnan()
    unknown = (
        unknown_a.double() @ ((b != 0) | unknown_b).double() + ((a != 0) | unknown_a).double() @ unknown_b.double()
    )
    return (a.nan_to_num(nan=0.0) @ b.nan_to_num(nan=0.0)).masked_fill(unknown > 0, math.nan)


def _attention(c: Constants, call: Call) -> Tensor | None:
    """A mean of values that are one constant is that constant: the weights add up to 1."""
    dropped = call.argument(4, "dropout_p", 0.0)
    value = call.argument(2, "value")
    return None if dropped or not isinstance(value, Ref) else _mean_of(c, call, value.index)


def _mean_of(c: Constants, call: Call, index: int) -> Tensor | None:
    x, shape = c[index], c.trace.shapes[call.outputs[0]]
    same = (x == x[..., :1, :]).all(-2, keepdim=True)
    result = x[..., :1, :].masked_fill(~same, math.nan)
    return result.expand(shape) if result.shape[:-2] == shape[:-2] else None


def _batch_norm(c: Constants, call: Call) -> Tensor | None:
    mean, variance = c.weight(call, 1, "running_mean"), c.weight(call, 2, "running_var")
    scale, shift = c.weight(call, 3, "weight"), c.weight(call, 4, "bias")
    x = call.argument(0, "input")
    if not isinstance(x, Ref):
        return None
    given = c.channels(x.index, 1)
    shift = torch.zeros_like(given) if shift is None else shift
    in_training = shift.masked_fill(given.isnan(), math.nan)
    if call.argument(5, "training", False) or mean is None or variance is None:
        return _over(in_training, c.trace.shapes[call.outputs[0]])
    scale = torch.ones_like(given) if scale is None else scale
    in_eval = (given - mean) / (variance + call.argument(7, "eps", 1e-5)).sqrt() * scale + shift
    return _over(c.agreed(call, in_eval, in_training), c.trace.shapes[call.outputs[0]])


def _pool(c: Constants, call: Call) -> Tensor | None:
    if call.kwargs.get("return_indices") or len(call.outputs) != 1:
        return None
    index = call.inputs[0]
    given = c.channels(index, 1)
    padding = call.argument(3, "padding", 0)
    padded = any(padding) if isinstance(padding, tuple | list) else bool(padding)
    if call.name.startswith("avg") and padded:
        given = given.masked_fill(given != 0, math.nan)
    return _over(given, c.trace.shapes[call.outputs[0]])


def _reduction(c: Constants, call: Call) -> Any:
    return call.run(lambda i: c[i]) if len(call.inputs) == 1 else None


def _same(c: Constants, call: Call) -> Tensor | None:
    return c[call.inputs[0]].clone() if c.trace.floats[call.outputs[0]] and len(call.inputs) == 1 else None


def _dropout(c: Constants, call: Call) -> Tensor | None:
    value = c[call.inputs[0]].clone()
    draws = c.training and call.argument(1, "p", 0.5) > 0
    return value.masked_fill(value != 0, math.nan) if draws else value


_RULES: dict[str, Callable[[Constants, Call], Any]] = {
    **dict.fromkeys(CONVOLUTIONS, _convolution),
    "linear": _linear,
    "matmul": _matmul,
    "scaled_dot_product_attention": _attention,
    "batch_norm": _batch_norm,
    **dict.fromkeys(POOLS, _pool),
    **dict.fromkeys(REDUCTIONS, _reduction),
    **dict.fromkeys(SAME, _same),
    **dict.fromkeys(DROPOUTS, _dropout),
}
