"""Tickets of models that torch.nn.utils.prune has pruned, and models pruned so from tickets."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.utils import prune

from gemminer.core.errors import UsageError
from gemminer.core.fitting import require_module
from gemminer.core.model_state import named_state
from gemminer.core.names import named_modules
from gemminer.core.prunable import find_prunable
from gemminer.core.ticket import Ticket

_ORIGINAL, _MASK = "_orig", "_mask"


def to_prune(model: nn.Module, ticket: Ticket) -> nn.Module:
    """Write a ticket into a model, pruned as `torch.nn.utils.prune` does it: `weight_orig * weight_mask` in each pass.

    Afterwards `prune.is_pruned`, `prune.remove` and every other tool for such models know it. Returns the same model.
    Raises UsageError where the ticket is of another model.

    >>> import torch
    >>> net = nn.Sequential(nn.Linear(3, 2))
    >>> ticket = Ticket({"0.weight": torch.eye(2, 3).bool()}, net.state_dict())
    >>> sorted(to_prune(net, ticket).state_dict())
    ['0.bias', '0.weight_mask', '0.weight_orig']
    """
    masks = ticket.fitted(model).masks
    ticket.apply(model)
    modules = dict(named_modules(model))
    for name, mask in masks.items():
        path, _, own = name.rpartition(".")
        prune.custom_from_mask(modules[path], own, mask.to(getattr(modules[path], own).device))
    return model


def from_prune(model: nn.Module) -> Ticket:
    """The ticket of a model that `torch.nn.utils.prune` has pruned, which is left as it is.

    It starts from the values that the model has now, those under the masks too (`weight_orig`), and fits the plain
    model: one made anew, or this one after `prune.remove`. Other prunable weights are kept whole. Raises UsageError
    where nothing is pruned so.
    """
    require_module(model)
    state, masks = (
        dict(named_state(model)),
        {name: torch.ones_like(p, dtype=torch.bool) for name, p in _others(model).items()},
    )
    pruned = [name for name in state if name.endswith(_MASK) and name.removesuffix(_MASK) + _ORIGINAL in state]
    if not pruned:
        raise UsageError("the model is not pruned by torch.nn.utils.prune: it has no parameter with a mask")
    for name in pruned:
        plain = name.removesuffix(_MASK)
        masks[plain] = state.pop(name).bool()
        state[plain] = state.pop(plain + _ORIGINAL)
    return Ticket(masks, state, {"method": "torch.nn.utils.prune"})


def _others(model: nn.Module) -> dict[str, nn.Parameter]:
    """The prunable weights that have no mask, if there are any."""
    try:
        return dict(find_prunable(model).weights)
    except UsageError:
        return {}
