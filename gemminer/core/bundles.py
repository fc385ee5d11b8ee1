"""Which channels of a network must go together: through sums, norms, concatenations and reshapes.

Every number inside the network gets a label, that of the unit whose channel it is. Labels are joined where numbers
meet; what labels cannot follow (a layer norm, attention, a result) joins them with 0, which stays.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

import numpy as np
import torch
from torch import Tensor

from gemminer.core.constants import CONVOLUTIONS, DROPOUTS, ELEMENTWISE, POOLS, REDUCTIONS, SAME, structural
from gemminer.core.needs import Needs
from gemminer.core.tracing import Call, Trace


class Bundles:
    """The bundles of channels of a trace, and which of them can be removed everywhere.

    Args:
        trace: of the model.
        needs: what of its values is dead.
        layers: the calls that are a layer's own, whose weights can be cut: by identity.
    """

    def __init__(self, trace: Trace, needs: Needs, layers: Collection[Call]) -> None:
        self.trace, self.needs = trace, needs
        self._layers = {id(call) for call in layers}
        self._parent = [0]
        self._labels: dict[int, Tensor] = {}
        for call in trace.calls:
            self._follow(call)
        for index in trace.outputs:
            self._stay(index)
        self.gone = self._removable()

    def absent(self, index: int, axis: int) -> Tensor:
        """(channels,): those that are removed from a value."""
        return self._marked(index).movedim(axis, 0).flatten(1).all(1)

    def labels(self, index: int) -> Tensor:
        """(the value's shape): float64, so that functions of numbers take them."""
        if index not in self._labels:
            return torch.zeros(self.trace.shapes[index], dtype=torch.float64)
        return self._labels[index]

    def _new(self, count: int) -> Tensor:
        first = len(self._parent)
        self._parent += range(first, first + count)
        return torch.arange(first, first + count, dtype=torch.float64)

    def _root(self, label: int) -> int:
        while self._parent[label] != label:
            self._parent[label] = self._parent[self._parent[label]]
            label = self._parent[label]
        return label

    def _join(self, a: Tensor, b: Tensor) -> None:
        pairs = torch.stack(torch.broadcast_tensors(a, b)).reshape(2, -1).long()
        for x, y in np.unique(pairs.numpy(), axis=1).T.tolist():
            x, y = self._root(x), self._root(y)
            self._parent[max(x, y)] = min(x, y)

    def _stay(self, index: int) -> None:
        self._join(self.labels(index), torch.zeros((), dtype=torch.float64))

    # --- what each call does to labels ---

    def _follow(self, call: Call) -> None:
        rule = _RULES.get(call.name)
        own = id(call) in self._layers
        if structural(call) and self._moves(call):
            return
        if rule is not None and len(call.outputs) == 1 and (own or call.name not in _LAYERS):
            rule(self, call)
            return
        for index in call.inputs:
            self._stay(index)

    def _moves(self, call: Call) -> bool:
        if not all(self.trace.floats[i] for i in call.inputs):
            return False
        for index, label in zip(call.outputs, call.run(self.labels), strict=True):
            self._labels[index] = label
        return True

    # --- what can go ---

    def _removable(self) -> set[int]:
        """The roots of the bundles that are dead wherever they are, and can be cut out of every value."""
        stays = {0}
        for index in self._labels:
            alive = ~self.needs.dead(index)
            stays |= {self._root(int(x)) for x in self.labels(index)[alive].unique().tolist()}
        self.gone = {self._root(x) for x in range(len(self._parent))} - stays
        changed = True
        while changed:
            self._table = torch.tensor([self._root(x) in self.gone for x in range(len(self._parent))])
            before = len(self.gone)
            for index in self._labels:
                self._check_value(index)
            for call in self.trace.calls:
                if structural(call) and all(self.trace.floats[i] for i in call.inputs):
                    self._check_moves(call)
            changed = len(self.gone) < before
        return self.gone

    def _marked(self, index: int) -> Tensor:
        return self._table[self.labels(index).long()]

    def _keep(self, labels: Tensor) -> None:
        self.gone -= {self._root(int(x)) for x in labels.unique().tolist()}

    def _axis(self, index: int) -> int | None:
        """The axis along which whole slices of a value go."""
        marked = self._marked(index)
        for axis in range(1, marked.dim()):
            slices = marked.movedim(axis, 0).flatten(1)
            if bool((slices.all(1) == slices.any(1)).all()):
                return axis
        return None

    def _check_value(self, index: int) -> None:
        marked = self._marked(index)
        if not bool(marked.any()):
            return
        labels = self.labels(index)
        if self._axis(index) is None:
            self._keep(labels[marked])
        elif bool(marked.all()):  # a value cannot be empty: one channel of it stays
            self._keep(labels.flatten()[:1])

    def _check_moves(self, call: Call) -> None:
        """A call that moves numbers must do so with what is left, too: its sizes may be written into the model."""
        values = [*call.inputs, *call.outputs]
        if not any(bool(self._marked(i).any()) for i in values):
            return
        try:
            fits = [
                left.shape == self._cut(i).shape and bool((left == self._cut(i)).all())
                for left, i in zip(call.run(self._cut), call.outputs, strict=True)
            ]
        except (RuntimeError, IndexError, ValueError, TypeError):  # what a function may say of other sizes
            fits = [False]
        if not all(fits):
            for index in values:
                self._keep(self.labels(index)[self._marked(index)])

    def _cut(self, index: int) -> Tensor:
        """The labels that are left of a value."""
        labels, axis = self.labels(index), self._axis(index)
        if axis is None:
            return labels
        return labels.index_select(axis, (~self.absent(index, axis)).nonzero().flatten())


def _elementwise(b: Bundles, call: Call) -> None:
    shape = b.trace.shapes[call.outputs[0]]
    result = None
    for index in call.inputs:
        if b.trace.shapes[index].numel() == 1:
            continue
        labels = b.labels(index)
        if result is not None:
            b._join(result, labels)
        if result is None or labels.numel() > result.numel():
            result = labels
    if result is not None:
        b._labels[call.outputs[0]] = result.expand(shape)


def _pool(b: Bundles, call: Call) -> None:
    labels = b.labels(call.inputs[0])
    first = labels.flatten(2)[..., :1]
    b._join(labels.flatten(2), first)
    shape = b.trace.shapes[call.outputs[0]]
    b._labels[call.outputs[0]] = first.view(*shape[:2], *[1] * (len(shape) - 2)).expand(shape)


def _reduction(b: Bundles, call: Call) -> None:
    labels, dims = b.labels(call.inputs[0]), call.argument(1, "dim")
    if dims is None or len(call.inputs) != 1:
        b._stay(call.inputs[0])
        return
    lowest = labels.amin(dims, keepdim=True)
    b._join(labels, lowest)
    b._labels[call.outputs[0]] = lowest.view(b.trace.shapes[call.outputs[0]])


def _batch_norm(b: Bundles, call: Call) -> None:
    _channels(b, call, 1)
    b._labels[call.outputs[0]] = b.labels(call.inputs[0])


def _channels(b: Bundles, call: Call, axis: int) -> Tensor:
    """(channels,): the labels that a layer reads, one a channel."""
    labels = b.labels(call.inputs[0]).movedim(axis, 0).flatten(1)
    b._join(labels, labels[:, :1])
    return labels[:, 0]


def _convolution(b: Bundles, call: Call) -> None:
    given = _channels(b, call, 1)
    shape, groups = b.trace.shapes[call.outputs[0]], call.argument(6, "groups", 1)
    made = b._new(shape[1])
    if groups > 1 and groups == len(given):  # depthwise: a filter goes with the channel that it reads
        b._join(made.view(groups, -1), given[:, None])
    elif groups > 1:
        b._stay(call.inputs[0])
        b._join(made, torch.zeros(()))
    b._labels[call.outputs[0]] = made.view(1, -1, *[1] * (len(shape) - 2)).expand(shape)


def _linear(b: Bundles, call: Call) -> None:
    _channels(b, call, len(b.trace.shapes[call.inputs[0]]) - 1)
    shape = b.trace.shapes[call.outputs[0]]
    b._labels[call.outputs[0]] = b._new(shape[-1]).expand(shape)


_LAYERS = {*CONVOLUTIONS, "linear", "batch_norm"}
_RULES: dict[str, Callable[[Bundles, Call], None]] = {
    **dict.fromkeys(ELEMENTWISE | SAME | DROPOUTS, _elementwise),
    **dict.fromkeys(POOLS, _pool),
    **dict.fromkeys(REDUCTIONS, _reduction),
    **dict.fromkeys(CONVOLUTIONS, _convolution),
    "batch_norm": _batch_norm,
    "linear": _linear,
}
