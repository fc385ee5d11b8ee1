"""Compile a module for inference: trace it on one image, translate its layers, merge what can be merged."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from gemminer.core.copies import duplicate
from gemminer.core.errors import UsageError
from gemminer.core.fitting import require_numbers
from gemminer.core.names import without_wrappers
from gemminer.core.numbers import plain, shown
from gemminer.core.randomness import generator
from gemminer.sparse.inference.builder import Builder, Ref
from gemminer.sparse.inference.program import Program
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
    return Program(shape, outputs, operations)  # without what the check has laid out


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

    def __init__(self, graph: fx.GraphModule, tracer: Tracer, builder: Builder) -> None:
        self.graph, self.builder = graph, builder
        self.real = {node.name: value for node, value in tracer.real.items()}
        self.refs: dict[fx.Node, Any] = {}

    def outputs(self) -> tuple[int, ...]:
        """Translate every node; returns the shape of the result for an image."""
        for node in self.graph.graph.nodes:
            if node.op == "placeholder":
                self.refs[node] = Ref(0, tuple(self.real[node.name].shape))
            elif node.op == "output":
                return self._finish(node.args[0])
            elif any(n in self.refs for n in node.all_input_nodes):
                self._take(node)
        raise UsageError("cannot compile a model without a result")

    def _take(self, node: fx.Node) -> None:
        real = self.real[node.name]
        if isinstance(real, Tensor | tuple | list):
            args, kwargs = fx.map_arg((node.args, node.kwargs), lambda n: self.refs.get(n, self.real[n.name]))
            self.refs[node] = self._translated(node, args, kwargs, real)
            if _in_place(self.graph, node):
                self._overwrite(node)

    def _translated(self, node: fx.Node, args: Any, kwargs: Any, real: Any) -> Any:
        """A node as operations: a module's own arguments come before the input."""
        rule, name = _rule(self.graph, node)
        if node.op == "call_module":
            args = (self.graph.get_submodule(str(node.target)), *args)
        if rule is None:
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
        if not isinstance(ref, Ref) or len(ref.shape) < 2 or ref.shape[0] != 1:
            raise UsageError("cannot compile a model whose result is not one tensor made of its input, batch first")
        builder = self.builder
        ref = builder.plain(ref)
        if ref.value != len(builder.operations) or ref.value == 0:
            builder.scaled(ref, 1.0)
        return ref.shape[1:]


def _rule(graph: fx.GraphModule, node: fx.Node) -> tuple[Callable[..., Any] | None, str]:
    """The rule of a node's module, function or method, and how to call it in a sentence."""
    if node.op == "call_module":
        module = graph.get_submodule(str(node.target))
        return MODULES.get(type(module)), f"{type(module).__name__} ({str(node.target).removeprefix('model.')})"
    return FUNCTIONS.get(node.target), f"{getattr(node.target, '__name__', node.target)}()"


def _in_place(graph: fx.GraphModule, node: fx.Node) -> bool:
    """Whether the call changes its first argument, as relu_(x), x += y and ReLU(inplace=True) do."""
    if node.op == "call_module":
        return bool(getattr(graph.get_submodule(str(node.target)), "inplace", False))
    name = node.target if isinstance(node.target, str) else node.target.__name__
    positional = node.target in INPLACE and len(node.args) > 1 and node.args[1] is True
    return name in ("iadd", "isub", "imul") or name.endswith("_") or bool(node.kwargs.get("inplace")) or positional
