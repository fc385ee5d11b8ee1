"""Batches: the only thing a training loop sees of data; and the named data sets, `load("digits")`.

A batch stream is a function of (seed, epoch) alone: the same two numbers give bit-identical batches whatever
was drawn before, in any process. The seed orders and augments; splits and normalisation do not depend on it.
"""

from __future__ import annotations

import copy
import hashlib
import math
import operator
import random
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset

from gemminer import datasets
from gemminer.datasets import Part, Raw
from gemminer.errors import UsageError

ENDLESS = 1_000_000  # batches after which a stream without a length is taken to have no end


class Batches(Protocol):
    """What training loops iterate.

    Not checkable at run time: before Python 3.12 isinstance would read `examples`, which may count a stream.
    """

    @property
    def examples(self) -> int:
        """Examples in an epoch (of a user's loader: as far as it says)."""

    def __len__(self) -> int:
        """Steps in an epoch."""

    def epoch(self, index: int) -> Iterator[tuple[Any, Any]]:
        """The (inputs, targets) of epoch `index`; the same (seed, index) gives bit-identical batches."""


def derive(*parts: object) -> int:
    """64 bits that depend on every part: neighbouring seeds share nothing, and 0 varies like any other."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest(), "little")


# --- augmentation ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Augment:
    """Random crop of images padded with `crop` zeros on each side, then a mirror image for half of them.

    Called with a normalised batch (n, channels, height, width) and a CPU generator; each image has its own
    offset. Zero is the mean of normalised data.

    >>> augmentation("crop4+flip")
    Augment(crop=4, flip=True)
    """

    crop: int = 0
    flip: bool = False

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        count, _, height, width = images.shape
        if self.crop:
            padded = torch.nn.functional.pad(images, [self.crop] * 4)
            offsets = torch.randint(2 * self.crop + 1, (2, count), generator=generator).to(images.device)
            windows = padded.unfold(2, height, 1).unfold(3, width, 1)  # a view (n, c, offset, offset, h, w)
            images = windows[torch.arange(count, device=images.device), :, offsets[0], offsets[1]]
        if self.flip:
            mirrored = torch.randint(2, (count, 1, 1, 1), generator=generator).to(images.device, torch.bool)
            images = torch.where(mirrored, images.flip(3), images)
        return images


def augmentation(name: str | None) -> Augment | None:
    """The augmentation of a name: 'crop' with a number of pixels, 'flip', both joined by '+', or 'none'."""
    if name in (None, "none", ""):
        return None
    match = re.fullmatch(r"crop(\d+)(\+flip)?|flip", str(name))
    if not match:
        raise UsageError(f"unknown augmentation {name!r}: use none, flip, crop4, crop8+flip and the like")
    return Augment(int(match[1] or 0), flip=str(name).endswith("flip"))


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
        self.inputs, self.targets = inputs.detach(), _as_classes(targets.detach())
        self.batch_size = _whole("batch size", batch_size, least=1)
        self.shuffle, self.seed = shuffle, _whole("seed", seed)
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
        generator = torch.Generator().manual_seed(derive(self.seed, operator.index(index)))
        count = len(self.inputs)
        order = torch.randperm(count, generator=generator) if self.shuffle else torch.arange(count)
        for start in range(0, self.examples, self.batch_size):
            chosen = order[start : min(start + self.batch_size, self.examples)]
            inputs = self.inputs.index_select(0, chosen.to(self.inputs.device))
            if self.normalise is not None:
                mean, std = self.normalise
                inputs = inputs.to(torch.float32).sub_(mean).div_(std)
            if self.augment is not None:
                inputs = self.augment(inputs, generator)
            targets = self.targets.index_select(0, chosen.to(self.targets.device))
            yield _layout(inputs, self.channels_last), targets


def _layout(inputs: Any, channels_last: bool) -> Any:
    if channels_last and isinstance(inputs, Tensor) and inputs.dim() == 4:
        return inputs.contiguous(memory_format=torch.channels_last)
    return inputs


def _whole(what: str, value: Any, least: int | None = None) -> int:
    whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not whole or (least is not None and value < least):
        bound = "" if least is None else f" of at least {least}"
        raise UsageError(f"{what} must be a whole number{bound}, not {value!r}")
    return int(value)


def _as_classes(targets: Tensor) -> Tensor:
    """Class numbers of any integer type as int64, which cross entropy wants."""
    whole = not (targets.is_floating_point() or targets.is_complex() or targets.dtype == torch.bool)
    return targets.long() if whole else targets


def _check_pair(inputs: Tensor, targets: Tensor) -> None:
    for name, tensor in (("inputs", inputs), ("targets", targets)):
        if tensor.dim() == 0 or tensor.numel() == 0:
            raise UsageError(f"the {name} are empty: there must be at least one example")
        # The extremes of a tensor with a NaN are NaN: one pass, no copy.
        if tensor.is_floating_point() and not torch.stack(torch.aminmax(tensor.detach())).isfinite().all():
            raise UsageError(f"the {name} contain NaN or infinity: clean the data first")
    if len(inputs) != len(targets):
        raise UsageError(f"{len(inputs)} inputs but {len(targets)} targets: each input needs one target")


# --- batches of a user's loader -------------------------------------------------------------------


class _Streams:
    """Random streams of a loader's own, swapped in for torch's, NumPy's and Python's while the loader works.

    Samplers, transforms and collate functions draw from global generators, at times lazily; so the streams
    are swapped in around each `next`, never across a `yield`: the caller's own come back bit-identical.
    """

    def __init__(self, seed: int, index: int, generators: list[Any]) -> None:
        own = [g for g in generators if isinstance(g, torch.Generator)]
        self._generators = list({id(g): g for g in (torch.default_generator, *own)}.values())
        self._torch = [
            torch.Generator(device=g.device).manual_seed(derive(seed, index, n)).get_state()
            for n, g in enumerate(self._generators)
        ]
        self._numpy = np.random.RandomState(derive(seed, index, "numpy") % 2**32).get_state()
        self._python = random.Random(derive(seed, index, "python")).getstate()

    def _swap(self, *_: object) -> None:
        for i, generator in enumerate(self._generators):
            mine, self._torch[i] = self._torch[i], generator.get_state()
            generator.set_state(mine)
        numpy, self._numpy = self._numpy, np.random.get_state()  # noqa: NPY002 - what transforms use
        np.random.set_state(numpy)  # noqa: NPY002
        python, self._python = self._python, random.getstate()
        random.setstate(python)

    __enter__ = __exit__ = _swap


class LoaderBatches:
    """A DataLoader, or any object that can be iterated again and again over pairs (inputs, targets).

    Epoch `index` is a function of (seed, index): while the loader works, its own generator if it has one, and
    the global ones of torch, NumPy and Python, run streams seeded from the two; whenever the caller's code
    runs, all are as they were. Workers that would live on (`persistent_workers`) are started anew each epoch,
    as their streams cannot be set otherwise. `set_epoch(index)` is called where a sampler or data set has it.
    A data set with a random generator of its own making is beyond reach: its epochs are not reproducible.

    A stream without a length is gone through once to count it. Batches must be pairs; dictionaries, as
    Hugging Face's, need a `collate_fn` that returns (inputs, targets). Raises UsageError for anything else.

    >>> loader = DataLoader([(0.0, 0), (0.1, 0), (0.2, 1)], batch_size=2, shuffle=True)
    >>> [len(targets) for _, targets in LoaderBatches(loader, seed=1).epoch(0)]
    [2, 1]
    """

    def __init__(self, loader: Any, seed: int = 0, *, channels_last: bool = False) -> None:
        if not hasattr(loader, "__iter__") or hasattr(loader, "__next__"):
            kind = type(loader).__name__
            raise UsageError(f"a {kind} cannot be iterated anew each epoch: pass a DataLoader")
        self.loader, self.seed, self.channels_last = loader, _whole("seed", seed), channels_last
        if _length(loader) == 0:
            raise UsageError("the loader gives no batch: no data, or fewer than one batch with drop_last")

    def __len__(self) -> int:
        length = _length(self.loader)
        return self._counted[0] if length is None else length

    @property
    def examples(self) -> int:
        loader = self.loader
        # Without a batch sampler the data set makes the batches, and its length does not count examples.
        if isinstance(loader, DataLoader) and loader.batch_sampler is not None:
            count = _length(loader.sampler)
            if count is not None:
                return count - count % (loader.batch_size or 1) if loader.drop_last else count
        return self._counted[1]

    @cached_property
    def _counted(self) -> tuple[int, int]:
        """(steps, examples) of an epoch, by going through it."""
        steps = examples = 0
        for _, targets in self.epoch(0):
            steps += 1
            examples += _length(targets) or 1
            if steps > ENDLESS:
                raise UsageError(f"no end of the loader after {ENDLESS} batches: give its data set a __len__")
        if not steps:
            raise UsageError("the loader gives no batch: its data set is empty")
        return steps, examples

    def epoch(self, index: int) -> Iterator[tuple[Any, Any]]:
        loader = self.loader
        if getattr(loader, "persistent_workers", False):
            loader = copy.copy(loader)
            loader._iterator = None
        parts = _parts(loader)
        generators = [getattr(part, "generator", None) for part in parts]
        streams = _Streams(self.seed, operator.index(index), generators)
        with streams:
            for part in parts:
                if callable(getattr(part, "set_epoch", None)):
                    part.set_epoch(index)
            iterator = iter(loader)
        while True:
            with streams:
                try:
                    batch = next(iterator)
                except StopIteration:
                    return
            inputs, targets = _pair(batch)
            yield _layout(inputs, self.channels_last), targets


def _parts(loader: Any) -> list[Any]:
    """The loader and what it may draw its order from, each once."""
    batch_sampler = getattr(loader, "batch_sampler", None)
    inner = [getattr(loader, "sampler", None), getattr(batch_sampler, "sampler", None)]
    parts = [loader, batch_sampler, *inner, getattr(loader, "dataset", None)]
    return list({id(part): part for part in parts if part is not None}.values())


def _length(thing: Any) -> int | None:
    try:
        return len(thing)
    except (TypeError, NotImplementedError):  # no __len__, or DataLoader's around a data set without one
        return None


def _pair(batch: Any) -> tuple[Any, Any]:
    if isinstance(batch, (tuple, list)) and len(batch) == 2:
        return batch[0], batch[1]
    got = f"{len(batch)} parts" if isinstance(batch, (tuple, list)) else f"a {type(batch).__name__}"
    if isinstance(batch, Mapping):
        got = f"a dictionary of {', '.join(map(str, batch))}"
    raise UsageError(f"a batch must be a pair (inputs, targets), not {got}: let a collate_fn return the pair")


# --- anything -> batches --------------------------------------------------------------------------


def as_batches(
    data: Any, *, batch_size: int = 128, seed: int = 0, shuffle: bool = True, channels_last: bool = False
) -> Batches:
    """Batches of whatever holds pairs (inputs, targets).

    A pair of tensors or NumPy arrays, a TensorDataset of two tensors or a Subset of one: whole batches by
    index (float64 arrays become torch's default float type). Another map-style Dataset: a DataLoader around
    it. A DataLoader, which keeps its own batch size and order; an IterableDataset comes inside one. An object
    that already is Batches is returned as it is. Raises UsageError for anything else.

    >>> len(as_batches((np.zeros((100, 4)), np.zeros(100, int)), batch_size=30))
    4
    """
    if callable(getattr(data, "epoch", None)) and hasattr(data, "__len__"):
        return cast(Batches, data)
    size = _whole("batch size", batch_size, least=1)
    if isinstance(data, DataLoader):
        return LoaderBatches(data, seed, channels_last=channels_last)
    tensors = datasets.as_tensors(data)
    if tensors is not None:
        inputs, targets = tensors
        return TensorBatches(inputs, targets, batch_size=size, shuffle=shuffle, seed=seed, channels_last=channels_last)
    if isinstance(data, IterableDataset):
        raise UsageError("an IterableDataset has an order of its own: pass it inside a DataLoader")
    if datasets.is_map_style(data):
        if not len(data):
            raise UsageError("the data set is empty: there must be at least one example")
        alone = shuffle and len(data) > size > 1 and len(data) % size == 1  # as in TensorBatches
        loader: DataLoader[Any] = DataLoader(data, batch_size=size, shuffle=shuffle, drop_last=alone)
        return LoaderBatches(loader, seed, channels_last=channels_last)
    plain = (Mapping, tuple, list, set, str, bytes, Tensor, np.ndarray)
    if hasattr(data, "__iter__") and not isinstance(data, plain):
        return LoaderBatches(data, seed, channels_last=channels_last)
    hint = "; pass its .train or .test" if isinstance(data, Data) else ""
    hint = "; give it a __len__" if isinstance(data, Dataset) else hint
    raise UsageError(
        "data must be a DataLoader, a Dataset, or a pair (inputs, targets) of tensors or NumPy arrays, "
        f"not a {type(data).__name__}{hint}"
    )


# --- named data -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Data:
    """A data set ready to use: batches of three parts that never overlap, and what a model needs to know.

    Attributes:
        classes: outputs of a model: classes, or values to predict in a regression.
        in_channels, image_size: inputs are (n, in_channels, image_size, image_size); of inputs (n, features),
            the features and 1.
        mean, std: of each channel of the training part, white being 1; 0 and 1 where inputs are left alone.
        augment: what happens to training batches, by name.
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


def names() -> tuple[str, ...]:
    """The named data sets; beside them, `folder:PATH` and `package.module:function` are names too."""
    return tuple(datasets.SOURCES)


def describe(name: str) -> str:
    """One sentence about a data set.

    >>> describe("mnist")
    '60,000 + 10,000 handwritten digits, 28x28 grey, 10 classes (idx files or download)'
    """
    return datasets.FUNCTION if datasets.is_function(name) else datasets.find_source(name)[0].description


def load(
    name: str,
    *,
    root: str | Path | None = None,
    batch_size: int = 128,
    validation: float = 0.1,
    limit_train: int | None = None,
    limit_test: int | None = None,
    augment: str | None = "default",
    seed: int = 0,
    download: bool = False,
    channels_last: bool = False,
) -> Data:
    """A named data set, `folder:PATH` (`folder:PATH@96` for 96x96) or `package.module:function`.

    Args:
        root: the only folder to look in and to download to; by default $GEMMINER_DATA or ~/.cache/gemminer,
            then where Debian's package puts fashion-mnist. A relative folder:PATH starts at root.
        validation: fraction of the training examples held out: the last of a fixed stratified shuffle, the
            same for every seed. 0 for none. folder:PATH with both PATH/val and PATH/test holds PATH/val out.
        limit_train, limit_test: take the first n examples, before the validation split. Folders of images,
            which come sorted by class, are put into a fixed stratified order first.
        augment: 'crop4+flip' and the like, 'none', or 'default': crop4+flip for cifar10, cifar100,
            tiny-imagenet and caltech101, none for the others. Training batches only.
        seed: of the order and the augmentation of the training batches, nothing else.
        download: fetch what is missing; without it, nothing touches the network.

    Images are held as uint8 and normalised batch by batch with the mean and standard deviation of each
    channel of the training part after the split. A function returns (train, test), each a data set or a pair
    of tensors (test may be None), or a Data, which is taken as it is. A function's uint8 images (n, c, h, w)
    are normalised as above; whatever else it returns is left alone.
    Raises UsageError for what cannot be asked, GemminerError for files that are missing or damaged.

    >>> digits = load("digits", validation=0)
    >>> digits.train.examples, digits.test.examples
    (1437, 360)
    """
    if isinstance(validation, bool) or not 0 <= validation < 1:
        raise UsageError(f"validation must be a fraction from 0 to below 1, not {validation!r}")
    augmentation(None if augment == "default" else augment)  # complain before reading
    limit_train = None if limit_train is None else _whole("limit_train", limit_train, least=1)
    limit_test = None if limit_test is None else _whole("limit_test", limit_test, least=1)

    description, default = describe(name), "none"
    if datasets.is_function(name):
        made, description = datasets.call(name)
        if isinstance(made, Data):
            return made
        raw = _returned(name, made)
    else:
        source, request = datasets.find_source(name)
        base = None if root is None else Path(root).expanduser()
        request = replace(request, root=base, download=download)
        raw = source.read(replace(request, limit_train=limit_train, limit_test=limit_test))
        default = source.augment
    chosen = default if augment == "default" else augment or "none"

    train, test = _take(raw.train, limit_train), None if raw.test is None else _take(raw.test, limit_test)
    held = raw.validation if validation else None
    if validation and held is None:
        kept, out = datasets.split(_labels(train), validation)
        train, held = _take(train, kept), _take(train, out)
    if not isinstance(train, tuple) and chosen != "none":
        raise UsageError(f"{name} returns data sets, not tensors: augment in their own transform")
    normalise = _statistics(train[0]) if raw.scale and isinstance(train, tuple) else None

    def batches(part: Part, training: bool = False) -> Batches:
        if not isinstance(part, tuple):
            return as_batches(part, batch_size=batch_size, seed=seed, shuffle=training, channels_last=channels_last)
        return TensorBatches(
            *part,
            batch_size=batch_size,
            shuffle=training,
            seed=seed,
            augment=augmentation(chosen) if training else None,
            channels_last=channels_last,
            normalise=normalise,
        )

    stream = batches(train, training=True)
    inputs, targets = next(stream.epoch(0))
    shape = tuple(inputs.shape[1:]) or (1,)
    mean, std = normalise or (torch.zeros(shape[0]), torch.ones(shape[0]))
    scale = raw.scale if normalise and raw.scale else 1.0
    return Data(
        name=name,
        train=stream,
        validation=None if held is None else batches(held),
        test=None if test is None else batches(test),
        classes=raw.classes or _outputs(train, targets),
        in_channels=shape[0],
        image_size=shape[-1] if len(shape) > 1 else 1,
        mean=tuple((mean / scale).tolist()),
        std=tuple((std / scale).tolist()),
        description=description,
        class_names=raw.class_names,
        augment=chosen,
    )


def _take(part: Part, chosen: Tensor | int | None) -> Part:
    """The examples of these indices, or the first `chosen`, or all."""
    if chosen is None:
        return part
    if isinstance(part, tuple):
        index = slice(chosen) if isinstance(chosen, int) else chosen
        return part[0][index], part[1][index]
    every = range(datasets.size(part))
    return Subset(part, list(every[:chosen]) if isinstance(chosen, int) else chosen.tolist())


def _labels(part: Part) -> Tensor:
    """The targets of a part; a data set that keeps none in `targets` is gone through once."""
    if isinstance(part, tuple):
        return part[1]
    if type(part) is Subset:
        return _labels(part.dataset)[torch.as_tensor(part.indices)]
    known = getattr(part, "targets", None)
    changed = getattr(part, "target_transform", None)
    if known is not None and changed is None and len(known) == datasets.size(part):
        return torch.as_tensor(known)
    return torch.cat([targets for _, targets in as_batches(part, shuffle=False).epoch(0)])


def _outputs(train: Part, targets: Tensor) -> int:
    """Outputs a model needs: the classes seen in training, or the values of a regression."""
    if targets.is_floating_point():
        return int(targets.shape[-1]) if targets.dim() > 1 else 1
    return int(_labels(train).max()) + 1


def _statistics(images: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each channel of uint8 images (n, c, h, w), exact: from value counts."""
    values = torch.arange(256, dtype=torch.float64)
    counts = torch.stack([torch.bincount(channel.reshape(-1), minlength=256) for channel in images.unbind(1)])
    share = counts.double() / counts.sum(1, keepdim=True)
    mean = share @ values
    std = (share * (values - mean[:, None]).square()).sum(1).sqrt()
    return mean, torch.where(std > 0, std, 1.0)  # a channel that never changes becomes 0, not NaN


def _returned(name: str, made: Any) -> Raw:
    """The (train, test) that a user's function returned, as a Raw."""
    if not isinstance(made, (tuple, list)) or len(made) != 2 or isinstance(made[0], Tensor):
        kind = "a pair (inputs, targets)" if isinstance(made, (tuple, list)) else f"a {type(made).__name__}"
        raise UsageError(f"{name} must return (train, test) or a gemminer.data.Data, not {kind}")
    parts: list[Part | None] = []
    for part, what in zip(made, ("train", "test"), strict=True):
        found: Part | None = datasets.as_tensors(part) or (part if datasets.is_map_style(part) else None)
        if found is None and (part is not None or what == "train"):
            kind = type(part).__name__
            raise UsageError(f"{name} returned a {kind} as {what}: return a Dataset or a pair of tensors")
        parts.append(found)
    train, test = cast(Part, parts[0]), parts[1]
    types = [part[0].dtype if isinstance(part, tuple) else None for part in (train, test) if part is not None]
    if len(set(types)) > 1:  # or one would be normalised and the other not
        raise UsageError(f"{name} must return train and test of one kind: tensors of one type, or data sets")
    is_images = isinstance(train, tuple) and train[0].dtype == torch.uint8 and train[0].dim() == 4
    class_names = tuple(map(str, getattr(made[0], "classes", ())))
    return Raw(train, test, len(class_names), class_names, scale=255.0 if is_images else None)
