"""Data by name: the digits, functions of one's own, and requests that cannot be."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gemminer import data
from gemminer.core.errors import UsageError
from gemminer.data import Augment, LoaderBatches, TensorBatches, load, named, splits
from tests.data.helpers import bits, everything, module, one_sentence, same, write_idx

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
