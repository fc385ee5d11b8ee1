"""Which parameters of a model can be pruned, how their axes are read, and which others stay dense, and why.

`RULES` is the one table of that: what needs an output axis, a fan or a kind of layer asks for a weight's `Layout`.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize

from gemminer.core.errors import UsageError
from gemminer.core.layout import Layout
from gemminer.core.left_dense import EMBEDDING, EXCLUDED, FROZEN, NO_RULE, TIED, LeftDense, listed, parametrized, why
from gemminer.core.names import named_modules, named_parameters
from gemminer.core.numbers import strings


@dataclass(frozen=True)
class Rule:
    """A row of the table: which weights of a kind of module are prunable, and their layout.

    Args:
        kind: what such a layer is called.
        takes: whether a module is of this kind.
        names: the weights' names in the module, as shell patterns.
        layout: (module, name, weight) -> the weight's axes; by default (outputs, inputs, kernel ...).
    """

    kind: str
    takes: Callable[[nn.Module], bool]
    names: tuple[str, ...] = ("weight",)
    layout: Callable[[Any, str, nn.Parameter], Layout] = lambda module, name, weight: Layout()


def _of(*types: type[nn.Module]) -> Callable[[nn.Module], bool]:
    return lambda module: isinstance(module, types)


def _conv1d_of_gpt2(module: nn.Module) -> bool:
    """GPT-2's Conv1D, y = x @ weight + bias, and classes made from it: known by its name, so nothing is imported."""
    weight, bias = module._parameters.get("weight"), module._parameters.get("bias")
    named = any(kind.__name__ == "Conv1D" for kind in type(module).__mro__)
    return named and weight is not None and weight.dim() == 2 and (bias is None or bias.shape == weight.shape[1:])


def _transposed(module: Any, name: str, weight: nn.Parameter) -> Layout:
    return Layout(output=1, input=0, groups=module.groups)


