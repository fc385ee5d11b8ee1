"""Data: batches that depend on (seed, epoch) alone, splits that never vary, files of every format, clear errors."""

from __future__ import annotations

import gzip
import hashlib
import pickle
import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision.datasets
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.datasets import load_digits
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    Subset,
    TensorDataset,
    WeightedRandomSampler,
)

from gemminer import data
from gemminer.core import randomness
from gemminer.core.errors import GemminerError, UsageError
from gemminer.data import Augment, LoaderBatches, TensorBatches, as_batches, augmentation, load, loaders, named, splits

DEBIAN = Path("/usr/share/datasets/fashion-mnist/train-images-idx3-ubyte.gz")


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


@pytest.fixture(autouse=True)
def untouched(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """No test finds the machine's own data sets by chance, and none may move a global random stream."""
    monkeypatch.delenv("GEMMINER_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    before = global_streams()
    yield
    assert global_streams() == before


def one_sentence(error: pytest.ExceptionInfo[Exception]) -> bool:
    return "\n" not in str(error.value) and len(str(error.value)) < 400


# --- order ----------------------------------------------------------------------------------------


def test_an_epoch_holds_each_example_once_with_its_target() -> None:
    for inputs, targets in numbers(10, batch_size=4).epoch(0):
        assert inputs.tolist() == targets.tolist()
    assert sorted(order(numbers(10, batch_size=4))) == list(range(10))
    assert [len(t) for _, t in numbers(10, batch_size=4).epoch(3)] == [4, 4, 2]
    assert order(numbers(10, shuffle=False)) == list(range(10))


def test_the_same_seed_and_epoch_give_the_same_batches_whatever_was_drawn_before() -> None:
    augment = Augment(1, flip=True)
    images, labels = torch.rand(20, 2, 5, 5, generator=torch.Generator().manual_seed(0)), torch.arange(20)
    batches = TensorBatches(images, labels, batch_size=6, augment=augment, seed=3)
    fresh = TensorBatches(images, labels, batch_size=6, augment=augment, seed=3)
    expected = bits(fresh, 4)
    bits(batches, 0)
    half = batches.epoch(4)
    first = next(half)
    other = batches.epoch(7)  # two epochs at a time, and one never finished
    next(other)
    rest = [tensor for pair in half for tensor in pair]
    assert same([*first, *rest], expected)
    assert same(bits(batches, 4), expected)
    assert not same(bits(batches, 5), expected)


def test_seeds_and_epochs_all_give_different_orders() -> None:
    orders = {tuple(order(numbers(50, seed=seed), epoch)) for seed in (0, 1, 2, 10, -1) for epoch in range(20)}
    assert len(orders) == 100


def test_the_hash_of_seed_and_epoch_is_the_same_in_any_process() -> None:
    # blake2b of the text "(0, 1)", so neither Python's salted hash() nor the platform enters.
    expected = int.from_bytes(hashlib.blake2b(b"(0, 1)", digest_size=8).digest(), "little")
    assert randomness.derive(0, 1) == expected != randomness.derive(1, 0)
    low = [randomness.derive(seed, epoch) % 2**32 for seed in range(40) for epoch in range(40)]
    assert len(set(low)) == 1600  # torch's CPU generator looks at 32 bits only


@pytest.mark.parametrize(
    ("count", "size", "shuffle", "steps", "examples"),
    [
        (9, 4, True, 2, 8),  # batch norm cannot train on the ninth alone
        (9, 4, False, 3, 9),  # evaluation leaves nothing out
        (10, 4, True, 3, 10),
        (8, 4, True, 2, 8),
        (3, 1, True, 3, 3),  # batches of one were asked for
        (1, 4, True, 1, 1),
    ],
)
def test_only_a_last_training_batch_of_one_is_left_out(
    count: int, size: int, shuffle: bool, steps: int, examples: int
) -> None:
    tensors = numbers(count, batch_size=size, shuffle=shuffle)
    loader = as_batches(Squares(count), batch_size=size, shuffle=shuffle)
    for batches in (tensors, loader):
        assert (len(batches), batches.examples) == (steps, examples)
        assert len(list(batches.epoch(0))) == steps
        assert len(order(batches)) == examples
    if examples < count:  # another one each epoch
        assert len({*range(count)} - {*order(tensors, 0)} | {*range(count)} - {*order(tensors, 2)}) == 2


def test_batches_are_copies_normalised_and_laid_out_as_asked() -> None:
    images = torch.arange(2 * 3 * 4 * 4, dtype=torch.uint8).reshape(2, 3, 4, 4)
    mean, std = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([2.0, 4.0, 8.0])
    batches = TensorBatches(
        images,
        torch.tensor([0, 1], dtype=torch.uint8),
        shuffle=False,
        normalise=(mean, std),
        channels_last=True,
    )
    inputs, targets = next(batches.epoch(0))
    assert inputs.dtype == torch.float32
    assert inputs[1, 2, 0, 1].item() == (int(images[1, 2, 0, 1]) - 3) / 8
    assert inputs.is_contiguous(memory_format=torch.channels_last)
    assert targets.dtype == torch.int64  # or cross entropy would refuse
    plain = torch.rand(3, 2, generator=torch.Generator().manual_seed(0))
    kept = plain.clone()
    next(TensorBatches(plain, torch.zeros(3), shuffle=False).epoch(0))[0].zero_()
    assert torch.equal(plain, kept)


# --- augmentation ---------------------------------------------------------------------------------


def test_each_cropped_image_is_a_shifted_copy_with_its_own_offset() -> None:
    pad, size, count = 2, 6, 64
    images = torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(1)) + 1
    found = Augment(crop=pad, flip=True)(images, torch.Generator().manual_seed(2))
    changes = set()
    for image, result in zip(images, found, strict=True):
        padded = torch.zeros(3, size + 2 * pad, size + 2 * pad)
        padded[:, pad:-pad, pad:-pad] = image
        matches = [
            (row, column, mirrored)
            for row in range(2 * pad + 1)
            for column in range(2 * pad + 1)
            for mirrored in (False, True)
            if torch.equal(result.flip(2) if mirrored else result, padded[:, row : row + size, column : column + size])
        ]
        assert len(matches) == 1
        changes.add(matches[0])
    rows, columns, mirrored = (set(part) for part in zip(*changes, strict=True))
    assert rows == columns == set(range(2 * pad + 1))
    assert mirrored == {False, True}
    assert len(changes) > 25  # of 50: rows, columns and mirrors are drawn apart
    assert torch.equal(found, Augment(crop=pad, flip=True)(images, torch.Generator().manual_seed(2)))


def test_flip_mirrors_about_half_and_crop_alone_mirrors_none() -> None:
    images = torch.arange(4.0).expand(1000, 1, 4, 4)
    flipped = Augment(flip=True)(images, torch.Generator().manual_seed(0))
    assert 430 < int((flipped[:, 0, 0, 0] == 3).sum()) < 570
    cropped = Augment(crop=1)(images + 1, torch.Generator().manual_seed(0))
    inner = cropped[:, 0, 1:3, 1:3]
    assert bool((inner[..., 1] > inner[..., 0]).all())


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("crop4+flip", Augment(4, True)),
        ("crop2", Augment(2, False)),
        ("flip", Augment(0, True)),
        ("none", None),
        (None, None),
    ],
)
def test_augmentations_by_name(name: str | None, expected: Augment | None) -> None:
    assert augmentation(name) == expected


