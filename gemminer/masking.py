"""Which parameters can be pruned, exact counts, and what holds weights at a mask while a network trains.

The search and ticket training move nothing but `param.data`: no parametrisation, no wrapped layers. `borrowed`
gives a model back exactly as it was, whatever happens inside.
"""

from __future__ import annotations

import contextlib
import fnmatch
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from gemminer.errors import UsageError

PRUNABLE_MODULES = (
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
    nn.Linear,
    nn.Bilinear,
)
# One score in this many is looked at to bound the lowest ones.
SAMPLE = 32
_ATTENTION_WEIGHTS = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")


def prunable(model: nn.Module, *, exclude: Sequence[str] = (), embeddings: bool = False) -> dict[str, nn.Parameter]:
    """The weights a ticket may remove: those of every convolution, linear layer and attention projection.

    First and last layer are included; biases and norm layers are not; embeddings are if asked for. Tied weights
    appear once, under their first name; frozen ones (`requires_grad=False`) not at all. The order is the model's.

    Args:
        exclude: parameter names to leave dense, as shell patterns ("head.*").
        embeddings: also prune `nn.Embedding` tables.

    Raises:
        UsageError: nothing is prunable, or a pattern matches nothing.
    """
    modules = PRUNABLE_MODULES + ((nn.Embedding, nn.EmbeddingBag) if embeddings else ())
    wanted: set[int] = set()
    for module in model.modules():
        names = ["weight"] if isinstance(module, modules) else []
        names += _ATTENTION_WEIGHTS if isinstance(module, nn.MultiheadAttention) else ()
        wanted |= {id(module._parameters[name]) for name in names if module._parameters.get(name) is not None}
    found = {name: p for name, p in model.named_parameters() if id(p) in wanted and p.requires_grad}
    if any(isinstance(p, nn.parameter.UninitializedParameter) for p in found.values()):
        raise UsageError("the model has lazy layers: run one batch through it before mining")
    for pattern in exclude:
        if not fnmatch.filter(found, pattern):
            raise UsageError(f"exclude={pattern!r} matches no prunable weight; they are: {', '.join(found)}")
    found = {name: p for name, p in found.items() if not any(fnmatch.fnmatch(name, x) for x in exclude)}
    if not found:
        raise UsageError(
            "the model has nothing to prune: no trainable weight of a convolution, linear layer or attention"
        )
    return found


def target(density: float, total: int) -> int:
    """round(density * total), the number of weights to keep; raises UsageError unless 0 < density <= 1 keeps one."""
    if not isinstance(density, (int, float)) or not 0 < density <= 1:
        raise UsageError(f"density is the fraction of weights kept, above 0 and at most 1; {density} is not")
    kept = round(density * total)
    if kept == 0:
        raise UsageError(f"density {density} keeps none of {total} weights; the least is {1 / total:.2g}")
    return kept


