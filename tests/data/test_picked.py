"""Examples by index: what is picked is what is asked for, in batches as the data's own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
)

from gemminer.core.errors import UsageError
from gemminer.data import TensorBatches, as_batches, as_wholes
from gemminer.data.picked import Picked, Repeated, classes_of, described

X, Y = torch.arange(20.0).reshape(20, 1), torch.arange(20) % 4


class Rows(Dataset[Any]):
    """Not a TensorDataset, so that it is read row by row."""

    def __len__(self) -> int:
        return 20

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        return X[i], int(Y[i])


SOURCES = {
    "tensors": lambda: as_batches((X, Y), batch_size=6),
    "data set": lambda: as_batches(Rows(), batch_size=6),
    "loader": lambda: as_batches(DataLoader(Rows(), batch_size=6, shuffle=True)),
    "loader of tensors": lambda: as_batches(DataLoader(TensorDataset(X, Y), batch_size=6)),
    "dictionaries": lambda: as_batches([{"x": x, "labels": int(y)} for x, y in zip(X, Y, strict=True)], batch_size=6),
    "wholes": lambda: as_wholes((X, Y), batch_size=6),
}


def value(inputs: Any) -> Tensor:
    inputs = inputs["x"] if isinstance(inputs, dict) else inputs[0] if isinstance(inputs, (tuple, list)) else inputs
    return torch.as_tensor(inputs).flatten()


@pytest.mark.parametrize("name", SOURCES)
def test_the_examples_of_the_indices_with_their_targets(name: str) -> None:
    indices = torch.tensor([3, 17, 4, 11, 0, 19, 8])
    picked = Picked(SOURCES[name](), indices, seed=5)
    assert (picked.examples, len(picked)) == (6 if 7 % 6 == 1 else 7, 1)  # one alone is left out, as ever
    epochs = [list(picked.numbered(index)) for index in range(3)]
    for batches in epochs:
        for numbers, inputs, targets in batches:
            assert torch.equal(value(inputs), X[numbers, 0])
            assert torch.equal(torch.as_tensor(targets), Y[numbers])
            assert set(numbers.tolist()) <= set(indices.tolist())
    orders = [batches[0][0].tolist() for batches in epochs]
    assert orders[0] != orders[1]
    assert orders[0] == next(iter(Picked(SOURCES[name](), indices, seed=5).numbered(0)))[0].tolist()
    assert orders[0] != next(iter(Picked(SOURCES[name](), indices, seed=6).numbered(0)))[0].tolist()


@pytest.mark.parametrize("name", SOURCES)
def test_all_in_order(name: str) -> None:
    batches = SOURCES[name]()
    found = torch.cat([numbers for numbers, _, _ in Picked(batches, shuffle=False).numbered(0)])
    assert found.tolist() == list(range(20))
    assert [len(n) for n, _, _ in Picked(batches, shuffle=False).numbered(0)] == [6, 6, 6, 2]
    assert [len(n) for n, _, _ in Picked(batches, shuffle=False, size=1).numbered(0)] == [1] * 20
    assert torch.equal(classes_of(batches), Y)  # type: ignore[arg-type]


def test_other_labels_are_by_the_index_in_the_whole_data() -> None:
    labels = (Y + 1) % 4
    for name in ("tensors", "data set"):
        picked = Picked(SOURCES[name](), torch.tensor([2, 9, 13]), labels=labels)
        for numbers, _, targets in picked.numbered(0):
            assert torch.equal(targets, labels[numbers])


def test_normalisation_stays_and_augmentation_can_be_left_out() -> None:
    def shifted(inputs: Tensor, generator: torch.Generator) -> Tensor:
        return inputs + 100

    images = torch.arange(40, dtype=torch.uint8).reshape(10, 1, 2, 2)
    own = TensorBatches(
        images, torch.arange(10), batch_size=4, augment=shifted, normalise=(torch.tensor([2.0]), torch.tensor([4.0]))
    )
    plain = (images.float() - 2) / 4
    for augment, more in ((True, 100.0), (False, 0.0)):
        for numbers, inputs, _ in Picked(own, torch.tensor([1, 5, 9]), augment=augment).numbered(0):
            assert torch.equal(inputs, plain[numbers] + more)


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter([(X[0], 0)] * 8)


@pytest.mark.parametrize(
    ("batches", "word"),
    [
        (lambda: as_batches(DataLoader(Stream(), batch_size=2)), "no index"),
        (lambda: as_batches(_Pairs()), "no index"),
        (lambda: as_batches(DataLoader(Rows(), 4, sampler=SubsetRandomSampler([1, 2, 3]))), "torch.utils.data.Subset"),
        (lambda: as_batches(DataLoader(Rows(), batch_sampler=_Own())), "torch.utils.data.Subset"),
    ],
)
def test_what_has_no_index_or_leaves_examples_out_is_refused(batches: Any, word: str) -> None:
    """A sampler may hold examples out for a test: those must never be scored or trained on."""
    with pytest.raises(UsageError, match=word):
        Picked(batches())


class _Pairs:
    def __iter__(self) -> Any:
        return iter([(X, Y)])


class _Own:
    def __iter__(self) -> Any:
        return iter([[1, 2], [3]])

    def __len__(self) -> int:
        return 2


def test_indices_that_there_are_not() -> None:
    for indices in ([20], [-1], []):
        with pytest.raises(UsageError, match="0 to 19"):
            Picked(SOURCES["tensors"](), torch.tensor(indices, dtype=torch.long))


def test_a_description_knows_the_examples_and_not_their_order() -> None:
    one = described(as_batches((X, Y), batch_size=6, seed=1))
    assert one == described(as_batches((X, Y), batch_size=5, seed=2))
    assert one != described(as_batches((X, (Y + 1) % 4), batch_size=6))
    assert one != described(as_batches((X[:-1], Y[:-1]), batch_size=6))
    rows = described(as_batches(DataLoader(Rows(), batch_size=6, sampler=RandomSampler(Rows()))))
    assert rows == described(as_batches(DataLoader(Rows(), batch_size=4)))
    assert rows != described(as_batches(DataLoader(Subset(Rows(), range(19)), batch_size=4)))


def test_repeated_batches_go_on_where_the_epoch_before_ended() -> None:
    ten = TensorBatches(X[:10], Y[:10], batch_size=4, seed=3)
    flat = [y.tolist() for index in range(7) for _, y in ten.epoch(index)]
    for steps in (1, 2, 3, 5, 8):
        again = [y.tolist() for index in range(20 // steps) for _, y in Repeated(ten, steps).epoch(index)]
        assert again == flat[: len(again)]
        assert all(
            len(list(Repeated(ten, steps).epoch(index))) == steps == len(Repeated(ten, steps)) for index in (0, 3)
        )
