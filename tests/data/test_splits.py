"""Splits that are stratified, disjoint and never vary."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits

from gemminer.data import load, splits
from tests.data.helpers import everything, module, order


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


def test_the_test_set_of_digits_is_pinned() -> None:
    _, test = splits.split(torch.tensor(load_digits().target), 0.2)
    assert hashlib.sha256(test.numpy().astype("<i8").tobytes()).hexdigest()[:16] == "a695cc9ba6960f65"