@pytest.mark.parametrize("name", ["crop", "flip+crop4", "crop4+", "+flip", "crop-1", "cutout", "crop4+flip+x"])
def test_unknown_augmentations_are_refused(name: str) -> None:
    with pytest.raises(UsageError, match="unknown augmentation"):
        augmentation(name)


def test_augmentation_needs_images() -> None:
    with pytest.raises(UsageError, match=r"need images .* not inputs of \(5,\)"):
        numbers(5, augment=Augment(1))


# --- loaders --------------------------------------------------------------------------------------


class Squares(Dataset[tuple[Tensor, int]]):
    """Example i is (i squared, i)."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return torch.tensor(float(index**2)), index


class Noisy(Squares):
    """Adds what transforms add: numbers from every global stream."""

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        noise = torch.rand(()).item(), random.random(), np.random.random_sample()  # noqa: NPY002
        return torch.tensor([float(index), *noise]), index


class Stream(IterableDataset[tuple[Tensor, int]]):
    def __init__(self, count: int) -> None:
        self.count = count

    def __iter__(self) -> Iterator[tuple[Tensor, int]]:
        return ((torch.tensor(float(i)), i) for i in range(self.count))


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
        (lambda rows: {"input_ids": 1, "labels": 2}, "a dictionary of input_ids, labels"),
        (lambda rows: (1, 2, 3), "3 parts"),
        (lambda rows: torch.zeros(2, 3), "a Tensor"),
    ],
)
def test_batches_that_are_no_pairs_are_refused(collate: Callable[[Any], Any], says: str) -> None:
    batches = as_batches(DataLoader(Squares(4), collate_fn=collate))
    with pytest.raises(UsageError, match=rf"must be a pair \(inputs, targets\), not {says}: .*collate_fn"):
        next(batches.epoch(0))


# --- anything -> batches --------------------------------------------------------------------------


def test_tensors_take_the_fast_path() -> None:
    inputs, targets = torch.arange(12.0).reshape(6, 2), torch.arange(6)
    pairs = [
        (inputs, targets),
        [inputs.numpy(), targets.numpy().astype(np.int32)],
        TensorDataset(inputs, targets),
        Subset(Subset(TensorDataset(inputs, targets), [5, 4, 3, 2, 1, 0]), [5, 4, 3, 2, 1, 0]),
    ]
    found = [as_batches(pair, batch_size=4, seed=1) for pair in pairs]
    assert all(isinstance(batches, TensorBatches) for batches in found)
    assert all(same(bits(batches), bits(found[0])) for batches in found)


def test_arrays_of_any_kind_become_tensors() -> None:
    frozen = np.arange(6.0)[::-1]
    frozen.flags.writeable = False
    inputs, targets = next(as_batches((frozen, np.arange(6, dtype=np.int8)), shuffle=False).epoch(0))
    assert (inputs.dtype, targets.dtype) == (torch.float32, torch.int64)
    assert inputs.tolist() == [5, 4, 3, 2, 1, 0]
    double = torch.zeros(3, dtype=torch.float64)  # a tensor's type was chosen, NumPy's was not
    assert next(as_batches((double, double)).epoch(0))[0].dtype == torch.float64


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


def test_a_subclass_of_tensor_dataset_keeps_its_own_items() -> None:
    class Doubled(TensorDataset):
        def __getitem__(self, index: int) -> tuple[Tensor, ...]:
            return tuple(2 * tensor for tensor in super().__getitem__(index))

    batches = as_batches(Doubled(torch.arange(3), torch.arange(3)), shuffle=False)
    assert order(batches) == [0, 2, 4]


class Unsized(Dataset[int]):
    def __getitem__(self, index: int) -> int:
        return index


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


# --- splits ---------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=80), st.integers(0, 80))
def test_every_prefix_is_stratified(classes: list[int], cut: int) -> None:
    labels = torch.tensor(classes)
    found = splits.stratified_order(labels)
    assert sorted(found.tolist()) == list(range(len(classes)))
    assert torch.equal(found, splits.stratified_order(labels))
    cut = min(cut, len(classes))
    for label in set(classes):
        fair = cut * classes.count(label) / len(classes)
        assert abs(int((labels[found[:cut]] == label).sum()) - fair) < len(set(classes))


def test_a_split_is_exact_disjoint_and_shuffled() -> None:
    labels = torch.arange(1000) // 100  # sorted by class, as folders are
    kept, held = splits.split(labels, 0.1)
    assert sorted([*kept.tolist(), *held.tolist()]) == list(range(1000))
    assert torch.bincount(labels[held]).tolist() == [10] * 10
    assert held.diff().unique().numel() > 10  # not every tenth
    assert len(splits.split(torch.zeros(30, dtype=torch.int64), 0.1)[1]) == 3
    assert len(splits.split(torch.zeros(5), 0.0)[1]) == 0


def module(folder: Path, body: str) -> str:
    """Writes a module of its own name with `def make(): ...`; returns the data set's name."""
    name = f"own_{hashlib.blake2b(str((folder, body)).encode(), digest_size=6).hexdigest()}"
    lines = ["import torch", "from gemminer import data", "def make():", f"    return {body}", ""]
    (folder / f"{name}.py").write_text("\n".join(lines))
    return f"{name}:make"


