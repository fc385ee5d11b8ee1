"""Compile a module for inference: trace it on one image, translate its layers, merge what can be merged."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from gemminer.core.copies import duplicate
from gemminer.core.errors import UsageError
from gemminer.core.fitting import require_numbers
from gemminer.core.names import without_wrappers
from gemminer.core.numbers import plain, shown
from gemminer.core.randomness import generator
from gemminer.sparse.inference.builder import Builder, Ref
from gemminer.sparse.inference.dense import captured
from gemminer.sparse.inference.operations import Dense, Planes
from gemminer.sparse.inference.program import Program, in_short
from gemminer.sparse.inference.rewrite import rewritten
from gemminer.sparse.inference.tables import FUNCTIONS, INPLACE, MODULES
from gemminer.sparse.inference.tracing import Tracer, inputs_of, reason


def compile(
    model: nn.Module, example_input: Tensor | None = None, *, input_shape: Sequence[int] | None = None
) -> Program:
    """The model in eval mode as a program that computes with its non-zero weights only; the model is left as it was.

    Outputs equal the model's within float rounding (1e-5 relative). Apply a ticket first, or train with one:
    only the weights that are not exactly zero are compiled.

    Args:
        model: of one input; others have defaults, which they take.
        example_input: a batch like those to come, for its shape; or
        input_shape: the shape of one input, (C, H, W) or (features,).

    Raises:
        UsageError: no shape, an input the model does not take, or a layer this does not know, by name.

    >>> program = compile(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), input_shape=(1, 2, 2))
    >>> program(torch.zeros(3, 1, 2, 2)).shape
    torch.Size([3, 2])
    """
    if example_input is not None and not isinstance(example_input, Tensor):
        raise UsageError(f"example_input must be a tensor, a batch, not a {type(example_input).__name__}")
    if input_shape is not None and not hasattr(input_shape, "__iter__"):
        raise UsageError(f"input_shape is (C, H, W) or (features,), not {shown(input_shape)}")
    shape = (
        tuple(plain(() if input_shape is None else input_shape))
        if example_input is None
        else tuple(example_input.shape[1:])
    )
    if len(shape) not in (1, 3) or not all(isinstance(n, int) and n > 0 for n in shape):
        raise UsageError("compile needs example_input, a batch, or input_shape: (C, H, W) or (features,)")
    require_numbers(model)
    model = without_wrappers(duplicate(model)).to("cpu", torch.float32).eval()
    if inputs_of(model) > 1:
        raise UsageError("cannot compile a model of several inputs: give all but the first a default")
    if math.prod(shape) >= 2**31:
        raise UsageError(f"an input of {math.prod(shape):,} numbers is too large to compile for")
    with torch.no_grad():
        tracer = Tracer(torch.zeros(1, *shape), MODULES.__contains__)
        try:
            graph = tracer.traced(model)
        except UsageError:
            raise
        except Exception as error:  # anything that a forward may raise on a value it cannot see
            what = f"cannot trace {type(model).__name__} ({reason(error)})"
            raise UsageError(f"{what}: its forward must not branch on data") from None
        walk = _Walk(graph, tracer, Builder(shape))
        outputs = walk.outputs()
    operations = rewritten(walk.builder.operations, walk.builder.shapes[0])
    if walk.builder.moves:
        _check_images(Program(shape, outputs, operations), model)
    program = Program(shape, outputs, operations)  # without what the check has laid out
    if program.dense:
        said = in_short(program.dense)
        logging.getLogger("gemminer").warning("a part of the program is dense, by PyTorch, image by image: %s", said)
    return program


def _check_images(program: Program, model: nn.Module) -> None:
    """Raise where the model computes something else of two images than of each."""
    images = torch.randn(2, *program.inputs, generator=generator("compile", "images"))
    try:
        with torch.no_grad():
            want = model(images)
            got = program(images, threads=1)
    except UsageError:
        raise
    except Exception as error:  # anything that a forward may raise
        raise UsageError(f"cannot compile a model that does not take a batch of images: {reason(error)}") from None
    near = isinstance(want, Tensor) and want.shape == got.shape
    if not near or not torch.allclose(want.float(), got, rtol=1e-2, atol=1e-2 * float(want.abs().max())):
        raise UsageError("cannot compile a model whose result for an image depends on the others of its batch")


class _Walk:
    """Translates a graph's nodes in order."""

    def __init__(self, graph: fx.Graph, tracer: Tracer, builder: Builder) -> None:
        self.graph, self.root, self.builder = graph, tracer.root, builder
        self.real = {node.name: value for node, value in tracer.real.items()}
        self.refs: dict[fx.Node, Any] = {}
        self.pending: dict[fx.Node, UsageError] = {}  # what depends on the image and is no operation's result

    def outputs(self) -> tuple[int, ...]:
        """Translate every node; returns the shape of the result for an image."""
        for node in self.graph.nodes:
            if node.op == "placeholder":
                self.refs[node] = Ref(0, tuple(self.real[node.name].shape))
            elif node.op == "output":
                return self._finish(node.args[0])
            elif any(n in self.refs or n in self.pending for n in node.all_input_nodes):
                self._take(node)
        raise UsageError("cannot compile a model without a result")

    def _take(self, node: fx.Node) -> None:
        real = self.real[node.name]
        so_far = len(self.builder.operations)
        try:
            for before in node.all_input_nodes:
                if before in self.pending:
                    raise self.pending[before]
            args, kwargs = fx.map_arg((node.args, node.kwargs), lambda n: self.refs.get(n, self.real[n.name]))
            self.refs[node] = self._translated(node, args, kwargs, real)
        except UsageError as why:
            del self.builder.operations[so_far:], self.builder.shapes[so_far + 1 :]
            self.pending[node] = why
            if isinstance(real, Tensor) and real.dtype == torch.float32:
                self.refs[node] = self._dense(node, why)
                del self.pending[node]
        if node in self.refs and _in_place(self.root, node):
            self._overwrite(node)

    def _dense(self, node: fx.Node, why: UsageError) -> Ref:
        """A node that no rule takes, with those before it that gave no numbers to compute with, as a dense part."""
        group, inputs, open_nodes = {node}, list[fx.Node](), [node]
        while open_nodes:
            for n in open_nodes.pop().all_input_nodes:
                if n in self.pending and n not in group:
                    group.add(n)
                    open_nodes.append(n)
                elif n in self.refs and n not in inputs:
                    inputs.append(n)
        refs = [ref for n in inputs for ref in _flat(self.refs[n])]
        part = _Part(self, [n for n in self.graph.nodes if n in group], inputs)
        try:
            steps, constants = captured(part, [torch.zeros(ref.shape) for ref in refs])
        except Exception:  # anything that PyTorch's tracers may raise: what no rule takes is named instead
            raise why from None
        plain = [self.builder.plain(ref) for ref in refs]
        planes = tuple(Planes(ref.value, np.arange(self.builder.shapes[ref.value][0])) for ref in plain)
        shape = tuple(self.real[node.name].shape)
        self.builder.moves = True  # so that its images are compared
        whole = (shape[1], shape[2], shape[3]) if len(shape) == 4 and shape[0] == 1 else (1, 1, math.prod(shape))
        forms = tuple(ref.shape for ref in refs)
        said = str(why).removeprefix("cannot compile ").replace(f" ({_path(node)})", "")
        op = Dense(whole, planes, forms, steps, constants, _where(node), said)
        return self.builder.add(op, shape)

    def _translated(self, node: fx.Node, args: Any, kwargs: Any, real: Any) -> Any:
        """A node as operations: a module's own arguments come before the input."""
        rule, name = _rule(self.root, node)
        if node.op == "call_module":
            args = (self.root.get_submodule(str(node.target)), *args)
        if rule is None or not isinstance(real, Tensor | tuple | list):
            raise UsageError(f"cannot compile {name}, which is not known")
        shape = tuple(real.shape) if isinstance(real, Tensor) else None
        try:
            found = rule(self.builder, shape, *args, **kwargs)
        except (TypeError, AttributeError, KeyError) as error:  # arguments that the rule does not have
            raise UsageError(f"cannot compile {name} with these arguments ({reason(error)})") from None
        if isinstance(real, Tensor) and (not isinstance(found, Ref) or math.prod(found.shape) != real.numel()):
            raise UsageError(f"cannot compile {name} with a result of shape {shape}")
        return replace(found, shape=shape) if isinstance(real, Tensor) and found.shape != shape else found

    def _overwrite(self, node: fx.Node) -> None:
        """Let every node that stood for the changed value stand for the result from here on."""
        changed, new = node.args[0], self.refs[node]
        old = self.refs.get(changed) if isinstance(changed, fx.Node) else None
        if old is None or old == new:
            return
        shapes = self.builder.shapes
        same = (old.index is None) == (new.index is None) and (old.index is None or torch.equal(old.index, new.index))
        if not same or shapes[old.value] != shapes[new.value] or math.prod(old.shape) != math.prod(shapes[old.value]):
            raise UsageError(f"cannot compile {node.name}, which changes its argument: write the result to a new name")
        for other, ref in self.refs.items():
            if isinstance(ref, Ref) and ref.value == old.value:
                self.refs[other] = replace(ref, value=new.value)

    def _finish(self, result: Any) -> tuple[int, ...]:
        ref = self.refs.get(result) if isinstance(result, fx.Node) else None
        if isinstance(result, fx.Node) and result in self.pending:
            raise self.pending[result] from None
        if not isinstance(ref, Ref) or len(ref.shape) < 2 or ref.shape[0] != 1:
            raise UsageError("cannot compile a model whose result is not one tensor made of its input, batch first")
        builder = self.builder
        ref = builder.plain(ref)
        if ref.value != len(builder.operations) or ref.value == 0:
            builder.scaled(ref, 1.0)
        return ref.shape[1:]


