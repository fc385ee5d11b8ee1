"""Convert a model and a ticket to a model that runs kept weights only, and back to the plain state dict."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from torch import Tensor, nn

from gemminer.core.attributes import WRITABLE, refill
from gemminer.core.copies import duplicate
from gemminer.core.errors import UsageError, unknown
from gemminer.core.fitting import require_module, require_numbers
from gemminer.core.names import named_modules, named_parameters, unwrapped, wrapped
from gemminer.core.ticket import Ticket
from gemminer.core.zeros import zero_pruned
from gemminer.sparse.threads import require_compiler
from gemminer.sparse.training import crossover
from gemminer.sparse.training.fuse import SparseNetwork, fused
from gemminer.sparse.training.held import hold_own, is_held
from gemminer.sparse.training.modules import (
    SparseConv2d,
    SparseLayer,
    SparseLinear,
    as_plain,
)

ENGINES = ("auto", "sparse")
_NAMED = 4  # modules in a sentence, for each reason


def sparsify(model: nn.Module, ticket: Ticket, *, engine: Literal["auto", "sparse"] = "auto") -> nn.Module:
    """A copy of `model` that computes and trains the weights `ticket` keeps, in time proportional to them.

    Each convolution and linear layer holds its kept weights as one parameter, `values`; batch norm, ReLU and
    residual additions behind them run in the same pass. Layers the kernels do not know (dilated, transposed,
    one-dimensional, recurrent, attention) stay dense under their mask. Outputs, gradients and running statistics are
    those of the masked dense model up to rounding, and `densify` gives its state dict. Layers that the ticket removes
    are gone: the state dict is that of `ticket.shallow(model)` then. The model itself is left as it is; the weights are
    its own, so call `ticket.apply(model)` first to start from the ticket's.

    The model's own `forward` runs in each pass, whatever it does; layers are fused as it calls them. A layer whose
    weight has a hook on its gradient, or that has hooks itself, stays dense. Under autocast to bfloat16 activations are
    stored in it and summed in float32. On other devices than the CPU, and in models of other types than float32 and
    float64, PyTorch computes the same from dense weights.

    Args:
        engine: "sparse" takes the kernels wherever they can run, "auto" where they are faster than dense on this
            machine (measured once, see `crossover`).

    Raises:
        UsageError: the ticket is of another model, or the engine is unknown.

    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.Linear(3, 2))
    >>> ticket = Ticket({"0.weight": torch.eye(2, 3) > 0}, model.state_dict())
    >>> {name: p.numel() for name, p in sparsify(model, ticket, engine="sparse").named_parameters()}
    {'net.0.values': 2, 'net.0.bias': 2}
    """
    if engine not in ENGINES:
        raise unknown("engine", engine, ENGINES)
    require_numbers(model)
    own = Ticket.given(ticket).fitted(model)
    if own.removed:
        model, own = own.shallow(model), own.shortened()
    return converted(model, own.masks, engine)


def converted(
    model: nn.Module, masks: Mapping[str, Tensor], engine: str, below: Mapping[str, float] | None = None
) -> nn.Module:
    """A copy of `model` as from `sparsify`, given the masks of some of its parameters.

    Args:
        below: with the engine auto, parameter name -> the density below which its layer is sparse, as `crossovers_of`
            gives them; None asks the machine.
    """
    require_compiler()
    net = duplicate(unwrapped(model))  # what DataParallel and torch.compile would add, the kernels do not take
    named = named_parameters(net, ties=True)
    first = {id(p): name for name, p in reversed(named.items())}
    if missing := [name for name in masks if name not in named]:
        raise UsageError(f"the ticket has a mask for {missing[0]!r}, which is no parameter of this model")
    by_id = {id(p): p for p in named.values()}
    own = {id(named[name]): mask.to(named[name].device) for name, mask in masks.items()}
    zero_pruned((by_id[key], mask) for key, mask in own.items())
    below = crossovers_of(model, masks, engine) if below is None else below
    limits = {id(named[name]): density for name, density in below.items() if name in named}
    return fused(_Conversion(net, own, engine, first, limits).run())


def held_as_vectors(
    model: nn.Module,
    masks: Mapping[str, Tensor],
    engine: str,
    below: Mapping[str, float],
    computed: Mapping[str, float],
) -> set[str]:
    """Names of the masked parameters that `converted` would hold as vectors, if a pass computes `computed` weights."""
    named = named_parameters(model, ties=True)
    own = {id(named[name]): mask for name, mask in masks.items()}
    limits = {id(named[name]): density for name, density in below.items()}
    counts = {id(named[name]): count for name, count in computed.items()}
    dense = _Conversion(model, own, engine, {}, limits, counts).dense
    return {name for name in masks if id(named[name]) not in dense}


def crossovers_of(model: nn.Module, names: Iterable[str], engine: str, precision: str = "fp32") -> dict[str, float]:
    """The density below which a layer trains faster on kept weights, by parameter name, for layers the kernels know.

    With the engine sparse it is 1 for each. With auto it is the density measured on this machine for the kind of layer
    (`crossover`), but 1 for layers with hardly any arithmetic, which follow their neighbours.
    """
    named = named_parameters(model, ties=True)
    by_id = {id(named[name]): name for name in names}
    found: dict[str, float] = {}
    for module in _modules(model):
        weight = getattr(module, "weight", None)
        if id(weight) in by_id and _takes(module):
            follows = engine == "sparse" or _depthwise(module) or _small_linear(module)
            own = 1.0 if follows else crossover.of_layer(module, precision)
            name = by_id[id(weight)]
            found[name] = min(own, found.get(name, own))
    return {name: found[name] for name in by_id.values() if name in found}


def layers(net: nn.Module) -> dict[str, SparseLayer]:
    """The layers of a converted model that hold kept weights, by their path in the plain model."""
    return {name: m for name, m in named_modules(net) if isinstance(m, SparseLayer)}


class _Conversion:
    """Replaces layers of `net`; a weight that two modules share stays shared."""

    def __init__(
        self,
        net: nn.Module,
        masks: dict[int, Tensor],
        engine: str,
        names: dict[int, str],
        below: Mapping[int, float],
        computed: Mapping[int, float] | None = None,
    ) -> None:
        self.net, self.masks, self.engine, self.names, self.below = net, masks, engine, names, below
        self.computed = computed or {}
        self.shared: dict[int, nn.Parameter] = {}
        self.done: dict[int, nn.Module] = {}
        # A weight is held as a vector only if every module that has it is a layer the kernels know.
        self.dense: set[int] = set()
        masked = [(m, id(p)) for m in _modules(net) for p in _own(m) if id(p) in masks]
        for module, key in masked:
            if not _takes(module) or not (self.engine == "sparse" or self._pays(module, key)):
                self.dense.add(key)
        if self.engine != "sparse":
            for follows, kind in ((_small_linear, nn.Linear), (_depthwise, nn.Module)):
                led = [key for module, key in masked if isinstance(module, kind) and not follows(module)]
                if self.dense.issuperset(led):
                    self.dense |= {key for module, key in masked if follows(module)}

    def _pays(self, module: nn.Module, key: int) -> bool:
        """Whether a layer trains faster sparse; a small one follows its neighbours, so as not to break their chain."""
        if _depthwise(module) or _small_linear(module):
            return True
        kept = self.computed[key] if self.computed else float(self.masks[key].sum())
        return kept < self.below.get(key, 0.0) * self.masks[key].numel()

    def run(self) -> nn.Module:
        return self._convert(self.net)

    def _convert(self, module: nn.Module) -> nn.Module:
        if id(module) in self.done:
            return self.done[id(module)]
        if wrapped(module) == "_orig_mod":  # compiled code would run the plain layers
            return self._convert(unwrapped(module))
        new = self._layer(module)
        self.done[id(module)] = new
        if new is module and not isinstance(module, nn.MultiheadAttention):
            for name, child in list(module.named_children()):
                converted = self._convert(child)
                if converted is not child:
                    setattr(module, name, converted)
        return new

    def _layer(self, module: nn.Module) -> nn.Module:
        masked = [p for p in _own(module) if id(p) in self.masks]
        if not masked:
            return module
        weight = getattr(module, "weight", None)
        mask = self.masks[id(masked[0])]
        if weight is masked[0] and len(masked) == 1 and id(weight) not in self.dense:
            new: SparseLayer
            if isinstance(module, nn.Conv2d):
                pad = padding(module)
                assert pad is not None
                new = SparseConv2d(module, mask, padding=pad)
            else:
                assert isinstance(module, nn.Linear)
                new = SparseLinear(module, mask)
            new.values = self.shared.setdefault(id(weight), new.values)
            return new.train(module.training)
        for part in module.modules() if isinstance(module, nn.MultiheadAttention) else [module]:
            own = {name: self.masks[id(p)] for name, p in part._parameters.items() if id(p) in self.masks}
            if own:
                hold_own(part, own)
        return module


def _modules(module: nn.Module) -> list[nn.Module]:
    """The module and all below it, each once; an attention's projections are its own."""
    found, seen, stack = [], set(), [module]
    while stack:
        module = stack.pop()
        if id(module) not in seen:
            seen.add(id(module))
            found.append(module)
            stack += [] if isinstance(module, nn.MultiheadAttention) else list(module.children())
    return found


