"""How a batch's inputs are given to the model: found out by trying on the first batch, before anything is computed."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gemminer.core.names import unwrapped
from gemminer.data import label_of


@dataclass(frozen=True)
class Feed:
    """How inputs are given to a model; the default is as they are.

    Args:
        cast: floating-point inputs are given in the model's type.
        floats: so are whole numbers, for a model that does not take them as they are.
        unpacked: a dictionary or tuple holds the arguments of `forward`, by name or in order.
        without: the name in a dictionary of what the model is not given: its targets.
        own_loss: what the model puts out has the loss.
        logits: what the model puts out are not logits but has them, as in transformers: they are taken.
    """

    cast: bool = False
    floats: bool = False
    unpacked: bool = False
    without: str | None = None
    own_loss: bool = False
    logits: bool = False

    def taken(self, inputs: Any) -> Any:
        """What of a batch's inputs the model is given."""
        if self.without is None or not isinstance(inputs, Mapping) or self.without not in inputs:
            return inputs
        return {name: part for name, part in inputs.items() if name != self.without}

    def call(self, model: Callable[..., Any], inputs: Any) -> Any:
        if not self.unpacked:
            found = model(inputs)
        else:
            found = model(**inputs) if isinstance(inputs, Mapping) else model(*inputs)
        return found.logits if self.logits and has_logits(found) else found

    def typed(self, tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
        """A tensor of the inputs in the model's type, if it is to be."""
        if dtype is None or not self.cast or tensor.dtype == dtype or tensor.is_complex():
            return tensor
        return tensor.to(dtype) if tensor.is_floating_point() or self.floats else tensor


def has_logits(output: Any) -> bool:
    """Whether a model's output is more than a tensor and has logits."""
    return not isinstance(output, Tensor) and isinstance(getattr(output, "logits", None), Tensor)


def feeds(model: nn.Module, inputs: Any, without: str | None = None) -> Iterator[Feed]:
    """The ways in which the model may take such inputs, the likeliest first.

    Args:
        without: the name in a dictionary of what is not given to the model.
    """
    inputs = Feed(without=without).taken(inputs)
    types = {p.dtype for p in model.parameters() if p.is_floating_point()}
    cast = len(types) == 1  # of several the model itself knows which it needs where
    ways = []
    if _binds(model, Feed(), inputs):
        ways.append(False)
    if isinstance(inputs, (Mapping, tuple, list)) and _binds(model, Feed(unpacked=True), inputs):
        named = isinstance(inputs, Mapping) and set(inputs) <= set(_parameters(model))
        ways.insert(0 if named else len(ways), True)
    whole = any(not (t.is_floating_point() or t.is_complex()) for t in tensors_of(inputs))
    for floats in (False, True) if whole and cast else (False,):
        for unpacked in ways or [False]:
            yield Feed(cast, floats, unpacked, without)


def feeds_of_batch(model: nn.Module, batch: tuple[Any, Any] | None, given: bool) -> Iterator[Feed]:
    """The ways in which the model may take such a batch; a dictionary that is a whole one, first with its targets.

    Args:
        given: whether there is a loss of output and targets, which goes before one that the model makes itself.
    """
    inputs, targets = batch or (None, None)
    label = label_of(inputs)
    inside = label is not None and inputs is not None and inputs[label] is targets
    if isinstance(inputs, Mapping) and (inside or targets is None) and not given:
        for feed in feeds(model, inputs):
            yield dataclasses.replace(feed, own_loss=True)
        yield from feeds(model, inputs, label) if inside else ()
        return
    if inside:
        yield from feeds(model, inputs, label)
    yield from feeds(model, inputs)


def feeds_of_step(model: nn.Module) -> Iterator[Feed]:
    """The ways in which a step may be given a batch: as it is, and in the model's type."""
    yield Feed()
    if len({p.dtype for p in model.parameters() if p.is_floating_point()}) == 1:
        yield Feed(cast=True)


def _parameters(model: nn.Module) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(unwrapped(model).forward).parameters
    except (TypeError, ValueError):
        return {}


def _binds(model: nn.Module, feed: Feed, inputs: Any) -> bool:
    """Whether `forward` has the parameters for these inputs."""
    try:
        feed.call(inspect.signature(unwrapped(model).forward).bind, inputs)
    except TypeError:
        return False
    except ValueError:  # a forward without a signature
        return True
    return True


def mapped(function: Callable[..., Any], value: Any, *others: Any) -> Any:
    """The value with the function called on each tensor in it (and those of others of its structure)."""
    if isinstance(value, Tensor):
        return function(value, *others)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(mapped(function, *parts) for parts in zip(value, *others, strict=True)))
    if isinstance(value, (list, tuple)):
        return type(value)(mapped(function, *parts) for parts in zip(value, *others, strict=True))
    if isinstance(value, Mapping):
        items = {key: mapped(function, value[key], *(other[key] for other in others)) for key in value}
        try:
            return items if isinstance(value, dict) else type(value)(items)  # type: ignore[call-arg]
        except TypeError:
            return items
    return value


def tensors_of(value: Any) -> list[Tensor]:
    """The tensors in a batch's inputs or targets."""
    found: list[Tensor] = []
    mapped(found.append, value)
    return found


def shapes(value: Any) -> str:
    """Inputs or targets in a sentence: their shapes and types."""
    if isinstance(value, Tensor):
        return f"{tuple(value.shape)} of {value.dtype}"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {shapes(part)}" for key, part in value.items())
    if isinstance(value, (list, tuple)) and 0 < len(value) <= 4:
        return ", ".join(map(shapes, value))
    return type(value).__name__


def reason(error: BaseException) -> str:
    """An error's first line, for a sentence."""
    return str(error).strip().splitlines()[0].rstrip(".") if str(error).strip() else type(error).__name__
