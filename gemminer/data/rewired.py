"""A DataLoader with other batches: for a rank that loads its own alone, and to look at some rows."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset


def can_be_rewired(loader: Any) -> bool:
    """Whether it is a DataLoader that asks a map-style data set for batches of indices, in PyTorch's own way."""
    if (
        not isinstance(loader, DataLoader)
        or loader.batch_sampler is None
        or isinstance(loader.dataset, IterableDataset)
    ):
        return False
    kind = type(loader)
    return kind.__iter__ is DataLoader.__iter__ and kind._get_iterator is DataLoader._get_iterator


def rewired(loader: DataLoader[Any], batch_sampler: Any, collate_fn: Any, **other: Any) -> DataLoader[Any]:
    """A copy that makes the batches of these indices, by this function."""
    made = copy.copy(loader)
    for name, value in {"_iterator": None, "batch_sampler": batch_sampler, "collate_fn": collate_fn, **other}.items():
        object.__setattr__(made, name, value)  # a DataLoader refuses it once it is made
    return made


class Watch:
    """The batches of indices of one rank, and their collate_fn, which says whether a batch took random numbers.

    What it returns is (whether a global stream of PyTorch, NumPy or Python has moved since the last batch, or the data
    set's own `generator`; the batch). It says so of the process that it is called in: a worker, or this one.

    Attributes:
        batches: those of all ranks that there have been so far.
    """

    def __init__(self, loader: DataLoader[Any], rank: int, world: int) -> None:
        self.rank, self.world, self.batches = rank, world, 0
        self._inner, self._collate, self._init = loader.batch_sampler, loader.collate_fn, loader.worker_init_fn
        self._generator = getattr(loader.dataset, "generator", None)
        self._before: Any = None

    def __iter__(self) -> Iterator[Any]:
        self.batches = 0
        for number, indices in enumerate(self._inner or ()):
            self.batches += 1
            if number % self.world == self.rank:
                self._before = self._streams()  # after what the sampler has drawn
                yield indices

    def in_worker(self, number: int) -> None:
        """The worker_init_fn."""
        if self._init is not None:
            self._init(number)
        self._before = self._streams()

    def __call__(self, rows: Any) -> tuple[bool, Any]:
        batch, before = self._collate(rows), self._before
        self._before = self._streams()
        return self._before != before, batch

    def _streams(self) -> Any:
        numpy: Any = np.random.get_state()  # noqa: NPY002 - what transforms use
        own = self._generator.get_state() if isinstance(self._generator, torch.Generator) else torch.empty(0)
        states = [t.cpu().numpy().tobytes() for t in (torch.get_rng_state(), own)]
        return *states, numpy[1].tobytes(), numpy[2:], random.getstate()
