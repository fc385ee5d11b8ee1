"""A model's state by name, and context managers that restore a model.

A search and the training of a ticket move nothing but `param.data`: no parametrisation, no wrapped layers. `borrowed`
gives a model back exactly as it was, whatever happens inside.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from torch import Tensor, nn


def named_state(model: nn.Module) -> dict[str, Tensor]:
    """The model's parameters and saved buffers by name; tied ones once, under their first name."""
    names: dict[int, str] = {}
    state: dict[str, Tensor] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if isinstance(tensor, Tensor) and names.setdefault(id(tensor), name) == name:
            state[name] = tensor
    return state


def copied(model: nn.Module) -> dict[str, Tensor]:
    """The model's state, detached from it."""
    return {name: tensor.detach().clone() for name, tensor in named_state(model).items()}


@contextlib.contextmanager
def borrowed(model: nn.Module) -> Iterator[nn.Module]:
    """Restore `model` at the end: parameters, buffers, gradients, modes and flags, bit for bit.

    Inside, every parameter and buffer points at a copy, so the original memory is never written, whatever exception
    or Ctrl-C ends the block.
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
def modes(model: nn.Module) -> Iterator[None]:
    """Restore every module's training flag at the end."""
    before = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, training in before:
            module.training = training