class _Part:
    """Some nodes of a graph as a function of the tensors that come into them."""

    def __init__(self, walk: _Walk, nodes: list[fx.Node], inputs: list[fx.Node]) -> None:
        self.run, self.nodes, self.inputs, self.walk = fx.Interpreter(walk.root, graph=walk.graph), nodes, inputs, walk

    def __call__(self, *tensors: Tensor) -> Tensor:
        given = iter(tensors)
        known = {n: _like(self.walk.refs[n], given) for n in self.inputs}
        for node in self.nodes:
            args, kwargs = fx.map_arg((node.args, node.kwargs), lambda n: known.get(n, self.walk.real.get(n.name)))
            known[node] = getattr(self.run, node.op)(node.target, args, kwargs)
        out: Tensor = known[self.nodes[-1]]
        return out


def _flat(ref: Any) -> list[Ref]:
    return [ref] if isinstance(ref, Ref) else [r for part in ref or () for r in _flat(part)]


def _like(ref: Any, tensors: Iterator[Tensor]) -> Any:
    """The tensors of a value's refs in the value's own form."""
    return next(tensors) if isinstance(ref, Ref) else tuple(_like(part, tensors) for part in ref or ())


def _where(node: fx.Node) -> str:
    """A part's name: its own, and the module whose forward makes it."""
    stack = [str(row[0]) for row in node.meta.get("nn_module_stack", {}).values()]
    if node.op == "call_module":
        return _path(node)
    inside = stack[-1].removeprefix("model").removeprefix(".") if stack else ""
    return f"{node.name} in {inside}" if inside else node.name


def _path(node: fx.Node) -> str:
    return str(node.target).removeprefix("model").removeprefix(".")


def _rule(root: nn.Module, node: fx.Node) -> tuple[Callable[..., Any] | None, str]:
    """The rule of a node's module, function or method, and how to call it in a sentence."""
    if node.op == "call_module":
        module = root.get_submodule(str(node.target))
        return MODULES.get(type(module)), f"{type(module).__name__} ({_path(node)})"
    return FUNCTIONS.get(node.target), f"{getattr(node.target, '__name__', node.target)}()"


def _in_place(root: nn.Module, node: fx.Node) -> bool:
    """Whether the call changes its first argument, as relu_(x), x += y and ReLU(inplace=True) do."""
    if node.op == "call_module":
        return bool(getattr(root.get_submodule(str(node.target)), "inplace", False))
    name = node.target if isinstance(node.target, str) else node.target.__name__
    positional = node.target in INPLACE and len(node.args) > 1 and node.args[1] is True
    return name in ("iadd", "isub", "imul") or name.endswith("_") or bool(node.kwargs.get("inplace")) or positional
