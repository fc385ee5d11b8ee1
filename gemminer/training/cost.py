"""The cost of a training in floating-point operations: of all weights, and of the kept weights."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from gemminer.core.model_state import borrowed
from gemminer.core.names import named_parameters
from gemminer.core.randomness import private_randomness
from gemminer.data import examples_in
from gemminer.training.feed import reason
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


# (arguments, keywords, result) of an operation -> its FLOPs, each with the tensors of which one may be a parameter.
Formula = Callable[[Any, Any, Any], list[tuple[Any, float]]]


def _product(columns: Callable[[Any], float], matrix: int) -> Formula:
    """Of an operation that multiplies its argument number `matrix`, each of whose numbers meets so many others."""
    return lambda args, kwargs, out: [(args, 2.0 * args[matrix].numel() * columns(args))]


def _attention(args: Any, kwargs: Any, out: Any) -> list[tuple[Any, float]]:
    from torch.utils.flop_counter import sdpa_flop_count

    return [(args, float(sdpa_flop_count(*(t.shape for t in args[:3]))))]


def _trilinear(args: Any, kwargs: Any, out: Any) -> list[tuple[Any, float]]:
    """y_o = sum_j (sum_i x_i W_oij) z_j: W with x, and what comes of it with z."""
    examples, (outputs, _, others) = args[0].shape[0], args[1].shape
    return [(args[1], 2.0 * examples * args[1].numel()), (None, 2.0 * examples * outputs * others)]


def _recurrent(args: Any, kwargs: Any, out: Any) -> list[tuple[Any, float]]:
    """A whole layer in one direction: each weight at each step of each example."""
    return [(w, 2.0 * args[0].shape[0] * args[0].shape[1] * w.numel()) for w in args[1:3]]


def _grouped(args: Any, kwargs: Any, out: Any) -> list[tuple[Any, float]]:
    """Experts: each row of a (T, K) meets one matrix of b (E, K, N), or each column of b (K, T) one of a (E, M, K)."""
    a, b = args[:2]
    columns_of_b = a.dim() == 3 and b.dim() == 2
    return [(args, 2.0 * b.numel() * a.shape[1] if columns_of_b else 2.0 * a.numel() * b.shape[-1])]


_OURS: dict[str, Formula] = {
    "_scaled_dot_product_flash_attention_for_cpu": _attention,
    "_scaled_dot_product_fused_attention_overrideable": _attention,
    "_scaled_dot_product_attention_math_for_mps": _attention,
    "mv": _product(lambda args: 1, 0),
    "dot": _product(lambda args: 1, 0),
    "vdot": _product(lambda args: 1, 0),
    "addmv": _product(lambda args: 1, 1),
    "addbmm": _product(lambda args: args[2].shape[-1], 1),
    "_addmm_activation": _product(lambda args: args[2].shape[-1], 1),
    "_trilinear": _trilinear,
    "_grouped_mm": _grouped,
    "mkldnn_rnn_layer": _recurrent,
}


def _formulas() -> dict[Any, Formula]:
    """PyTorch's own formulas, and those of the products that it has none for."""
    from torch.utils.flop_counter import flop_registry  # here: it loads Triton where that is installed

    def theirs(count: Callable[..., Any]) -> Formula:
        return lambda args, kwargs, out: [((args, kwargs), float(count(*args, **kwargs, out_val=out)))]

    known = {getattr(torch.ops.aten, name): f for name, f in _OURS.items() if hasattr(torch.ops.aten, name)}
    return known | {packet: theirs(count) for packet, count in flop_registry.items()}


class _Counter(TorchDispatchMode):
    """Books each operation's FLOPs to the parameter whose memory it reads: tied weights, attention, anything."""

    def __init__(self, owners: Mapping[int, str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.formulas = _formulas()
        self.owners = owners
        self.flops: dict[str | None, float] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        formula = self.formulas.get(func._overloadpacket)
        if formula is None:
            if func._can_decompose():  # an operation made of others, as all are in inference mode
                with self:
                    parts = func.decompose(*args, **kwargs)
                if parts is not NotImplemented:
                    return parts
            return func(*args, **kwargs)
        out = func(*args, **kwargs)
        for among, flops in formula(args, kwargs, out):
            tensors = (t for t in tree_leaves(among) if isinstance(t, Tensor))
            owner = next((self.owners[k] for t in tensors if (k := _memory(t)) in self.owners), None)
            self.flops[owner] = self.flops.get(owner, 0.0) + flops
        return out


@contextlib.contextmanager
def _nothing_fused(model: nn.Module, frozen_too: bool) -> Iterator[None]:
    """A whole encoder layer, or a recurrent layer, as one operation hides its products; in training they are apart.

    Frozen weights are trained for it too; a model that writes into those itself does not take that.
    """
    for p in model.parameters():
        if frozen_too and (p.is_floating_point() or p.is_complex()):
            p.requires_grad_(True)
    with torch.enable_grad(), torch.backends.cudnn.flags(enabled=False):
        yield


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def count(task: Task, parameters: Mapping[str, Tensor]) -> Flops:
    """Forward FLOPs of an example of the task's first batch, from the operations really run.

    Counted is what multiplies matrices: convolutions of every kind (transposed, grouped), linear, bilinear and
    recurrent layers, attention in each of its forms (a causal mask saves nothing), `matmul`, `einsum`, `bmm` and their
    kin, grouped products of experts. Not counted: what works on elements (activations, biases, norms, pooling,
    softmax), look-ups in tables, FFTs, distances, products in a user's own kernel. A weight that is changed or copied
    before it is used (weight standardisation, autocast) is counted in `rest`. Where the model does not run while its
    operations are watched, nothing is counted, and a note says so.
    """
    flops: dict[str | None, float] = {}
    for frozen_too in (True, False):
        try:
            flops = _counted(task, parameters, frozen_too)
            break
        except Exception as error:  # whatever a user's model raises
            failed = reason(error)
    else:
        task.note(f"warning: the model's FLOPs cannot be counted and are given as 0: {failed}")
    examples = examples_in(*task.first_batch()) or 1
    rest = flops.pop(None, 0.0)
    return Flops({n: flops.get(n, 0.0) / examples for n in parameters}, rest / examples, examples)


def _counted(task: Task, parameters: Mapping[str, Tensor], frozen_too: bool) -> dict[str | None, float]:
    """FLOPs of the first batch by parameter, None for the rest."""
    inputs, _ = task.first_batch()
    with borrowed(task.model):
        task.train_mode()
        named = named_parameters(task.model)
        owners = {_memory(named[name]): name for name in parameters}
        with private_randomness(), _nothing_fused(task.model, frozen_too), _Counter(owners) as counter:
            dataclasses.replace(task, precision="fp32").forward(inputs)  # autocast works on copies of weights
    found: dict[str | None, float] = counter.flops
    return found