def lowest(scores: Tensor, count: int) -> Tensor:
    """Indices of the `count` lowest of a flat vector, exactly; ties go to the lower index.

    A threshold alone overshoots where scores tie (at 0 and 1 after clipping they do), so the ties at the threshold
    are taken in order. On the CPU a bound taken from a sample first leaves few candidates, and numpy selects among
    them: thirty times faster than `torch.kthvalue` for 1% of 266,200.
    """
    if count <= 0:
        return torch.empty(0, dtype=torch.long, device=scores.device)
    if count >= scores.numel():
        return torch.arange(scores.numel(), device=scores.device)
    if scores.device.type == "cpu":
        values = scores.detach().numpy()
        sample = values[::SAMPLE]
        rank = min(2 * count // SAMPLE + 8, sample.size - 1)
        candidates = np.flatnonzero(values <= np.partition(sample, rank)[rank])
        if candidates.size < count:  # an unlucky sample: all are candidates
            candidates = np.arange(values.size)
        among = values[candidates]
        threshold = np.partition(among, count - 1)[count - 1]
        below = candidates[among < threshold]
        tied = candidates[among == threshold][: count - below.size]
        return torch.from_numpy(np.concatenate([below, tied]))
    bound = torch.kthvalue(scores, count).values
    under = (scores < bound).nonzero().flatten()
    return torch.cat([under, (scores == bound).nonzero().flatten()[: count - under.numel()]])


def highest_but(scores: Tensor, among: Tensor | None, count: int, least: float) -> float | None:
    """The `count`-th highest of a flat vector, of those `among` says; None where no more than `count` reach `least`.

    >>> highest_but(torch.tensor([0.9, 0.1, 0.7, 0.6]), None, 2, 0.5)
    0.699999988079071
    """
    reach = scores >= least
    if among is not None:
        reach &= among
    surplus = int(reach.sum()) - count
    if surplus <= 0:
        return None
    if scores.device.type != "cpu":
        return float(torch.kthvalue(scores[reach], surplus + 1).values)
    # In a search few are over, and those are near the bound: look there first.
    values, reached = scores.detach().numpy(), reach.numpy()
    margin = least / 16
    while True:
        near = values[reached & (values <= least + margin)]
        if near.size > surplus:
            return float(np.partition(near, surplus)[surplus])
        margin *= 4


def keep_highest(scores: Mapping[str, Tensor], count: int) -> dict[str, Tensor]:
    """Masks that keep exactly the `count` highest scores over all tensors together; ties go to the lower index.

    Args:
        scores: name -> real tensor; NaN is refused.
        count: how many to keep, 0 <= count <= total.

    >>> keep_highest({"a": torch.tensor([1.0, 3.0]), "b": torch.tensor([3.0, 2.0])}, 2)
    {'a': tensor([False,  True]), 'b': tensor([ True, False])}
    """
    flat = torch.cat([s.detach().reshape(-1) for s in scores.values()])
    if not 0 <= count <= flat.numel():
        raise UsageError(f"cannot keep {count} of {flat.numel()} weights")
    if torch.isnan(flat).any():
        raise UsageError("some scores are NaN: check the data and the loss")
    keep = torch.zeros(flat.numel(), dtype=torch.bool, device=flat.device)
    keep[lowest(-flat, count)] = True
    sizes = [s.numel() for s in scores.values()]
    return {name: part.reshape(s.shape) for (name, s), part in zip(scores.items(), keep.split(sizes), strict=True)}


@contextlib.contextmanager
def borrowed(model: nn.Module) -> Iterator[nn.Module]:
    """Lend out `model`: afterwards parameters, buffers, gradients, modes and flags are as before, bit for bit.

    Every parameter and buffer points at a copy meanwhile, so the lender's memory is never written and an exception
    or Ctrl-C cannot leave a trace.
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


class Rule(Protocol):
    """What a step may move, and what must hold after it: what a search and ticket training differ in.

    The one training loop calls it; `train.fit` says when. `settle` is from how many batches batch-norm statistics are
    estimated anew before a validation, where those of the loop trail behind; 0 takes the loop's.
    """

    settle: int

    def parameters(self) -> list[Tensor]:
        """The tensors the optimiser moves."""

    def begin(self, optimiser: torch.optim.Optimizer) -> None:
        """Told of the optimiser once it is made, before a first step or a resumed one."""

    def after_backward(self) -> None:
        """Turn the model's gradients into gradients of `parameters()`."""

    def after_step(self, step: int) -> None:
        """Restore what must hold after optimiser step number `step` (the first is 0), and clear the gradients."""

    def numbers(self) -> dict[str, Any]:
        """What to log at the end of an epoch."""

    def state_dict(self) -> dict[str, Any]:
        """All of the rule that a resumed run needs and the model's own state does not hold."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""


class Dense:
    """Train every parameter: the reference without a mask."""

    settle = 0

    def __init__(self, model: nn.Module) -> None:
        self._parameters: list[Tensor] = [p for p in model.parameters() if p.requires_grad]

    def parameters(self) -> list[Tensor]:
        return self._parameters

    def begin(self, optimiser: torch.optim.Optimizer) -> None: ...

    def after_backward(self) -> None: ...

    def after_step(self, step: int) -> None:
        for parameter in self._parameters:
            parameter.grad = None

    def numbers(self) -> dict[str, Any]:
        return {}

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class KeepMask(Dense):
    """Train the kept weights only: masked-out ones stay exactly zero, and so does their optimiser state.

    Masking the gradient before the step is enough for SGD, Nesterov, Adam and AdamW: momentum and moments of pruned
    weights stay zero, and decay moves no zero. Masking the weights once more after each step would change no bit of
    them and cost 2% of a small network's step.

    Args:
        model: the network, its masked-out weights zero already (`Ticket.apply`).
        masks: parameter name -> boolean mask.
    """

    def __init__(self, model: nn.Module, masks: Mapping[str, Tensor]) -> None:
        super().__init__(model)
        named = dict(model.named_parameters())
        self._masked: list[Tensor] = [named[name] for name in masks]
        # The weight's own type, device and strides, so that a multiplication is all it takes.
        self._masks = [torch.empty_like(named[name], requires_grad=False).copy_(mask) for name, mask in masks.items()]

    def after_backward(self) -> None:
        pairs = [(p.grad, m) for p, m in zip(self._masked, self._masks, strict=True) if p.grad is not None]
        if pairs:
            torch._foreach_mul_([g for g, _ in pairs], [m for _, m in pairs])
