"""A sparse network against its masked dense one in float64: one step of each."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gemminer.core.model_state import named_state
from gemminer.core.prunable import prunable_weights
from gemminer.core.ticket import Ticket
from gemminer.sparse.training.convert import densify


def ticket_for(model: nn.Module, density: float, seed: int = 99) -> Ticket:
    """A random ticket of this density, written into the model."""
    source = torch.Generator().manual_seed(seed)
    masks = {n: torch.rand(p.shape, generator=source) < density for n, p in prunable_weights(model).items()}
    next(iter(masks.values())).view(-1)[0] = True
    ticket = Ticket(masks, named_state(model))
    ticket.apply(model)
    return ticket


def noise(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def close(ours: Tensor | None, theirs: Tensor | None, tolerance: float = 1e-10) -> None:
    """Equal up to a fraction of the largest number."""
    assert (ours is None) == (theirs is None)
    if ours is not None and theirs is not None and ours.numel():
        ours, theirs = ours.detach(), theirs.detach()
        assert ours.shape == theirs.shape
        assert (ours - theirs).abs().max() <= tolerance * max(1e-3, float(theirs.abs().max()))


def compare(dense: nn.Module, sparse: nn.Module, ticket: Ticket, x: Tensor, tolerance: float = 1e-10) -> None:
    """One forward and backward of each: output, every gradient, and the state afterwards."""
    xs = [x.detach().clone(memory_format=torch.preserve_format).requires_grad_() for _ in range(2)]
    outs = [net(x) for net, x in zip((dense, sparse), xs, strict=True)]
    close(outs[1], outs[0], tolerance)
    dy = noise(*outs[0].shape, seed=5).to(outs[0].dtype)
    for net, out in zip((dense, sparse), outs, strict=True):
        net.zero_grad()
        out.backward(dy)
    close(xs[1].grad, xs[0].grad, tolerance)
    theirs = dict(dense.named_parameters())
    for name, parameter in sparse.named_parameters():
        name = name.removeprefix("net.")
        if name.endswith("values"):
            name = name.removesuffix("values") + "weight"
            g = theirs[name].grad
            close(parameter.grad, None if g is None else g[ticket.masks[name]], tolerance)
        else:
            close(parameter.grad, theirs[name.replace(".layer.", ".")].grad, tolerance)
    state = densify(sparse)
    assert list(state) == list(dense.state_dict())
    for name, tensor in dense.state_dict().items():
        close(state[name].double(), tensor.double(), tolerance)
