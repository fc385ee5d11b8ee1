"""A smaller dense network from a ticket: dead units cut out of the layers, their constants folded into the next."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from gemminer.core.constants import DROPOUTS
from gemminer.core.copies import duplicate
from gemminer.core.errors import GemminerError, UsageError
from gemminer.core.fewer_heads import cut_heads
from gemminer.core.fitting import require_module, require_numbers
from gemminer.core.gapped import give_gaps
from gemminer.core.holding import hold
from gemminer.core.names import named_modules, without_wrappers
from gemminer.core.prunable import made_from_others
from gemminer.core.structure import Structure, Units
from gemminer.core.ticket import Ticket
from gemminer.core.tracing import name_of, tensors, traced

# What the outputs may differ by, of the largest: rounding in float64, and where a model computes in float32 only.
EXACT, SINGLE = 1e-10, 1e-4
_DROPOUT_P = {"scaled_dot_product_attention": 4, "multi_head_attention_forward": 10}  # its place among the arguments
# Attributes that are the size of one head.
_OF_A_HEAD = re.compile(r"(?<!all_)head_(dim|size)$|^dim_head$|^d_(head|k|v)$")


@dataclass(frozen=True)
class LayerCut:
    """What was removed from a layer.

    Args:
        name: of the layer.
        units: its filters or neurons before.
        kept: those after.
        inputs: the channels it read before.
        read: those it reads after.
    """

    name: str
    units: int
    kept: int
    inputs: int
    read: int


@dataclass(frozen=True)
class Removed:
    """What `gemminer.compact` removed and left, as the attribute `removed` of its result; print it.

    Args:
        layers: each layer that was looked at.
        left: what could not be removed, by layer: why.
        parameters: their numbers before and after.
        gone: whole layers that the ticket removes.
    """

    layers: tuple[LayerCut, ...]
    left: Mapping[str, str]
    parameters: tuple[int, int]
    gone: tuple[str, ...] = ()

    def __repr__(self) -> str:
        before, after = self.parameters
        cut = sum((one.units, one.inputs) != (one.kept, one.read) for one in self.layers)
        return f"Removed({before:,} -> {after:,} parameters, {cut} layers cut, {len(self.left)} remarks: print it)"

    def __str__(self) -> str:
        before, after = self.parameters
        width = max((len(cut.name) for cut in self.layers), default=0)
        rows = [f"{before:,} parameters -> {after:,} ({after / max(before, 1):.1%})"]
        rows += [f"  {name:{width}}  removed" for name in self.gone]
        for cut in self.layers:
            if (cut.units, cut.inputs) != (cut.kept, cut.read):
                rows.append(
                    f"  {cut.name:{width}}  {cut.kept} of {cut.units} units, reads {cut.read} of {cut.inputs} channels"
                )
        if self.left:
            rows += ["left:", *(f"  {name:{width}}  {why}" for name, why in self.left.items())]
        return "\n".join(rows)


def compact(
    model: nn.Module,
    ticket: Ticket | Mapping[str, Tensor] | None,
    example: Any,
    *,
    eval_only: bool = False,
    every: bool = False,
) -> nn.Module:
    """A smaller dense network that computes what the ticketed one does: dead units are gone, constants folded.

    A unit (a filter, a neuron, a feature of a head) is dead where all it reads is zero or constant, or where nothing
    reads it. Layers that the ticket removes are gone first, as in `Ticket.shallow`. Weights, state and code of the
    model are a copy's; the model itself is left as it was. The result is of the same classes with smaller layers, its
    parameters have the same names: train, compile and export it as any other. Its attribute `removed` says what is
    gone, what is left, and why.

    Outputs equal the model's in eval mode and in training mode, up to rounding: both are run on the example, in
    float64, and compared. Two things differ in training: dropout draws other numbers, and constants that were learned
    (a dead channel's shift) are part of the next layer's bias, or stand still.

    Args:
        model: with the weights to keep: after training, those trained. Pruned weights are taken for zero.
        ticket: a ticket, boolean masks by parameter name, or None for the zeros that the model has.
        example: a batch as the model takes it: a tensor, a tuple of arguments or a dictionary of them by name.
        eval_only: also remove what is constant in eval mode but not in training, such as a channel whose batch norm
            has running statistics that are not its own.
        every: cut every dead unit, for the fewest parameters. That may make it slower: where channels must stay
            between layers, as in a residual sum, selections of channels take their place, and convolutions are slow
            with odd numbers of channels. By default such units stay, and compute their constants.

    Raises:
        UsageError: an example the model does not take, or a ticket of another model.
        GemminerError: a model whose outputs would change, as where it computes otherwise each time.

    >>> import gemminer, torch
    >>> net = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    >>> mask = torch.tensor([[1, 0, 1, 0], [0, 0, 0, 0], [0, 1, 0, 1]]).bool()
    >>> small = gemminer.compact(net, {"0.weight": mask}, torch.randn(8, 4))
    >>> small
    Sequential(
      (0): Linear(in_features=4, out_features=2, bias=True)
      (1): ReLU()
      (2): Linear(in_features=2, out_features=2, bias=True)
    )
    """
    require_module(model)
    require_numbers(model)
    plain, gone = ticketed(model, ticket)
    plain.eval()
    args, kwargs = arguments_of(example)
    parameters = sum(p.numel() for p in model.parameters())
    wide = _Wide(plain, args, kwargs)
    plain, heads, heads_left, found = _by_trial(plain, wide, eval_only, every)
    structure, trains_alike, counted, selects = found
    small, cuts, left = _built(plain, structure, selects)
    left = {**counted, **heads_left, **left}
    if not eval_only and not trains_alike:
        left = {**left, "training": "the model calls other functions while training: equal in eval mode, unknown there"}
    after = sum(p.numel() for p in small.parameters())
    _set_modes(small, model)
    small.removed = Removed((*heads, *cuts), left, (parameters, after), gone)  # type: ignore[assignment]
    return small


def ticketed(model: nn.Module, ticket: Ticket | Mapping[str, Tensor] | None) -> tuple[nn.Module, tuple[str, ...]]:
    """A copy of the model out of its wrappers, without the layers that a ticket removes, its pruned weights zero.

    Returns the names of those layers too.
    """
    plain, gone = without_wrappers(duplicate(model)), tuple[str, ...]()
    if ticket is not None and not isinstance(ticket, Mapping):
        own = Ticket.given(ticket).fitted(plain)
        plain, ticket, gone = own.shallow(plain), own.shortened(), own.removed
    if ticket is not None:
        hold(plain, ticket).remove()  # pruned weights are zero from here on
    return plain, gone


def _by_trial(plain: nn.Module, wide: _Wide, eval_only: bool, every: bool) -> tuple[nn.Module, Any, Any, Any]:
    """The model without dead heads of PyTorch's attention, or with all where that fails; what can be cut of it."""
    whole = duplicate(plain)
    heads, left = wide.cut_heads(plain)
    try:
        return plain, heads, left, wide.cuttable(eval_only, every)
    except GemminerError as error:
        if not heads:
            raise
        why = f"dead heads: the model does not compute the same without them ({error})"
    wide.model = wide.reference
    return whole, [], {**left, **{cut.name: why for cut in heads}}, wide.cuttable(eval_only, every)


def _set_modes(small: nn.Module, model: nn.Module) -> None:
    """Put each module into the mode that it has in the model."""
    training = {name: module.training for name, module in named_modules(model)}
    for name, module in small.named_modules():
        module.training = training.get(name, model.training)


def arguments_of(example: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """An example as arguments of the model, of two inputs: a batch norm needs them while training."""
    if isinstance(example, Mapping):
        args, kwargs = (), dict(example)
    else:
        args, kwargs = tuple(example) if isinstance(example, tuple | list) else (example,), {}
    if not any(isinstance(x, Tensor) for x in (*args, *kwargs.values())):
        raise UsageError("example must be a batch: a tensor, a tuple of arguments or a dictionary of them by name")
    return tuple(map(_two, args)), {name: _two(value) for name, value in kwargs.items()}


def _two(x: Any) -> Any:
    if not isinstance(x, Tensor) or x.dim() == 0:
        return x
    x = x.detach().clone()
    return torch.cat([x, x]) if len(x) == 1 else x[:2]


# --- building ---


def _built(plain: nn.Module, structure: Structure, select: bool) -> tuple[nn.Module, list[LayerCut], dict[str, str]]:
    """A copy of the model with its layers cut; what was removed; what was left, and why."""
    small = duplicate(plain)
    modules = dict(small.named_modules())
    left: dict[str, str] = {}
    cuts = []
    norms = structure.norms
    fused = _fused(modules)
    with torch.no_grad():
        for name, units in structure.layers.items():
            norm = None if units.norm is None else modules[units.norm]
            cuts.append(_cut(modules[name], norm, units, left, select and name not in fused))
            if select and name in fused and name in left:
                left[name] = (
                    "dead units whose channels must stay between layers: PyTorch's fused layer reads its weights"
                )
            norms.pop(units.norm or "", None)
        for name, absent in norms.items():
            if bool(absent.any()):
                _cut_norm(modules[name], ~absent)
    for name, sizes in structure.bundles.sizes.items():
        _resize(modules[name], sizes)
    for name, count in structure.heads_left.items():
        left[name] = f"{count} dead heads: the code around them counts on their number"
    for name in sorted(structure.constants.differ):
        left[name] = "a dead channel is another constant in training than in eval mode: eval_only=True removes it"
    made = made_from_others(plain)
    for name in structure.uncut:
        other = (
            "its weights are shared, made from others, used more than once or never, or it is of a kind that is not cut"
        )
        left[name] = made.get(f"{name}.weight".removeprefix("."), other)
    return small, cuts, left


def _fused(modules: Mapping[str, nn.Module]) -> set[str]:
    """Layers whose weights PyTorch's fused encoder layer reads itself in eval mode, past the layers' own forward."""
    encoders = [name for name, m in modules.items() if isinstance(m, nn.TransformerEncoderLayer)]
    return {f"{name}.{own}".removeprefix(".") for name in encoders for own in ("linear1", "linear2")}


def _cut(module: Any, norm: nn.Module | None, units: Units, left: dict[str, str], select: bool) -> LayerCut:
    """Cut a layer, and the batch norm that alone reads it, to the units that are alive."""
    weight = module.weight.detach().cpu().double()
    bias = torch.zeros(len(weight)) if module.bias is None else module.bias.detach().cpu()
    bias = bias.double()
    dead_here = ~units.constants.isnan()
    # A dead unit that stays, for its batch norm's or its group's sake, computes its constant.
    weight[dead_here] = 0.0
    bias[dead_here] = units.constants[dead_here]
    rows = ~units.dead if select else ~units.absent_out
    if not select and bool((units.dead & ~units.absent_out).any()):
        left[units.name] = "dead units that are faster to keep, as constants: only every=True cuts them"
    if not bool(rows.any()):
        rows[(~units.absent_out).nonzero()[0]] = True
        left[units.name] = "all its units are dead: one stays, as a layer cannot be empty"
    groups = getattr(module, "groups", 1)
    if groups > 1:
        whole = rows.view(groups, -1).any(1)
        rows = whole.repeat_interleave(len(rows) // groups)
        reads = whole.repeat_interleave(weight.shape[1])
        small = weight[rows]
        module.groups = int(whole.sum())
    else:
        small = weight[rows]
        used = (small != 0).flatten(2).any(2).any(0) if small.dim() > 2 else (small != 0).any(0)
        reads = used & ~units.foldable(small) if select else ~units.absent_in
        if not bool(reads.any()):
            reads[(~units.absent_in).nonzero()[0]] = True
        folded = units.given.masked_fill(reads, 0.0).nan_to_num(nan=0.0)
        taps = small.flatten(2).sum(2) if small.dim() > 2 else small
        bias[rows] += taps @ folded
        small = small[:, reads]
    inputs = len(units.absent_in)
    cut = LayerCut(units.name, len(rows), int(rows.sum()), inputs, int(reads.sum()))
    if bool(rows.all() and reads.all()):
        return cut  # as it was, without a bias for constants that it computes anyway
    _write(module, small, bias[rows])
    there = ~units.absent_in
    selection = None if bool((reads == there).all()) else reads[there]
    constants = units.behind if norm is not None else units.constants
    constants = constants.masked_fill(rows, float("nan"))[~units.absent_out]
    filler = constants if bool((~constants.isnan()).any()) else None
    if norm is None:
        give_gaps(module, selection, filler)
    else:
        _cut_norm(norm, rows)
        give_gaps(module, selection, None)
        give_gaps(norm, None, filler)
    return cut


def _write(module: Any, weight: Tensor, bias: Tensor) -> None:
    """Give a layer a smaller weight; a bias where it has one, or now needs one."""
    like = module.weight
    module.weight = nn.Parameter(weight.to(like.device, like.dtype), requires_grad=like.requires_grad)
    if module.bias is not None or bool((bias != 0).any()):
        trains = like.requires_grad if module.bias is None else module.bias.requires_grad
        module.bias = nn.Parameter(bias.to(like.device, like.dtype), requires_grad=trains)
    if isinstance(module, nn.Linear):
        module.out_features, module.in_features = weight.shape
    else:
        module.out_channels, module.in_channels = len(weight), weight.shape[1] * module.groups


def _cut_norm(module: Any, kept: Tensor) -> None:
    module.num_features = int(kept.sum())
    for name in ("weight", "bias"):
        p = module._parameters[name]
        if p is not None:
            module._parameters[name] = nn.Parameter(p.detach()[kept.to(p.device)], requires_grad=p.requires_grad)
    for name in ("running_mean", "running_var"):
        if module._buffers[name] is not None:
            module._buffers[name] = module._buffers[name][kept.to(module._buffers[name].device)]


def _resize(module: nn.Module, sizes: Mapping[int, int]) -> None:
    """Give a module's attributes that are sizes, as num_heads, the sizes that are left; a head keeps its own."""
    for name, value in vars(module).items():
        if type(value) is int and value in sizes and not _OF_A_HEAD.search(name):
            setattr(module, name, sizes[value])


# --- proof ---


def _trains_alike(plain: nn.Module, structure: Structure, args: Any, kwargs: Any) -> bool:
    """Whether the model calls the same functions while training, so that what was found holds there too."""
    model = duplicate(plain).train()
    with torch.random.fork_rng(devices=[]), _NoDropout():
        try:
            trace = traced(model, args, kwargs)
        except (RuntimeError, ValueError):  # a batch norm of one number a channel
            return False

    def listed(calls: Any) -> list[str]:
        return [c.name for c in calls if c.module not in structure.calls]

    return listed(trace.calls) == listed(structure.trace.calls)


class _NoDropout(TorchFunctionMode):
    """While it is on, dropout gives what it is given, also that of attention."""

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs, name = dict(kwargs or {}), name_of(func)
        if name in DROPOUTS | {"alpha_dropout", "feature_alpha_dropout"}:
            return args[0] if args else kwargs["input"]
        place = _DROPOUT_P.get(name)
        if place is not None:
            kwargs = {**kwargs, "dropout_p": 0.0} if len(args) <= place else kwargs
            args = (*args[:place], 0.0, *args[place + 1 :]) if len(args) > place else args
        return func(*args, **kwargs)


class _Wide:
    """The model, as it was (`reference`) and to cut, and the example: in float64, which tells what is exact.

    Code that asks for one type of numbers runs in its own, and is compared with the care that has.
    """

    def __init__(self, plain: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.type, self.limit = torch.float64, EXACT
        self.model = duplicate(plain).to(self.type)
        self.args, self.kwargs = tuple(map(self._cast, args)), {name: self._cast(x) for name, x in kwargs.items()}
        try:
            _results(self.model, False, self.args, self.kwargs)
        except Exception:  # whatever a model's own code says of such numbers
            self.limit, self.model, self.args, self.kwargs = SINGLE, duplicate(plain), args, kwargs
            try:
                _results(plain, False, args, kwargs)
            except Exception as error:
                raise UsageError(f"the model does not take the example: {_reason(error)}") from None
        self.reference = self.model

    def _cast(self, x: Any) -> Any:
        return x.to(self.type) if isinstance(x, Tensor) and x.is_floating_point() else x

    def cut_heads(self, plain: nn.Module) -> tuple[list[LayerCut], dict[str, str]]:
        """Remove dead heads of PyTorch's own attention, here and in the model to build from."""
        if not any(isinstance(m, nn.MultiheadAttention) for m in plain.modules()):
            return [], {}
        trace = traced(self.model, self.args, self.kwargs)
        self.model = duplicate(self.reference)
        cut_heads(self.model, trace)
        cut, left = cut_heads(plain, trace)
        cuts = []
        for name, (before, after) in cut.items():
            module: Any = plain.get_submodule(name)
            wide, size = module.embed_dim, 3 * module.head_dim
            cuts.append(LayerCut(name, size * before, size * after, wide, wide))
        return cuts, left

    def cuttable(self, eval_only: bool, every: bool) -> tuple[Structure, bool, dict[str, str], bool]:
        """What can be cut, as trial shows; whether that holds in training; why no more is cut; whether it selects."""
        counted: dict[str, str] = {}
        # Where some code counts on sizes that were cut: first no reshape changes, then layers are cut inside alone,
        # which no other code can see; unless it reads their weights itself: then no channels are selected.
        sizes = ((True, True), (True, False), (False, False))
        for selects in (True, False) if every else (False,):
            for bundles, resize in sizes:
                structure = self.structure(training=not eval_only, bundles=bundles, resize=resize, even=not every)
                trains_alike = not eval_only and _trains_alike(self.model, structure, self.args, self.kwargs)
                error = self.difference(_built(self.model, structure, selects)[0], trains_alike)
                if error is None:
                    return structure, trains_alike, counted, selects
                if bundles and not resize:
                    counted = {"channels between layers": f"the model's code counts on their number ({error})"}
        raise GemminerError(f"{type(self.model).__name__} cannot be made smaller: {error}")

    def structure(self, **options: bool) -> Structure:
        """What is dead in the model; raises GemminerError where that cannot be told."""
        try:
            return Structure(self.model, self.args, self.kwargs, **options)
        except Exception as error:
            name = type(self.model).__name__
            raise GemminerError(f"{name} cannot be made smaller, as its calls are not followed: {error!r}") from None

    def difference(self, small: nn.Module, training: bool) -> str | None:
        """Run both on the example and on noise, in eval mode and maybe in training; a sentence where results differ.

        In eval mode with gradients and without: PyTorch's transformer layers compute otherwise then.
        """
        noise = tuple(map(_noise, self.args)), {name: _noise(x) for name, x in self.kwargs.items()}
        for given in ((self.args, self.kwargs), noise):
            for mode, gradients in ((False, False), (False, True), (True, False))[: 2 + training]:
                try:
                    old, new = (_results(m, mode, *given, gradients) for m in (self.reference, small))
                except Exception as error:  # whatever a model's own code says of other sizes
                    return _reason(error)
                if [x.shape for x in old] != [x.shape for x in new]:
                    return "the shapes of its results change"
                for a, b in zip(old, new, strict=True):
                    most, far = (float(x.abs().max()) if x.numel() else 0.0 for x in (a, a - b))
                    if not math.isfinite(most):
                        return "its own outputs on the example are not finite"
                    part = far / max(most, 1e-30)
                    if not part <= self.limit:
                        return f"outputs in {'training' if mode else 'eval'} mode differ by {part:.1g} of the largest"
        return None


def _reason(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _noise(x: Any) -> Any:
    if not isinstance(x, Tensor) or not x.is_floating_point():
        return x
    generator = torch.Generator().manual_seed(0)
    return torch.randn(x.shape, generator=generator).to(x.device, x.dtype)


def _results(model: nn.Module, training: bool, args: Any, kwargs: Any, gradients: bool = False) -> list[Tensor]:
    """The real numbers that the model gives in a mode, without dropout."""
    model = duplicate(model).train(training)
    with torch.set_grad_enabled(gradients), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        with _NoDropout() if training else nullcontext():
            result = model(*args, **kwargs)
    return [x.detach().double() for x in tensors(result) if x.is_floating_point()]
