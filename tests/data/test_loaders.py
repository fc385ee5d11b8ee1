"""Loaders, data sets and anything else as batches that depend on (seed, epoch) alone."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Dataset, RandomSampler, TensorDataset, WeightedRandomSampler

from gemminer.core.errors import UsageError
from gemminer.data import LoaderBatches, as_batches, as_wholes, load, loaders
from tests.data.helpers import Squares, Stream, bits, global_streams, one_sentence, order, same

# --- loaders --------------------------------------------------------------------------------------


class Noisy(Squares):
    """Adds what transforms add: numbers from every global stream."""

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        noise = torch.rand(()).item(), random.random(), np.random.random_sample()  # noqa: NPY002
        return torch.tensor([float(index), *noise]), index


def weights() -> WeightedRandomSampler:
    return WeightedRandomSampler([1.0] * 30, 200, replacement=True)


LOADERS: dict[str, Callable[[], DataLoader[Any]]] = {
    "no generator": lambda: DataLoader(Noisy(30), batch_size=8, shuffle=True),
    "its own generator": lambda: DataLoader(
        Noisy(30), batch_size=8, shuffle=True, generator=torch.Generator().manual_seed(5)
    ),
    "a sampler's generator": lambda: DataLoader(
        Noisy(30), batch_size=8, sampler=RandomSampler(range(30), generator=torch.Generator())
    ),
    "drawn bit by bit": lambda: DataLoader(  # RandomSampler draws 32 at a time with replacement
        Noisy(30), batch_size=8, sampler=RandomSampler(range(30), replacement=True, num_samples=100)
    ),
    "weighted": lambda: DataLoader(Noisy(30), batch_size=8, sampler=weights()),
    "a batch sampler": lambda: DataLoader(
        Noisy(30), batch_sampler=BatchSampler(RandomSampler(range(30), generator=torch.Generator()), 8, False)
    ),
    "in order": lambda: DataLoader(Noisy(30), batch_size=8),
}


@pytest.mark.parametrize("make", LOADERS.values(), ids=LOADERS)
def test_a_loaders_epoch_depends_on_seed_and_epoch_alone(make: Callable[[], DataLoader[Any]]) -> None:
    expected = bits(LoaderBatches(make(), seed=1), 2)
    batches = LoaderBatches(make(), seed=1)
    bits(batches, 0)
    half = batches.epoch(2)
    first = next(half)
    next(batches.epoch(2))  # another pass over the same loader meanwhile
    assert same([*first, *(tensor for pair in half for tensor in pair)], expected)
    assert not same(bits(batches, 3), expected)
    assert not same(bits(LoaderBatches(make(), seed=0), 2), expected)


@pytest.mark.parametrize("make", LOADERS.values(), ids=LOADERS)
def test_the_callers_streams_are_his_own_between_batches_too(make: Callable[[], DataLoader[Any]]) -> None:
    loader = make()
    generator = loader.generator
    own = None if generator is None else generator.get_state()
    before = global_streams()
    for _ in zip(LoaderBatches(loader).epoch(0), range(3), strict=False):  # and when it is left half way
        assert global_streams() == before
    assert global_streams() == before
    if generator is not None and own is not None:
        assert torch.equal(generator.get_state(), own)


def test_a_loader_that_fails_gives_the_streams_back() -> None:
    class Broken(Noisy):
        def __getitem__(self, index: int) -> tuple[Tensor, int]:
            super().__getitem__(index)
            raise RuntimeError("disk")

    before = global_streams()
    with pytest.raises(RuntimeError, match="disk"):
        next(LoaderBatches(DataLoader(Broken(3), shuffle=True)).epoch(0))
    assert global_streams() == before


def test_set_epoch_is_called() -> None:
    class Turning(torch.utils.data.Sampler[int]):
        turn = 0

        def set_epoch(self, epoch: int) -> None:
            self.turn = epoch

        def __len__(self) -> int:
            return 5

        def __iter__(self) -> Iterator[int]:
            return iter([(i + self.turn) % 5 for i in range(5)])

    batches = LoaderBatches(DataLoader(Squares(5), batch_size=5, sampler=Turning()))
    assert order(batches, 2) == [2, 3, 4, 0, 1]
    assert order(batches, 0) == [0, 1, 2, 3, 4]


def test_what_a_loader_says_of_its_length() -> None:
    def sizes(loader: Any) -> tuple[int, int]:
        batches = LoaderBatches(loader)
        return len(batches), batches.examples

    assert sizes(DataLoader(Squares(10), batch_size=4)) == (3, 10)
    assert sizes(DataLoader(Squares(10), batch_size=4, drop_last=True)) == (2, 8)
    assert sizes(DataLoader(Squares(10), batch_size=4, sampler=range(6))) == (2, 6)
    assert sizes(DataLoader(Stream(10), batch_size=4)) == (3, 10)  # counted: it does not say
    assert sizes([(torch.zeros(4), torch.zeros(4)), (torch.zeros(3), torch.zeros(3))]) == (2, 7)
    whole = DataLoader([(torch.zeros(4), torch.zeros(4))] * 5, batch_size=None)  # the data set makes batches
    assert sizes(whole) == (5, 20)


def test_a_stream_without_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loaders, "ENDLESS", 5)
    with pytest.raises(UsageError, match="no end of the loader after 5 batches: give its data set a __len__"):
        len(as_batches(DataLoader(Stream(10), batch_size=1)))


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # Python 3.12: torch's threads and workers
@pytest.mark.parametrize("persistent", [True, False])
def test_workers_draw_the_same_whatever_they_did_before(persistent: bool) -> None:
    def make() -> DataLoader[Any]:
        options = {"num_workers": 1, "persistent_workers": persistent, "generator": torch.Generator()}
        return DataLoader(Noisy(6), batch_size=2, shuffle=True, **options)

    loader = make()
    assert len(list(loader)) == 3  # the caller's own pass, after which persistent workers live on
    used = LoaderBatches(loader, seed=1)
    bits(used, 0)
    assert same(bits(used, 1), bits(LoaderBatches(make(), seed=1), 1))


@pytest.mark.parametrize(
    ("collate", "says"),
    [
        (lambda rows: (1,), "1 parts"),
        (lambda rows: torch.zeros(2, 3), "a Tensor"),
    ],
)
def test_batches_that_are_no_pairs_are_refused(collate: Callable[[Any], Any], says: str) -> None:
    batches = as_batches(DataLoader(Squares(4), collate_fn=collate))
    with pytest.raises(UsageError, match=rf"must be a pair .* or a dictionary, not {says}: .*collate_fn.*step="):
        next(batches.epoch(0))


def test_batches_of_several_parts_and_dictionaries() -> None:
    tensors = torch.arange(6.0), torch.ones(6), torch.arange(6)
    several = as_batches(TensorDataset(*tensors), batch_size=4, shuffle=False)
    inputs, targets = next(several.epoch(0))
    assert isinstance(inputs, tuple)
    assert torch.equal(torch.stack(inputs), torch.stack(tensors[:2])[:, :4])
    assert targets.tolist() == [0, 1, 2, 3]
    rows = [{"x": torch.ones(2), "labels": i} for i in range(5)]
    inputs, targets = next(as_batches(rows, batch_size=4, shuffle=False).epoch(0))
    assert inputs["x"].shape == (4, 2)
    assert inputs["labels"] is targets
    assert next(as_batches([{"x": 1.0}, {"x": 2.0}]).epoch(0))[1] is None


def test_a_data_set_of_hugging_face_is_its_rows() -> None:
    class Rows:  # as datasets.Dataset: by index, and iterated row by row
        column_names = ("x", "labels")

        def __len__(self) -> int:
            return 5

        def __getitem__(self, index: int) -> dict[str, Any]:
            return {"x": torch.ones(2) * index, "labels": index}

        def __iter__(self) -> Iterator[dict[str, Any]]:
            return map(self.__getitem__, range(5))

    class Splits(dict[str, Any]):  # as datasets.DatasetDict
        column_names: dict[str, Any] = {}  # noqa: RUF012

    batches = as_batches(Rows(), batch_size=3, shuffle=False)
    assert [targets.tolist() for _, targets in batches.epoch(0)] == [[0, 1, 2], [3, 4]]
    with pytest.raises(UsageError, match="not a Splits"):
        as_batches(Splits(train=Rows()))


def test_whole_batches_are_what_the_data_gives() -> None:
    pair = next(as_wholes((X, torch.arange(4)), shuffle=False).epoch(0))
    assert torch.equal(pair[0][0], X)
    assert pair[0][1] is pair[1]
    odd = as_wholes(DataLoader(Squares(4), collate_fn=lambda rows: frozenset(rows)))  # type: ignore[arg-type]
    assert [(type(batch), targets) for batch, targets in odd.epoch(0)] == [(frozenset, None)] * 4
    rows = as_wholes(torch.arange(10.0).reshape(5, 2).numpy(), batch_size=2, seed=3)
    assert len(rows) == 2, "the last of a single example is left out where they are shuffled"
    assert (rows.examples, next(rows.epoch(0))[0].dtype) == (4, torch.float32)
    stream = as_wholes(DataLoader(Stream(7), batch_size=3, collate_fn=lambda rows: {"n": torch.tensor(rows)}))
    assert (len(stream), stream.examples) == (3, 7)


# --- anything -> batches --------------------------------------------------------------------------


def test_tokens_and_regressions_pass() -> None:
    tokens = torch.arange(40).reshape(5, 8)
    inputs, targets = next(as_batches((tokens, tokens), shuffle=False).epoch(0))
    assert torch.equal(inputs, tokens)
    assert torch.equal(targets, tokens)


def test_data_sets_loaders_and_batches_pass() -> None:
    squares = as_batches(Squares(9), batch_size=4, seed=2)
    assert isinstance(squares, LoaderBatches)
    assert sorted(order(as_batches(Squares(9), batch_size=5))) == list(range(9))
    assert order(squares) != order(squares, 1)
    assert order(as_batches(Squares(9), shuffle=False)) == list(range(9))
    assert as_batches(squares) is squares
    assert sorted(order(as_batches(DataLoader(Stream(7), batch_size=3)))) == list(range(7))

    class Foreign:  # a loader of another library
        def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
            return iter([(torch.zeros(2, 3, 4, 5), torch.tensor([0, 1]))])

    inputs, _ = next(as_batches(Foreign(), channels_last=True).epoch(0))
    assert inputs.is_contiguous(memory_format=torch.channels_last)


class Unsized(Dataset[int]):
    def __getitem__(self, index: int) -> int:
        return index


class Rows(Dataset[Any]):
    """Rows as they are."""

    def __init__(self, rows: list[Any]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Any:
        return self.rows[index]


class Broken(Rows):
    def __getitem__(self, index: int) -> Any:
        raise RuntimeError("each element in list of batch should be of equal size")


RAGGED: dict[str, Callable[[], Any]] = {
    "pairs": lambda: Rows([(torch.zeros(n), 0) for n in (3, 5)]),
    "dictionaries of tensors": lambda: [{"ids": torch.zeros(n), "labels": 0} for n in (3, 5)],
    "dictionaries of lists": lambda: [{"ids": [1] * n, "labels": 0} for n in (3, 5)],
    "no numbers": lambda: Rows([(torch.zeros(3), None)] * 2),
    "a loader": lambda: DataLoader(Rows([(torch.zeros(n), 0) for n in (3, 5)]), batch_size=2),
    "a loader's worker": lambda: DataLoader(Rows([(torch.zeros(n), 0) for n in (3, 5)]), batch_size=2, num_workers=1),
}


@pytest.mark.parametrize("kind", RAGGED)
def test_rows_that_make_no_batch_are_refused_in_one_sentence(kind: str) -> None:
    with pytest.raises(UsageError, match=r"collate_fn .*trainer.get_train_dataloader\(\)") as error:
        list(as_batches(RAGGED[kind]()).epoch(0))
    assert one_sentence(error)
    assert error.value.__suppress_context__


@pytest.mark.parametrize("workers", [0, 1])
def test_what_the_data_set_raises_itself_is_left(workers: int) -> None:
    with pytest.raises(RuntimeError, match="each element in list"):
        list(as_batches(DataLoader(Broken([1, 2]), batch_size=2, num_workers=workers)).epoch(0))


X = torch.zeros(4, 2)
BAD: dict[str, tuple[Callable[[], object], str]] = {
    "lengths": (lambda: as_batches((X, torch.zeros(3))), "4 inputs but 3 targets"),
    "empty": (lambda: as_batches((torch.zeros(0, 2), torch.zeros(0))), "the inputs are empty"),
    "no targets": (lambda: as_batches((X, torch.zeros(4, 0))), "the targets are empty"),
    "a scalar": (lambda: as_batches((X, torch.tensor(1.0))), "the targets are empty"),
    "NaN": (lambda: as_batches((X / 0, torch.zeros(4))), "the inputs contain NaN"),
    "infinity": (lambda: as_batches((X + torch.inf, torch.zeros(4))), "the inputs contain NaN or infinity"),
    "NaN target": (lambda: as_batches((X, torch.zeros(4) * torch.nan)), "the targets contain NaN"),
    "words": (lambda: as_batches((np.array(["a", "b"]), np.zeros(2))), "an array of <U1 is no data"),
    "objects": (lambda: as_batches((np.array([None]), np.zeros(1))), "an array of object is no data"),
    "batch size 0": (
        lambda: as_batches((X, torch.zeros(4)), batch_size=0),
        "batch size must be a whole number of",
    ),
    "batch size 2.5": (lambda: as_batches((X, X), batch_size=2.5), "of at least 1, not 2.5"),  # type: ignore[arg-type]
    "seed": (lambda: as_batches((X, X), seed="a"), "seed must be a whole number, not 'a'"),  # type: ignore[arg-type]
    "nothing": (lambda: as_batches(None), "data must be a DataLoader.*not a NoneType"),
    "one tensor": (lambda: as_batches(X), "not a Tensor"),
    "three tensors": (lambda: as_batches((X, X, X)), "not a tuple"),
    "a dictionary": (lambda: as_batches({"inputs": X, "targets": X}), "not a dict"),
    "a name": (lambda: as_batches("digits"), "not a str"),
    "a Data": (lambda: as_batches(load("digits")), "not a Data; pass its .train"),
    "an iterator": (lambda: as_batches(iter([(X, X)])), "cannot be iterated anew each epoch"),
    "a bare stream": (lambda: as_batches(Stream(3)), "pass it inside a DataLoader"),
    "no length": (lambda: as_batches(Unsized()), "not a Unsized; give it a __len__"),
    "an empty data set": (lambda: as_batches(Squares(0)), "the data set is empty"),
    "an empty loader": (lambda: as_batches(DataLoader(Squares(0))), "the loader gives no batch"),
    "all dropped": (lambda: as_batches(DataLoader(Squares(3), batch_size=4, drop_last=True)), "drop_last"),
    "an empty stream": (lambda: len(as_batches(DataLoader(Stream(0)))), "the loader gives no batch"),
    "not iterable": (lambda: LoaderBatches(3), "a int cannot be iterated"),
}


@pytest.mark.parametrize(("use", "says"), BAD.values(), ids=BAD)
def test_bad_data_is_refused_in_one_sentence(use: Callable[[], object], says: str) -> None:
    with pytest.raises(UsageError, match=says) as error:
        use()
    assert one_sentence(error)
