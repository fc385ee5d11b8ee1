"""Which numbers inside a network anything depends on: from the results back, through every call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from gemminer.core.constants import (
    CONVOLUTIONS,
    DROPOUTS,
    ELEMENTWISE,
    POOLS,
    REDUCTIONS,
    SAME,
    Constants,
    Taps,
    structural,
)
from gemminer.core.folding import foldable, read
from gemminer.core.tracing import Call, Ref, Trace


class Needs:
    """What is needed of each value, and what must be there though it is a constant.

    Args:
        trace: of the model.
        constants: of its values; what is constant needs nothing.
    """

    def __init__(self, trace: Trace, constants: Constants) -> None:
        self.trace, self.constants = trace, constants
        self._needed: dict[int, Tensor] = {}
        # Constants that a convolution reads beside padding, or that differ from token to token: no bias can hold them.
        self._held: dict[int, Tensor] = {}
        for index in trace.outputs:
            self._needed[index] = torch.ones(trace.shapes[index], dtype=torch.bool)
        for call in reversed(trace.calls):
            self._back(call)

    def __getitem__(self, index: int) -> Tensor:
        """(the value's shape): where something that varies depends on it."""
        return self._needed.get(index, torch.zeros(self.trace.shapes[index], dtype=torch.bool))

    def dead(self, index: int) -> Tensor:
        """(the value's shape): constants that can be folded into what reads them, and what nothing reads."""
        known = self.constants.known(index)
        if index in self._held:
            known = known & ~self._held[index]
        return known | ~self[index]

    def _back(self, call: Call) -> None:
        wanted = [self[i] & ~self.constants.known(i) for i in call.outputs]
        if wanted and not any(bool(w.any()) for w in wanted) and not call.writes:
            return
        if structural(call) and self.constants.whole(call):
            self._structural(call, wanted)
        elif (rule := _RULES.get(call.name)) and len(call.outputs) == 1:
            rule(self, call, wanted[0])
        else:
            for index in call.inputs:
                self.add(index, torch.ones(self.trace.shapes[index], dtype=torch.bool))

    def add(self, index: int, needed: Tensor) -> None:
        self._needed[index] = self[index] | needed

    def hold(self, index: int, held: Tensor) -> None:
        """Need constants as they are."""
        self.add(index, held)
        self._held[index] = self._held.get(index, torch.zeros_like(held)) | held

    def _structural(self, call: Call, wanted: list[Tensor]) -> None:
        """A call that moves numbers, run backwards: it is linear. One by whole numbers of the input may move any."""
        if any(not self.trace.floats[i] and i not in self.constants.values for i in call.inputs):
            for index in call.inputs:
                self.add(index, torch.ones(self.trace.shapes[index], dtype=torch.bool))
            return
        with torch.enable_grad():
            zeros = {
                i: torch.zeros(self.trace.shapes[i], dtype=torch.float64, requires_grad=True)
                for i in call.inputs
                if self.trace.floats[i]
            }
            outputs = call.run(lambda i: zeros[i] if i in zeros else self.constants.values.get(i))
            pairs = [(o, w.double()) for o, w in zip(outputs, wanted, strict=True) if o.requires_grad]
            grads = torch.autograd.grad(
                [o for o, _ in pairs], list(zeros.values()), [w for _, w in pairs], allow_unused=True
            )
        for index, grad in zip(zeros, grads, strict=True):
            if grad is not None:
                self.add(index, grad > 0)


def _elementwise(n: Needs, call: Call, wanted: Tensor) -> None:
    for index in call.inputs:
        shape = n.trace.shapes[index]
        here = wanted
        if call.name == "mul" and len(call.inputs) == 2:
            other = sum(call.inputs) - index
            here = here & ~(n.constants.known(other) & (n.constants[other] == 0))
        n.add(index, here.double().sum_to_size(shape) > 0)


def _channelwise(n: Needs, call: Call, wanted: Tensor) -> None:
    """What reads a channel anywhere reads all of it."""
    index = call.inputs[0]
    rows = wanted.movedim(1, 0).flatten(1).any(1)
    shape = n.trace.shapes[index]
    n.add(index, rows.view(1, -1, *[1] * (len(shape) - 2)).expand(shape))


def _all_along(n: Needs, call: Call, wanted: Tensor) -> None:
    """Reductions and softmax: all of an example that has anything needed, but a mean over a map reads its channel."""
    for index in call.inputs:
        shape = n.trace.shapes[index]
        if call.name in REDUCTIONS:
            dims = call.argument(1, "dim")
            if dims is not None and len(shape) == 4 and {d % 4 for d in _list(dims)} == {2, 3}:
                n.add(index, wanted.reshape(shape[0], shape[1], -1).any(-1)[..., None, None].expand(shape))
                continue
        n.add(index, torch.ones(shape, dtype=torch.bool))


def _list(dims: Any) -> list[int]:
    return [dims] if isinstance(dims, int) else list(dims)


def _softmax(n: Needs, call: Call, wanted: Tensor) -> None:
    dim = call.argument(1, "dim", -1)
    n.add(call.inputs[0], wanted.any(dim, keepdim=True).expand(wanted.shape))


def _reading(n: Needs, index: int, axis: int, rows: Tensor, held: Tensor) -> None:
    """A layer reads these channels; what is `held` of them must be there, as no bias takes it in."""
    shape = [1] * len(n.trace.shapes[index])
    shape[axis] = -1

    def whole(channels: Tensor) -> Tensor:
        return channels.view(shape).expand(n.trace.shapes[index])

    n.add(index, whole(rows))
    n.hold(index, whole(held))


def _convolution(n: Needs, call: Call, wanted: Tensor) -> None:
    weight, x = n.constants.weight(call, 1, "weight"), call.argument(0, "input")
    if weight is None or not isinstance(x, Ref) or weight.dim() != wanted.dim():
        for index in call.inputs:
            n.hold(index, torch.ones(n.trace.shapes[index], dtype=torch.bool))
        return
    rows = wanted.movedim(1, 0).flatten(1).any(1)
    taps, wanted_rows, count = Taps(call, weight), rows.numpy(), n.trace.shapes[x.index][1]
    constant = n.constants.channels(x.index, 1).numpy()[taps.channel]
    left = ~foldable(constant, taps.inside)
    _reading(
        n,
        x.index,
        1,
        torch.from_numpy(read(taps.row, taps.channel, wanted_rows, count)),
        torch.from_numpy(read(taps.row[left], taps.channel[left], wanted_rows, count)),
    )


def _linear(n: Needs, call: Call, wanted: Tensor) -> None:
    weight, x = n.constants.weight(call, 1, "weight"), call.argument(0, "input")
    if weight is None or not isinstance(x, Ref):
        for index in call.inputs:
            n.hold(index, torch.ones(n.trace.shapes[index], dtype=torch.bool))
        return
    rows = wanted.flatten(0, -2).any(0)
    columns, axis = (weight[rows] != 0).any(0), len(n.trace.shapes[x.index]) - 1
    _reading(n, x.index, axis, columns, columns & n.constants.channels(x.index, axis).isnan())


def _matmul(n: Needs, call: Call, wanted: Tensor) -> None:
    a, b = (call.inputs * 2)[:2]
    if min(len(n.trace.shapes[i]) for i in (a, b)) < 2:
        for index in (a, b):
            n.add(index, torch.ones(n.trace.shapes[index], dtype=torch.bool))
        return
    there = [((n.constants[i] != 0) | ~n.constants.known(i)).double() for i in (a, b)]
    w = wanted.double()
    n.add(a, (w @ there[1].mT).sum_to_size(n.trace.shapes[a]) > 0)
    n.add(b, (there[0].mT @ w).sum_to_size(n.trace.shapes[b]) > 0)


def _attention(n: Needs, call: Call, wanted: Tensor) -> None:
    """Queries and keys meet feature by feature: one is not needed where the other is zero in every token."""
    refs = [call.argument(place, name) for place, name in enumerate(("query", "key", "value"))]
    q, k, v = (ref.index for ref in refs)
    shapes = [n.trace.shapes[i] for i in (q, k, v)]
    for index in set(call.inputs) - {q, k, v}:
        n.add(index, torch.ones(n.trace.shapes[index], dtype=torch.bool))
    if len({q, k, v}) < 3 or shapes[0][:-2] != shapes[2][:-2]:
        for index, shape in zip((q, k, v), shapes, strict=True):
            n.add(index, torch.ones(shape, dtype=torch.bool))
        return
    n.add(v, wanted.any(-2, keepdim=True).expand(shapes[2]))
    heads = wanted.flatten(-2).any(-1)[..., None, None]
    for index, other in ((q, k), (k, q)):
        there = (n.constants[other] != 0) | ~n.constants.known(other)
        n.add(index, (there.any(-2, keepdim=True) & heads).expand(n.trace.shapes[index]))


_RULES: dict[str, Callable[[Needs, Call, Tensor], None]] = {
    **dict.fromkeys(ELEMENTWISE | SAME | DROPOUTS, _elementwise),
    **dict.fromkeys(CONVOLUTIONS, _convolution),
    "linear": _linear,
    "matmul": _matmul,
    "scaled_dot_product_attention": _attention,
    **dict.fromkeys(POOLS | {"batch_norm"}, _channelwise),
    **dict.fromkeys(REDUCTIONS, _all_along),
    "softmax": _softmax,
}