def everything(part: data.Batches | None) -> list[int]:
    return [] if part is None else sorted(order(part))


IDS = "(torch.arange(100.)[:, None], torch.arange(100)), (torch.arange(20.)[:, None], torch.arange(20))"


def test_train_validation_and_test_never_overlap_nor_vary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    name = module(tmp_path, IDS)
    first, other = load(name, seed=0), load(name, seed=1)
    train, held = everything(first.train), everything(first.validation)
    assert sorted(train + held) == list(range(100))
    assert len(held) == 10
    assert (train, held) == (everything(other.train), everything(other.validation))
    assert order(first.train) != order(other.train)  # the seed orders, and nothing else
    assert first.validation is not None
    assert order(first.validation, 0) == order(first.validation, 1)
    assert load(name, validation=0).validation is None
    assert everything(load(name, validation=0).train) == list(range(100))
    limited = load(name, limit_train=40, limit_test=7, validation=0.25)
    assert sorted(everything(limited.train) + everything(limited.validation)) == list(range(40))
    assert len(everything(limited.validation)) == 10
    assert everything(limited.test) == list(range(7))


# --- named data -----------------------------------------------------------------------------------


def test_the_digits() -> None:
    digits = load("digits", validation=0.1)
    assert (digits.classes, digits.in_channels, digits.image_size) == (10, 1, 8)
    assert (digits.train.examples, len(everything(digits.validation))) == (1293, 144)
    assert digits.test is not None
    assert digits.test.examples == 360
    parts = [digits.train, digits.validation, digits.test]
    counts = [np.bincount(everything(part), minlength=10) for part in parts]
    # Independent fact: the classes' sizes in the UCI test set that scikit-learn ships.
    assert sum(counts).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    for part, fraction in zip(counts, (0.72, 0.08, 0.2), strict=True):
        assert np.abs(part - sum(counts) * fraction).max() < 2
    inputs = torch.cat([inputs for inputs, _ in digits.train.epoch(0)])
    assert inputs.shape == (1293, 1, 8, 8)
    assert abs(float(inputs.mean())) < 1e-4
    assert float(inputs.std(correction=0)) == pytest.approx(1, abs=1e-4)
    assert same(bits(load("digits").test), bits(load("digits", seed=9, batch_size=128).test))  # type: ignore[arg-type]