def _takes(module: nn.Module) -> bool:
    """Whether the kernels know such a layer."""
    known = padding(module) is not None if type(module) is nn.Conv2d else type(module) is nn.Linear
    return known and _special(module) is None


def _own(module: nn.Module) -> list[nn.Parameter]:
    """The parameters of this module; those of an attention's projections are its own."""
    return list(module.parameters(recurse=isinstance(module, nn.MultiheadAttention)))


def _depthwise(module: nn.Module) -> bool:
    return type(module) is nn.Conv2d and module.groups == module.in_channels > 1


def _small_linear(module: nn.Module) -> bool:
    return type(module) is nn.Linear and module.weight.numel() < 1 << 16


def _special(module: nn.Module) -> str | None:
    """What a layer has that kept values in its place would pass by, in words; None for a layer that has nothing."""
    plain = vars(nn.Module())
    if tensor_hooks(module):
        return "a hook on its weight's gradient"
    if any(value and "hooks" in name for name, value in vars(module).items() if name in plain):
        return "hooks"
    if module._buffers or module._modules or module._parameters.keys() != {"weight", "bias"}:
        return "tensors or modules of its own"
    own = "forward" in vars(module) or type(module) not in (nn.Conv2d, nn.Linear)
    return "a forward of its own" if own else None


