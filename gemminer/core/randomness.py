"""Seeds from hashes, generators, and a context manager that restores the global generators."""

from __future__ import annotations

import contextlib
import hashlib
import random
from collections.abc import Iterator

import numpy as np
import torch


def generator(*keys: object) -> torch.Generator:
    """A CPU generator seeded by a hash of `keys`: near keys give unrelated streams, and 0 is a seed like any other.

    >>> torch.rand(1, generator=generator(0, "a")) == torch.rand(1, generator=generator(0, "b"))
    tensor([False])
    """
    return torch.Generator().manual_seed(mixed(*keys))


def mixed(*keys: object) -> int:
    """A 63-bit number from a hash of `keys`, the seed of everything that is random in this package."""
    digest = hashlib.sha256("\x1f".join(map(repr, keys)).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def derive(*parts: object) -> int:
    """64 bits that depend on every part: neighbouring seeds share nothing, and 0 varies like any other."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest(), "little")


@contextlib.contextmanager
def drawing() -> Iterator[None]:
    """Draw in float32 on the CPU, whatever the caller made the defaults for new tensors."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        with torch.device("cpu"):
            yield
    finally:
        torch.set_default_dtype(before)


@contextlib.contextmanager
def private_randomness() -> Iterator[None]:
    """Restore torch's, numpy's and Python's global generators at the end.

    Inside, each epoch seeds them from (seed, epoch), so dropout and a user's augmentation repeat after a resume.
    """
    python, numpy_state = random.getstate(), np.random.get_state()  # noqa: NPY002 - theirs to restore
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy_state)  # noqa: NPY002


def seed_globals(seed: int) -> None:
    """Seed every global generator user code may draw from; only inside `private_randomness`."""
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002
    random.seed(seed)