def test_the_test_set_of_digits_is_pinned() -> None:
    _, test = splits.split(torch.tensor(load_digits().target), 0.2)
    assert hashlib.sha256(test.numpy().astype("<i8").tobytes()).hexdigest()[:16] == "a695cc9ba6960f65"


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


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("place", [".", "fashion-mnist", "FashionMNIST/raw"])
def test_idx_files_wherever_they_are(tmp_path: Path, place: str, packed: bool) -> None:
    write_idx(tmp_path / place, packed=packed)
    found = load("fashion-mnist", root=tmp_path, validation=0.2, limit_test=5)
    assert (found.classes, found.in_channels, found.image_size) == (10, 1, 4)
    assert (len(everything(found.train)), len(everything(found.validation))) == (48, 12)
    assert everything(found.test) == [0, 1, 2, 3, 4]
    assert found.test is not None
    inputs, _ = next(found.test.epoch(0))
    expected = ((np.arange(16) * 7 % 256) / 255 - found.mean[0]) / found.std[0]
    assert np.allclose(inputs[0].flatten().numpy(), expected, atol=1e-5)


def test_the_environment_says_where_data_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_idx(tmp_path / "d" / "mnist")
    monkeypatch.setenv("GEMMINER_DATA", str(tmp_path / "d"))
    assert len(everything(load("mnist", validation=0).train)) == 60


def test_normalisation_comes_from_the_training_part_alone(tmp_path: Path) -> None:
    write_idx(tmp_path / "a")
    write_idx(tmp_path / "b", shift=99)
    first, other = (load("mnist", root=tmp_path / name, validation=0.3) for name in "ab")
    assert (first.mean, first.std) == (other.mean, other.std)
    assert first.test is not None
    assert other.test is not None
    assert not same(bits(first.test), bits(other.test))
    pixels = (np.arange(60 * 16).reshape(60, 16) * 7) % 256 / 255
    kept, _ = splits.split(torch.arange(60) % 10, 0.3)
    assert first.mean[0] == pytest.approx(pixels[kept.numpy()].mean(), abs=1e-12)
    assert first.std[0] == pytest.approx(pixels[kept.numpy()].std(), abs=1e-12)


def test_a_constant_channel_becomes_zero() -> None:
    mean, std = named._statistics(torch.full((3, 1, 2, 2), 200, dtype=torch.uint8))
    assert (mean.item(), std.item()) == (200, 1)


