"""A model's state by name, and context managers that restore a model.

A search and the training of a ticket move nothing but `param.data`: no parametrisation, no wrapped layers. `borrowed`
gives a model back exactly as it was, whatever happens inside.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import TypeGuard

import torch
from torch import Tensor, nn

from gemminer.core.attributes import attributes
from gemminer.core.names import named_modules, named_tensors, unwrapped
from gemminer.core.zeros import unheld


def named_state(model: nn.Module) -> dict[str, Tensor]:
    """The model's parameters and saved buffers by name; tied ones once, under their first name."""
    names: dict[int, str] = {}
    return {name: t for name, t in named_tensors(model).items() if names.setdefault(id(t), name) == name}


def copied(model: nn.Module) -> dict[str, Tensor]:
    """The model's state, detached from it."""
    return {name: tensor.detach().clone() for name, tensor in named_state(model).items()}


@contextlib.contextmanager
def borrowed(model: nn.Module, *, as_trained: bool = False) -> Iterator[nn.Module]:
    """Restore `model` at the end: parameters, buffers, gradients, modes, flags and attributes, bit for bit.

    Inside, every parameter and buffer points at a copy, so the original memory is never written, whatever exception
    or Ctrl-C ends the block. What holds the model (`gemminer.hold`) does not hold these copies.

    Args:
        as_trained: leave what passes write into other attributes.
    """
    parameters = [(p, p.data, p.grad, p.requires_grad) for p in model.parameters()]
    buffers = [(module, name, b) for module in model.modules() for name, b in module._buffers.items() if b is not None]
    modes = [(module, module.training) for module in model.modules()]
    copies: dict[int, Tensor] = {}  # a buffer two modules share stays shared
    try:
        for p, *_ in parameters:
            p.data, p.grad = p.data.clone(), None
        for module, name, b in buffers:
            module._buffers[name] = copies.setdefault(id(b), b.clone())
        with unheld(model), contextlib.nullcontext() if as_trained else attributes(model):
            yield model
    finally:
        for p, data, grad, requires_grad in parameters:
            p.grad = None
            p.data = data
            p.grad = grad
            p.requires_grad_(requires_grad)
        for module, name, b in buffers:
            module._buffers[name] = b
        for module, training in modes:
            module.training = training


@contextlib.contextmanager
def gradients() -> Iterator[None]:
    """Record gradients, though the caller may have turned that off (no_grad, inference_mode); put back at the end."""
    with torch.inference_mode(False), torch.enable_grad():
        yield


@contextlib.contextmanager
def modes(model: nn.Module) -> Iterator[None]:
    """Restore every module's training flag at the end."""
    before = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, training in before:
            module.training = training


def has_statistics(module: nn.Module) -> TypeGuard[nn.modules.batchnorm._NormBase]:
    """Whether it is a norm that keeps running statistics: batch norm, synchronised or not, or instance norm."""
    return isinstance(module, nn.modules.batchnorm._NormBase) and module.running_mean is not None


def held_in_evaluation(model: nn.Module) -> tuple[str, ...]:
    """The names of the norms with running statistics that their owner froze: they stay in evaluation mode.

    Those that are in it while the model itself is in training mode; and, in a model that is in evaluation mode as a
    whole, those whose own weights are frozen. Any other module is trained in training mode, as `model.train()` does.
    """
    trains = unwrapped(model).training
    held: dict[str, None] = {}
    for name, module in named_modules(model):
        own = list(module.parameters(recurse=False))
        frozen = bool(own) and not any(p.requires_grad for p in own)
        if has_statistics(module) and not module.training and (trains or frozen):
            held[name] = None
    return tuple(held)


def modes_note(model: nn.Module, held: Sequence[str]) -> str | None:
    """What a person is told of the modules that were left in evaluation mode; None if it makes no difference."""
    trains = unwrapped(model).training
    dropouts = [
        name
        for name, module in named_modules(model)
        if trains and isinstance(module, nn.modules.dropout._DropoutNd) and not module.training and module.p > 0
    ]
    parts = []
    if held:
        parts.append(f"the statistics of {_few(held)} stay as they are, for they were left in evaluation mode")
    if dropouts:
        parts.append(f"{_few(dropouts)} drops in training though left in evaluation mode: set p to 0 to turn it off")
    return "; ".join(parts) or None


def _few(names: Sequence[str]) -> str:
    return f"{', '.join(names[:3])}{f' and {len(names) - 3} more' if len(names) > 3 else ''}"


def train_mode(model: nn.Module, held: Sequence[str]) -> None:
    """Put the model in training mode, all but the norms named: `held_in_evaluation`."""
    model.train()
    if held:
        for name, module in named_modules(model):
            if name in held:
                module.training = False
