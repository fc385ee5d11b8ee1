"""Batches: the interface through which a training loop reads data.

A batch stream is a function of (seed, epoch) alone: the same two numbers give bit-identical batches whatever
was drawn before, in any process. The seed orders and augments; splits and normalisation do not depend on it.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import operator
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from gemminer.core.errors import UsageError
from gemminer.core.numbers import whole
from gemminer.core.randomness import derive
from gemminer.data.augment import Augment


class Batches(Protocol):
    """The batches that a training loop iterates over.

    It is not checkable at run time: before Python 3.12 isinstance would read `examples`, which may count a stream.
    """

    @property
    def examples(self) -> int:
        """Examples in an epoch (for a user's loader, the number it reports)."""

    def __len__(self) -> int:
        """Steps in an epoch."""

    def epoch(self, index: int) -> Iterator[tuple[Any, Any]]:
        """The (inputs, targets) of epoch `index`; the same (seed, index) gives bit-identical batches."""


def every(stream: Iterator[Any], rank: int, world: int) -> Iterator[Any]:
    """Every `world`-th batch from number `rank` on: rank's batch of each step, None of a last step that has none.

    >>> [list(every(iter("abc"), rank, 2)) for rank in range(2)]
    [['a', 'c'], ['b', None]]
    """
    while group := list(itertools.islice(stream, world)):
        yield group[rank] if rank < len(group) else None


def examples_in(inputs: Any, targets: Any) -> int:
    """The examples of a batch: as many as it has targets, or as its first tensor has rows; 1 where nothing tells.

    >>> examples_in({"x": torch.zeros(3, 2)}, None), examples_in(torch.zeros(3, 2), torch.zeros(3))
    (3, 3)
    """
    for part in (targets, _first_tensor(inputs)):
        with contextlib.suppress(TypeError):  # of what has no length, and of a tensor without dimensions
            return len(part)
    return 1


def _first_tensor(value: Any) -> Any:
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        return next((found for part in value if (found := _first_tensor(part)) is not None), None)
    return value if isinstance(value, Tensor) else None


# --- batches of tensors ---------------------------------------------------------------------------


class TensorBatches:
    """Whole batches of two tensors that are held in memory, reshuffled each epoch.

    `inputs` (n, ...) and `targets` (n, ...) may have any shapes; whole-number targets become int64.
    `normalise` = (mean, std), a number for each channel (dimension 1) in the inputs' own units, makes a batch
    (batch - mean) / std in float32, so that images can be held as uint8. `augment` maps (batch, generator) to
    a batch. A last batch of a single example is left out when shuffling, since batch norm cannot train on it
    (the permutation makes it another one each epoch); any other ragged batch is kept.
    Raises UsageError for empty data, lengths that differ, and NaN or infinity.

    >>> batches = TensorBatches(torch.zeros(10, 3), torch.zeros(10), batch_size=4)
    >>> [len(targets) for _, targets in batches.epoch(0)]
    [4, 4, 2]
    """

    def __init__(
        self,
        inputs: Tensor,
        targets: Tensor,
        *,
        batch_size: int = 128,
        shuffle: bool = True,
        seed: int = 0,
        augment: Callable[[Tensor, torch.Generator], Tensor] | None = None,
        channels_last: bool = False,
        normalise: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        _check_pair(inputs, targets)
        if isinstance(augment, Augment) and inputs.dim() != 4:
            shape = tuple(inputs.shape)
            raise UsageError(f"crop and flip need images (n, channels, height, width), not inputs of {shape}")
        if isinstance(augment, Augment) and augment.crop > min(inputs.shape[2:]):
            raise UsageError(f"crop{augment.crop} shifts images of {inputs.shape[2]}x{inputs.shape[3]} out of sight")
        self.inputs, self.targets = inputs.detach(), _as_classes(targets.detach())
        self.batch_size = whole("batch size", batch_size, least=1)
        self.shuffle, self.seed = shuffle, whole("seed", seed)
        self.augment, self.channels_last = augment, channels_last
        self.normalise: tuple[Tensor, Tensor] | None = None
        if normalise is not None:
            across = (1, -1) + (1,) * (inputs.dim() - 2)
            mean, std = (value.to(inputs.device, torch.float32).reshape(across) for value in normalise)
            self.normalise = (mean, std)
        alone = shuffle and len(inputs) > self.batch_size > 1 and len(inputs) % self.batch_size == 1
        self.examples = len(inputs) - alone

    def __len__(self) -> int:
        return math.ceil(self.examples / self.batch_size)

    def epoch(self, index: int) -> Iterator[tuple[Tensor, Tensor]]:
        return self._taken(index, 0, 1)

    def part(self, index: int, rank: int, world: int) -> Iterator[tuple[Tensor, Tensor] | None]:
        """`every` batch of the epoch; those of other ranks are not made, unless the augmentation draws numbers."""
        if self.augment is not None:
            yield from every(self.epoch(index), rank, world)
            return
        yield from self._taken(index, rank, world)
        if rank >= (len(self) % world or world):
            yield None

    def _taken(self, index: int, first: int, by: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of an epoch from number `first` on, each `by`-th."""
        generator = torch.Generator().manual_seed(derive(self.seed, operator.index(index)))
        count = len(self.inputs)
        order = torch.randperm(count, generator=generator) if self.shuffle else torch.arange(count)
        orders = order.to(self.inputs.device), order.to(self.targets.device)  # once: no batch waits for a copy
        for start in range(first * self.batch_size, self.examples, by * self.batch_size):
            end = min(start + self.batch_size, self.examples)
            inputs = self.inputs.index_select(0, orders[0][start:end])
            if self.normalise is not None:
                mean, std = self.normalise
                inputs = inputs.to(torch.float32).sub_(mean).div_(std)
            if self.augment is not None:
                inputs = self.augment(inputs, generator)
            targets = self.targets.index_select(0, orders[1][start:end])
            yield laid_out(inputs, self.channels_last), targets


def laid_out(inputs: Any, channels_last: bool) -> Any:
    if channels_last and isinstance(inputs, Tensor) and inputs.dim() == 4:
        return inputs.contiguous(memory_format=torch.channels_last)
    return inputs


def _as_classes(targets: Tensor) -> Tensor:
    """Class numbers of any integer type as int64, which cross entropy wants."""
    numbered = not (targets.is_floating_point() or targets.is_complex() or targets.dtype == torch.bool)
    return targets.long() if numbered else targets


def _check_pair(inputs: Tensor, targets: Tensor) -> None:
    for name, tensor in (("inputs", inputs), ("targets", targets)):
        if tensor.is_meta or tensor.is_nested or tensor.layout is not torch.strided:
            what = "on the meta device, which holds no numbers" if tensor.is_meta else "sparse: call to_dense() on them"
            what = "nested: pad them to one size" if tensor.is_nested else what
            raise UsageError(f"the {name} are {what}")
        if tensor.dim() == 0 or tensor.numel() == 0:
            raise UsageError(f"the {name} are empty: there must be at least one example")
        # The extremes of a tensor with a NaN are NaN: one pass, no copy.
        if tensor.is_floating_point() and not torch.stack(torch.aminmax(tensor.detach())).isfinite().all():
            raise UsageError(f"the {name} contain NaN or infinity: clean the data first")
    if len(inputs) != len(targets):
        raise UsageError(f"{len(inputs)} inputs but {len(targets)} targets: each input needs one target")


# --- the parts of a data set ----------------------------------------------------------------------


@dataclass(frozen=True)
class Data:
    """A data set ready to use: batches of its three disjoint parts, and the sizes a model needs.

    Attributes:
        classes: outputs of a model: classes, or values to predict in a regression.
        in_channels: channels of the images (n, in_channels, image_size, image_size), or the number of features.
        image_size: height and width of the images; 1 where the inputs are (n, features).
        mean: the mean of each channel of the training part, where white is 1; 0 where inputs are not normalised.
        std: the standard deviation of each channel; 1 where inputs are not normalised.
        augment: the name of the augmentation of training batches.
    """

    name: str
    train: Batches
    validation: Batches | None
    test: Batches | None
    classes: int
    in_channels: int
    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    description: str = ""
    class_names: tuple[str, ...] = ()
    augment: str = "none"
