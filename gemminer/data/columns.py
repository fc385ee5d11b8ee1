"""Data sets of Hugging Face `datasets`, by the names of their columns; the library itself is not imported."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset

from gemminer.core.errors import UsageError, in_words
from gemminer.core.numbers import whole
from gemminer.data.tensors import Part

_LABELS = ("label", "labels")
_IMAGES = ("image", "img", "pixel_values")
_TOKENS = ("input_ids", "attention_mask", "token_type_ids")
_MASK = "attention_mask"
_IGNORED = -100  # the label that cross-entropy leaves out


class Columns(Dataset[tuple[dict[str, Tensor], Tensor]]):
    """Several columns in memory: example i is ({name: its tensor}, its target)."""

    def __init__(self, inputs: Mapping[str, Tensor], targets: Tensor, classes: Sequence[str] = ()) -> None:
        self.inputs, self.targets, self.classes = dict(inputs), targets, tuple(classes)

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[dict[str, Tensor], Tensor]:
        return {name: column[index] for name, column in self.inputs.items()}, self.targets[index]


def is_columned(data: Any) -> bool:
    """Whether `data` is a data set with columns by name and a length, as those of Hugging Face."""
    return hasattr(data, "column_names") and hasattr(data, "__getitem__") and not isinstance(data, Mapping)


def from_columns(
    dataset: Any, *, inputs: str | Sequence[str] | None = None, labels: str | None = None, size: int | None = None
) -> Part:
    """A data set of Hugging Face `datasets` as gemminer takes data: a pair of tensors, or dictionaries with labels.

    One column of images gives a pair (uint8 images (n, c, h, w), labels), one of numbers a pair of tensors. Several
    columns, as input_ids and attention_mask, give a data set of ({name: tensor}, label), which a model takes as its
    arguments by name. It is read into memory, once.

    Args:
        dataset: one split, `datasets.Dataset`; or whatever has `column_names` and gives a column for its name.
        inputs: a column, or several; by default image, img or pixel_values, else input_ids with attention_mask and
            token_type_ids, as far as they are there.
        labels: the column of labels; by default label or labels.
        size: the height and width that images are resized to; by default they keep theirs, which must be one.

    Sequences of several lengths are padded to the longest with 0, where the attention mask, which is 0 there, is one of
    the inputs; labels of tokens with -100, which the loss leaves out. Without a mask they are refused.

    Raises:
        UsageError: no such column, images of several sizes, values that are no numbers.
    """
    if not is_columned(dataset) or not hasattr(dataset, "__len__"):
        kind = "several splits: pass one of them" if isinstance(dataset, Mapping) else f"a {type(dataset).__name__}"
        raise UsageError(f"from_columns takes a datasets.Dataset with a length, not {kind}")
    if not len(dataset):
        raise UsageError("the data set is empty: there must be at least one example")
    target = _column(dataset, labels, "labels", _LABELS)
    names = [inputs] if isinstance(inputs, str) else list(inputs or _usual(dataset))
    for name in names:
        _column(dataset, name, "inputs", ())
    masked = _MASK in names
    found = {name: _tensor(name, list(dataset[name]), 0 if masked else None, size) for name in names}
    targets = _tensor(target, list(dataset[target]), _IGNORED if masked else None, None)
    if len(names) == 1:
        return found[names[0]], targets
    return Columns(found, targets, class_names(dataset, target))


def class_names(dataset: Any, labels: str | None = None) -> tuple[str, ...]:
    """The names of the classes, where the column of labels has them."""
    feature = dict(getattr(dataset, "features", None) or {}).get(_column(dataset, labels, "labels", _LABELS))
    return tuple(map(str, getattr(feature, "names", None) or ()))


def _column(dataset: Any, name: str | None, what: str, usual: Sequence[str]) -> str:
    known = list(dataset.column_names)
    if name is None:
        name = next((one for one in usual if one in known), None)
    if name is None or name not in known:
        wrong = f"has no column {name!r}" if name is not None else f"has no column {' or '.join(usual)}"
        raise UsageError(f"the data set {wrong}: give {what}=, of its columns {', '.join(map(str, known))}")
    return name


def _usual(dataset: Any) -> list[str]:
    known = list(dataset.column_names)
    image = [name for name in _IMAGES if name in known]
    tokens = [name for name in _TOKENS if name in known]
    if not image and "input_ids" not in tokens:
        usual, of = f"{', '.join(_IMAGES)} or input_ids", ", ".join(map(str, known))
        raise UsageError(f"the data set has no column {usual}: give inputs=, of its columns {of}")
    return image[:1] or tokens


def _tensor(name: str, values: list[Any], padding: int | None, size: int | None) -> Tensor:
    """A column as one tensor; `padding` is what makes sequences equally long, None: nothing may."""
    if hasattr(values[0], "convert") and hasattr(values[0], "mode"):
        return _images(name, values, size)
    try:
        rows = [value if isinstance(value, Tensor) else torch.from_numpy(_numbers(value)) for value in values]
    except (TypeError, ValueError) as error:
        raise UsageError(f"the column {name!r} holds no numbers ({in_words(error)}): encode it first") from None
    if len({row.shape for row in rows}) == 1:
        return torch.stack(rows)
    if padding is not None and all(row.dim() == 1 for row in rows):
        return pad_sequence(rows, batch_first=True, padding_value=padding)
    lengths = sorted({tuple(row.shape) for row in rows})
    raise UsageError(
        f"the column {name!r} holds values of several shapes, {lengths[0]} and {lengths[1]}: pad or resize them first, "
        f"or give the attention mask with them"
    )


def _numbers(value: Any) -> Any:
    """An array that owns its memory, whole numbers as int64 and others as float32."""
    found = np.array(value)
    if found.dtype.kind not in "biuf":
        raise TypeError(f"a {type(value).__name__}")
    if found.dtype == np.uint8:
        return found
    return found.astype(np.float32 if found.dtype.kind == "f" else np.int64)


def _images(name: str, values: list[Any], size: int | None) -> Tensor:
    """PIL's images as uint8 (n, 1 or 3, h, w): grey if all of them are."""
    mode = "L" if all(image.mode in ("1", "L") for image in values) else "RGB"
    side = None if size is None else whole("size", size, least=1)
    arrays = []
    for image in values:
        image = image.convert(mode)
        array = np.array(image if side is None else image.resize((side, side), 2))  # bilinear
        arrays.append(array[None] if array.ndim == 2 else array.transpose(2, 0, 1))
    shapes = sorted({array.shape[1:] for array in arrays})
    if len(shapes) > 1:
        raise UsageError(f"the column {name!r} holds images of {len(shapes)} sizes: give size=, as size=64")
    return torch.from_numpy(np.stack(arrays))