DAMAGE: dict[str, tuple[str, Callable[[bytes], bytes], str]] = {
    "cut gzip": ("train-images-idx3-ubyte.gz", lambda old: old[: len(old) // 2], "cannot be read"),
    "no gzip": ("train-images-idx3-ubyte.gz", lambda old: b"<html>404</html>", "cannot be read"),
    "bit rot": ("t10k-images-idx3-ubyte.gz", lambda old: old[:30] + b"xxxx" + old[34:], "cannot be read"),
    "cut data": (
        "train-labels-idx1-ubyte.gz",
        lambda old: gzip.compress(gzip.decompress(old)[:-1]),
        "59 bytes of data where its header says 60",
    ),
    "foreign": ("t10k-labels-idx1-ubyte.gz", lambda old: gzip.compress(b"hello world"), "is not an idx file"),
    "tiny": ("t10k-labels-idx1-ubyte.gz", lambda old: gzip.compress(b"\0\0\x08\x01"), "is not an idx file"),
    "nothing": ("t10k-labels-idx1-ubyte.gz", lambda old: gzip.compress(b""), "is not an idx file"),
    "no examples": (
        "t10k-labels-idx1-ubyte.gz",
        lambda old: gzip.compress(idx(np.zeros(0))),
        "holds no examples",
    ),
    "mixed up": (
        "t10k-labels-idx1-ubyte.gz",
        lambda old: gzip.compress(idx(np.zeros(9))),
        "do not belong together",
    ),
}


@pytest.mark.parametrize(("file", "damage", "says"), DAMAGE.values(), ids=DAMAGE)
def test_damaged_idx_files(tmp_path: Path, file: str, damage: Callable[[bytes], bytes], says: str) -> None:
    write_idx(tmp_path)
    (tmp_path / file).write_bytes(damage((tmp_path / file).read_bytes()))
    with pytest.raises(GemminerError, match=says) as error:
        load("fashion-mnist", root=tmp_path)
    assert one_sentence(error)
    assert file in str(error.value)


def test_a_missing_idx_file_is_named(tmp_path: Path) -> None:
    write_idx(tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(GemminerError, match=r"lacks t10k-labels-idx1-ubyte\.gz"):
        load("fashion-mnist", root=tmp_path)


def test_fashion_mnist_is_not_taken_for_mnist(tmp_path: Path) -> None:
    write_idx(tmp_path)
    labels = np.array([9, 0, 0, 3, 0, 2, 7, 2, 5, 5] * 6)  # begins as Fashion-MNIST's training labels do
    (tmp_path / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(labels)))
    assert load("fashion-mnist", root=tmp_path).classes == 10
    with pytest.raises(GemminerError, match="holds FashionMNIST, not MNIST"):
        load("mnist", root=tmp_path)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("fashion-mnist", "run 'apt-get install dataset-fashion-mnist', put the four idx .gz files in"),
        ("mnist", "put the four idx .gz files in"),
        ("cifar10", "cifar-10-batches-py"),
        ("cifar100", "cifar-100-python"),
        ("tiny-imagenet", "tiny-imagenet-200.zip"),
        ("caltech101", "101_ObjectCategories"),
    ],
)
def test_offline_one_sentence_says_what_to_do(tmp_path: Path, name: str, says: str) -> None:
    with pytest.raises(GemminerError) as error:
        load(name, root=tmp_path)
    text = str(error.value)
    assert text.startswith(f"{name} is not on this machine: ")
    assert says in text
    assert str(tmp_path) in text
    assert ("--download" in text) == (name != "tiny-imagenet")
    assert one_sentence(error)


def test_downloads_go_through_torchvision_and_only_when_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fetch(root: str, download: bool) -> None:
        assert download
        write_idx(Path(root) / "MNIST" / "raw", packed=False)

    monkeypatch.setattr(torchvision.datasets, "MNIST", fetch)
    with pytest.raises(GemminerError, match="not on this machine"):
        load("mnist", root=tmp_path)
    assert len(everything(load("mnist", root=tmp_path, download=True, validation=0).train)) == 60
    monkeypatch.setattr(torchvision.datasets, "MNIST", None)  # and not again once it is there
    load("mnist", root=tmp_path, download=True)


def test_a_failed_download_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(root: str, download: bool, **_: object) -> None:
        raise RuntimeError("Error downloading\n train-images: <urlopen error>")

    kinds = {"FashionMNIST": "fashion-mnist", "CIFAR10": "cifar10", "Caltech101": "caltech101"}
    for kind, name in kinds.items():
        monkeypatch.setattr(torchvision.datasets, kind, fail)
        with pytest.raises(GemminerError, match=f"{name} could not be downloaded to .*urlopen error") as error:
            load(name, root=tmp_path, download=True)
        assert one_sentence(error)


@pytest.mark.skipif(not DEBIAN.exists(), reason="Debian's dataset-fashion-mnist is not installed")
def test_the_real_fashion_mnist() -> None:
    found = load("fashion-mnist", validation=0)
    assert found.test is not None
    assert (found.train.examples, found.test.examples) == (60000, 10000)
    assert np.bincount(everything(found.test)).tolist() == [1000] * 10
    # Published and widely used statistics of the 60,000 training images.
    assert found.mean == pytest.approx((0.2860,), abs=5e-5)
    assert found.std == pytest.approx((0.3530,), abs=5e-5)
    first = load("fashion-mnist", limit_train=10, validation=0, limit_test=10)
    assert first.test is not None
    assert sorted(order(first.train)) == sorted([9, 0, 0, 3, 0, 2, 7, 2, 5, 5])
    assert order(first.test) == [9, 2, 1, 1, 6, 1, 4, 6, 5, 7]