def passed_over(model: nn.Module, names: Iterable[str]) -> str | None:
    """A sentence on the convolutions and linear layers of these parameters that stay dense for what they have."""
    named, reached = named_parameters(model, ties=True), {id(module) for module in _modules(model)}
    weights = {id(named[name]) for name in names}
    found: dict[str, list[str]] = {}
    for path, module in named_modules(model):
        known = id(module) in reached and isinstance(module, nn.Conv2d | nn.Linear)
        if known and id(module._parameters.get("weight")) in weights and (why := _special(module)):
            found.setdefault(why, []).append(path or type(module).__name__)
    parts = []
    for why, own in found.items():
        more = f" and {len(own) - _NAMED} more" if own[_NAMED:] else ""
        parts.append(f"{', '.join(own[:_NAMED])}{more} ({why})")
    return f"computed densely under the mask: {'; '.join(parts)}" if parts else None


def tensor_hooks(module: nn.Module) -> bool:
    """Whether a hook on the gradient of the module's weight expects the weight's shape."""
    weight = module._parameters.get("weight")
    return bool(weight is not None and (weight._backward_hooks or getattr(weight, "_post_accumulate_grad_hooks", None)))


def padding(conv: nn.Conv2d) -> tuple[int, int] | None:
    """The zeros on each side, or None for a convolution the kernels do not know."""
    kh, kw = conv.kernel_size
    if conv.padding_mode != "zeros" or tuple(conv.dilation) != (1, 1) or conv.stride[0] != conv.stride[1]:
        return None
    if conv.padding == "same":
        return ((kh - 1) // 2, (kw - 1) // 2) if kh % 2 and kw % 2 else None
    if isinstance(conv.padding, str):
        return 0, 0
    ph, pw = (int(p) for p in conv.padding)
    return (ph, pw) if ph < kh and pw < kw else None


def densify(model: nn.Module) -> dict[str, Tensor]:
    """The plain state dict of a model from `sparsify`, zeros where pruned; it loads in the original, strictly.

    Names are those of the model without DataParallel and torch.compile around it.
    """
    require_module(model)
    token = as_plain.set(True)
    try:  # by the model's own `state_dict`: with its hooks, and the versions that its modules' loading asks for
        state: dict[str, Tensor] = model.state_dict()
    finally:
        as_plain.reset(token)
    plain = _plain_prefixes(model)
    new: dict[str, Tensor] = OrderedDict((_renamed(name, plain), tensor) for name, tensor in state.items())
    new._metadata = {_renamed(f"{path}.", plain)[:-1]: facts for path, facts in state._metadata.items()}  # type: ignore[attr-defined]
    return new


def _renamed(name: str, plain: Mapping[str, str]) -> str:
    path, dot, last = name.rpartition(".")
    return plain.get(path + dot, path + dot) + last


def _plain_prefixes(model: nn.Module) -> dict[str, str]:
    """The prefix of each module's entries in `state_dict`, and the one they have without wrappers."""
    found, todo = {}, [(model, "", "")]
    while todo:
        module, prefix, plain = todo.pop()
        found[prefix] = plain
        inner = wrapped(module)
        if inner is not None:
            own = prefix if isinstance(module, SparseNetwork) else f"{prefix}{inner}."
            todo.append((module.get_submodule(inner), own, plain))
        else:
            children = ((name, child) for name, child in module._modules.items() if child is not None)
            todo += [(child, f"{prefix}{name}.", f"{plain}{name}.") for name, child in children]
    return found


def carry_back(net: nn.Module, model: nn.Module) -> None:
    """Write into `model` what passes of `net`, its converted copy, left beside the state dict.

    That is numbers, texts and tensors in attributes, also in lists and dicts, and buffers that are not saved.
    """
    theirs, done = dict(named_modules(net)), dict[int, Any]()
    for name, module in named_modules(model):
        own = theirs.get(name)
        if own is None or not (type(own) is type(module) or (is_held(own) and isinstance(own, type(module)))):
            continue
        for key, value in vars(own).items():
            if key not in _PLAIN and key in vars(module):
                setattr(module, key, _carried(vars(module)[key], value, done))
            elif key not in _PLAIN and _simple(value):
                setattr(module, key, value)
        for key in module._non_persistent_buffers_set & own._non_persistent_buffers_set:
            buffer = own._buffers[key]
            module._buffers[key] = None if buffer is None else buffer.detach().clone()


_PLAIN = frozenset(vars(nn.Module()))


def _simple(value: Any) -> bool:
    return value is None or isinstance(value, bool | int | float | str | bytes)


def _carried(old: Any, new: Any, done: dict[int, Any]) -> Any:
    """What an attribute is to be: lists, dicts and sets stay the same objects, also where they hold themselves."""
    if id(new) in done:
        return done[id(new)]
    if _simple(new) or (isinstance(new, Tensor) and not isinstance(new, nn.Parameter)):
        return new
    parts = list(new.values() if isinstance(new, dict) else new) if type(new) in WRITABLE else []
    if type(old) is type(new) and type(new) in WRITABLE:
        if not any(isinstance(x, nn.Module | nn.Parameter) for x in parts):
            done[id(new)] = old
            was = dict(old) if isinstance(old, dict) else dict(enumerate(old))
            keys = list(new) if isinstance(new, dict) else range(len(parts))
            refill(old, {key: _carried(was.get(key), x, done) for key, x in zip(keys, parts, strict=True)})
    elif old is None and not isinstance(new, nn.Module | nn.Parameter):
        return new
    return old
