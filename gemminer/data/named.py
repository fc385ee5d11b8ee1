"""Data sets by name: `load("digits")`, a folder of images, a user's function."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.data import Subset

from gemminer.core.errors import UsageError
from gemminer.core.files import as_path
from gemminer.core.numbers import plain, whole
from gemminer.data import readers
from gemminer.data.augment import augmentation
from gemminer.data.batches import Batches, Data, TensorBatches
from gemminer.data.columns import class_names, from_columns, is_columned
from gemminer.data.loaders import as_batches
from gemminer.data.readers import Raw
from gemminer.data.splits import split
from gemminer.data.tensors import Part, as_tensors, is_map_style, size


def names() -> tuple[str, ...]:
    """The names of the data sets. `load` takes `folder:PATH` and `package.module:function` besides."""
    return tuple(readers.SOURCES)


def describe(name: str) -> str:
    """One sentence about a data set.

    >>> describe("mnist")
    '60,000 + 10,000 handwritten digits, 28x28 grey, 10 classes (idx files or download)'
    """
    return readers.FUNCTION if readers.is_function(name) else readers.find_source(name)[0].description


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
    """Load a data set by name, from a folder of images, or from a user's function.

    Args:
        name: one of `names()`, `folder:PATH` (`folder:PATH@96` for 96x96), or `package.module:function`.
        root: the only folder to look in and to download to; by default $GEMMINER_DATA or ~/.cache/gemminer,
            then where Debian's package puts fashion-mnist. A relative folder:PATH starts at root.
        validation: fraction of the training examples held out: the last of a fixed stratified shuffle, the
            same for every seed. 0 for none. folder:PATH with both PATH/val and PATH/test holds PATH/val out.
        limit_train: take the first n training examples, before the validation split. Folders of images, which
            come sorted by class, are put into a fixed stratified order first.
        limit_test: take the first n test examples.
        augment: 'crop4+flip' and the like, 'none', or 'default': crop4+flip for cifar10, cifar100,
            tiny-imagenet and caltech101, none for the others. Training batches only.
        seed: seeds the order and the augmentation of the training batches, nothing else.
        download: fetch what is missing; without it, nothing touches the network.

    Images are held as uint8 and normalised batch by batch with the mean and standard deviation of each
    channel of the training part after the split. A function returns (train, test), each a data set, a pair
    of tensors or a data set of Hugging Face, as by `from_columns` (test may be None); Hugging Face's splits by
    name, train, test and validation; or a Data, which is taken as it is. A function's uint8 images (n, c, h, w)
    are normalised as above; whatever else it returns is left alone.

    Raises:
        UsageError: an unknown name, or an argument out of range.
        GemminerError: files that are missing or damaged.

    >>> digits = load("digits", validation=0)
    >>> digits.train.examples, digits.test.examples
    (1437, 360)
    """
    validation = plain(validation)
    if type(validation) not in (int, float) or not 0 <= validation < 1:
        raise UsageError(f"validation must be a fraction from 0 to below 1, not {validation!r}")
    augmentation(None if augment == "default" else augment)  # complain before reading
    limit_train = None if limit_train is None else whole("limit_train", limit_train, least=1)
    limit_test = None if limit_test is None else whole("limit_test", limit_test, least=1)

    description, default = describe(name), "none"
    if readers.is_function(name):
        made, description = readers.call(name)
        if isinstance(made, Data):
            return made
        raw = _returned(name, made)
    else:
        source, request = readers.find_source(name)
        base = None if root is None else as_path("root", root).expanduser()
        request = replace(request, root=base, download=download)
        raw = source.read(replace(request, limit_train=limit_train, limit_test=limit_test))
        default = source.augment
    chosen = default if augment == "default" else augment or "none"
    common = {"batch_size": batch_size, "seed": seed, "channels_last": channels_last}
    return _ready(name, description, _parts(raw, validation, limit_train, limit_test), raw, chosen, common)


Parts = tuple[Part, Part | None, Part | None]


def _parts(raw: Raw, validation: float, limit_train: int | None, limit_test: int | None) -> Parts:
    """The training, validation and test parts, which never overlap."""
    train, test = _take(raw.train, limit_train), None if raw.test is None else _take(raw.test, limit_test)
    held = raw.validation if validation else None
    if validation and held is None:
        kept, out = split(_labels(train), validation)
        train, held = _take(train, kept), _take(train, out)
    return train, held, test


def _ready(name: str, description: str, parts: Parts, raw: Raw, augment: str, common: dict[str, Any]) -> Data:
    """The data set in batches, normalised by the training part; `common` holds the arguments of all its batches."""
    train, held, test = parts
    if not isinstance(train, tuple) and augment != "none":
        raise UsageError(f"{name} returns data sets, not tensors: augment in their own transform")
    normalise = _statistics(train[0]) if raw.scale and isinstance(train, tuple) else None

    def batches(part: Part, training: bool = False) -> Batches:
        if not isinstance(part, tuple):
            return as_batches(part, shuffle=training, **common)
        moved = augmentation(augment) if training else None
        return TensorBatches(*part, shuffle=training, augment=moved, normalise=normalise, **common)

    stream = batches(train, training=True)
    inputs, targets = next(stream.epoch(0))
    first = next(iter(inputs.values())) if isinstance(inputs, Mapping) else inputs
    shape = tuple(first.shape[1:]) or (1,)
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
        augment=augment,
    )


def _take(part: Part, chosen: Tensor | int | None) -> Part:
    """The examples of these indices, or the first `chosen`, or all."""
    if chosen is None:
        return part
    if isinstance(part, tuple):
        index = slice(chosen) if isinstance(chosen, int) else chosen
        return part[0][index], part[1][index]
    every = range(size(part))
    return Subset(part, list(every[:chosen]) if isinstance(chosen, int) else chosen.tolist())


def _labels(part: Part) -> Tensor:
    """The targets of a part; a data set without the attribute `targets` is read once."""
    if isinstance(part, tuple):
        return part[1]
    if type(part) is Subset:
        return _labels(part.dataset)[torch.as_tensor(part.indices)]
    known = getattr(part, "targets", None)
    changed = getattr(part, "target_transform", None)
    if known is not None and changed is None and len(known) == size(part):
        return torch.as_tensor(known)
    return torch.cat([targets for _, targets in as_batches(part, shuffle=False).epoch(0)])


def _outputs(train: Part, targets: Tensor) -> int:
    """The number of outputs a model needs: the classes seen in training, or the values of a regression."""
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
    """The (train, test) that a user's function returned, as a Raw; of Hugging Face also splits by name."""
    held: Part | None = None
    if isinstance(made, Mapping) and is_columned(made.get("train")):
        held = None if (part := made.get("validation")) is None else from_columns(part)
        made = (made["train"], made.get("test"))
    if not isinstance(made, (tuple, list)) or len(made) != 2 or isinstance(made[0], Tensor):
        kind = "a pair (inputs, targets)" if isinstance(made, (tuple, list)) else f"a {type(made).__name__}"
        raise UsageError(f"{name} must return (train, test) or a gemminer.data.Data, not {kind}")
    parts: list[Part | None] = []
    named = class_names(made[0]) if is_columned(made[0]) else tuple(map(str, getattr(made[0], "classes", ())))
    made = [from_columns(part) if is_columned(part) else part for part in made]
    for part, what in zip(made, ("train", "test"), strict=True):
        found: Part | None = as_tensors(part) or (part if is_map_style(part) else None)
        if found is None and (part is not None or what == "train"):
            kind = type(part).__name__
            raise UsageError(f"{name} returned a {kind} as {what}: return a Dataset or a pair of tensors")
        parts.append(found)
    train, test = cast(Part, parts[0]), parts[1]
    types = [part[0].dtype if isinstance(part, tuple) else None for part in (train, test) if part is not None]
    if len(set(types)) > 1:  # or one would be normalised and the other not
        raise UsageError(f"{name} must return train and test of one kind: tensors of one type, or data sets")
    is_images = isinstance(train, tuple) and train[0].dtype == torch.uint8 and train[0].dim() == 4
    return Raw(train, test, len(named), named, held, scale=255.0 if is_images else None)
