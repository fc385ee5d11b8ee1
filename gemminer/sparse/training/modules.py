"""Modules that hold kept weights as a vector of values and their indices. Chains of them run in `chain`."""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad

from gemminer.core.errors import GemminerError, UsageError
from gemminer.sparse.memory import BufferPool
from gemminer.sparse.training.backward import Backward
from gemminer.sparse.training.chain import Forward, Links, Norm, Runner, Step, Unit, Value, Weights, block_size
from gemminer.sparse.training.patterns import Pattern

_functorch = torch._C._are_functorch_transforms_active
DTYPES = (torch.float32, torch.float64)
_ALONE = Links(1, (Unit(0),), (1,))
_PLAIN = frozenset(vars(nn.Module()))


CANNOT_BE_TRACED = (
    "a sparse network cannot be compiled or exported: load gemminer.sparse.densify(network) into the plain model, and "
    "compile or export that"
)


class _Deferring(threading.local):
    """What puts off the layers of the forward pass that this thread is in (`deferred.Recorder`), if anything."""

    recorder: Any = None


deferring = _Deferring()


# While it is set, `state_dict` of a sparse network gives the plain model's: `sparse.densify`.
as_plain = ContextVar("as_plain", default=False)


class SparseLayer(nn.Module):
    """A layer's kept weights as one parameter, `values`, in the order of the flattened weight; `kept` says which.

    It is an instance of the layer's class, with its attributes: a forward may ask for either.
    Under autocast to bfloat16 maps are of that type, as PyTorch's layers make them.
    Where the kernels cannot run (a GPU, half precision) it builds the dense weight and PyTorch runs it.
    """

    values: nn.Parameter
    bias: nn.Parameter | None
    kept: Tensor
    sift = False  # whether each pass looks for zeros among the values, as in a search

    def __init__(self, plain: nn.Conv2d | nn.Linear, mask: Tensor) -> None:
        nn.Module.__init__(self)
        weight, bias = plain.weight, plain.bias
        # A forward may ask a layer for its sizes, or for what its author wrote into it.
        self.__dict__ |= {name: value for name, value in vars(plain).items() if name not in _PLAIN}
        kept = mask.reshape(-1).nonzero().flatten().to(weight.device)
        self.shape = tuple(weight.shape)
        self.values = nn.Parameter(weight.detach().reshape(-1)[kept].clone(), weight.requires_grad)
        self.register_parameter("bias", bias)  # type: ignore[arg-type]
        self.register_buffer("kept", kept.to(torch.int32))
        self._pattern: Pattern | None = None
        self._pool = BufferPool()

    def held(self) -> tuple[Tensor, Tensor | None]:
        """Values and bias, without the detour of a module's attributes."""
        own = self._parameters
        return own["values"], own["bias"]  # type: ignore[return-value]

    @property
    def weight(self) -> Tensor:
        """The dense weight, zero where pruned; gradients flow to `values`."""
        return self.spread(self.values)

    def spread(self, values: Tensor) -> Tensor:
        """The dense weight of these kept values."""
        flat = values.new_zeros(int(np.prod(self.shape)))
        return flat.index_put((self.kept.long(),), values).reshape(self.shape)

    def narrow(self, mask: Tensor, values: nn.Parameter) -> None:
        """Hold only `values` from now on, at the places that `mask`, of the whole weight's shape, keeps."""
        self.kept = mask.reshape(-1).nonzero().flatten().to(self.kept)
        self.values, self._pattern = values, None

    def pattern(self) -> Pattern:
        if self._pattern is None:
            self._pattern = self._make_pattern(self.kept.cpu().numpy())
        return self._pattern

    def _make_pattern(self, kept: Any) -> Pattern:
        raise NotImplementedError

    def dense(self, x: Tensor, values: Tensor, bias: Tensor | None) -> Tensor:
        """The output of the masked dense layer, computed by PyTorch."""
        raise NotImplementedError

    def out_shape(self, shape: tuple[int, ...]) -> tuple[int, ...] | None:
        """The output's shape, None where the kernels cannot take such an input."""
        raise NotImplementedError

    def forward(self, input: Tensor) -> Tensor:
        refuse_tracing()
        recorder = deferring.recorder
        return self.now(input) if recorder is None else recorder.layer(self, input)

    def now(self, x: Tensor) -> Tensor:
        """The output, computed at once."""
        return run_chain(_ALONE, [(self, None)], [x], self._pool)[0]

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        if not as_plain.get():
            super()._save_to_state_dict(destination, prefix, keep_vars)
            return
        destination[f"{prefix}weight"] = self.weight.detach()
        if self.bias is not None:
            destination[f"{prefix}bias"] = self.bias.detach()

    def _load_from_state_dict(self, state: Any, prefix: str, *rest: Any) -> None:
        kept = state.get(f"{prefix}kept")
        if kept is not None and kept.shape != self.kept.shape:
            raise GemminerError(
                f"{prefix}kept holds {kept.numel()} weights, the model {self.kept.numel()}: make the model from the "
                "ticket the state was saved with"
            )
        super()._load_from_state_dict(state, prefix, *rest)
        self._pattern = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_pattern": None, "_pool": BufferPool()}

    def extra_repr(self) -> str:
        return f"{self.kept.numel()} of {int(np.prod(self.shape))} weights kept, shape={self.shape}"


