"""A rank loads its own batches alone, and they are those that it had of a loader that was read whole."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Dataset, RandomSampler, TensorDataset

from gemminer.data import LoaderBatches, TensorBatches, Whole, as_batches, as_wholes
from gemminer.data.augment import Augment
from gemminer.data.batches import every
from tests.data.helpers import Squares, Stream, numbers


class Counted(Dataset[tuple[Tensor, int]]):
    """Item i is (i, i); it takes a random number where `noise` says so of i."""

    def __init__(self, noise: Callable[[int], bool] = lambda i: False, count: int = 50) -> None:
        self.noise, self.count, self.read = noise, count, 0

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        self.read += 1
        more = random.random() + torch.rand(()).item() if self.noise(index) else 0.0
        return torch.tensor([index + more]), index


def mixed(rows: Any) -> tuple[Tensor, Tensor]:
    """A collate_fn that takes random numbers."""
    inputs, targets = torch.utils.data.default_collate(rows)
    return inputs + torch.rand(1), targets


def told(number: int) -> None:
    """A worker_init_fn that takes random numbers, and shows its number to the data set."""
    torch.rand(3)
    info = torch.utils.data.get_worker_info()
    assert info is not None
    assert isinstance(info.dataset, Squares | Sometimes)


class Sometimes(Counted):
    def __init__(self) -> None:
        super().__init__(sometimes)


def sometimes(index: int) -> bool:
    return index % 7 == 3


class Own(Counted):
    """Noise of the data set's own generator."""

    def __init__(self) -> None:
        super().__init__()
        self.generator = torch.Generator()

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        inputs, target = super().__getitem__(index)
        return inputs + torch.rand((), generator=self.generator), target


class OwnLoader:
    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return ((torch.full((4,), float(i)), torch.zeros(4)) for i in range(7))


LOADERS: dict[str, Callable[[], Any]] = {
    "shuffled": lambda: DataLoader(Squares(50), batch_size=8, shuffle=True),
    "its own generator": lambda: DataLoader(Squares(50), batch_size=8, shuffle=True, generator=torch.Generator()),
    "drawn bit by bit": lambda: DataLoader(
        Squares(50), batch_size=8, sampler=RandomSampler(range(50), replacement=True, num_samples=100)
    ),
    "a batch sampler": lambda: DataLoader(
        Squares(50), batch_sampler=BatchSampler(RandomSampler(range(50), generator=torch.Generator()), 8, True)
    ),
    "workers": lambda: DataLoader(Squares(50), batch_size=8, shuffle=True, num_workers=2, worker_init_fn=told),
    "workers that live on": lambda: DataLoader(Squares(50), batch_size=8, num_workers=1, persistent_workers=True),
    "noise": lambda: DataLoader(Counted(lambda i: True), batch_size=8, shuffle=True),
    "noise now and then": lambda: DataLoader(Sometimes(), batch_size=3, shuffle=True),
    "noise in workers": lambda: DataLoader(Sometimes(), batch_size=3, num_workers=2, worker_init_fn=told),
    "noise of its own": lambda: DataLoader(Own(), batch_size=8, shuffle=True),
    "noise in collate_fn": lambda: DataLoader(Squares(50), batch_size=8, collate_fn=mixed),
    "a stream": lambda: DataLoader(Stream(50), batch_size=8),
    "whole batches": lambda: DataLoader([(torch.zeros(4), torch.zeros(4))] * 5, batch_size=None),
    "a loader of one's own": lambda: OwnLoader(),
    "pairs of tensors": lambda: numbers(50, batch_size=8),
    "augmented": lambda: TensorBatches(
        torch.arange(800.0).view(50, 1, 4, 4), torch.arange(50), batch_size=8, augment=Augment(1)
    ),
}


def alike(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return torch.equal(one, other)
    if isinstance(one, (tuple, list)):
        return len(one) == len(other) and all(map(alike, one, other))
    return bool(one == other)


@pytest.mark.parametrize("name", LOADERS)
@pytest.mark.parametrize("batched", [as_batches, as_wholes])
def test_a_part_is_every_batch_of_the_whole(name: str, batched: Any) -> None:
    batches = batched(LOADERS[name]())
    slow = "workers" in name  # they are started anew each time
    for world in [2] if slow else [2, 3]:
        for rank in range(world):
            for epoch in [1] if slow else [1, 2]:
                assert alike(list(batches.part(epoch, rank, world)), list(every(batches.epoch(epoch), rank, world)))


def test_no_other_ranks_rows_are_loaded() -> None:
    data = Counted()
    for batches in (as_batches(data, batch_size=8), as_wholes(data, batch_size=8)):
        for rank, rows in ((0, 26), (1, 24)):  # 4 and 3 of 7 batches, the last of 2 rows
            data.read = 0
            assert len(list(batches.part(0, rank, 2))) == 4
            assert data.read == rows


def test_where_noise_was_seen_once_an_epoch_is_read_whole() -> None:
    data = Counted(lambda i: True)
    batches = as_batches(data, batch_size=8)
    list(batches.part(0, 0, 2))
    data.read = 0
    list(batches.part(1, 0, 2))
    assert data.read == 50


def test_loaders_that_iterate_in_their_own_way_are_read_whole() -> None:
    class Doubled(DataLoader[Any]):
        def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
            for inputs, targets in super().__iter__():
                yield 2 * inputs, targets

    batches = LoaderBatches(Doubled(TensorDataset(torch.arange(10.0), torch.arange(10)), batch_size=2))
    assert alike(list(batches.part(0, 1, 2)), list(every(batches.epoch(0), 1, 2)))
    assert next(batches.part(0, 1, 2))[0].tolist() == [4.0, 6.0]  # type: ignore[index]
    assert batches.rows([0]) is None


@pytest.mark.parametrize("workers", [0, 1])
def test_rows_are_read_where_the_loader_reads_them(workers: int) -> None:
    """A data set that opens a file at its first row does so in each worker, never before they are forked."""

    class Process(Squares):
        here = 0

        def __getitem__(self, index: int) -> tuple[Tensor, int]:
            type(self).here += 1
            return super().__getitem__(index)

    batches = as_wholes(DataLoader(Process(9), batch_size=2, num_workers=workers))
    assert isinstance(batches, Whole)
    assert isinstance(batches.batches, LoaderBatches)
    rows = batches.batches.rows([0, 8])
    assert rows is not None
    assert [target for _, target in rows] == [0, 8]
    assert Process.here == (0 if workers else 2)