def write_cifar(root: Path, kind: type[Any], monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    """Files as CIFAR's python version has them; torchvision is told their checksums."""
    folder = root / kind.base_folder
    folder.mkdir()

    def write(name: str, content: dict[str, Any]) -> str:
        (folder / name).write_bytes(pickle.dumps(content))
        return hashlib.md5((folder / name).read_bytes()).hexdigest()

    lists: dict[str, list[list[str]]] = {"train_list": [], "test_list": []}
    for part, rows in lists.items():
        for name, _ in getattr(kind, part):
            pixels = np.arange(10 * 3072).reshape(10, 3072) % 251
            rows.append([name, write(name, {"data": pixels.astype(np.uint8), key: list(range(10))})])
        monkeypatch.setattr(kind, part, rows)
    names = {kind.meta["key"]: [f"class {i}" for i in range(10)]}
    monkeypatch.setattr(kind, "meta", kind.meta | {"md5": write(kind.meta["filename"], names)})


@pytest.mark.parametrize(
    ("name", "kind", "key", "count"),
    [
        ("cifar10", torchvision.datasets.CIFAR10, "labels", 50),
        ("cifar100", torchvision.datasets.CIFAR100, "fine_labels", 10),
    ],
)
def test_cifar(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, kind: type[Any], key: str, count: int
) -> None:
    write_cifar(tmp_path, kind, monkeypatch, key)
    found = load(name, root=tmp_path / kind.base_folder, validation=0)  # the folder itself will do, too
    assert (found.classes, found.in_channels, found.image_size, found.augment) == (10, 3, 32, "crop4+flip")
    assert found.class_names[3] == "class 3"
    assert isinstance(found.train, TensorBatches)
    assert isinstance(found.test, TensorBatches)
    assert found.train.examples == count
    assert found.train.augment == Augment(4, True)
    assert found.test.augment is None
    # The format is planar: red rows, then green, then blue.
    assert found.test.inputs[0, 1, 2, 3].item() == (1024 + 2 * 32 + 3) % 251
    assert load(name, root=tmp_path, augment="none").augment == "none"
    (tmp_path / kind.base_folder / kind.test_list[0][0]).write_bytes(b"x")
    with pytest.raises(GemminerError, match=r"could not be read from .*corrupted") as error:
        load(name, root=tmp_path)
    assert one_sentence(error)


def write_images(folder: Path, colours: list[int], size: tuple[int, int] = (64, 64), kind: str = "JPEG") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for index, colour in enumerate(colours):
        Image.new("RGB", size, (colour, 0, 255 - colour)).save(folder / f"{folder.name}_{index}.{kind}")


def test_tiny_imagenet(tmp_path: Path) -> None:
    root = tmp_path / "tiny-imagenet-200"
    for number, wnid in enumerate(["n01443537", "n01629819"]):
        write_images(root / "train" / wnid / "images", [40 * number] * 10)
    grey = root / "train" / "n01443537" / "images" / "grey.JPEG"  # the real one has some, too
    Image.new("L", (64, 64), 9).save(grey)
    write_images(root / "val" / "images", [40, 0, 40])
    wnids = ["n01629819", "n01443537", "n01629819"]
    rows = [f"images_{i}.JPEG\t{wnid}\t0\t0\t63\t63" for i, wnid in enumerate(wnids)]
    notes = root / "val" / "val_annotations.txt"
    notes.write_text("\n".join(rows) + "\n")
    found = load("tiny-imagenet", root=tmp_path, validation=0)
    assert (found.classes, found.in_channels, found.image_size, found.train.examples) == (2, 3, 64, 21)
    assert isinstance(found.test, TensorBatches)
    reds = found.test.inputs[:, 0, 5, 5].float()
    assert everything(found.test) == [0, 1, 1]
    assert torch.allclose(reds, 40.0 * found.test.targets, atol=3)  # JPEG is not exact
    # In stratified order, a few of the first are of both classes though the files come sorted.
    assert set(everything(load("tiny-imagenet", root=root, limit_train=4, validation=0).train)) == {0, 1}
    for text, says in (("", "is damaged"), ("alone\n", "is damaged"), ("x.JPEG\tn9\t0\n", "a class 'n9'")):
        notes.write_text(text)
        with pytest.raises(GemminerError, match=says):
            load("tiny-imagenet", root=tmp_path)


def test_caltech101(tmp_path: Path) -> None:
    root = tmp_path / "caltech101" / "101_ObjectCategories"
    for number, name in enumerate(["BACKGROUND_Google", "accordion", "yin_yang"]):
        write_images(root / name, [number] * 10, size=(90, 60), kind="jpg")
    found = load("caltech101", root=tmp_path, validation=0)
    assert found.class_names == ("accordion", "yin_yang")
    assert (found.train.examples, everything(found.test)) == (16, [0, 0, 1, 1])
    assert found.image_size == 64
    assert load("caltech101@32", root=tmp_path).image_size == 32


def test_folders_of_images(tmp_path: Path) -> None:
    for name, colour in (("cat", 10), ("dog", 200)):
        write_images(tmp_path / "flat" / name, [colour] * 10, size=(30, 20), kind="png")
    (tmp_path / "flat" / ".thumbnails").mkdir()  # without images: no class
    flat = load(f"folder:{tmp_path / 'flat'}@16", validation=0)
    assert (flat.classes, flat.image_size, flat.augment) == (2, 16, "none")
    assert (flat.train.examples, everything(flat.test)) == (16, [0, 0, 1, 1])
    assert isinstance(flat.train, TensorBatches)
    assert torch.equal(flat.train.inputs[:, 0, 0, 0] == 200, flat.train.targets == 1)
    assert load(f"folder:{tmp_path / 'flat'}").image_size == 64
    few = load("folder:flat", root=tmp_path, limit_train=6, limit_test=2)
    assert (few.train.examples, everything(few.test)) == (5, [0, 1])


def test_the_centre_of_an_image_is_cut_out_at_its_shorter_side(tmp_path: Path) -> None:
    wide = np.zeros((10, 30, 3), np.uint8)
    wide[:, 10:20] = 255
    (tmp_path / "a").mkdir()
    for index in range(2):
        Image.fromarray(wide).save(tmp_path / "a" / f"{index}.png")
    found = load(f"folder:{tmp_path}@10", validation=0)
    assert isinstance(found.train, TensorBatches)
    assert found.train.inputs.unique().tolist() == [255]


def test_folders_with_parts(tmp_path: Path) -> None:
    for part, count in (("train", 8), ("val", 3)):
        for name, colour in (("ant", 0), ("bee", 250)):
            write_images(tmp_path / part / name, [colour] * count, size=(8, 8), kind="png")
    name = f"folder:{tmp_path}@8"
    two = load(name, validation=0.25)  # without PATH/test, PATH/val is the test set
    assert [len(everything(p)) for p in (two.train, two.validation, two.test)] == [12, 4, 6]
    # A test folder without 'ant': its 'bee' is class 1 all the same.
    write_images(tmp_path / "test" / "bee", [250] * 5, size=(8, 8), kind="png")
    three = load(name, validation=0.25)
    assert everything(three.test) == [1] * 5
    assert [len(everything(p)) for p in (three.train, three.validation)] == [16, 6]
    assert load(name, validation=0).validation is None
    write_images(tmp_path / "test" / "wasp", [1], size=(8, 8), kind="png")
    with pytest.raises(GemminerError, match="a class 'wasp' that the training folder does not have"):
        load(name)


def test_bad_folders(tmp_path: Path) -> None:
    with pytest.raises(GemminerError, match="there is no folder"):
        load(f"folder:{tmp_path / 'nowhere'}")
    (tmp_path / "empty").mkdir()
    with pytest.raises(GemminerError, match="cannot be read as CLASS/IMAGE"):
        load(f"folder:{tmp_path / 'empty'}")
    (tmp_path / "empty" / "cat").mkdir()
    with pytest.raises(GemminerError, match="no images in folders by class"):
        load(f"folder:{tmp_path / 'empty'}")
    (tmp_path / "empty" / "cat" / "a.png").write_bytes(b"not an image")
    with pytest.raises(GemminerError, match="too few images"):
        load(f"folder:{tmp_path / 'empty'}")
    (tmp_path / "empty" / "cat" / "b.png").write_bytes(b"nor this")
    with pytest.raises(GemminerError, match=r"the image .*\.png cannot be read") as error:
        load(f"folder:{tmp_path / 'empty'}")
    assert one_sentence(error)


# --- functions ------------------------------------------------------------------------------------


def test_a_functions_images_are_normalised_and_other_tensors_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    images = "(torch.arange(120, dtype=torch.uint8).reshape(10, 3, 2, 2), torch.arange(10) % 2)"
    found = load(module(tmp_path, f"{images}, None"), validation=0.2, augment="crop1+flip")
    assert (found.classes, found.in_channels, found.image_size, found.test) == (2, 3, 2, None)
    assert isinstance(found.train, TensorBatches)
    assert found.train.augment == Augment(1, True)
    assert all(0 < mean < 1 for mean in found.mean)
    values = load(module(tmp_path, "(torch.ones(10, 5), torch.ones(10, 2)), None"))
    assert (values.classes, values.in_channels, values.image_size) == (2, 5, 1)
    assert (values.mean, values.std) == ((0.0,) * 5, (1.0,) * 5)
    assert next(values.train.epoch(0))[0].unique().tolist() == [1]
    line = load(module(tmp_path, "(torch.arange(10.), torch.arange(10.)), None"))
    assert (line.classes, line.in_channels, line.image_size) == (1, 1, 1)
    ones = "data.TensorBatches(torch.ones(2), torch.ones(2))"
    made = f"data.Data('mine', {ones}, None, None, 7, 1, 1, (0.,), (1.,))"
    assert load(module(tmp_path, made)).classes == 7


DATASET = """
import torch
from torch.utils.data import Dataset

class Points(Dataset):
    classes = ("low", "high")
    def __init__(self, count, known):
        self.count = count
        if known:
            self.targets = [int(i >= count // 2) for i in range(count)]
    def __len__(self):
        return self.count
    def __getitem__(self, index):
        return torch.rand(3) + index, int(index >= self.count // 2)

def known():
    "Points that say what they are."
    return Points(40, True), Points(10, True)

def unknown():
    return Points(40, False), None
"""


@pytest.mark.parametrize("function", ["known", "unknown"])
def test_a_functions_data_sets_are_split_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: str) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "points.py").write_text(DATASET)
    monkeypatch.delitem(sys.modules, "points", raising=False)
    found = load(f"points:{function}", validation=0.2, limit_train=30, batch_size=7)
    assert isinstance(found.train, LoaderBatches)
    assert (found.classes, found.class_names, found.in_channels) == (2, ("low", "high"), 3)
    # The first 30 of 40 are 20 low and 10 high; a fifth of each is held out.
    assert everything(found.train) == [0] * 16 + [1] * 8
    assert everything(found.validation) == [0] * 4 + [1] * 2
    assert (found.test is None) == (function == "unknown")
    again = load(f"points:{function}", validation=0.2, limit_train=30, batch_size=7)
    assert same(bits(found.train, 1), bits(again.train, 1))
    if function == "known":
        assert found.description == "Points that say what they are."
    with pytest.raises(UsageError, match="augment in their own transform"):
        load(f"points:{function}", augment="flip")