class SparseConv2d(SparseLayer, nn.Conv2d):  # type: ignore[misc, override]
    """A 2d convolution that runs its kept weights only: any kernel, one stride, zero padding, groups, no dilation.

    y[n, o] = bias[o] + sum over kept (o, c, ky, kx) of values * x[n, c] shifted by (ky, kx).
    """

    def __init__(self, conv: nn.Conv2d, mask: Tensor, *, padding: tuple[int, int]) -> None:
        super().__init__(conv, mask)
        self.step, self.zeros, self.parts = int(conv.stride[0]), padding, conv.groups

    def _make_pattern(self, kept: Any) -> Pattern:
        o, c, kh, kw = self.shape
        return Pattern(kept, (o, c, kh, kw), self.parts, self.step, self.zeros)

    def dense(self, x: Tensor, values: Tensor, bias: Tensor | None) -> Tensor:
        return F.conv2d(x, self.spread(values), bias, self.step, self.zeros, 1, self.parts)

    def out_shape(self, shape: tuple[int, ...]) -> tuple[int, ...] | None:
        if len(shape) != 4 or shape[1] != self.shape[1] * self.parts:
            return None
        height, width = self.pattern().out_size(shape[2], shape[3])
        return (shape[0], self.shape[0], height, width) if min(height, width) > 0 else None


class SparseLinear(SparseLayer, nn.Linear):  # type: ignore[misc, override]
    """A linear layer that runs its kept weights only; leading dimensions are batch."""

    def __init__(self, linear: nn.Linear, mask: Tensor) -> None:
        super().__init__(linear, mask)

    def _make_pattern(self, kept: Any) -> Pattern:
        return Pattern(kept, (self.shape[0], self.shape[1], 1, 1), 1, 1, (0, 0))

    def dense(self, x: Tensor, values: Tensor, bias: Tensor | None) -> Tensor:
        return F.linear(x, self.spread(values), bias)

    def out_shape(self, shape: tuple[int, ...]) -> tuple[int, ...] | None:
        return (*shape[:-1], self.shape[0]) if shape and shape[-1] == self.shape[1] else None


