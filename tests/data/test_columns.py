"""Data sets by the names of their columns: a stand-in for Hugging Face's, and theirs where it is installed."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch

import gemminer
from gemminer.core.errors import UsageError
from gemminer.data import from_columns, load
from gemminer.data.columns import Columns

NAMES = ["cat", "dog"]


class Table:
    """What is used of a `datasets.Dataset`: 265 MB are installed with it, so the suite has this in its place."""

    def __init__(self, columns: dict[str, list[Any]], names: list[str] | None = None) -> None:
        self.columns = columns
        self.column_names = list(columns)
        self.features = {name: SimpleNamespace(names=names if name == "label" else None) for name in columns}

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def __iter__(self) -> Any:
        return (self[i] for i in range(len(self)))

    def __getitem__(self, key: Any) -> Any:
        return self.columns[key] if isinstance(key, str) else {name: c[key] for name, c in self.columns.items()}


def theirs(columns: dict[str, list[Any]], names: list[str] | None = None) -> Any:
    datasets = pytest.importorskip("datasets")
    made = datasets.Dataset.from_dict(columns)
    return made.cast_column("label", datasets.ClassLabel(names=names)) if names else made


@pytest.fixture(params=[Table, theirs])
def table(request: pytest.FixtureRequest) -> Callable[..., Any]:
    made: Callable[..., Any] = request.param
    return made


def images(count: int, mode: str = "RGB", side: int = 6) -> list[PIL.Image.Image]:
    shape = (side, side + 1, 3) if mode == "RGB" else (side, side + 1)
    return [PIL.Image.fromarray(np.full(shape, 10 * i, np.uint8), mode) for i in range(count)]


@pytest.mark.filterwarnings("ignore:'mode' parameter is deprecated:DeprecationWarning")
def test_images_are_a_pair_of_tensors(table: Callable[..., Any]) -> None:
    found, labels = from_columns(table({"image": images(4), "label": [0, 1, 0, 1]}, NAMES))
    assert (found.shape, found.dtype) == ((4, 3, 6, 7), torch.uint8)
    assert found[3].unique().tolist() == [30]
    assert labels.tolist() == [0, 1, 0, 1]
    grey, _ = from_columns(table({"img": images(2, "L"), "label": [0, 1]}), size=5)
    assert grey.shape == (2, 1, 5, 5)
    mixed, _ = from_columns(table({"img": images(2, "L") + images(1), "label": [0, 1, 1]}))
    assert mixed.shape == (3, 3, 6, 7)


def test_tokens_are_dictionaries_padded_where_the_mask_is_zero(table: Callable[..., Any]) -> None:
    columns = {"text": ["a", "b"], "input_ids": [[5, 6, 7], [8]], "attention_mask": [[1, 1, 1], [1]], "label": [1, 0]}
    found = from_columns(table(columns, NAMES))
    assert isinstance(found, Columns)
    assert (len(found), found.classes) == (2, ("cat", "dog"))
    inputs, label = found[1]
    assert {name: t.tolist() for name, t in inputs.items()} == {"input_ids": [8, 0, 0], "attention_mask": [1, 0, 0]}
    assert int(label) == 0
    tokens = from_columns(
        table({"input_ids": [[5, 6], [8]], "attention_mask": [[1, 1], [1]], "tags": [[1, 2], [3]]}), labels="tags"
    )
    assert tokens.targets.tolist() == [[1, 2], [3, -100]]
    ids, labels = from_columns(table({"input_ids": [[5, 6], [8, 9]], "label": [1, 0]}))
    assert (ids.tolist(), labels.tolist()) == ([[5, 6], [8, 9]], [1, 0])


def test_columns_of_numbers(table: Callable[..., Any]) -> None:
    data = table({"features": [[1.0, 2.0], [3.0, 4.0]], "price": [0.5, 1.5]})
    values, prices = from_columns(data, inputs="features", labels="price")
    assert (values.dtype, prices.dtype) == (torch.float32, torch.float32)
    assert values.tolist() == [[1, 2], [3, 4]]
    several = from_columns(table({"a": [1.0, 2.0], "b": [[1], [2]], "label": [0, 1]}), inputs=["a", "b"])
    assert several[1][0]["b"].tolist() == [2]


RAGGED = {"input_ids": [[1, 2], [3]], "label": [0, 1]}


@pytest.mark.filterwarnings("ignore:'mode' parameter is deprecated:DeprecationWarning")
@pytest.mark.parametrize(
    ("data", "how", "says"),
    [
        (
            Table({"image": images(1), "fine": [1]}),
            {},
            "no column label or labels: give labels=, .* image, fine",
        ),
        (Table({"photo": [1], "label": [1]}), {}, "no column image, img, pixel_values or input_ids: give inputs="),
        (Table(RAGGED), {"inputs": "ids"}, "has no column 'ids': give inputs="),
        (Table(RAGGED), {}, r"several shapes, \(1,\) and \(2,\): pad or resize them first"),
        (Table({"input_ids": ["a", "b"], "label": [0, 1]}), {}, "'input_ids' holds no numbers"),
        (Table({"image": [*images(1), *images(1, side=4)], "label": [0, 1]}), {}, "images of 2 sizes: give size="),
        (Table({"image": [], "label": []}), {}, "the data set is empty"),
        (Table({"image": images(1), "label": [0]}), {"size": 0}, "size must be a whole number of at least 1"),
        ({"train": Table(RAGGED)}, {}, "several splits: pass one of them"),
        ([1], {}, "takes a datasets.Dataset with a length, not a list"),
    ],
)
def test_what_cannot_be_is_one_sentence(data: Any, how: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says) as error:
        from_columns(data, **how)
    assert "\n" not in str(error.value)


@pytest.mark.filterwarnings("ignore:'mode' parameter is deprecated:DeprecationWarning")
def test_a_function_may_return_splits_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures = {"image": images(20), "label": [0, 1] * 10}
    tokens = {"input_ids": [[i, 1] for i in range(20)], "attention_mask": [[1, 1]] * 20, "label": [0, 1] * 10}
    splits = {"train": Table(pictures, NAMES), "test": Table(pictures, NAMES)}
    module = SimpleNamespace(
        splits=lambda: splits,
        held=lambda: {**splits, "validation": Table({"image": images(4), "label": [0, 1] * 2}, NAMES)},
        pair=lambda: (Table(tokens, NAMES), Table(tokens, NAMES)),
    )
    monkeypatch.setitem(sys.modules, "hugging", module)
    found = load("hugging:splits", validation=0.2, augment="flip")
    assert (found.classes, found.class_names, found.in_channels, found.image_size) == (2, ("cat", "dog"), 3, 7)
    assert found.mean[0] > 0, "images are normalised"
    assert found.train.examples == 16
    held = load("hugging:held").validation
    assert held is not None
    assert held.examples == 4
    text = load("hugging:pair", validation=0.2)
    assert (text.classes, text.train.examples) == (2, 16)
    inputs, targets = next(text.train.epoch(0))
    assert sorted(inputs) == ["attention_mask", "input_ids"]
    assert (inputs["input_ids"].shape, targets.shape) == ((16, 2), (16,))


def test_a_model_takes_the_columns_by_name(table: Callable[..., Any]) -> None:
    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.last = torch.nn.Embedding(8, 4), torch.nn.Linear(4, 2)

        def forward(self, input_ids: Any, attention_mask: Any) -> Any:
            return self.last((self.table(input_ids) * attention_mask[..., None]).sum(1))

    rows = {"input_ids": [[i % 8] * (1 + i % 3) for i in range(32)], "label": [i % 2 for i in range(32)]}
    data = from_columns(table({**rows, "attention_mask": [[1] * (1 + i % 3) for i in range(32)]}, NAMES))
    with torch.random.fork_rng():
        net = Net()
    ticket = gemminer.mine(net, data, density=0.5, epochs=1, batch_size=8)
    assert ticket.kept == 4
