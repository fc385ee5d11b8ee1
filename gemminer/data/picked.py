"""Examples by their index: some of a data set, in batches as the data set's own, each with the indices it holds."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Dataset, IterableDataset, RandomSampler, SequentialSampler

from gemminer.core.errors import UsageError
from gemminer.data.batches import Batches, TensorBatches
from gemminer.data.fingerprint import digest, some_rows
from gemminer.data.loaders import LoaderBatches, Whole, pair_of, targets_of


class Picked:
    """The examples of some batches that have these indices, in batches of the same size.

    Normalisation, augmentation and collating are those of `batches`; its order is its own, shuffled by (seed, epoch). A
    transform inside a data set stays, as nobody outside can leave it out.

    Args:
        batches: those of tensors, or of a DataLoader around a map-style data set.
        indices: of the examples; by default of all.
        seed: of the order and the augmentation.
        shuffle: False gives them in the order of `indices`.
        augment: False leaves out the augmentation of a named data set.
        labels: the targets by index, of all examples; by default the data's own.
        size: the examples of a batch; by default those of `batches`.

    Raises:
        UsageError: a stream, whose examples have no index.

    >>> four = TensorBatches(torch.arange(4.0), torch.tensor([3, 2, 1, 0]), batch_size=2)
    >>> two = Picked(four, torch.tensor([1, 3]), shuffle=False)
    >>> [(numbers.tolist(), targets.tolist()) for numbers, _, targets in two.numbered(0)]
    [([1, 3], [2, 0])]
    """

    def __init__(
        self,
        batches: Batches,
        indices: Tensor | None = None,
        *,
        seed: int = 0,
        shuffle: bool = True,
        augment: bool = True,
        labels: Tensor | None = None,
        size: int | None = None,
    ) -> None:
        self._whole = isinstance(batches, Whole)
        inner = batches.batches if isinstance(batches, Whole) else batches
        self.labels = labels
        self._size, count = size or size_of(batches), examples_by_index(batches)
        indices = torch.arange(count) if indices is None else indices.cpu().long()
        if len(indices) == 0 or int(indices.min()) < 0 or int(indices.max()) >= count:
            raise UsageError(f"the indices must be some of those of the {count} examples, 0 to {count - 1}")
        if isinstance(inner, TensorBatches):
            self._inner: Batches = self._of_tensors(inner, indices, seed, shuffle, augment)
        else:
            self._inner = _of_loader(inner, indices, seed, shuffle, self._size)

    def _of_tensors(
        self, inner: TensorBatches, indices: Tensor, seed: int, shuffle: bool, augment: bool
    ) -> TensorBatches:
        self._own = inner.targets.cpu()
        return TensorBatches(
            inner.inputs.index_select(0, indices.to(inner.inputs.device)),
            indices,
            batch_size=self._size,
            shuffle=shuffle,
            seed=seed,
            augment=inner.augment if augment else None,
            channels_last=inner.channels_last,
            normalise=inner.normalise,
        )

    @property
    def examples(self) -> int:
        return self._inner.examples

    def __len__(self) -> int:
        return len(self._inner)

    def numbered(self, index: int) -> Iterator[tuple[Tensor, Any, Any]]:
        """(indices, inputs, targets) of the batches of epoch `index`."""
        if isinstance(self._inner, LoaderBatches):
            for numbers, batch in self._inner.whole(index):
                inputs, targets = (batch, targets_of(batch)) if self._whole else pair_of(batch)
                yield numbers, inputs, targets if self.labels is None else self.labels[numbers]
            return
        for inputs, numbers in self._inner.epoch(index):
            targets = (self._own if self.labels is None else self.labels)[numbers]
            yield numbers, (inputs, targets) if self._whole else inputs, targets

    def epoch(self, index: int) -> Iterator[tuple[Any, Any]]:
        return ((inputs, targets) for _, inputs, targets in self.numbered(index))


class Repeated:
    """Batches again and again, cut into epochs of `steps` batches: shuffled anew each time they have all been read.

    >>> five = TensorBatches(torch.arange(5.0), torch.arange(5), batch_size=2, shuffle=False)
    >>> [[y.tolist() for _, y in Repeated(five, 4).epoch(i)] for i in range(2)]
    [[[0, 1], [2, 3], [4], [0, 1]], [[2, 3], [4], [0, 1], [2, 3]]]
    """

    def __init__(self, batches: Batches, steps: int) -> None:
        self.batches, self.steps = batches, steps

    @property
    def examples(self) -> int:
        return self.batches.examples

    def __len__(self) -> int:
        return self.steps

    def epoch(self, index: int) -> Iterator[tuple[Any, Any]]:
        left, (number, over) = self.steps, divmod(index * self.steps, len(self.batches))
        while left > 0:
            count = 0
            for batch in self.batches.epoch(number):
                count += 1
                if count > over:
                    yield batch
                    left -= 1
                    if left == 0:
                        return
            if count <= over:  # fewer came than were promised
                return
            number, over = number + 1, 0


class _Numbered(Dataset[Any]):
    """Rows of a map-style data set, each with its index."""

    def __init__(self, dataset: Any, indices: list[int]) -> None:
        self.dataset, self.indices = dataset, indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, place: int) -> tuple[int, Any]:
        return self.indices[place], self.dataset[self.indices[place]]


class _Collate:
    """Collates rows as a loader does, and their indices beside."""

    def __init__(self, own: Callable[[list[Any]], Any]) -> None:
        self.own = own

    def __call__(self, rows: list[tuple[int, Any]]) -> tuple[Tensor, Any]:
        return torch.tensor([number for number, _ in rows]), self.own([row for _, row in rows])


def _of_loader(inner: Any, indices: Tensor, seed: int, shuffle: bool, size: int) -> LoaderBatches:
    loader, count = inner.loader, len(indices)
    alone = shuffle and count > size > 1 and count % size == 1  # as in TensorBatches
    made: DataLoader[Any] = DataLoader(
        _Numbered(loader.dataset, indices.tolist()),
        batch_size=size,
        shuffle=shuffle,
        drop_last=alone,
        collate_fn=_Collate(loader.collate_fn),
        num_workers=loader.num_workers,
        worker_init_fn=loader.worker_init_fn,
    )
    return LoaderBatches(made, seed, channels_last=inner.channels_last)


def size_of(batches: Batches) -> int:
    """The examples of a batch: as asked for, or as they come out."""
    inner: Any = batches.batches if isinstance(batches, Whole) else batches
    own = inner.batch_size if isinstance(inner, TensorBatches) else getattr(inner.loader, "batch_size", None)
    return int(own or math.ceil(batches.examples / max(1, len(batches))))


def examples_by_index(batches: Batches) -> int:
    """How many examples have an index; raises UsageError for batches whose examples have none."""
    inner = batches.batches if isinstance(batches, Whole) else batches
    if isinstance(inner, TensorBatches):
        return len(inner.inputs)
    loader = getattr(inner, "loader", None)
    rows = loader.dataset if isinstance(loader, DataLoader) else None
    if (
        loader is None
        or isinstance(rows, IterableDataset)
        or not (hasattr(rows, "__getitem__") and hasattr(rows, "__len__"))
    ):
        raise UsageError(
            "the examples of a stream have no index, so none can be scored or chosen: give tensors, a data set with "
            "__getitem__ and __len__, or a DataLoader of one"
        )
    sampler = getattr(loader.batch_sampler, "sampler", None) if type(loader.batch_sampler) is BatchSampler else None
    if type(sampler) not in (RandomSampler, SequentialSampler):  # it may leave examples out, held out for a test
        raise UsageError(
            "the loader's sampler says which examples there are, so none can be scored or chosen by index: give a "
            "torch.utils.data.Subset of those that it takes, or a DataLoader of that"
        )
    return len(rows)  # type: ignore[arg-type]


def classes_of(batches: Batches) -> Tensor | None:
    """The class number of each example by its index; None where the targets are none."""
    found = []
    for _, _, targets in Picked(batches, shuffle=False, augment=False).numbered(0):
        if not isinstance(targets, Tensor) or targets.dim() != 1 or targets.is_floating_point() or targets.is_complex():
            return None
        found.append(targets.cpu().long())
    classes = torch.cat(found)
    return classes if int(classes.min()) >= 0 else None


def described(batches: Batches) -> str:
    """Which examples these are, in a text that does not depend on their order: how many, and a digest.

    Of tensors it is that of all examples, of a loader's data set that of five rows.
    """
    inner = batches.batches if isinstance(batches, Whole) else batches
    count = examples_by_index(batches)
    own = digest(inner.inputs, inner.targets) if isinstance(inner, TensorBatches) else some_rows(batches)
    return f"{count} examples, {own or 'rows that are not the same twice'}"