@dataclass(eq=False)
class NormCall:
    """A call of `F.batch_norm`. Its running statistics move once, however often its result is computed."""

    mean: Tensor | None
    var: Tensor | None
    weight: Tensor | None
    bias: Tensor | None
    training: bool
    momentum: float
    eps: float
    moved: bool = False

    def tensors(self) -> list[Tensor]:
        return [t for t in (self.mean, self.var, self.weight, self.bias) if t is not None]

    def for_kernels(self) -> Norm:
        """Its state, for a pass that moves the running statistics."""
        mean, var = (None if t is None else t.detach().numpy() for t in (self.mean, self.var))
        moves = self.training and mean is not None and not self.moved
        self.moved = True
        return Norm(mean, var, self.eps, self.training, self.momentum if moves else None)

    def by_torch(self, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        """The result, computed by PyTorch; moves the running statistics."""
        stats = (None, None) if self.training and self.moved else (self.mean, self.var)
        self.moved = True
        return F.batch_norm(x, *stats, weight, bias, self.training, self.momentum, self.eps)


Pair = tuple[SparseLayer | None, NormCall | None]  # a shortcut and a pool have neither


def type_of_maps(x: torch.dtype) -> torch.dtype | None:
    """The type of a layer's output for an input of this type: its own, bfloat16 under autocast; None: unknown to us."""
    if not torch.is_autocast_enabled("cpu"):
        return x if x in DTYPES else None
    ours = torch.get_autocast_dtype("cpu") == torch.bfloat16 and x in (torch.float32, torch.bfloat16)
    return torch.bfloat16 if ours else None


def type_of_weights(maps: torch.dtype) -> torch.dtype:
    """The type of parameters and sums beside maps of this type."""
    return torch.float32 if maps == torch.bfloat16 else maps


def usable(links: Links, modules: Sequence[Pair], inputs: Sequence[Tensor]) -> int:
    """How many numbers the largest map has, 0 where the kernels cannot run.

    They run where all is on the CPU, of one type, single or double, or single under autocast, and where shapes fit.
    """
    parameters: list[Tensor] = []
    for layer, norm in modules:
        parameters += [] if layer is None else [t for t in layer.held() if t is not None]
        parameters += [] if norm is None else norm.tensors()
    maps = type_of_maps(inputs[0].dtype)
    fits = (
        maps is not None
        and all(type_of_maps(x.dtype) is maps for x in inputs)
        and all(p.dtype is type_of_weights(maps) for p in parameters)
        and all(t.is_cpu and t.layout is torch.strided for t in (*inputs, *parameters))
        and not transformed()
    )
    return _largest(links, modules, [tuple(x.shape) for x in inputs]) if fits else 0


def _largest(links: Links, modules: Sequence[Pair], shapes: list[tuple[int, ...]]) -> int:
    """How many numbers the largest map has; 0 unless PyTorch would take these shapes and no addition broadcasts."""
    flat = isinstance(modules[0][0], SparseLinear)
    batch = shapes[0][:-1] if flat else shapes[0][:1]
    if any(0 in shape or shape[: len(batch)] != batch for shape in shapes):
        return 0
    for unit, (layer, norm) in zip(links.units, modules, strict=True):
        if layer is None:
            n, c, h, w = shapes[unit.source]
            if unit.pool:
                shapes.append((n, c, *unit.pool.out_size(h, w)))
                continue
            assert unit.shortcut is not None
            s, before, after = unit.shortcut
            shapes.append((n, before + c + after, -(-h // s), -(-w // s)))
            continue
        out = layer.out_shape(shapes[unit.source])
        if out is None or (unit.residual is not None and shapes[unit.residual] != out):
            return 0
        if norm is not None and ((flat and len(out) != 2) or (norm.training and int(np.prod(out)) == out[1])):
            return 0  # one value for each channel: PyTorch raises its own error
        shapes.append(out)
    return max(map(math.prod, shapes))


def transformed() -> bool:
    """Whether a transform of `torch.func`, or forward-mode differentiation, is under way: the kernels know neither."""
    return _functorch() or forward_ad._current_level >= 0


def refuse_tracing() -> None:
    """Raise UsageError under `torch.compile`, `torch.export`, `torch.onnx` and `torch.jit.trace`."""
    tracing = torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None
    # Where an error ends what Dynamo compiles it runs the function as it stands, still as the one that compiles.
    if tracing or torch._C._dynamo.eval_frame.get_eval_frame_callback() not in (None, False):
        raise UsageError(CANNOT_BE_TRACED)


def run_chain(
    links: Links, modules: Sequence[Pair], inputs: Sequence[Tensor], pool: BufferPool,
    numbers: int | None = None, maps: torch.dtype | None = None,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Run the units of `links`, whose layers and norms are `modules`; by PyTorch where the kernels cannot.

    `numbers` is what `usable` says and `maps` what `type_of_maps` does, where those are known.
    """
    numbers = usable(links, modules, inputs) if numbers is None else numbers
    maps = type_of_maps(inputs[0].dtype) if maps is None else maps
    parameters: list[Tensor | None] = []
    for layer, norm in modules:
        parameters += (None, None) if layer is None else layer.held()
        parameters += (None, None) if norm is None else (norm.weight, norm.bias)
    if not numbers:
        return _by_torch(links, modules, inputs, parameters)
    result: tuple[Tensor, ...] = _ChainFunction.apply(
        links, modules, pool, (numbers, maps), len(inputs), *inputs, *parameters
    )
    return result


def _by_torch(
    links: Links, modules: Sequence[Pair], inputs: Sequence[Tensor], parameters: Sequence[Tensor | None]
) -> tuple[Tensor, ...]:
    values = list(inputs)
    for i, (unit, (layer, norm)) in enumerate(zip(links.units, modules, strict=True)):
        if layer is None:
            if unit.pool:
                values.append(F.max_pool2d(values[unit.source], *unit.pool))
                continue
            assert unit.shortcut is not None
            s, before, after = unit.shortcut
            values.append(F.pad(values[unit.source][:, :, ::s, ::s], (0, 0, 0, 0, before, after)))
            continue
        held, bias, gamma, beta = parameters[4 * i : 4 * i + 4]
        assert held is not None
        y = layer.dense(values[unit.source], held, bias)
        y = y if norm is None else norm.by_torch(y, gamma, beta)
        y = y if unit.residual is None else y + values[unit.residual]
        values.append(F.relu(y) if unit.relu else y)
    return tuple(values[v] for v in links.outputs)


class _ChainFunction(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, links: Links, modules: Sequence[Pair], pool: BufferPool, sizes: tuple[int, torch.dtype], n: int,
        *tensors: Tensor | None,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        numbers, maps = sizes
        inputs, parameters = tensors[:n], tensors[n:]
        first = inputs[0]
        assert first is not None
        ctx.shapes = [None if x is None else x.shape for x in inputs]
        ctx.types = [None if x is None else x.dtype for x in inputs]
        flat = isinstance(modules[0][0], SparseLinear)
        values = [_value(x, flat) for x in inputs if x is not None]
        batch = first.numel() // values[0].size
        area, width = max((v.area, v.width) for v in values)
        run = Runner(batch, block_size(batch, area, width, numbers), numbers, maps, pool)
        arrays = [None if p is None else p.detach().contiguous().numpy() for p in parameters]
        weights = [Weights(*arrays[i : i + 4]) for i in range(0, len(arrays), 4)]
        ctx.weights = weights
        steps = [
            Step(None, None, unit)
            if layer is None
            else Step(layer.pattern(), None if norm is None else norm.for_kernels(), unit, layer.sift)
            for (layer, norm), unit in zip(modules, links.units, strict=True)
        ]
        passed = Forward(links, steps, run)
        blocked = [(run.block_in(x, v), v) for x, v in zip(inputs, values, strict=True) if x is not None]
        passed(blocked, weights)
        ctx.passed, ctx.n = passed, n
        # The inputs are for second derivatives. One that is only added may be changed in place afterwards.
        sources = {unit.source for unit in links.units}
        ctx.save_for_backward(*parameters, *(x if i in sources else None for i, x in enumerate(inputs)))
        ctx.added = {i: x.detach() for i, x in enumerate(inputs) if i not in sources and x is not None}
        ctx.versions = {i: _version(x) for i, x in ctx.added.items()}
        fixed = any(ctx.needs_input_grad)
        ctx.modules = [(layer, norm and _as_it_is(norm) if fixed else None) for layer, norm in modules]
        ctx.set_materialize_grads(False)
        outputs = []
        for v in links.outputs:
            value, y = passed.values[v], passed.values[v].y
            assert y is not None
            shape = (*first.shape[:-1], value.channels) if flat else (batch, value.channels, value.height, value.width)
            outputs.append(run.block_out(y, value, shape))
            del y
            passed.forget(v)
        return tuple(outputs)

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor | None) -> tuple[Tensor | None, ...]:
        passed: Forward = ctx.passed
        saved = ctx.saved_tensors  # raises if one was changed in place, or if the graph has been freed
        if torch.is_grad_enabled():  # create_graph: these gradients may be differentiated again
            return _differentiable(ctx, saved, outputs)
        weights = ctx.weights
        asked = list(ctx.needs_input_grad[5:])
        weights_needed = [asked[i : i + 4] for i in range(ctx.n, len(asked), 4)]
        needs = asked[: ctx.n]
        for step, own in zip(passed.steps, weights_needed, strict=True):
            r = step.unit.residual
            needs.append(any(own) or needs[step.unit.source] or (r is not None and needs[r]))
        links, run = passed.links, passed.run
        release = not _keeps_graph()
        back = Backward(passed, needs, weights_needed, weights, release)
        grads = back(
            [
                None if dy is None else run.block_in(dy, passed.values[v])
                for v, dy in zip(links.outputs, outputs, strict=True)
            ]
        )
        result: list[Tensor | None] = []
        for v in range(ctx.n):
            dx = back.input_gradient(v) if asked[v] else None
            result.append(None if dx is None else run.block_out(dx, passed.values[v], ctx.shapes[v]).to(ctx.types[v]))
        result += [None if g is None else torch.from_numpy(g) for own in grads for g in own]
        if release:
            ctx.passed = None
        return (None, None, None, None, None, *result)


def _version(x: Tensor) -> int | None:
    return None if x.is_inference() else x._version


def _as_it_is(norm: NormCall) -> NormCall:
    """The call with the statistics of now, which later passes move."""
    mean, var = (None, None) if norm.training else (norm.mean, norm.var)
    mean, var = (None if t is None else t.clone() for t in (mean, var))
    return NormCall(mean, var, norm.weight, norm.bias, norm.training, norm.momentum, norm.eps, norm.moved)


def _differentiable(
    ctx: Any, saved: Sequence[Tensor | None], outputs: Sequence[Tensor | None]
) -> tuple[Tensor | None, ...]:
    """The gradients of a chain as a graph of PyTorch's own operations, computed from the dense weights."""
    if any(_version(x) != ctx.versions[i] for i, x in ctx.added.items()):
        raise GemminerError("a tensor that second derivatives need was changed in place: add to a copy of it")
    count = len(saved) - ctx.n
    tensors = [*(ctx.added.get(i, x) for i, x in enumerate(saved[count:])), *saved[:count]]
    asked = ctx.needs_input_grad[5:]
    with torch.enable_grad():
        # Aliases: the gradient of one input is not to flow into another that was computed from it.
        own = [None if t is None else t.view_as(t) for t in tensors]
        own = [t.requires_grad_() if t is not None and a else t for t, a in zip(own, asked, strict=True)]
        inputs = [t for t in own[: ctx.n] if t is not None]
        with torch.autocast("cpu", torch.bfloat16, enabled=ctx.passed.run.kept == torch.bfloat16):
            ys = _by_torch(ctx.passed.links, ctx.modules, inputs, own[ctx.n :])
        pairs = [(y, dy) for y, dy in zip(ys, outputs, strict=True) if dy is not None]
        wrt = [t for t, a in zip(own, asked, strict=True) if a and t is not None]
        if not pairs:
            return (None,) * (5 + len(own))
        ends, given = zip(*pairs, strict=True)
        found = iter(torch.autograd.grad(ends, wrt, given, create_graph=True, allow_unused=True))
        grads = [next(found) if a and t is not None else None for t, a in zip(own, asked, strict=True)]
    return (None, None, None, None, None, *grads)


def _value(x: Tensor, flat: bool) -> Value:
    return Value(x.shape[-1], 1, 1) if flat else Value(x.shape[1], x.shape[2], x.shape[3])


def _keeps_graph() -> bool:
    """Whether the caller of backward asked to keep the graph; if PyTorch cannot tell, assume so."""
    ask = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", None)
    return True if ask is None else bool(ask())
