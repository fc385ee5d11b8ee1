"""Masks and states: named tensors that cannot be changed, as tickets hold them."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gemminer.core.errors import GemminerError, UsageError
from gemminer.core.numbers import shown


class Masks(Mapping[str, Tensor]):
    """Boolean masks by parameter name, held as bits; each look-up gives a fresh tensor, so none can be changed."""

    def __init__(self, masks: Mapping[str, Tensor]) -> None:
        for name, mask in masks.items() if isinstance(masks, Mapping) else ():
            if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
                raise UsageError(f"the mask of {name!r} must be a tensor of torch.bool")
        _check_named("masks", masks)
        self._shapes = {name: tuple(mask.shape) for name, mask in masks.items()}
        self._bits = {name: np.packbits(mask.detach().cpu().numpy().reshape(-1)) for name, mask in masks.items()}
        self._kept = {name: int(mask.sum()) for name, mask in masks.items()}

    @classmethod
    def from_bits(cls, bits: Mapping[str, np.ndarray[Any, Any]], shapes: Mapping[str, tuple[int, ...]]) -> Masks:
        """The masks with these packed bits; raises GemminerError where bits and shapes disagree."""
        unpacked = {}
        for name, shape in shapes.items():
            packed, size = bits[name], math.prod(shape)
            if packed.dtype != np.uint8 or packed.shape != (-(-size // 8),):
                raise GemminerError(f"the mask of {name!r} does not hold {size} bits")
            flags = np.unpackbits(packed)
            if flags[size:].any():
                raise GemminerError(f"the mask of {name!r} has bits set behind its last weight")
            unpacked[name] = torch.from_numpy(flags[:size].astype(bool)).reshape(shape)
        return cls(unpacked)

    def __getitem__(self, name: str) -> Tensor:
        shape = self._shapes[name]
        flags = np.unpackbits(self._bits[name], count=math.prod(shape))
        return torch.from_numpy(flags.astype(bool)).reshape(shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self._shapes)

    def __len__(self) -> int:
        return len(self._shapes)

    def __contains__(self, name: object) -> bool:
        return name in self._shapes  # a Mapping's own looks the value up

    def shape(self, name: str) -> tuple[int, ...]:
        return self._shapes[name]

    def kept(self, name: str) -> int:
        """The number of ones, counted once."""
        return self._kept[name]

    @property
    def density(self) -> float:
        """The fraction of all weights that is kept."""
        return sum(self._kept.values()) / sum(map(math.prod, self._shapes.values()))

    def packed(self, name: str) -> np.ndarray[Any, Any]:
        """The bits themselves, most significant first."""
        return self._bits[name].copy()

    def checksum(self) -> str:
        """SHA-256 over names, shapes and bits, in the order of the names."""
        digest = hashlib.sha256()
        for name in sorted(self):
            digest.update(f"{name} {self.shape(name)}\n".encode())
            digest.update(self.packed(name).tobytes())
        return digest.hexdigest()


class State(Mapping[str, Tensor]):
    """Named tensors that cannot be changed from outside: each look-up gives a copy."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        _check_named("initial", tensors)
        # Plain strides: the same state is the same bytes whatever memory format the model was in.
        self._tensors = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors[name].clone()

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def __contains__(self, name: object) -> bool:
        return name in self._tensors  # a Mapping's own looks the value up

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape, without the copy that a look-up makes."""
        return tuple(self._tensors[name].shape)

    def checksum(self) -> str:
        """SHA-256 over names, types, shapes and bytes, in the order of the names."""
        digest = hashlib.sha256()
        for name in sorted(self._tensors):
            tensor = self._tensors[name]
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()


def check_inside(masks: Masks, within: Masks) -> None:
    """Raise UsageError unless both are of the same weights, and what one keeps is inside the other."""
    if {name: masks.shape(name) for name in masks} != {name: within.shape(name) for name in within}:
        raise UsageError("a ticket's within must have the names and shapes of its masks")
    if outside := [name for name in masks if (masks.packed(name) & ~within.packed(name)).any()]:
        raise UsageError(f"the ticket keeps weights of {outside[0]!r} outside of its within")


def _check_named(what: str, tensors: object) -> None:
    """Raise UsageError unless they are tensors by name that hold numbers."""
    if not isinstance(tensors, Mapping):
        raise UsageError(f"{what} must be tensors by parameter name, not a {type(tensors).__name__}")
    for name, tensor in tensors.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise UsageError(f"{what} must be tensors by parameter name; {shown(name)} has a {type(tensor).__name__}")
        if tensor.is_meta:
            raise UsageError(f"{what}: {name!r} is on the meta device, which holds no numbers")
