"""Batches depend on (seed, epoch) alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from gemminer.data import Augment, TensorBatches, as_batches
from tests.data.helpers import Squares, bits, numbers, order, same


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


def test_an_epoch_sends_its_order_to_the_data_once(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[torch.Size] = []
    to = torch.Tensor.to

    def counted(tensor: torch.Tensor, *where: Any, **how: Any) -> torch.Tensor:
        sent.append(tensor.shape)
        return to(tensor, *where, **how)

    batches = numbers(12, batch_size=2)
    monkeypatch.setattr(torch.Tensor, "to", counted)
    assert len(list(batches.epoch(0))) == 6
    assert sent == [torch.Size([12])] * 2  # for inputs and for targets: a batch would wait for its copy
