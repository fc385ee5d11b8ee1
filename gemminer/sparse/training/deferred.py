"""Tensors that are not computed yet.

A network's own `forward` runs in every pass. Its sparse layers return a `Deferred`: a tensor of known shape that is not
computed yet. Norms, additions, ReLUs and further sparse layers on it are put off too (`recorder`); any other use runs
all that was put off, in chains (`plan`), and each `Deferred` becomes the tensor it stands for.
"""

from __future__ import annotations

import contextlib
import operator
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from gemminer.core.errors import GemminerError
from gemminer.sparse.training.modules import NormCall, SparseLayer, deferring

# What a tensor that is not computed yet knows of itself.
_NAMES = (
    "shape",
    "ndim",
    "dtype",
    "device",
    "layout",
    "is_cuda",
    "is_sparse",
    "is_quantized",
    "is_meta",
    "is_mps",
    "itemsize",
)
FACTS = {getattr(Tensor, name).__get__ for name in _NAMES}
FACTS |= {Tensor.size, Tensor.dim, Tensor.numel, Tensor.nelement, Tensor.ndimension, Tensor.is_floating_point}
FACTS |= {
    Tensor.is_complex,
    Tensor.__len__,
    torch.is_floating_point,
    torch.is_complex,
    torch.numel,
    Tensor.element_size,
}


@dataclass(eq=False, slots=True)
class Node:
    """An operation that was put off."""

    kind: str
    inputs: tuple[Node | Tensor, ...]
    shape: tuple[int, ...]
    dtype: torch.dtype
    numbers: tuple[int, ...] = ()
    layer: SparseLayer | None = None
    norm: NormCall | None = None
    batch: tuple[bool, tuple[int, ...]] | None = None  # of a layer: whether it is linear, and its leading sizes
    result: Tensor | None = None
    versions: list[tuple[Tensor, int]] = field(init=False)
    held: tuple[Tensor | None, ...] = field(init=False)

    def __post_init__(self) -> None:
        self.versions = [(x, x._version) for x in self.inputs if not isinstance(x, Node) and not x.is_inference()]
        self.held = () if self.layer is None else self.layer.held()

    def check(self) -> None:
        """Raise GemminerError if what it reads was changed behind PyTorch's back; the recorder sees all else."""
        same = self.layer is None or all(map(operator.is_, self.layer.held(), self.held))
        if not same or any(x._version != version for x, version in self.versions):
            raise GemminerError(
                "the network changes a tensor that a layer has just read, in a way that the sparse engine cannot see: "
                "use engine dense, or change a copy"
            )

    def tensors(self) -> Iterator[Tensor]:
        """All that it reads, its parameters and statistics among them."""
        yield from (x for x in self.inputs if isinstance(x, Tensor))
        yield from self.layer.parameters() if self.layer is not None else ()
        yield from self.norm.tensors() if self.norm is not None else ()


class Deferred(Tensor):
    """A result that is not computed yet."""

    node: Node
    recorder: Any  # of the pass it comes from

    @staticmethod
    def __new__(cls, node: Node, recorder: Any) -> Deferred:
        new: Deferred = Tensor._make_wrapper_subclass(cls, node.shape, dtype=node.dtype)
        new.node, new.recorder = node, recorder
        return new

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in FACTS:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **(kwargs or {}))
        return func(*computed(args), **computed(kwargs or {}))

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        raise GemminerError(f"{func} reads a tensor in a way that the sparse engine cannot see: use engine dense")


@contextlib.contextmanager
def suspended() -> Iterator[None]:
    """Put nothing off inside."""
    before, deferring.recorder = deferring.recorder, None
    try:
        yield
    finally:
        deferring.recorder = before


def computed(value: Any) -> Any:
    """A call's arguments with every `Deferred` computed."""
    found = [x for x in tensors_in(value) if isinstance(x, Deferred)]
    for recorder in {id(x.recorder): x.recorder for x in found}.values():
        recorder.compute([x for x in found if isinstance(x, Deferred) and x.recorder is recorder])
    return _replaced(value) if any(isinstance(x, Deferred) for x in found) else value


def _replaced(value: Any) -> Any:
    """For a `Deferred` that could not become its tensor, since a weak reference points to it."""
    if isinstance(value, Deferred):
        return value.node.result
    if isinstance(value, tuple | list):
        new = map(_replaced, value)
        return type(value)(*new) if hasattr(value, "_fields") else type(value)(new)
    return {key: _replaced(v) for key, v in value.items()} if isinstance(value, dict) else value


def become(x: Deferred, tensor: Tensor) -> None:
    node = x.node
    try:
        torch.utils.swap_tensors(x, tensor)
        node.result = x
    except RuntimeError:
        node.result = tensor


def tensors_in(value: Any) -> list[Tensor]:
    """The tensors in a call's arguments."""
    found: list[Tensor] = []
    _collect((value,), found)
    return found


def _collect(values: Iterable[Any], found: list[Tensor]) -> None:
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, tuple | list):
            _collect(value, found)
        elif isinstance(value, dict):
            _collect(value.values(), found)


def memory_of(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr() if tensor.layout is torch.strided and not tensor.is_meta else 0
