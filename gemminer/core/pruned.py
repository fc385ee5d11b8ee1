"""Models that torch.nn.utils.prune has pruned: what their masks say, and how a mask gets into one.

`Ticket.from_prune` and `Ticket.to_prune` are these two with a ticket.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from gemminer.core.copies import duplicate
from gemminer.core.errors import UsageError
from gemminer.core.fitting import require_module
from gemminer.core.names import named_modules, named_parameters, named_tensors
from gemminer.core.prunable import find_prunable

_ORIGINAL, _MASK = "_orig", "_mask"


def put_masks(model: nn.Module, masks: Mapping[str, Tensor]) -> None:
    """Prune a plain model as `prune.custom_from_mask` does, each tied weight in every layer that has it."""
    parameters = named_parameters(model, ties=True)
    by_id = {id(parameters[name]): mask for name, mask in masks.items()}
    modules = dict(named_modules(model))
    for name, parameter in parameters.items():
        if id(parameter) in by_id:
            path, _, own = name.rpartition(".")
            prune.custom_from_mask(modules[path], own, by_id[id(parameter)].to(parameter.device))


def read_pruned(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Any]]:
    """The masks of a pruned model, its state, both by the plain model's names, and facts for a ticket's provenance.

    Raises UsageError where nothing is pruned so, or where layers that share a weight have other masks for it.
    """
    require_module(model)
    tensors = named_tensors(model)
    pruned = [n for n in tensors if n.endswith(_MASK) and n.removesuffix(_MASK) + _ORIGINAL in tensors]
    if not pruned:
        raise UsageError("the model is not pruned by torch.nn.utils.prune: it has no parameter with a mask")
    plain = {name: name.removesuffix(_MASK) for name in pruned}
    first: dict[int, str] = {}
    state, masks = dict[str, Tensor](), dict[str, Tensor]()
    for name, tensor in tensors.items():
        if name not in plain and id(tensor) not in first:
            own = name.removesuffix(_ORIGINAL)
            first[id(tensor)] = own if f"{own}{_MASK}" in plain else name
            state[first[id(tensor)]] = tensor
    for name in pruned:
        own, mask = first[id(tensors[plain[name] + _ORIGINAL])], tensors[name].bool()
        if not torch.equal(masks.setdefault(own, mask), mask):
            raise UsageError(f"{own!r} and {plain[name]!r} are one weight with two masks: prune both alike")
    return masks, state, _facts(model, masks, plain)


def _facts(model: nn.Module, masks: Mapping[str, Tensor], plain: Mapping[str, str]) -> dict[str, Any]:
    """How the axes of the pruned weights are read, and which others a search would have pruned: they stay dense."""
    facts: dict[str, Any] = {"method": "torch.nn.utils.prune"}
    bare = duplicate(model)
    modules = dict(named_modules(bare))
    for name in plain.values():
        path, _, own = name.rpartition(".")
        prune.remove(modules[path], own)
    try:
        table = find_prunable(bare)
    except UsageError:  # there is nothing that a search would prune
        return facts
    layouts = {name: table.layouts[name].as_json() for name in masks if name in table.layouts}
    facts["layouts"] = {name: layout for name, layout in layouts.items() if layout}
    facts["exclude"] = [name for name in table.weights if name not in masks]
    return facts
