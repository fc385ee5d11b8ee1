"""Tensors that are not computed yet.

A network's own `forward` runs in every pass. Its sparse layers return a `Deferred`: a tensor of known shape that is not
computed yet. Norms, additions, ReLUs and further sparse layers on it are put off too (`recorder`); any other use runs
all that was put off, in chains (`plan`), and each `Deferred` becomes the tensor it stands for.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
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


@dataclass(eq=False)
class Node:
    """An operation that was put off."""

    kind: str
    inputs: tuple[Node | Tensor, ...]
    shape: tuple[int, ...]
    dtype: torch.dtype
    numbers: tuple[int, ...] = ()
    layer: SparseLayer | None = None
    norm: NormCall | None = None
    result: Tensor | None = None

    def __post_init__(self) -> None:
        self.versions = _versions(self.inputs)
        self.held = () if self.layer is None else (self.layer.values, self.layer.bias)

    def check(self) -> None:
        """Raise GemminerError if what it reads was changed behind PyTorch's back; the recorder sees all else."""
        held = () if self.layer is None else (self.layer.values, self.layer.bias)
        same = all(a is b for a, b in zip(held, self.held, strict=True))
        if not same or self.versions != _versions(self.inputs):
            raise GemminerError(
                "the network changes a tensor that a layer has just read, in a way that the sparse engine cannot see: "
                "use engine dense, or change a copy"
            )

    def tensors(self) -> Iterator[Tensor]:
        """All that it reads, its parameters and statistics among them."""
        yield from (x for x in self.inputs if isinstance(x, Tensor))
        yield from self.layer.parameters() if self.layer is not None else ()
        yield from self.norm.tensors() if self.norm is not None else ()


def _versions(inputs: tuple[Node | Tensor, ...]) -> list[int | None]:
    return [None if isinstance(x, Node) or x.is_inference() else x._version for x in inputs]


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


def tensors_in(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for part in value:
            yield from tensors_in(part)
    elif isinstance(value, dict):
        for part in value.values():
            yield from tensors_in(part)


def memory_of(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr() if tensor.layout is torch.strided and not tensor.is_meta else 0
