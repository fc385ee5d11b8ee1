"""Which of a model's tensors each name of a ticket stands for: the model may be wrapped, and its weights tied."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from gemminer.core.errors import UsageError
from gemminer.core.names import bare, named_tensors
from gemminer.core.prunable import made_from_others


class Shapes(Protocol):
    """Named tensors whose shapes can be asked for: a ticket's initial state."""

    def __iter__(self) -> Iterable[str]: ...

    def shape(self, name: str) -> tuple[int, ...]: ...


def require_module(model: object) -> None:
    """Raise UsageError unless it is a module: an instance, not its class."""
    if not isinstance(model, nn.Module):
        what = f"the class {model.__name__}: make one of it" if isinstance(model, type) else f"a {type(model).__name__}"
        what += ": pass its .model" if isinstance(getattr(model, "model", None), nn.Module) else ""
        what += ": the model comes first, then the data" if isinstance(model, (Dataset, DataLoader, tuple)) else ""
        raise UsageError(f"model must be a torch.nn.Module, not {what}")


def require_numbers(model: nn.Module, *, to_train: bool = False) -> None:
    """Raise UsageError unless every tensor of the model holds numbers that can be read and written.

    Args:
        to_train: refuse parameters too that were made in `torch.inference_mode`, which have no gradients.
    """
    require_module(model)
    for name, tensor in named_tensors(model).items():
        if nn.parameter.is_lazy(tensor):
            raise UsageError(f"the model has lazy layers ({name!r} has no shape yet): run one batch through it before")
        if tensor.is_meta:
            raise UsageError(
                f"{name!r} is on the meta device, which holds no numbers: give the model memory and values first, as "
                "with model.to_empty(device='cpu') and a state dict"
            )
        if to_train and tensor.is_inference():
            raise UsageError(
                f"{name!r} was made in torch.inference_mode, so it can have no gradient: take copy.deepcopy(model), "
                "made outside of it"
            )


def matched(names: Iterable[str], model: nn.Module) -> dict[str, str]:
    """The model's own name, as in `named_state`, for each name of a ticket's initial state.

    Names fit as they are in the plain model, under any of a tied tensor's names, or but for wrappers' prefixes.

    Raises:
        UsageError: a name that the model does not have, or a tensor of the model without a name.
    """
    require_module(model)
    tensors, names = named_tensors(model), list(names)
    first: dict[int, str] = {}
    for name, tensor in tensors.items():
        first.setdefault(id(tensor), name)
    without = {short: name for name, short in bare(tensors).items()}
    short = bare(names)
    for own in ({n: n for n in names}, short, {n: without.get(s, "") for n, s in short.items()}):
        if all(name in tensors for name in own.values()):
            found = {name: first[id(tensors[own_name])] for name, own_name in own.items()}
            if set(found.values()) == set(first.values()):
                return found
    given = {first[id(tensors[n])] for n in names if n in tensors}
    missing = [n for n in names if n not in tensors]
    made = made_from_others(model)
    if missing and all(short[name] in made for name in missing):
        raise UsageError(
            f"the ticket is of the plain model, and this one's {missing[0]!r} is {made[short[missing[0]]]}"
        )
    raise UsageError(_other_model(names, list(first.values()), missing, given))


def _other_model(ticket: list[str], model: list[str], missing: list[str], given: set[str]) -> str:
    """Which of a ticket and a model has not what, and why that may be.

    Args:
        ticket: the ticket's names.
        model: the model's.
        missing: those of the ticket that the model has not.
        given: those of the model that the ticket has.
    """
    extra = [name for name in model if name not in given]
    halves = [f"the {here} has no {_some(names)}" for here, names in (("model", missing), ("ticket", extra)) if names]
    text = f"this ticket is of another model: {'; '.join(halves)}"
    if inside := _prefix(ticket, model):
        return f"{text}: it fits what the model holds as {inside!r}, so pass model.get_submodule({inside!r})"
    if outside := _prefix(model, ticket):
        return f"{text}: it is of a model that holds one like this as {outside!r}, so pass that"
    return text


def _some(names: list[str]) -> str:
    """Up to three names.

    >>> _some(["a", "b"]), _some(["a", "b", "c", "d"])
    ("'a', 'b'", "'a', 'b', 'c' and 1 more")
    """
    return ", ".join(map(repr, names[:3])) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _prefix(inner: list[str], outer: list[str]) -> str | None:
    """The name of the module under which all inner names stand among the outer ones; None without one.

    >>> _prefix(["0.weight"], ["net.0.weight", "step"])
    'net'
    """
    among = set(outer)
    starts = [name.removesuffix(inner[0]) for name in outer if name.endswith(f".{inner[0]}")] if inner else []
    return next((start[:-1] for start in starts if all(start + name in among for name in inner)), None)


def check_shapes(found: Mapping[str, str], initial: Shapes, tensors: Mapping[str, Tensor]) -> None:
    """Raise UsageError unless the shapes are equal of the tensors that belong together."""
    for name, own in found.items():
        if tuple(tensors[own].shape) != (shape := initial.shape(name)):
            raise UsageError(
                f"this ticket is of another model: {name!r} has shape {shape} in the ticket, "
                f"{tuple(tensors[own].shape)} in the model"
            )


def renamed(what: str, values: Mapping[str, Tensor], found: Mapping[str, str]) -> dict[str, Tensor]:
    """Tensors by the model's names; raises UsageError where the names of a tied one have different values."""
    result: dict[str, Tensor] = {}
    for name, value in values.items():
        if found[name] in result and not torch.equal(result[found[name]], value):
            raise UsageError(
                f"the model ties {name!r} to {found[name]!r}, but the ticket's {what} differ: it is of an untied model"
            )
        result[found[name]] = value
    return result