PAIR = "(torch.zeros(4, 2), torch.zeros(4))"


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("3", "must return .train, test. or a gemminer.data.Data, not a int"),
        ("torch.zeros(4, 2), torch.zeros(4)", r"not a pair \(inputs, targets\)"),
        (f"{PAIR}, 5", "returned a int as test"),
        (f"None, {PAIR}", "returned a NoneType as train"),
        (f"{PAIR}, (torch.zeros(4, 2, dtype=torch.uint8), torch.zeros(4))", "train and test of one kind"),
        ("(torch.zeros(1, 2), torch.zeros(1)), None", "1 training examples are too few"),
    ],
)
def test_what_a_function_must_not_return(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str, says: str) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=says) as error:
        load(module(tmp_path, body))
    assert one_sentence(error)


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("cifar", {}, "unknown data set 'cifar'; did you mean 'cifar1"),
        ("folder:", {}, "unknown data set 'folder:'"),
        ("digits@16", {}, "unknown data set 'digits@16'"),
        ("caltech101@0", {}, "image size in 'caltech101@0' must be from 1"),
        ("nowhere.nothing:make", {}, "cannot be imported: No module named"),
        ("json:nothing", {}, "cannot be imported: .*no attribute 'nothing'"),
        ("json:__doc__", {}, "is a str, not a function"),
        (":make", {}, "cannot be imported"),
        ("digits", {"validation": 1.0}, "validation must be a fraction"),
        ("digits", {"validation": -0.1}, "validation must be a fraction"),
        ("digits", {"validation": float("nan")}, "validation must be a fraction"),
        ("digits", {"limit_train": 0}, "limit_train must be a whole number of at least 1, not 0"),
        ("digits", {"limit_test": 1.5}, "limit_test must be a whole number"),
        ("digits", {"limit_train": 1}, "1 training examples are too few to hold out 0.1"),
        ("digits", {"augment": "mixup"}, "unknown augmentation 'mixup'"),
        ("digits", {"batch_size": 0}, "batch size must be a whole number"),
    ],
)
def test_bad_requests_are_refused_in_one_sentence(name: str, options: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says) as error:
        load(name, **options)
    assert one_sentence(error)


def test_every_name_is_described() -> None:
    assert data.names() == (
        "digits", "fashion-mnist", "mnist", "cifar10", "cifar100", "tiny-imagenet", "caltech101"
    )  # fmt: skip
    for name in (*data.names(), "folder:anywhere", "package.module:function"):
        assert len(data.describe(name)) > 30
    with pytest.raises(UsageError, match="unknown data set 'nothing'"):
        data.describe("nothing")
