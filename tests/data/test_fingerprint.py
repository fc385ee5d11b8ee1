"""What is known of data without reading all of them."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from gemminer.data import as_batches, as_wholes
from gemminer.data.fingerprint import fingerprint, some_rows
from tests.data.helpers import Stream


class Rows(Dataset[Any]):
    def __init__(self, other: int | None = None, noise: Any = None) -> None:
        self.other, self.noise = other, noise

    def __len__(self) -> int:
        return 41

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        more = self.noise() if self.noise else 0.0
        return torch.tensor([index + 0.5 * (index == self.other) + more]), index


def test_rows_say_what_the_first_batch_does_not() -> None:
    plain = as_batches(DataLoader(Rows(), batch_size=4))
    for other in (10, 20, 30, 40):
        batches = as_batches(DataLoader(Rows(other), batch_size=4))
        assert fingerprint(batches) == fingerprint(plain)
        assert some_rows(batches) != some_rows(plain)
    assert some_rows(as_wholes(DataLoader(Rows(), batch_size=4))) == some_rows(plain)
    assert some_rows(as_batches(DataLoader(Rows(), batch_size=4, shuffle=True), seed=3)) == some_rows(plain)


def test_noise_that_comes_again_is_known() -> None:
    noisy = [some_rows(as_batches(DataLoader(Rows(other, random.random)))) for other in (None, 20)]
    assert None not in noisy
    assert len(set(noisy)) == 2


class Named(Dataset[Any]):
    def __len__(self) -> int:
        return 3

    def __getitem__(self, key: str) -> tuple[torch.Tensor, int]:
        return torch.tensor([float("abc".index(key))]), 0


@pytest.mark.parametrize(
    "data",
    [
        DataLoader(Rows(noise=random.SystemRandom().random)),
        DataLoader(Named(), sampler=["a", "b", "c"]),
        DataLoader(Stream(5)),
        (torch.zeros(2, 3), torch.zeros(2)),
    ],
    ids=["another each time", "names, not numbers", "a stream", "tensors"],
)
def test_what_has_no_rows_to_know(data: Any) -> None:
    assert some_rows(as_batches(data)) is None
