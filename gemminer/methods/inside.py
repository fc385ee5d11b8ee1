"""A search that stays inside a mask, for every method alike: the method sees only the weights that are inside.

While it searches, each prunable weight of the model is a vector of its values inside the mask, and the forward pass
puts them back in their places, with zeros elsewhere. So counts, scores and schedules are over what is inside, and a
method need not know of the mask.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from gemminer.core.errors import UsageError
from gemminer.core.names import full_names, unwrapped
from gemminer.core.numbers import shown
from gemminer.core.prunable import Prunable
from gemminer.core.selection import target
from gemminer.methods.registry import Found, Method
from gemminer.training.task import Inside, Task

# A tensor is taken for pruned when this part of it, but not all, is exactly zero.
PRUNED = 1e-3


def check_within(within: Mapping[str, Tensor], table: Prunable, density: float) -> int:
    """How many weights the density keeps; raises UsageError where the mask is of another model or has fewer."""
    if not isinstance(within, Mapping) or not all(isinstance(mask, Tensor) for mask in within.values()):
        raise UsageError(f"within is a ticket or masks by parameter name, not {shown(within)}")
    shapes = {name: tuple(p.shape) for name, p in table.weights.items()}
    if odd := [name for name in {**shapes, **within} if name not in shapes or name not in within]:
        where = "no mask for the prunable weight" if odd[0] in shapes else "a mask for what is not prunable here,"
        raise UsageError(f"within has {where} {odd[0]!r}: search with the include, exclude and embeddings it has")
    for name, shape in shapes.items():
        if within[name].dtype != torch.bool or tuple(within[name].shape) != shape:
            raise UsageError(f"within's mask of {name!r} must be booleans of shape {shape}")
    total, inside = sum(p.numel() for p in table.weights.values()), sum(int(m.sum()) for m in within.values())
    count = target(density, total)
    if count > inside:
        raise UsageError(
            f"density {density} keeps {count} of {total} weights, and within has {inside}: lower the density"
        )
    return count


def zeros_of(table: Prunable) -> dict[str, Tensor] | None:
    """The masks of a pruned model's own zeros; None where it is none.

    A model whose zeros are initial values (a tensor that is zero as a whole, and no other partly) is no pruned one.
    """
    masks = {name: p.detach() != 0 for name, p in table.weights.items()}
    parts = [1 - float(mask.double().mean()) for mask in masks.values() if mask.numel()]
    return masks if any(PRUNED <= part < 1 for part in parts) else None


def find_inside(row: Method, task: Task, density: float, options: Any, seed: int) -> Found:
    """What a method finds on a borrowed model: anywhere or, with `task.within`, inside that mask, the count exact."""
    within = task.within
    if within is None:
        return row.find(task, density, options, seed)
    table = task.table()
    count = check_within(within, table, density)
    inside = sum(int(mask.sum()) for mask in within.values())
    with _vectors(task.model, table, within) as (model, flat):
        own = dataclasses.replace(task, model=model, engine="dense", below={}, within=None)
        found = row.find(own, count / inside, options, seed)
    masks = {name: torch.zeros_like(mask) for name, mask in within.items()}
    for name, kept in found.masks.items():
        masks[name][within[name]] = kept.detach().to("cpu", torch.bool)
    start = None if found.start is None else dict(found.start)
    for name, p in flat.items():
        if start is not None:
            values = p.detach().clone()
            values[within[name].to(p.device)] = start[name].to(p.device, p.dtype)
            start[name] = values
    if start is not None:  # what has no weight inside
        start |= {name: p.detach().clone() for name, p in table.weights.items() if name not in flat}
    live = None if found.live is None else found.live * inside / sum(p.numel() for p in table.weights.values())
    return dataclasses.replace(found, masks=masks, start=start, live=live)


@contextlib.contextmanager
def _vectors(
    model: nn.Module, table: Prunable, within: Mapping[str, Tensor]
) -> Iterator[tuple[Inside, dict[str, nn.Parameter]]]:
    """The model with a vector of what is inside in place of each prunable weight; put back at the end.

    Gives that model, and the weights themselves by name, but those of which nothing is inside: they are zero.
    """
    flat = {name: p for name, p in table.weights.items() if bool(within[name].any())}
    for name, p in table.weights.items():
        if name not in flat:
            p.data = torch.zeros_like(p)
            p.requires_grad_(False)
    indices = {name: within[name].reshape(-1).nonzero().flatten().to(p.device) for name, p in flat.items()}
    vectors = {name: nn.Parameter(p.detach().reshape(-1)[indices[name]].clone()) for name, p in flat.items()}
    by_id = {id(p): vectors[name] for name, p in flat.items()}
    slots = [
        (module, name, p)
        for module in model.modules()
        for name, p in module._parameters.items()
        if p is not None and id(p) in by_id
    ]
    plain = unwrapped(model)  # DataParallel cannot be called with other values
    real = full_names(plain)
    shapes = {name: p.shape for name, p in flat.items()}
    own = Prunable(vectors, {n: table.layouts[n] for n in flat}, {n: table.kinds[n] for n in flat}, table.left, shapes)
    try:
        for module, name, p in slots:
            setattr(module, name, by_id[id(p)])  # an LSTM's own list of its weights follows
        yield Inside(plain, own, {real[n]: (indices[n], shapes[n]) for n in flat}), flat
    finally:
        for module, name, p in slots:
            setattr(module, name, p)
