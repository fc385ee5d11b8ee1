"""The cost of a training in floating-point operations: of all weights, and of the kept weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from gemminer.core.model_state import borrowed
from gemminer.core.names import named_parameters
from gemminer.core.randomness import private_randomness
from gemminer.training.task import Task

# Backward costs twice the forward pass: one product for the inputs' gradient, one for the weights'.
TRAINING_PASSES = 3


@dataclass(frozen=True)
class Flops:
    """Forward FLOPs of one example (a multiply-add is two), by masked parameter, and the rest.

    `rest` are FLOPs that no mask changes, as of attention scores; `examples` is the size of the batch counted.
    """

    by_parameter: Mapping[str, float]
    rest: float
    examples: int = 1

    @property
    def dense(self) -> float:
        return sum(self.by_parameter.values()) + self.rest

    def sparse(self, densities: Mapping[str, float]) -> float:
        """FLOPs of the kept weights: each parameter's share times its density."""
        return sum(f * densities.get(name, 1.0) for name, f in self.by_parameter.items()) + self.rest


class _Counter(TorchDispatchMode):
    """Books each operation's FLOPs to the parameter whose memory it reads: tied weights, attention, anything."""

    def __init__(self, owners: Mapping[int, str]) -> None:
        from torch.utils.flop_counter import flop_registry  # here: it loads Triton where that is installed

        super().__init__()  # type: ignore[no-untyped-call]
        self.formulas = flop_registry
        self.owners = owners
        self.flops: dict[str | None, float] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        count = self.formulas.get(func._overloadpacket)
        if count is not None:
            owner = next(
                (
                    self.owners[k]
                    for t in tree_leaves(args)
                    if isinstance(t, Tensor) and (k := _memory(t)) in self.owners
                ),
                None,
            )
            self.flops[owner] = self.flops.get(owner, 0) + count(*args, **(kwargs or {}), out_val=out)
        return out


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


@torch.no_grad()
def count(task: Task, parameters: Mapping[str, Tensor]) -> Flops:
    """Forward FLOPs of an example of the task's first batch, from the operations really run.

    It counts the operations PyTorch has formulas for: convolutions, matrix products, attention.
    """
    inputs, targets = task.first_batch()
    examples = (len(targets) if hasattr(targets, "__len__") else 1) or 1
    with borrowed(task.model):
        task.train_mode()  # no fused inference path that hides its products
        named = named_parameters(task.model)
        owners = {_memory(named[name]): name for name in parameters}
        with private_randomness(), _Counter(owners) as counter:
            task.forward(inputs)
    rest = counter.flops.pop(None, 0.0)
    return Flops({n: counter.flops.get(n, 0.0) / examples for n in parameters}, rest / examples, examples)
