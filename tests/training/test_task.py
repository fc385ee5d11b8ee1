"""Losses and metrics of every layout of outputs and batches."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gemminer.core.errors import GemminerError
from gemminer.data import TensorBatches
from gemminer.training.task import Task, accuracy, cross_entropy
from tests.helpers import tiny_data, tiny_net


def test_cross_entropy_and_accuracy_of_every_layout() -> None:
    source = torch.Generator().manual_seed(0)
    logits, tokens = torch.randn(4, 5, 7, generator=source), torch.randint(7, (4, 5), generator=source)
    by_hand = -torch.log_softmax(logits, -1).gather(-1, tokens.unsqueeze(-1)).mean()
    right = (logits.argmax(-1) == tokens).double().mean()
    for output in (logits, logits.transpose(1, 2)):  # classes last, as in text; second, as in images
        assert torch.allclose(cross_entropy(output, tokens), by_hand)
        assert accuracy(output, tokens).numel() == 20
        assert accuracy(output, tokens).mean() == right
    assert torch.allclose(cross_entropy(logits[:, 0], tokens[:, 0]), F.cross_entropy(logits[:, 0], tokens[:, 0]))
    assert accuracy(torch.eye(3), torch.tensor([0, 1, 1])).tolist() == [1.0, 1.0, 0.0]


def test_probabilities_as_targets() -> None:
    logits = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    soft = torch.full((4, 3), 1 / 3)
    assert torch.allclose(cross_entropy(logits, soft), -torch.log_softmax(logits, 1).mean())


class Pair(NamedTuple):
    ids: Tensor
    mask: Tensor


def test_batches_of_any_structure_are_placed() -> None:
    task = Task(nn.Linear(2, 2), TensorBatches(*tiny_data()), channels_last=True)
    image, flat = torch.rand(2, 3, 4, 4), torch.rand(2, 3)
    placed = task.place({"a": [image, flat], "b": (image, "text"), "c": 7, "d": Pair(flat, image)})
    assert placed["a"][0].is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(placed["a"][0], image)
    assert type(placed["a"]) is list
    assert type(placed["b"]) is tuple
    assert (placed["b"][1], placed["c"]) == ("text", 7)
    assert type(placed["d"]) is Pair
    assert placed["d"].mask.is_contiguous(memory_format=torch.channels_last)
    task.channels_last = False
    assert task.place(image) is image


def test_a_loss_that_does_not_fit_is_one_sentence() -> None:
    inputs, targets = tiny_data()
    task = Task(tiny_net(), TensorBatches(inputs, targets))
    with pytest.raises(GemminerError) as caught:
        task.loss_of(inputs, targets + 1)  # classes 1..3 of 3
    assert "the loss does not fit the model and data" in str(caught.value)
    assert "output (96, 3) of torch.float32, targets (96,) of torch.int64" in str(caught.value)
    with pytest.raises(GemminerError, match="targets list"):
        task.loss_of(inputs, [1, 2])
    assert float(task.loss_of(inputs, targets).detach()) > 0
