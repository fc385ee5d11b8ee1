"""A forward pass whose sparse layers, and the norms, additions and ReLUs behind them, are put off and run in chains."""

from __future__ import annotations

import contextlib
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.overrides import TorchFunctionMode

from gemminer.sparse.memory import BufferPool
from gemminer.sparse.training.calls import called, may_change
from gemminer.sparse.training.chain import Pool
from gemminer.sparse.training.deferred import Deferred, Node, become, computed, memory_of, suspended, tensors_in
from gemminer.sparse.training.modules import (
    NormCall,
    SparseLayer,
    SparseLinear,
    deferring,
    run_chain,
    transformed,
    type_of_maps,
    type_of_weights,
)
from gemminer.sparse.training.plan import Chain, Step, Task, tasks_of

Plans = dict[Any, list[Task]]
_MOST_PLANS = 64
_top_hooks = torch._C._autograd._top_saved_tensors_default_hooks
_PLAIN = (Tensor, nn.Parameter)
_NOTHING = Node("", (), (0,), torch.float32)


class Recorder(TorchFunctionMode):
    """A forward pass. As a mode it sees every call of PyTorch's functions.

    Args:
        plans: the plans made so far, by the operations they are for.
        ran: told of each chain.
    """

    def __init__(self, plans: Plans, pool: BufferPool, ran: Callable[[Chain], None]) -> None:
        super().__init__()
        self.plans, self.pool, self.ran = plans, pool, ran
        self.nodes: list[Node] = []
        self.pending: set[int] = set()  # of `nodes`, by id
        self.parts: list[Node] = []  # of `nodes`
        self.deferred: list[Deferred] = []
        self.inside: list[Deferred] = []  # from before: within a unit, so that they have no result
        self.mode = (True, False, False)  # gradients, inference, autocast
        self.moving: set[int] = set()  # statistics that what was put off will move, by id

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if Deferred in types:
            return called(func, args, kwargs)
        if self.nodes and self._disturbs(func, args, kwargs):
            self.flush()
        return func(*args, **kwargs)

    def __enter__(self) -> Recorder:
        self.outer, deferring.recorder = deferring.recorder, self
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        deferring.recorder = self.outer

    # --- what is put off ---------------------------------------------------------------------------------------

    def layer(self, layer: SparseLayer, x: Tensor) -> Tensor:
        """A layer's output."""
        with torch._C.DisableTorchFunction():  # or to read a tensor's type would be a call, which this mode sees
            own, dtype = _facts(x)
            held = layer.held()
            maps = type_of_maps(dtype) if self._can(x) else None
            shape = layer.out_shape(own) if maps and _usual(held, type_of_weights(maps)) else None
            if maps and shape is not None and 0 not in shape and 0 not in own:
                flat = isinstance(layer, SparseLinear)
                batch = flat, shape[:-1] if flat else shape[:1]
                return self._put_off(Node("layer", (self._operand(x),), shape, maps, layer=layer, batch=batch))
        return layer.now(computed(x))

    def norm(self, x: Deferred, call: NormCall) -> Tensor | None:
        """A norm's output; None, as of all below, if it cannot be put off."""
        node, tensors = x.node, call.tensors()  # `_can` may compute x
        shape, dtype = node.shape, node.dtype
        if not self._can(x) or len(shape) not in (2, 4) or not _usual(tensors, type_of_weights(dtype)):
            return None
        if len(shape) == 4 and isinstance(node.layer, SparseLinear):  # its channels are the last
            return None
        values = math.prod(shape) // shape[1]
        if (call.mean is None) != (call.var is None) or (values == 1 if call.training else call.mean is None):
            return None
        one = shape[1:2]
        for t in tensors:
            if t.shape != one:
                return None
        if call.training and call.mean is not None:
            stats = id(call.mean), id(call.var)
            if not self.moving.isdisjoint(stats):
                return None
            self.moving.update(stats)
        return self._put_off(Node("norm", (self._operand(x),), shape, dtype, norm=call))

    def relu(self, x: Deferred, *, in_place: bool = False) -> Tensor | None:
        shape, dtype = x.node.shape, x.node.dtype
        if not self._can(x) or (in_place and self._seen(x)):
            return None
        return self._put_off(Node("relu", (self._operand(x),), shape, dtype), x if in_place else None)

    def add(self, a: Any, b: Any, *, in_place: bool = False) -> Tensor | None:
        ours = isinstance(a, Tensor) and isinstance(b, Tensor) and a is not b and self._can(a) and self._can(b)
        if not ours or (facts := _facts(a)) != _facts(b) or 0 in facts[0]:
            return None
        if in_place and self._seen(a):
            return None
        node = Node("add", (self._operand(a), self._operand(b)), *facts)
        return self._put_off(node, a if in_place else None)

    def max_pool(self, x: Deferred, *sizes: tuple[int, int]) -> Tensor | None:
        """The largest of each window of these sizes: window, stride and padding."""
        if not self._can(x) or len(x.node.shape) != 4:
            return None
        (n, c, h, w), dtype, pool = x.node.shape, x.node.dtype, Pool(*sizes)
        ours = min(*pool.kernel, *pool.stride) > 0 and math.prod(pool.kernel) < 256
        if not ours or any(not 0 <= p <= k // 2 for p, k in zip(pool.padding, pool.kernel, strict=True)):
            return None
        if min(pool.out_size(h, w)) < 1:
            return None
        shape = (n, c, *pool.out_size(h, w))
        return self._put_off(
            Node("pool", (self._operand(x),), shape, dtype, (*pool.kernel, *pool.stride, *pool.padding))
        )

    def part(self, x: Deferred, step: int) -> Tensor | None:
        """x[:, :, ::step, ::step]."""
        if not self._can(x) or len(x.shape) != 4:
            return None
        n, c, h, w = x.shape
        node = Node("part", (self._operand(x),), (n, c, -(-h // step), -(-w // step)), x.dtype, (step,))
        self.parts.append(node)
        return self._put_off(node)

    def pad(self, x: Deferred, before: int, after: int) -> Tensor | None:
        """`before` and `after` channels of zeros on a part."""
        if x.node.kind != "part" or not self._can(x):
            return None
        n, c, h, w = x.shape
        return self._put_off(Node("pad", (self._operand(x),), (n, before + c + after, h, w), x.dtype, (before, after)))

    def _can(self, x: Tensor) -> bool:
        """Whether an operation on x can be put off: never under a transform, or hooks on saved tensors."""
        if isinstance(x, Deferred):
            ours, dtype = x.recorder is self, x.node.dtype
        else:
            ours, dtype = _plain(x), x.dtype
        if not ours or type_of_maps(dtype) is None or transformed() or _saved_hooks() or deferring.recorder is not self:
            return False
        mode = torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu")
        if mode != self.mode:
            self.flush()
            self.mode = mode
        return True

    def _operand(self, x: Tensor) -> Node | Tensor:
        if isinstance(x, Deferred) and id(x.node) in self.pending:
            return x.node
        tensor: Tensor = computed(x)
        return tensor

    def _seen(self, x: Tensor) -> bool:
        """Whether x cannot be changed in place: it is computed, or it is, or has, a part that would change with it."""
        if not isinstance(x, Deferred):
            return True
        return any(n is x.node or x.node in n.inputs for n in self.parts)

    def _put_off(self, node: Node, in_place: Deferred | None = None) -> Tensor:
        self.nodes.append(node)
        self.pending.add(id(node))
        if in_place is not None:
            in_place.node = node
            return in_place
        new = Deferred(node, self)
        self.deferred.append(new)
        return new

    # --- when it is run ----------------------------------------------------------------------------------------

    def _disturbs(self, func: Any, args: Any, kwargs: Any) -> bool:
        """Whether a call on other tensors reads or changes what is yet to be run."""
        changes = may_change(func, args, kwargs)
        if not changes and not self.moving:
            return False
        given = tensors_in((args, kwargs))
        if self.moving and not self.moving.isdisjoint(map(id, given)):
            return True
        if not changes:
            return False
        changed = {memory_of(t) for t in given if t.is_floating_point()}
        return bool(changed) and any(memory_of(t) in changed for node in self.nodes for t in node.tensors())

    def flush(self, wanted: Sequence[Deferred] = (), *, last: bool = False) -> None:
        """Run all that was put off; at the end of the pass (`last`) whatever is still held somewhere is wanted."""
        nodes, deferred, probe = self.nodes, self.deferred, Deferred(_NOTHING, self)
        self.nodes, self.deferred, self.pending, self.moving, self.parts = [], [], set(), set(), []
        counts = [sys.getrefcount(x) for x in [*deferred, probe]]
        held = [x for x, count in zip(deferred, counts, strict=False) if count > counts[-1]]
        number = {id(node): i for i, node in enumerate(nodes)}
        alive = frozenset(number[id(x.node)] for x in held)
        asked = alive if last else frozenset(number[id(x.node)] for x in wanted if id(x.node) in number)
        results = self._run(nodes, number, asked, alive)
        for x in held:
            i = number[id(x.node)]
            if i in results:
                become(x, results.pop(i))
            else:
                self.inside.append(x)

    def finish(self) -> None:
        """The end of the pass: nothing is left deferred."""
        self.flush(last=True)
        inside, probe, self.inside = self.inside, Deferred(_NOTHING, self), []
        counts = [sys.getrefcount(x) for x in [*inside, probe]]
        for x, count in zip(inside, counts, strict=False):
            if count > counts[-1] and isinstance(x, Deferred):
                self.compute([x])

    def compute(self, wanted: Sequence[Deferred]) -> None:
        """Make these tensors of their own."""
        if any(id(x.node) in self.pending for x in wanted):
            self.flush(wanted)
        for x in wanted:
            if isinstance(x, Deferred) and x.node.result is None:  # within a unit: computed once more, by itself
                nodes: list[Node] = []
                _ancestors(x.node, nodes)
                number = {id(node): i for i, node in enumerate(nodes)}
                results = self._run(nodes, number, frozenset([len(nodes) - 1]), frozenset())
                become(x, results[len(nodes) - 1])

    def _run(
        self, nodes: list[Node], number: dict[int, int], wanted: frozenset[int], alive: frozenset[int]
    ) -> dict[int, Tensor]:
        """Run operations in their order; returns the results of those that are wanted, or alive."""
        if not nodes:
            return {}
        there: list[Tensor] = []

        def ref(x: Node | Tensor) -> int:
            """The number of a tensor that is there already."""
            tensor = x.result if isinstance(x, Node) else x
            assert tensor is not None
            known = number.get(id(tensor))
            if known is None:
                there.append(tensor)
                known = number[id(x)] = number[id(tensor)] = -len(there)
            return known

        steps = []
        for n in nodes:
            reads = [r if (r := number.get(id(x))) is not None else ref(x) for x in n.inputs]
            steps.append(Step(n.kind, tuple(reads), n.numbers, n.batch))
            n.check()
        key = (tuple(steps), wanted, alive)
        if key not in self.plans:
            if len(self.plans) >= _MOST_PLANS:
                self.plans.clear()
            self.plans[key] = tasks_of(steps, wanted, alive)
        values: dict[int, Tensor] = {-i - 1: tensor for i, tensor in enumerate(there)}
        with self._as_recorded():
            for task in self.plans[key]:
                self._do(task, nodes, steps, values)
                for dead in task.last:
                    values.pop(dead, None)
        return {i: values[i] for i in wanted | alive if i in values}

    def _do(self, task: Task, nodes: list[Node], steps: Sequence[Step], values: dict[int, Tensor]) -> None:
        if isinstance(task.run, int):
            values[task.run] = _by_torch(nodes[task.run], [values[r] for r in steps[task.run].reads])
            return
        chain = task.run
        self.ran(chain)
        pairs = [
            (None if layer is None else nodes[layer].layer, None if norm is None else nodes[norm].norm)
            for layer, norm in zip(chain.layers, chain.norms, strict=True)
        ]
        inputs = [values[r] for r in chain.inputs]
        sizes = [math.prod(nodes[i].shape) for i in chain.layers if i is not None]
        maps = next(nodes[i].dtype for i in chain.layers if i is not None)
        outputs = run_chain(chain.links, pairs, inputs, self.pool, max([*sizes, *(x.numel() for x in inputs)]), maps)
        values.update(zip(chain.outputs, outputs, strict=True))

    @contextlib.contextmanager
    def _as_recorded(self) -> Iterator[None]:
        """Whatever the modes are now, compute in those of the calls, with types chosen already; and put nothing off."""
        grad, inference, _ = self.mode
        now = torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu")
        if now == (grad, inference, False) and not _saved_hooks():
            with torch._C.DisableTorchFunction(), suspended():
                yield
            return
        with contextlib.ExitStack() as stack:
            stack.enter_context(torch._C.DisableTorchFunction())
            if torch.is_inference_mode_enabled() != inference:
                stack.enter_context(torch.inference_mode(inference))
            if torch.is_grad_enabled() != grad:
                stack.enter_context(torch.set_grad_enabled(grad))
            if torch.is_autocast_enabled("cpu"):
                stack.enter_context(torch.autocast("cpu", enabled=False))
            if _saved_hooks():
                stack.enter_context(saved_tensors_hooks(lambda x: x, lambda x: x))
            stack.enter_context(suspended())
            yield


def _ancestors(node: Node, found: list[Node]) -> None:
    """The operations without a result that a node needs, in order, itself last."""
    todo = [node]
    order: dict[int, Node] = {}
    while todo:
        top = todo[-1]
        missing = [x for x in top.inputs if isinstance(x, Node) and x.result is None and id(x) not in order]
        if missing:
            todo += missing
        else:
            order[id(todo.pop())] = top
    found += order.values()


def _by_torch(node: Node, inputs: Sequence[Tensor]) -> Tensor:
    if node.norm is not None:
        return node.norm.by_torch(inputs[0], node.norm.weight, node.norm.bias)
    if node.kind == "add":
        return inputs[0] + inputs[1]
    if node.kind == "relu":
        return F.relu(inputs[0])
    if node.kind == "part":
        (s,) = node.numbers
        return inputs[0][:, :, ::s, ::s]
    if node.kind == "pool":
        return F.max_pool2d(inputs[0], node.numbers[:2], node.numbers[2:4], node.numbers[4:])
    before, after = node.numbers
    return F.pad(inputs[0], (0, 0, 0, 0, before, after))


def _plain(t: Tensor) -> bool:
    """Whether this is a tensor of a kind the kernels take."""
    return type(t) in _PLAIN and t.is_cpu and t.layout is torch.strided


def _usual(tensors: Iterable[Tensor | None], dtype: torch.dtype) -> bool:
    for t in tensors:  # noqa: SIM110 - called for each operation
        if t is not None and not (t.dtype is dtype and _plain(t)):
            return False
    return True


def _facts(x: Tensor) -> tuple[tuple[int, ...], torch.dtype]:
    """Shape and type, for one that is not computed yet without a call of PyTorch."""
    return (x.node.shape, x.node.dtype) if isinstance(x, Deferred) else (tuple(x.shape), x.dtype)


def _saved_hooks() -> bool:
    return _top_hooks(False) is not None
