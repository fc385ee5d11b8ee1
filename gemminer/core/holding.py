"""Pruned weights that stay zero while a loop trains the plain model, the package's own or anybody's."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import LBFGS, Adam, AdamW, NAdam, Optimizer, RAdam, SparseAdam
from torch.optim.optimizer import register_optimizer_step_pre_hook

from gemminer.core.errors import UsageError
from gemminer.core.fitting import require_numbers
from gemminer.core.layers import neutralise, owned
from gemminer.core.names import named_modules, named_parameters
from gemminer.core.prunable import made_from_others
from gemminer.core.ticket import Ticket
from gemminer.core.zeros import Held, Place, held_in

# What they keep of a weight stays zero while its gradient is; of any other optimiser it is zeroed after each step.
_QUIET = {"SGD", "Adam", "AdamW", "NAdam", "RAdam", "RMSprop", "Adagrad", "Adadelta", "ASGD", "Adafactor"}
_QUIET |= {"Muon", "LBFGS"}
_ROOTED = {Adam, AdamW, NAdam, RAdam}  # of each weight alone, its first moment over the root of its second
_INNER = ("optimizer", "_base_optimizer")  # where a wrapper keeps what it wraps
_SHARDED = {"FullyShardedDataParallel", "FSDPModule", "FlatParameter", "DTensor"}


def hold(model: nn.Module, ticket: Ticket | Mapping[str, Tensor], *optimisers: Optimizer) -> Hold:
    """Keep a model's pruned weights exactly zero while any loop trains it.

    In each backward pass grad <- grad * mask, before gradients are accumulated, so that a norm for clipping is the
    masked one; after each step of an optimiser w <- w * mask, and what the optimiser remembers of pruned weights is
    zero. The pruned weights are made zero at once; the others are left as they are (`Ticket.apply` writes them). Of a
    layer that the ticket removes all parameters are held at zero; `Ticket.shallow` gives the network without it.

    Args:
        model: what the ticket is of, maybe wrapped (DataParallel, `torch.compile`), or a module that holds it.
        ticket: a ticket, or boolean masks by parameter name.
        optimisers: what moves the weights: of `torch.optim` or made like those, also as accelerate prepares them. Any
            other that moves them is held from its first step. Where none does, call `Hold.zero` after each step.

    Returns:
        A context manager that ends at the block's end; without `with`, it ends with `Hold.remove`.

    Raises:
        UsageError: a ticket or an optimiser of another model, a model whose weights are sharded (FSDP) or are held
            at other masks already, SparseAdam.

    >>> import gemminer, torch
    >>> net = torch.nn.Linear(4, 2)
    >>> optimiser = torch.optim.AdamW(net.parameters())
    >>> with gemminer.hold(net, {"weight": torch.eye(2, 4).bool()}, optimiser) as held:
    ...     for _ in range(3):
    ...         optimiser.zero_grad()
    ...         net(torch.randn(8, 4)).square().sum().backward()
    ...         optimiser.step()
    >>> held.violations(), int(net.weight.count_nonzero())
    (0, 2)
    """
    require_numbers(model)
    refuse_sharded(
        {kind.__name__ for x in (*model.modules(), *model.parameters()) for kind in type(x).__mro__} & _SHARDED
    )
    plain = [_plain(optimiser) for optimiser in optimisers]
    own = {id(p) for p in model.parameters()}
    for optimiser in plain:
        if all(id(p) not in own for group in optimiser.param_groups for p in group["params"]):
            raise UsageError("the optimiser moves no parameter of this model: was it made for another, or a copy?")
    places, masks = _masked(model, ticket)
    _refuse_held(model, places, masks)
    return Hold(Held(places, masks), plain)


class Hold:
    """What keeps pruned weights at zero, from `hold` to `remove` or to the end of a `with` block.

    Args:
        held: the weights and their masks.
        optimisers: what moves the weights, as far as it is known; others are met in their first step.
    """

    def __init__(self, held: Held, optimisers: Sequence[Optimizer]) -> None:
        self._held = held
        held.owner = self
        self._optimisers: weakref.WeakSet[Optimizer] = weakref.WeakSet()
        self._strange: weakref.WeakSet[Optimizer] = weakref.WeakSet()  # with a state from before, or from elsewhere
        self._handles: list[Any] = []
        for optimiser in optimisers:
            self._join(optimiser)
        self.zero()
        self._handles.append(with_every_optimiser(self._meet, register_optimizer_step_pre_hook))

    def __enter__(self) -> Hold:
        return self

    def __exit__(self, *error: object) -> None:
        self.remove()

    def remove(self) -> None:
        """End it: weights may move again. A second call does nothing."""
        self._held.release()
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def zero(self) -> None:
        """Make the pruned weights zero, their gradients, and what the optimisers remember of them."""
        self._held.zero()
        for optimiser in self._optimisers:
            self._clean(optimiser)

    def violations(self) -> int:
        """The number of pruned weights that are not zero."""
        self._held.look()
        pairs = zip(self._held.zeros.weights, self._held.masks, strict=True)
        return sum(int(weight.detach()[~mask.to(weight.device)].count_nonzero()) for weight, mask in pairs)

    def _meet(self, optimiser: Optimizer) -> None:
        """Before a step of any optimiser of the process: from here on it is held too if it moves a held weight."""
        if optimiser not in self._optimisers and not self._held.paused:
            moved = {id(p) for group in optimiser.param_groups for p in group["params"]}
            if any(id(weight) in moved for weight in self._held.weights()):
                inner = _plain(optimiser)
                if inner not in self._optimisers:
                    self._join(inner)  # its hooks run after this one, before the same step

    def _join(self, optimiser: Optimizer) -> None:
        self._optimisers.add(optimiser)
        self._strange.add(optimiser)
        self._handles.append(optimiser.register_step_pre_hook(self._before_step))
        self._handles.append(optimiser.register_step_post_hook(self._after_step))
        self._handles.append(optimiser.register_load_state_dict_post_hook(self._strange.add))

    def _before_step(self, optimiser: Optimizer, args: Any, kwargs: Any) -> None:
        """For gradients that no backward pass has accumulated: averaged over processes, or written by hand."""
        if self._held.paused:
            return
        self._held.look()
        self._held.zeros.mask_gradients()
        if optimiser in self._strange:
            self._clean(optimiser)
        if type(optimiser) in _ROOTED:
            self._held.zeros.lend(optimiser)

    def _after_step(self, optimiser: Optimizer, args: Any, kwargs: Any) -> None:
        if self._held.paused:
            return
        self._held.zeros.take_back()
        self._held.zeros.mask_weights()
        if type(optimiser).__name__ not in _QUIET or not type(optimiser).__module__.startswith("torch.optim."):
            self._clean(optimiser)

    def _clean(self, optimiser: Optimizer) -> None:
        """Make zero what an optimiser remembers of pruned weights."""
        self._strange.discard(optimiser)
        if isinstance(optimiser, LBFGS):
            self._forget(optimiser)
            return
        self._held.zeros.mask_state(optimiser)

    def _forget(self, optimiser: LBFGS) -> None:
        """Begin L-BFGS anew if it has seen pruned weights move: what it knows of curvature is of another network."""
        removed = {id(w): mask == 0 for w, mask in zip(self._held.zeros.weights, self._held.zeros.masks, strict=True)}
        weights = optimiser.param_groups[0]["params"]
        flat = [removed.get(id(w), torch.zeros_like(w, dtype=torch.bool)).flatten() for w in weights]
        pruned = torch.cat(flat)
        state = optimiser.state[weights[0]]
        seen = [*(state.get("old_dirs") or ()), *(state.get("old_stps") or ()), state.get("prev_flat_grad")]
        if any(v is not None and bool(v[pruned].count_nonzero()) for v in seen):
            state.clear()


def with_every_optimiser(method: Callable[[Optimizer], None], register: Callable[[Any], Any]) -> Any:
    """Call an object's method with whichever optimiser of the process makes a step, for as long as the object lives.

    Args:
        register: the function of `torch.optim.optimizer` that says whether before or after the step.

    Returns:
        A handle that ends it with `remove`.
    """
    met = weakref.WeakMethod(method)  # all optimisers of the process keep it, and need not keep the object
    handle = register(lambda optimiser, *_: (own := met()) and own(optimiser))
    weakref.finalize(method.__self__, handle.remove)  # type: ignore[attr-defined]
    return handle


def _plain(optimiser: object) -> Optimizer:
    """The optimiser inside those that wrap it, as accelerate's and timm's Lookahead do; it has the state of all."""
    while inner := [x for name in _INNER if isinstance(x := getattr(optimiser, name, None), Optimizer)]:
        optimiser = inner[0]
    if not isinstance(optimiser, Optimizer):
        raise UsageError(f"an optimiser must be a torch.optim.Optimizer, not a {type(optimiser).__name__}")
    if isinstance(optimiser, SparseAdam):
        raise UsageError("SparseAdam takes sparse gradients, which a mask makes dense: use Adam")
    return optimiser


def _masked(model: nn.Module, ticket: Ticket | Mapping[str, Tensor]) -> tuple[list[Place], list[Tensor]]:
    """Where the masked weights are, and their masks; raises UsageError where names or shapes do not fit."""
    masks: Mapping[str, Tensor]
    if isinstance(ticket, Mapping):
        masks = ticket
    else:
        ticket = Ticket.given(ticket)
        model = holder(model, ticket)
        own = ticket.fitted(model)
        neutralise(model, own.removed)
        gone = {
            n: torch.zeros_like(p, dtype=torch.bool)
            for n, p in named_parameters(model).items()
            if owned(n, own.removed)
        }
        masks = {**own.masks, **gone}
    named = named_parameters(model, ties=True)
    owners = {id(p): (m, name) for _, m in named_modules(model) for name, p in m._parameters.items() if p is not None}
    for name, mask in masks.items():
        if name not in named:
            made = made_from_others(model).get(name)
            raise UsageError(
                f"there is a mask for {name!r}, which is no parameter of this model{f', but {made}' if made else ''}"
            )
        if mask.shape != named[name].shape:
            raise UsageError(f"the mask of {name!r} has shape {tuple(mask.shape)}, it {tuple(named[name].shape)}")
        if mask.dtype != torch.bool and not ((mask == 0) | (mask == 1)).all():
            raise UsageError(f"the mask of {name!r} must be boolean: it holds other numbers than 0 and 1")
    return [owners[id(named[name])] for name in masks], [mask.bool() for mask in masks.values()]


def _refuse_held(model: nn.Module, places: Iterable[Place], masks: Iterable[Tensor]) -> None:
    """Raise UsageError where another hold has other masks for the same weights: together they would keep what both do.

    Args:
        places: of the weights to be held.
        masks: theirs.
    """
    own = {id(module._parameters[name]): mask for (module, name), mask in zip(places, masks, strict=True)}
    for held in held_in(model):
        for weight, mask in zip(held.weights(), held.masks, strict=True):
            if id(weight) in own and not torch.equal(own[id(weight)].cpu(), mask.cpu()):
                raise UsageError(
                    "the model is held at other masks already: end that first with its `Hold.remove()` (of a "
                    "callback: `callback.held.remove()`), or hold a copy of the model, which is free"
                )


def holds_of(model: nn.Module) -> list[Hold]:
    """The holds of the model's weights that have not ended."""
    return [held.owner for held in held_in(model) if isinstance(held.owner, Hold)]


def refuse_sharded(by: Collection[str]) -> None:
    """Raise UsageError if there is anything, by name, that shards the weights of a model."""
    if by:
        raise UsageError(
            f"the model's weights are sharded ({min(by)}), so no process has a whole weight to mask: train it with "
            "DistributedDataParallel, or on one process"
        )


def holder(model: nn.Module, ticket: Ticket) -> nn.Module:
    """What the ticket is of: the model, or the one module inside it that it fits, as in a LightningModule."""
    try:
        ticket.check_fits(model)
    except UsageError:
        inside = {name: module for name, module in model.named_modules() if name and _fits(module, ticket)}
        if not inside:
            raise
        if len(inside) > 1:
            two = list(inside)[:2]
            raise UsageError(
                f"the ticket fits {' and '.join(two)}: pass the one that is meant (to a callback its name: "
                f"module={two[0]!r})"
            ) from None
        model = next(iter(inside.values()))
    return model


def _fits(module: nn.Module, ticket: Ticket) -> bool:
    try:
        ticket.check_fits(module)
    except UsageError:
        return False
    return True