def _recurrent(module: Any, name: str, weight: nn.Parameter) -> Layout:
    """LSTM 4, GRU 3, RNN 1 matrices one upon another; an LSTM's projection of its state is a single one."""
    return Layout() if name.startswith("weight_hr") else Layout(gates=weight.shape[0] // module.hidden_size)


RULES = (
    Rule("convolution", _of(nn.Conv1d, nn.Conv2d, nn.Conv3d)),
    Rule(
        "transposed convolution",
        _of(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
        layout=_transposed,
    ),
    Rule("linear", _of(nn.Linear)),
    Rule("bilinear", _of(nn.Bilinear)),
    Rule("linear", _conv1d_of_gpt2, layout=lambda module, name, weight: Layout(output=1, input=0)),
    Rule("attention", _of(nn.MultiheadAttention), ("in_proj_weight", "[qkv]_proj_weight")),
    Rule("recurrent", _of(nn.RNNBase, nn.RNNCellBase), ("weight_[ih][hr]*",), _recurrent),
)
EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)
BARE = "parameter"  # the kind of a weight that `include` takes in


@dataclass(frozen=True)
class Prunable:
    """The weights a ticket may remove, and those of two and more dimensions that it may not, in the model's order.

    Args:
        weights: by parameter name.
        layouts: how the axes of each are read.
        kinds: the kind of layer of each, as in `RULES`; "embedding", or "parameter" where there is no rule.
        left: what stays dense, and why.
        shapes: the shape of each, of which the layout speaks; a search inside a mask holds vectors of what is inside.
    """

    weights: Mapping[str, nn.Parameter]
    layouts: Mapping[str, Layout]
    kinds: Mapping[str, str]
    left: tuple[LeftDense, ...] = field(default=())
    shapes: Mapping[str, torch.Size] = field(default_factory=dict)


@dataclass(frozen=True)
class _Owner:
    """A module that has a parameter, and the parameter's name in it."""

    module: nn.Module
    name: str
    parent: nn.Module | None  # of a list of parametrizations: the module whose weight they make

    @property
    def rule(self) -> Rule | None:
        fits = (r for r in RULES if r.takes(self.module) and any(fnmatch.fnmatchcase(self.name, n) for n in r.names))
        return next(fits, None)

    @property
    def type(self) -> str:
        module = self.module if self.parent is None else self.parent
        plain = type(module) if self.parent is None else type(module).__mro__[1]  # ParametrizedLinear is a Linear
        return plain.__name__

    @property
    def reparametrized(self) -> str | None:
        """What makes the module's weight from this parameter, if anything does: "weight_norm", "prune"."""
        if isinstance(self.module, parametrize.ParametrizationList):
            made_by = " and ".join(type(part).__name__.strip("_") for part in self.module)
            return {"WeightNorm": "weight_norm", "SpectralNorm": "spectral_norm", "Orthogonal": "orthogonal"}.get(
                made_by, made_by
            )
        for hook in self.module._forward_pre_hooks.values():
            name = getattr(hook, "_tensor_name", None) or getattr(hook, "name", None)
            if isinstance(name, str) and self.name in (f"{name}_orig", f"{name}_g", f"{name}_v"):
                return "prune" if hasattr(hook, "_tensor_name") else type(hook).__module__.rpartition(".")[2]
        return None


def _owners(model: nn.Module) -> dict[int, list[_Owner]]:
    """By a parameter's identity the modules that have it."""
    found: dict[int, list[_Owner]] = {}
    parents = {
        id(made): module
        for module in model.modules()
        if isinstance(lists := module._modules.get("parametrizations"), nn.ModuleDict)
        for made in lists.values()
    }
    for module in model.modules():
        for name, p in module._parameters.items():
            if p is not None:
                found.setdefault(id(p), []).append(_Owner(module, name, parents.get(id(module))))
    return found


def made_from_others(model: nn.Module) -> dict[str, str]:
    """The tensors that PyTorch makes anew from parameters, by their names in the plain model: by what, and what to do.

    >>> from torch.nn.utils import prune
    >>> made_from_others(nn.Sequential(prune.identity(nn.Linear(2, 2), "weight")))
    {'0.weight': 'made by torch.nn.utils.prune: prune.remove it first, or take Ticket.from_prune(model)'}
    """
    found: dict[str, str] = {}
    names = {module: name for name, module in named_modules(model)}
    for module, name in names.items():
        for own in module._parameters:
            if made_by := _Owner(module, own, None).reparametrized:
                # Of `0.weight_orig`, or of `0.parametrizations.weight` and its `original`: `0.weight`.
                of_list = isinstance(module, parametrize.ParametrizationList)
                plain = name.replace("parametrizations.", "") if of_list else f"{name}.{own.rpartition('_')[0]}"
                plain = plain.removeprefix(".")
                found[plain] = why(parametrized(made_by), [plain])
    return found


def prunable_weights(
    model: nn.Module, *, include: Sequence[str] = (), exclude: Sequence[str] = (), embeddings: bool = False
) -> dict[str, nn.Parameter]:
    """The weights a ticket may remove, by name, in the model's order: those of `find_prunable`."""
    return dict(find_prunable(model, include=include, exclude=exclude, embeddings=embeddings).weights)


def train_only(model: nn.Module, table: Prunable) -> None:
    """Ask for gradients of the prunable weights, and of nothing else."""
    for p in model.parameters():
        p.requires_grad_(False)
    for p in table.weights.values():
        p.requires_grad_(True)


def find_prunable(
    model: nn.Module, *, include: Sequence[str] = (), exclude: Sequence[str] = (), embeddings: bool = False
) -> Prunable:
    """The weights a ticket may remove: those of convolutions, linear, recurrent and attention layers.

    First and last layer are included; biases and norm layers are not; embeddings are if asked for, also those that an
    output layer shares. Tied weights appear once, under their first name; frozen ones (`requires_grad=False`) not at
    all, nor those that PyTorch makes anew from other parameters (weight_norm, orthogonal, prune).

    Args:
        include: names of further parameters of two and more dimensions, as shell patterns ("experts.*"); see
            `bare_layout` for how their axes are read.
        exclude: parameter names to leave dense, as shell patterns ("head.*"); it wins over `include`.
        embeddings: also prune `nn.Embedding` tables.

    Raises:
        UsageError: nothing is prunable, or a pattern matches nothing.
    """
    include, exclude = strings("include", include), strings("exclude", exclude)
    owners, named = _owners(model), named_parameters(model)
    if any(isinstance(p, nn.parameter.UninitializedParameter) for p in named.values()):
        raise UsageError("the model has lazy layers: run one batch through it before mining")
    found: dict[str, Rule | None] = {}
    left: dict[str, LeftDense] = {}
    for name, p in named.items():
        own = owners[id(p)]
        rule = next((owner.rule for owner in own if owner.rule), None)
        reason = _reason(p, own, rule, embeddings)
        if reason is None:
            found[name] = rule
        elif p.dim() > 1:
            left[name] = LeftDense(name, p.numel(), own[0].type, reason)
    for pattern in include:
        for name in _included(pattern, named, found, left):
            found[name] = next((owner.rule for owner in owners[id(named[name])] if owner.rule), None)
            del left[name]
    found = {name: found[name] for name in named if name in found}
    for pattern in exclude:
        if not fnmatch.filter(found, pattern):
            raise UsageError(f"exclude={pattern!r} matches no prunable weight; they are: {', '.join(found)}")
    for name in [n for n in found if any(fnmatch.fnmatch(n, x) for x in exclude)]:
        del found[name]
        left[name] = LeftDense(name, named[name].numel(), owners[id(named[name])][0].type, EXCLUDED)
    left = {name: left[name] for name in named if name in left}
    if not found:
        raise _nothing(left)
    weights = {name: named[name] for name in found}
    layouts, kinds = {}, {}
    for name, p in weights.items():
        layouts[name], kinds[name] = _read(p, owners[id(p)], found[name])
    shapes = {name: p.shape for name, p in weights.items()}
    return Prunable(weights, layouts, kinds, tuple(left.values()), shapes)


def _reason(p: nn.Parameter, own: Sequence[_Owner], rule: Rule | None, embeddings: bool) -> str | None:
    """Why a parameter is not prunable; None if it is."""
    if not p.requires_grad:
        return FROZEN
    if made_by := next((owner.reparametrized for owner in own if owner.reparametrized), None):
        return parametrized(made_by)
    if any(isinstance(owner.module, EMBEDDINGS) for owner in own):
        return None if embeddings else EMBEDDING if len(own) == 1 else TIED
    return NO_RULE if rule is None else None


def _included(
    pattern: str,
    named: Mapping[str, nn.Parameter],
    found: Mapping[str, Rule | None],
    left: Mapping[str, LeftDense],
) -> list[str]:
    """The names that a pattern takes in; raises UsageError where it matches nothing that can be pruned."""
    candidates = [name for name, one in left.items() if one.reason in (NO_RULE, EMBEDDING, TIED)]
    taken = fnmatch.filter(candidates, pattern)
    if taken or fnmatch.filter(found, pattern):
        return taken
    could = f"it can take in: {', '.join(candidates)}" if candidates else "the model has none that it could take in"
    if not (matched := fnmatch.filter(named, pattern)):
        raise UsageError(f"include={pattern!r} matches no parameter; {could}")
    if matched[0] in left:
        raise UsageError(f"include={pattern!r} matches {matched[0]!r}, which stays dense: {left[matched[0]].why}")
    raise UsageError(
        f"include={pattern!r} matches {matched[0]!r}, which has fewer than two dimensions: only weights of two and "
        f"more are pruned; {could}"
    )


def bare_layout(weight: nn.Parameter, bias: nn.Parameter | None) -> Layout:
    """The axes of a weight that no rule knows, taken in by `include`.

        2 dimensions       (outputs, inputs), as nn.Linear's
        3                  (matrices, inputs, outputs), as torch.bmm takes fused experts: independent matrices
        4 and more         (outputs, inputs, kernel ...), as a convolution's

    Its module's bias says otherwise where it can: a bias of shape (outputs,) fits one axis only, and one of shape
    (matrices, outputs) one axis behind the first.
    """
    shape = tuple(weight.shape)
    size = None if bias is None or bias.dim() == 0 else bias.shape[-1]
    if len(shape) == 2:
        return Layout(output=1, input=0) if size == shape[1] != shape[0] else Layout()
    if len(shape) == 3 and not (bias is not None and bias.dim() == 1 and size == shape[0]):
        stored_as_linear = size == shape[1] != shape[2]
        return Layout(matrices=0, output=1, input=2) if stored_as_linear else Layout(matrices=0, output=2, input=1)
    return Layout()


def _read(p: nn.Parameter, own: Sequence[_Owner], rule: Rule | None) -> tuple[Layout, str]:
    """A weight's layout and kind, by its rule or without one."""
    for owner in own:
        if rule is not None and owner.rule is rule:
            return rule.layout(owner.module, owner.name, p), rule.kind
    if any(isinstance(owner.module, EMBEDDINGS) for owner in own):
        return Layout(), "embedding"
    parameters = own[0].module._parameters
    return bare_layout(p, parameters.get(f"{own[0].name}_bias", parameters.get("bias"))), BARE


def _nothing(left: Mapping[str, LeftDense]) -> UsageError:
    text = "the model has nothing to prune: no trainable weight of a convolution, linear, recurrent or attention layer"
    return UsageError(f"{text}; dense are {listed(tuple(left.values()))}" if left else text)
