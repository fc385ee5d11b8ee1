"""Which channels of a network must go together: through sums, norms, concatenations and reshapes.

Every number inside the network gets a label, that of the unit whose channel it is. Labels are joined where numbers
meet, in attention those of a head; what labels cannot follow (a layer norm, a result) joins them with 0, which stays.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from gemminer.core.constants import CONVOLUTIONS, DROPOUTS, ELEMENTWISE, POOLS, REDUCTIONS, SAME, structural
from gemminer.core.needs import Needs
from gemminer.core.tracing import Call, Trace

# Channels that convolutions compute at a time with AVX2; 16 with AVX-512, where 8 was faster still (docs/compact.md).
BLOCK = 8


class Bundles:
    """The bundles of channels of a trace, and which of them can be removed everywhere.

    Args:
        trace: of the model.
        needs: what of its values is dead.
        layers: the calls that are a layer's own, whose weights can be cut: by identity.
        resize: whether sizes that stand in the model may change, as the number of heads in a reshape.
        even: whether a convolution of a multiple of `BLOCK` channels keeps one.

    Attributes:
        sizes: by module, the sizes that its reshapes must name anew: old -> new.
    """

    def __init__(
        self, trace: Trace, needs: Needs, layers: Collection[Call], *, resize: bool = True, even: bool = False
    ) -> None:
        self.trace, self.needs, self._resize, self._even = trace, needs, resize, even
        self.sizes: dict[str, dict[int, int]] = {}
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

    def heads(self, call: Call) -> tuple[Tensor, Tensor]:
        """(heads,) twice, for a call of attention: which are dead, and which are removed."""
        index = call.outputs[0]
        dead = self.needs.dead(index).movedim(1, 0).flatten(1).all(1)
        return dead, self.absent(index, 1)

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
            self.sizes = {}
            for index in self._labels:
                self._check_value(index)
            for call in self.trace.calls:
                if structural(call) and all(self.trace.floats[i] for i in call.inputs):
                    self._check_moves(call)
            for call in self.trace.calls:
                if self._even and id(call) in self._layers and call.name in CONVOLUTIONS:
                    self._round(call.outputs[0])
            changed = len(self.gone) < before
        return self.gone

    def _round(self, index: int) -> None:
        """Leave a convolution of whole blocks of channels whole blocks: some of its dead ones stay."""
        roots = [self._root(int(x)) for x in self.labels(index).movedim(1, 0).flatten(1)[:, 0]]
        for root in roots if len(roots) % BLOCK == 0 else []:
            if sum(r not in self.gone for r in roots) % BLOCK == 0:
                break
            self.gone.discard(root)

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
            fits = all(self._is_cut(left, i) for left, i in zip(call.run(self._cut), call.outputs, strict=True))
        except (RuntimeError, IndexError, ValueError, TypeError):  # what a function may say of other sizes
            fits = False
        if not fits and not self._resized(call):
            for index in values:
                self._keep(self.labels(index)[self._marked(index)])

    def _is_cut(self, left: Tensor, index: int) -> bool:
        cut = self._cut(index)
        return left.shape == cut.shape and bool((left == cut).all())

    def _resized(self, call: Call) -> bool:
        """Whether a reshape does so with other numbers in place of its own; they are noted."""
        if not self._resize or call.name not in ("view", "reshape") or len(call.inputs) != 1:
            return False
        asked = [x for x in tree_leaves((call.args[1:], call.kwargs)) if isinstance(x, int)]
        shape, before = self._cut(call.outputs[0]).shape, self._cut(call.inputs[0])
        if len(asked) != len(shape) or shape.numel() != before.numel():
            return False
        if not self._is_cut(before.reshape(shape), call.outputs[0]):
            return False
        changed = {old: new for old, new in zip(asked, shape, strict=True) if old not in (-1, new)}
        known = self.sizes.setdefault(call.module, {})
        if any(known.get(old, new) != new for old, new in changed.items()):
            return False
        known |= changed
        return True

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
        if index not in b._labels and _beside(b, call, index):
            continue
        if result is not None:
            b._join(result, labels)
        if result is None or labels.numel() > result.numel():
            result = labels
    if result is not None:
        b._labels[call.outputs[0]] = result.expand(shape)


def _beside(b: Bundles, call: Call, index: int) -> bool:
    """Whether a value without channels, as a mask, is the same for all the channels of what it meets."""
    for other in call.inputs:
        if other in b._labels:
            labels, shape = b.labels(other), b.trace.shapes[index]
            along = [d - labels.dim() for d in range(labels.dim()) if labels.dim() - d <= len(shape)]
            along = [d for d in along if shape[d] > 1]
            if len(shape) > labels.dim() or (along and bool((labels != labels.amin(along, keepdim=True)).any())):
                return False
    return any(other in b._labels for other in call.inputs)


def _heads(b: Bundles, call: Call) -> None:
    """Attention, and the products it is made of: whatever is of a head goes with it."""
    shape = b.trace.shapes[call.outputs[0]]
    parts = [call.inputs[0], *call.inputs[1 : 3 if call.name == "scaled_dot_product_attention" else 2]]
    others = [i for i in call.inputs if i not in parts]  # a mask
    shapes = [b.trace.shapes[i] for i in parts]
    masks = all(len(s) < 3 or s[-3] == 1 for s in (b.trace.shapes[i] for i in others))
    if len(shape) != 4 or {(len(s), *s[1:2]) for s in shapes} != {(4, shape[1])} or not masks:
        for index in call.inputs:
            b._stay(index)
        return
    made = b._new(shape[1])
    for index in parts:
        b._join(b.labels(index), made.view(1, -1, 1, 1))
    b._labels[call.outputs[0]] = made.view(1, -1, 1, 1).expand(shape)


def _softmax(b: Bundles, call: Call) -> None:
    labels = b.labels(call.inputs[0])
    b._join(labels, labels.amin(call.argument(1, "dim", -1), keepdim=True))
    b._labels[call.outputs[0]] = labels


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
    "scaled_dot_product_attention": _heads,
    "matmul": _heads,
    "softmax": _softmax,
}
