"""Find layer -> norm -> (+) -> ReLU in a trace of a model, and run them as chains."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import fx, nn

from gemminer.sparse.memory import BufferPool
from gemminer.sparse.training.chain import Links, Shortcut, Unit
from gemminer.sparse.training.modules import (
    MaskedConv2d,
    MaskedLayer,
    MaskedLinear,
    Pair,
    SparseLayer,
    SparseLinear,
    run_chain,
)

_ADD = {operator.add, operator.iadd, torch.add}
_RELU = {F.relu, F.relu_, torch.relu, torch.relu_}
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


class ResultRef(NamedTuple):
    """The result of an earlier operation, by its number."""

    number: int


@dataclass
class TracedOperation:
    """One step of a network: `target` called on args, in which earlier results stand as `ResultRef`."""

    kind: str
    target: Any
    args: Any
    kwargs: dict[str, Any]
    results: tuple[int, ...]
    last: tuple[int, ...] = field(default=())  # results that nothing reads after this step


class SparseNetwork(nn.Module):
    """A model with sparse layers, run as the operations of its trace; a chain of sparse layers is one operation."""

    def __init__(self, net: nn.Module, inputs: list[tuple[str, Any]], operations: list[TracedOperation]) -> None:
        super().__init__()
        self.net, self.inputs, self.operations = net, inputs, operations
        self._pool = BufferPool()
        self.training = net.training
        self._modules_by_path: dict[str, nn.Module] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_pool": BufferPool(), "_modules_by_path": {}}

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        values = dict(enumerate(self._bind(args, kwargs)))
        for op in self.operations:
            result = self._run(op, values)
            if op.kind == "output":
                return result
            if op.kind == "chain":
                values.update(zip(op.results, result, strict=True))
            else:
                values[op.results[0]] = result
            for dead in op.last:
                del values[dead]
        raise AssertionError("a trace ends in its output")

    def _bind(self, args: Sequence[Any], kwargs: dict[str, Any]) -> Iterator[Any]:
        if len(args) > len(self.inputs) or not kwargs.keys() <= {name for name, _ in self.inputs[len(args) :]}:
            raise TypeError(f"forward takes {', '.join(name for name, _ in self.inputs)}")
        for i, (name, default) in enumerate(self.inputs):
            if i >= len(args) and name not in kwargs and default is _NEEDED:
                raise TypeError(f"forward needs {name!r}")
            yield args[i] if i < len(args) else kwargs.get(name, default)

    def _module(self, path: str) -> nn.Module:
        if path not in self._modules_by_path:
            self._modules_by_path[path] = self.net.get_submodule(path)
        return self._modules_by_path[path]

    def _run(self, op: TracedOperation, values: dict[int, Any]) -> Any:
        args = _fill_in(op.args, values)
        if op.kind == "chain":
            pairs: list[Pair] = [
                (None if u.shortcut else self._module(u.layer), u.norm and self._module(u.norm))  # type: ignore[misc]
                for u in op.target.units
            ]
            return run_chain(op.target, pairs, args, self._pool)
        kwargs = _fill_in(op.kwargs, values)
        if op.kind == "call_module":
            return self._module(op.target)(*args, **kwargs)
        if op.kind == "call_method":
            return getattr(args[0], op.target)(*args[1:], **kwargs)
        if op.kind == "get_attr":
            return operator.attrgetter(op.target)(self.net)
        return args[0] if op.kind == "output" else op.target(*args, **kwargs)


_NEEDED = "<needed>"


def _fill_in(args: Any, values: dict[int, Any]) -> Any:
    if isinstance(args, ResultRef):
        return values[args.number]
    if isinstance(args, tuple | list):
        return type(args)(_fill_in(a, values) for a in args)
    if isinstance(args, dict):
        return {key: _fill_in(a, values) for key, a in args.items()}
    if isinstance(args, slice):
        return slice(_fill_in(args.start, values), _fill_in(args.stop, values), _fill_in(args.step, values))
    return args


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, qualified_name: str) -> bool:
        ours = (SparseLayer, MaskedLayer, MaskedConv2d, MaskedLinear)
        return isinstance(m, ours) or super().is_leaf_module(m, qualified_name)


def fused(net: nn.Module) -> nn.Module:
    """`net` as a `SparseNetwork`, or itself where its forward cannot be traced or holds nothing to fuse."""
    if isinstance(net, SparseLayer) or not any(isinstance(m, SparseLayer) for m in net.modules()):
        return net
    if any(getattr(module, hooks) for module in net.modules() for hooks in _HOOKS):
        return net
    graph = _trace(net)
    if graph is None:
        return net
    plan = _Plan(net, graph)
    return SparseNetwork(net, plan.inputs, plan.operations) if plan.chains else net


def _trace(net: nn.Module) -> fx.Graph | None:
    """The graph of forward, if it is the same in both modes and replaying it is safe; else None."""
    modes = [(m, m.training) for m in net.modules()]
    graphs = []
    try:
        for mode in (True, False):
            net.train(mode)
            graphs.append(_Tracer().trace(net))
    except Exception:  # anything that a user's forward may raise on a proxy
        return None
    finally:
        for module, training in modes:
            module.training = training
        for name in [n for n in vars(net) if n.startswith("_tensor_constant")]:
            delattr(net, name)
    if str(graphs[0]) != str(graphs[1]):
        return None
    graph = graphs[0]
    for node in graph.nodes:
        called = net.get_submodule(str(node.target)) if node.op == "call_module" else None
        if type(called) is nn.Identity and len(node.args) == 1:
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
    return None if any(_unsafe(node, net) for node in graph.nodes) else graph


def _unsafe(node: fx.Node, net: nn.Module) -> bool:
    """Whether a node is a constant drawn at tracing, or changes a tensor in place that others read."""
    if node.op == "get_attr":
        return str(node.target).startswith("_tensor_constant")
    if node.op == "call_module":
        in_place = bool(getattr(net.get_submodule(str(node.target)), "inplace", False))
    elif node.op == "call_method":
        in_place = str(node.target).endswith("_") and not str(node.target).endswith("__")
    else:
        name = getattr(node.target, "__name__", "")
        in_place = name.endswith("_") or name in ("iadd", "imul", "isub", "itruediv", "setitem")
        in_place = in_place or bool(node.kwargs.get("inplace")) or "out" in node.kwargs
    return in_place and any(len(a.users) > 1 for a in node.all_input_nodes[:1])


@dataclass
class _Found:
    """A unit in the graph: its nodes, the last of which is its value."""

    layer: str
    source: fx.Node
    nodes: list[fx.Node]
    flat: bool
    norm: str | None = None
    residual: fx.Node | None = None
    relu: bool = False
    shortcut: Shortcut | None = None

    @property
    def value(self) -> fx.Node:
        return self.nodes[-1]


def _shortcut(node: fx.Node) -> _Found | None:
    """The unit of a parameter-free shortcut, x[:, :, ::s, ::s] with zero channels padded on, if the node begins one."""
    if node.op != "call_function" or node.target is not operator.getitem or not isinstance(node.args[0], fx.Node):
        return None
    index, all_ = node.args[1], slice(None)
    if not isinstance(index, tuple) or len(index) != 4 or index[:2] != (all_, all_) or index[2] != index[3]:
        return None
    step = index[2].step if isinstance(index[2], slice) else None
    if not isinstance(step, int) or step < 1 or index[2] != slice(None, None, step):
        return None
    users = list(node.users)
    pad = users[0] if len(users) == 1 and users[0].target is F.pad else None
    if pad is None or pad.kwargs.get("mode", "constant") != "constant" or pad.kwargs.get("value"):
        return None
    widths = pad.args[1] if len(pad.args) == 2 else pad.kwargs.get("pad")
    if not isinstance(widths, tuple | list) or len(widths) != 6 or tuple(widths[:4]) != (0, 0, 0, 0):
        return None
    before, after = widths[4:]
    if not (isinstance(before, int) and isinstance(after, int) and before >= 0 and after >= 0):
        return None
    return _Found("", node.args[0], [node, pad], False, shortcut=Shortcut(step, before, after))


class _Plan:
    """The operations of a graph, with as many units in each chain as their order allows."""

    def __init__(self, net: nn.Module, graph: fx.Graph) -> None:
        self.net = net
        self.inputs: list[tuple[str, Any]] = []
        self.operations: list[TracedOperation] = []
        self.chains = 0
        self._number: dict[fx.Node, int] = {}
        self._current: list[_Found] = []
        self._tainted: list[fx.Node] = []  # outside the current chain, but computed from it
        units = self._find(graph)
        inner = {node for unit in units.values() for node in unit.nodes}
        for node in graph.nodes:
            if node.op == "placeholder":
                self.inputs.append((str(node.target), node.args[0] if node.args else _NEEDED))
                self._number[node] = len(self._number)
        for node in graph.nodes:
            if node in units:
                self._unit(units[node])
            elif node.op != "placeholder" and node not in inner:
                self._other(node)
        self._mark_last()

    def _find(self, graph: fx.Graph) -> dict[fx.Node, _Found]:
        """Units by their last node."""
        claimed: set[fx.Node] = set()
        units = {}
        for node in graph.nodes:
            layer = self._called(node)
            if (found := _shortcut(node)) is not None:
                claimed |= set(found.nodes)
                units[found.value] = found
            if not isinstance(layer, SparseLayer) or len(node.args) != 1 or node.kwargs:
                continue
            source = node.args[0]
            assert isinstance(source, fx.Node)
            unit = _Found(str(node.target), source, [node], isinstance(layer, SparseLinear))
            self._extend(unit, layer, claimed)
            claimed |= set(unit.nodes)
            units[unit.value] = unit
        return units

    def _called(self, node: fx.Node) -> nn.Module | None:
        return self.net.get_submodule(str(node.target)) if node.op == "call_module" else None

    def _next(self, unit: _Found, claimed: set[fx.Node]) -> fx.Node | None:
        users = list(unit.value.users)
        return users[0] if len(users) == 1 and users[0] not in claimed else None

    def _extend(self, unit: _Found, layer: SparseLayer, claimed: set[fx.Node]) -> None:
        node = self._next(unit, claimed)
        norm = self._called(node) if node is not None else None
        kind = nn.BatchNorm1d if unit.flat else nn.BatchNorm2d
        if node is not None and type(norm) is kind and norm.num_features == layer.shape[0] and len(node.args) == 1:
            unit.norm = str(node.target)
            unit.nodes.append(node)
            node = self._next(unit, claimed)
        if node is not None and self._adds(node):
            a, b = node.args
            unit.residual = b if a is unit.value else a  # type: ignore[assignment]
            unit.nodes.append(node)
            node = self._next(unit, claimed)
        if node is not None and self._is_relu(node):
            unit.relu = True
            unit.nodes.append(node)

    def _adds(self, node: fx.Node) -> bool:
        function = node.op == "call_function" and node.target in _ADD
        method = node.op == "call_method" and node.target in ("add", "add_", "__add__", "__iadd__")
        operands = [a for a in node.args if isinstance(a, fx.Node)]
        return (function or method) and not node.kwargs and len(node.args) == len(operands) == len(set(operands)) == 2

    def _is_relu(self, node: fx.Node) -> bool:
        if node.op == "call_module":
            return type(self._called(node)) is nn.ReLU
        function = node.op == "call_function" and node.target in _RELU
        return function or (node.op == "call_method" and node.target in ("relu", "relu_"))

    def _unit(self, unit: _Found) -> None:
        if unit.shortcut and not any(unit.source is other.value for other in self._current):
            for node in unit.nodes:
                self._other(node)
            return
        reads = [unit.source, *([unit.residual] if unit.residual is not None else [])]
        if self._current and (unit.flat != self._current[0].flat or any(node in self._tainted for node in reads)):
            self._close()
        self._current.append(unit)

    def _other(self, node: fx.Node) -> None:
        made = {unit.value for unit in self._current}
        if any(n in made or n in self._tainted for n in node.all_input_nodes):
            self._tainted.append(node)
            if node.op == "output":
                self._close()
        else:
            self._emit(node)

    def _emit(self, node: fx.Node) -> None:
        results = () if node.op == "output" else (self._name(node),)
        args = fx.node.map_arg(node.args, lambda n: ResultRef(self._number[n]))
        kwargs = fx.node.map_arg(node.kwargs, lambda n: ResultRef(self._number[n]))
        self.operations.append(TracedOperation(node.op, node.target, _plain(args), _plain(kwargs), results))

    def _name(self, node: fx.Node) -> int:
        return self._number.setdefault(node, len(self._number))

    def _close(self) -> None:
        """Emit the current chain, and then the operations that waited for it."""
        units, waiting = self._current, self._tainted
        self._current, self._tainted = [], []
        made = [unit.value for unit in units]
        reads = [n for u in units for n in (u.source, u.residual) if n is not None]
        inputs = list(dict.fromkeys(n for n in reads if n not in made))
        index = {node: i for i, node in enumerate([*inputs, *made])}
        inside = {node for unit in units for node in unit.nodes}
        outputs = [n for n in made if not n.users.keys() <= inside]
        links = Links(
            len(inputs),
            tuple(
                Unit(
                    u.layer,
                    index[u.source],
                    u.norm,
                    None if u.residual is None else index[u.residual],
                    u.relu,
                    u.shortcut,
                )
                for u in units
            ),
            tuple(index[n] for n in outputs),
        )
        args = tuple(ResultRef(self._number[n]) for n in inputs)
        self.operations.append(TracedOperation("chain", links, args, {}, tuple(self._name(n) for n in outputs)))
        self.chains += 1
        for node in waiting:
            self._emit(node)

    def _mark_last(self) -> None:
        seen: set[int] = set()
        for op in reversed(self.operations):
            reads = set(_refs(op.args)) | set(_refs(op.kwargs)) | set(op.results)
            op.last = tuple(reads - seen)
            seen |= reads


def _plain(args: Any) -> Any:
    """fx's immutable lists and dicts as Python's own, which pickle."""
    if isinstance(args, ResultRef):
        return args
    if isinstance(args, tuple):
        return tuple(_plain(a) for a in args)
    if isinstance(args, list):
        return [_plain(a) for a in args]
    if isinstance(args, dict):
        return {key: _plain(a) for key, a in args.items()}
    return args


def _refs(args: Any) -> Iterator[int]:
    if isinstance(args, ResultRef):
        yield args.number
    elif isinstance(args, tuple | list):
        for a in args:
            yield from _refs(a)
    elif isinstance(args, dict):
        yield from _refs(list(args.values()))
    elif isinstance(args, slice):
        yield from _refs([args.start, args.stop, args.step])
