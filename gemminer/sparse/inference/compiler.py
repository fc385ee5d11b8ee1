"""Compile a module for inference: trace it with `torch.fx`, run it once for the shapes, translate its layers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from gemminer.core.copies import duplicate
from gemminer.core.errors import UsageError
from gemminer.core.fitting import require_numbers
from gemminer.core.names import without_wrappers
from gemminer.core.numbers import plain, shown
from gemminer.sparse.inference.layers import FUNCTIONS, MODULES, Builder, Ref
from gemminer.sparse.inference.program import Program
from gemminer.sparse.inference.rewrite import rewritten


def compile(
    model: nn.Module, example_input: Tensor | None = None, *, input_shape: Sequence[int] | None = None
) -> Program:
    """The model in eval mode as a program that computes with its non-zero weights only; the model is left as it was.

    Outputs equal the model's within float rounding (1e-5 relative). Apply a ticket first, or train with one:
    only the weights that are not exactly zero are compiled.

    Args:
        model: convolutions, linear layers, batch norm, clamping activations, pools, adds, concatenation.
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
    try:
        # A layer by itself is traced as one layer, not as what its forward does.
        graph = fx.symbolic_trace(nn.Sequential(model) if type(model) in MODULES else model)
    except Exception as error:  # anything that a forward may raise on a proxy
        what = f"cannot trace {type(model).__name__} ({_reason(error)})"
        raise UsageError(f"{what}: its forward must not branch on data") from None
    builder = Builder(shape)
    if math.prod(shape) >= 2**31:
        raise UsageError(f"an input of {math.prod(shape):,} numbers is too large to compile for")
    with torch.no_grad():
        outputs = _walk(graph, torch.zeros(1, *shape), builder)
    return Program(shape, outputs, rewritten(builder.operations, builder.shapes[0]))


def _reason(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def _walk(graph: fx.GraphModule, example: Tensor, builder: Builder) -> tuple[int, ...]:
    """Translate every node; returns the shape of the result."""
    real: dict[fx.Node, Any] = {}
    refs: dict[fx.Node, Ref] = {}
    run = fx.Interpreter(graph)
    for node in graph.graph.nodes:
        args, kwargs = fx.map_arg((node.args, node.kwargs), lambda n: real[n])
        if node.op == "placeholder":
            if refs:
                raise UsageError("cannot compile a model of several inputs")
            real[node], refs[node] = example, Ref(0, example.ndim == 2)
            continue
        if node.op == "output":
            return _finish(args[0], refs.get(node.args[0]), builder)
        try:
            real[node] = getattr(run, node.op)(node.target, args, kwargs)
        except Exception as error:
            what = f"the model does not take an input of shape {tuple(example.shape[1:])}"
            raise UsageError(f"{what}: {_reason(error)}") from None
        if any(n in refs for n in node.all_input_nodes) and isinstance(real[node], Tensor):
            args, kwargs = fx.map_arg((node.args, node.kwargs), lambda n: refs.get(n, real[n]))
            refs[node] = _translate(graph, node, args, kwargs, tuple(real[node].shape[1:]), builder)
            if _in_place(graph, node):
                _overwrite(refs, node, builder)
    raise UsageError("cannot compile a model without a result")


def _in_place(graph: fx.GraphModule, node: fx.Node) -> bool:
    """Whether the call changes its first argument, as relu_(x), x += y and ReLU(inplace=True) do."""
    if node.op == "call_module":
        return bool(getattr(graph.get_submodule(str(node.target)), "inplace", False))
    name = node.target if isinstance(node.target, str) else node.target.__name__
    positional = node.target in (F.relu, F.relu6) and len(node.args) > 1 and node.args[1] is True
    return name in ("iadd", "isub", "imul") or name.endswith("_") or bool(node.kwargs.get("inplace")) or positional


def _overwrite(refs: dict[fx.Node, Ref], node: fx.Node, builder: Builder) -> None:
    """Let every node that stood for the changed value stand for the result from here on."""
    changed, new = node.args[0], refs[node]
    if not isinstance(changed, fx.Node) or changed not in refs or refs[changed].value == new.value:
        return
    old = refs[changed]
    if builder.shapes[old.value] != builder.shapes[new.value]:
        raise UsageError(f"cannot compile {node.name}, which changes its argument: write the result to a new name")
    for name, ref in refs.items():
        if ref.value == old.value:
            refs[name] = Ref(new.value, ref.flat)


def _finish(result: Any, ref: Ref | None, builder: Builder) -> tuple[int, ...]:
    if ref is None or not isinstance(result, Tensor) or result.ndim < 2:
        raise UsageError("cannot compile a model whose result is not one tensor made of its input, batch first")
    if ref.value != len(builder.operations) or ref.value == 0:
        builder.pointwise([(ref, 1.0)])
    return tuple(result.shape[1:])


def _translate(
    graph: fx.GraphModule, node: fx.Node, args: Any, kwargs: Any, shape: tuple[int, ...], builder: Builder
) -> Ref:
    """A node as operations: a module's own arguments come before the input."""
    if node.op == "call_module":
        module = graph.get_submodule(str(node.target))
        rule, name = MODULES.get(type(module)), f"{type(module).__name__} ({node.target})"
        args = (module, *args)
    else:
        rule = FUNCTIONS.get(node.target)
        name = f"{getattr(node.target, '__name__', node.target)}()"
    if rule is None:
        raise UsageError(
            f"cannot compile {name}: known are convolutions, linear layers, batch norm, clamping activations, pools, "
            "adds, flattening and concatenation"
        )
    ref: Ref = rule(builder, shape, *args, **kwargs)
    have = builder.shapes[ref.value]
    if math.prod(have) != math.prod(shape) or (not ref.flat and have != shape):
        raise UsageError(f"cannot compile {name} with a result of shape (N, {', '.join(map(str, shape))})")
    return ref
