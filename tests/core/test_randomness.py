"""Streams by hashed keys, and no global generator moves."""

from __future__ import annotations

import hashlib
import random

import numpy as np
import pytest
import torch

from gemminer.core import randomness
from gemminer.core.randomness import generator, mixed, private_randomness, seed_globals
from tests.helpers import states


def test_keys_give_unrelated_streams() -> None:
    keys = [(0,), (1,), ("0",), (0, "a"), (0, "b"), ("0a",), (0, 1), (1, 0), (0, 0), (-1,), (2**70,)]
    assert len({mixed(*key) for key in keys}) == len(keys)
    assert all(0 <= mixed(*key) < 2**63 for key in keys)
    first = torch.rand(1000, generator=generator(0, "a"))
    second = torch.rand(1000, generator=generator(0, "b"))
    assert abs(float(torch.corrcoef(torch.stack([first, second]))[0, 1])) < 0.15


def test_private_randomness_ends_with_an_exception_too() -> None:
    before = states()
    with pytest.raises(KeyboardInterrupt), private_randomness():  # noqa: PT012
        seed_globals(2**62 + 1)
        torch.rand(1), np.random.rand(1), random.random()  # noqa: NPY002
        raise KeyboardInterrupt
    assert states() == before


def test_the_hash_of_seed_and_epoch_is_the_same_in_any_process() -> None:
    # blake2b of the text "(0, 1)", so neither Python's salted hash() nor the platform enters.
    expected = int.from_bytes(hashlib.blake2b(b"(0, 1)", digest_size=8).digest(), "little")
    assert randomness.derive(0, 1) == expected != randomness.derive(1, 0)
    low = [randomness.derive(seed, epoch) % 2**32 for seed in range(40) for epoch in range(40)]
    assert len(set(low)) == 1600  # torch's CPU generator looks at 32 bits only
