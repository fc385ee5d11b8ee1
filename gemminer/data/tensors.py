"""Recognise a user's data: tensors, arrays, or a data set by index."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, Subset, TensorDataset

from gemminer.core.errors import UsageError

Pair = tuple[Tensor, Tensor]  # inputs, targets
Part = Pair | Dataset[Any]  # Pair everywhere, but for a user's own map-style data sets


def is_map_style(data: Any) -> bool:
    """Whether `data` is a data set by index: a torch Dataset with a length, or what looks like one."""
    if isinstance(data, IterableDataset) or not (hasattr(data, "__getitem__") and hasattr(data, "__len__")):
        return False
    return isinstance(data, Dataset) or not hasattr(data, "__iter__")


def size(data: Any) -> int:
    """The length of a map-style data set (torch's Dataset does not declare one)."""
    return len(data)


def as_tensors(data: Any) -> Pair | None:
    """The tensors behind a pair of tensors or arrays, a TensorDataset of two, a Subset of one; else None."""
    if type(data) is TensorDataset and len(data.tensors) == 2:  # a subclass may return something else
        return data.tensors[0], data.tensors[1]
    if type(data) is Subset:
        base = as_tensors(data.dataset)
        chosen = torch.as_tensor(data.indices, dtype=torch.long)
        return None if base is None else (base[0][chosen.to(base[0].device)], base[1][chosen.to(base[1].device)])
    is_pair = isinstance(data, (tuple, list)) and len(data) == 2
    if is_pair and all(isinstance(part, (Tensor, np.ndarray)) for part in data):
        return _as_tensor(data[0]), _as_tensor(data[1])
    return None


def _as_tensor(array: Any) -> Tensor:
    if isinstance(array, Tensor):
        return array
    if isinstance(array, np.ma.MaskedArray) and np.ma.is_masked(array):
        raise UsageError("an array with masked values has no numbers in their place: fill them first")
    try:
        array = array.astype(array.dtype.newbyteorder("="), copy=False)
        return torch.from_numpy(np.require(array, requirements=["C", "W"]))  # its type is the model's business
    except TypeError:
        raise UsageError(f"an array of {array.dtype} is no data to train on: pass numbers") from None
