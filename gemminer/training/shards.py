"""Batches of one rank: those of all ranks together are the batches of an epoch, each once."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from gemminer.core.errors import GemminerError
from gemminer.core.randomness import mixed
from gemminer.data import Batches, Whole
from gemminer.data.batches import every
from gemminer.data.fingerprint import fingerprint
from gemminer.training.feed import mapped
from gemminer.training.ranks import Ranks


class Shard:
    """Every `world`-th batch of a stream that is the same on each rank, from batch number `rank` on.

    A step is a batch on each rank: the ranks' batches, one after the other, are the step's global batch. All ranks
    have as many steps; one without a batch in the last step has None.

    >>> import torch
    >>> from gemminer.data import as_batches
    >>> whole = as_batches((torch.arange(5.0), torch.arange(5)), batch_size=1, shuffle=False)
    >>> [[b and int(b[1]) for b in Shard(whole, rank, 2).epoch(0)] for rank in range(2)]
    [[0, 2, 4], [1, 3, None]]
    """

    def __init__(self, batches: Batches, rank: int, world: int) -> None:
        self.batches, self.rank, self.world = batches, rank, world

    def __len__(self) -> int:
        return -(-len(self.batches) // self.world)

    @property
    def examples(self) -> int:
        return self.batches.examples

    def epoch(self, index: int) -> Iterator[Any]:
        part = getattr(self.batches, "part", None)  # loads no other rank's
        return part(index, self.rank, self.world) if part else every(self.batches.epoch(index), self.rank, self.world)


class Joined:
    """Each step's global batch, joined, on every rank: for a method that looks at a few batches and takes no steps."""

    def __init__(self, batches: Shard | Own, ranks: Ranks) -> None:
        self.batches, self.ranks = batches, ranks

    def __len__(self) -> int:
        return len(self.batches)

    @property
    def examples(self) -> int:
        return self.batches.examples

    def epoch(self, index: int) -> Iterator[Any]:
        if isinstance(self.batches, Shard):  # each rank has the whole stream
            stream, world = self.batches.batches.epoch(index), self.batches.world
            groups: Iterator[list[Any]] = iter(lambda: list(itertools.islice(stream, world)), [])
        else:
            groups = map(self.ranks.gathered, self.batches.epoch(index))
        for group in groups:
            if some := [batch for batch in group if batch is not None]:
                yield some[0] if len(some) == 1 else mapped(lambda *parts: _end_to_end(parts), some[0], *some[1:])


def _end_to_end(parts: Sequence[Tensor]) -> Tensor:
    """The rows of all parts; a number that each has alone is the first's."""
    if not parts[0].dim():
        return parts[0]
    try:
        return torch.cat(list(parts))
    except RuntimeError:
        shapes = ", ".join(str(tuple(part.shape)) for part in parts)
        raise GemminerError(f"the ranks' batches cannot be joined to one ({shapes}): pad them to one size") from None


class Own:
    """A stream that is another on each rank already, as with a DistributedSampler: None past its end."""

    def __init__(self, batches: Batches, steps: int, examples: int) -> None:
        self.batches, self.steps, self.examples = batches, steps, examples

    def __len__(self) -> int:
        return self.steps

    def epoch(self, index: int) -> Iterator[Any]:
        stream = itertools.chain(self.batches.epoch(index), itertools.repeat(None))
        return itertools.islice(stream, self.steps)


def sharded(batches: Batches, ranks: Ranks) -> Shard | Own:
    """This rank's batches: of a stream that is the same on every rank a part, else those it has already."""
    if len(set(ranks.gathered(fingerprint(batches)))) == 1:
        return Shard(batches, ranks.rank, ranks.world)
    lengths = ranks.gathered((len(batches), batches.examples))
    return Own(batches, max(steps for steps, _ in lengths), sum(examples for _, examples in lengths))


def reseeded(batches: Batches, *keys: object) -> Batches:
    """The same batches in the order of another seed, where they have one."""
    if isinstance(batches, Whole | Shard | Own):
        outer = copy.copy(batches)
        outer.batches = reseeded(batches.batches, *keys)
        return outer
    if not hasattr(batches, "seed"):
        return batches
    other = copy.copy(batches)
    other.seed = mixed(*keys)
    return other
