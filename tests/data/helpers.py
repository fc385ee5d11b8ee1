"""Tiny data sets, and what their batches hold."""

from __future__ import annotations

import gzip
import hashlib
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset

from gemminer import data
from gemminer.data import TensorBatches


def numbers(count: int, **options: Any) -> TensorBatches:
    """Batches whose inputs and targets are 0, 1, ... count - 1."""
    return TensorBatches(torch.arange(float(count)), torch.arange(count), **options)


def order(batches: data.Batches, epoch: int = 0) -> list[int]:
    return [int(target) for _, targets in batches.epoch(epoch) for target in targets]


def bits(batches: data.Batches, epoch: int = 0) -> list[Tensor]:
    return [tensor for pair in batches.epoch(epoch) for tensor in pair]


def same(first: list[Tensor], second: list[Tensor]) -> bool:
    return len(first) == len(second) and all(map(torch.equal, first, second))


def global_streams() -> tuple[Any, ...]:
    legacy = np.random.get_state()  # noqa: NPY002
    return torch.get_rng_state().tolist(), legacy[1].tolist(), legacy[2], random.getstate()


def one_sentence(error: pytest.ExceptionInfo[Exception]) -> bool:
    return "\n" not in str(error.value) and len(str(error.value)) < 400


class Squares(Dataset[tuple[Tensor, int]]):
    """Example i is (i squared, i)."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return torch.tensor(float(index**2)), index


class Stream(IterableDataset[tuple[Tensor, int]]):
    def __init__(self, count: int) -> None:
        self.count = count

    def __iter__(self) -> Iterator[tuple[Tensor, int]]:
        return ((torch.tensor(float(i)), i) for i in range(self.count))


def module(folder: Path, body: str) -> str:
    """Writes a module of its own name with `def make(): ...`; returns the data set's name."""
    name = f"own_{hashlib.blake2b(str((folder, body)).encode(), digest_size=6).hexdigest()}"
    lines = ["import torch", "from gemminer import data", "def make():", f"    return {body}", ""]
    (folder / f"{name}.py").write_text("\n".join(lines))
    return f"{name}:make"


def everything(part: data.Batches | None) -> list[int]:
    return [] if part is None else sorted(order(part))


def idx(array: np.ndarray[Any, Any]) -> bytes:
    """The idx format, written by hand: 0, 0, 8 for unsigned bytes, dimensions, sizes big-endian, data."""
    head = bytes([0, 0, 8, array.ndim]) + b"".join(int(n).to_bytes(4, "big") for n in array.shape)
    return head + array.astype(np.uint8).tobytes()


def write_idx(folder: Path, packed: bool = True, shift: int = 0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for part, count, add in (("train", 60, 0), ("t10k", 10, shift)):
        pixels = (np.arange(count * 16).reshape(count, 4, 4) * 7 + add) % 256
        for name, array in (("images-idx3", pixels), ("labels-idx1", np.arange(count) % 10)):
            content = idx(array)
            path = folder / f"{part}-{name}-ubyte{'.gz' if packed else ''}"
            path.write_bytes(gzip.compress(content) if packed else content)
