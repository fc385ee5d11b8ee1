"""Augmentations: crops and flips pixel by pixel, and their names."""

from __future__ import annotations

import pytest
import torch

from gemminer.core.errors import UsageError
from gemminer.data import Augment, augmentation
from tests.data.helpers import numbers


def test_each_cropped_image_is_a_shifted_copy_with_its_own_offset() -> None:
    pad, size, count = 2, 6, 64
    images = torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(1)) + 1
    found = Augment(crop=pad, flip=True)(images, torch.Generator().manual_seed(2))
    changes = set()
    for image, result in zip(images, found, strict=True):
        padded = torch.zeros(3, size + 2 * pad, size + 2 * pad)
        padded[:, pad:-pad, pad:-pad] = image
        matches = [
            (row, column, mirrored)
            for row in range(2 * pad + 1)
            for column in range(2 * pad + 1)
            for mirrored in (False, True)
            if torch.equal(result.flip(2) if mirrored else result, padded[:, row : row + size, column : column + size])
        ]
        assert len(matches) == 1
        changes.add(matches[0])
    rows, columns, mirrored = (set(part) for part in zip(*changes, strict=True))
    assert rows == columns == set(range(2 * pad + 1))
    assert mirrored == {False, True}
    assert len(changes) > 25  # of 50: rows, columns and mirrors are drawn apart
    assert torch.equal(found, Augment(crop=pad, flip=True)(images, torch.Generator().manual_seed(2)))


def test_flip_mirrors_about_half_and_crop_alone_mirrors_none() -> None:
    images = torch.arange(4.0).expand(1000, 1, 4, 4)
    flipped = Augment(flip=True)(images, torch.Generator().manual_seed(0))
    assert 430 < int((flipped[:, 0, 0, 0] == 3).sum()) < 570
    cropped = Augment(crop=1)(images + 1, torch.Generator().manual_seed(0))
    inner = cropped[:, 0, 1:3, 1:3]
    assert bool((inner[..., 1] > inner[..., 0]).all())


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("crop4+flip", Augment(4, True)),
        ("crop2", Augment(2, False)),
        ("flip", Augment(0, True)),
        ("none", None),
        (None, None),
    ],
)
def test_augmentations_by_name(name: str | None, expected: Augment | None) -> None:
    assert augmentation(name) == expected


@pytest.mark.parametrize("name", ["crop", "flip+crop4", "crop4+", "+flip", "crop-1", "cutout", "crop4+flip+x"])
def test_unknown_augmentations_are_refused(name: str) -> None:
    with pytest.raises(UsageError, match="unknown augmentation"):
        augmentation(name)


def test_augmentation_needs_images() -> None:
    with pytest.raises(UsageError, match=r"need images .* not inputs of \(5,\)"):
        numbers(5, augment=Augment(1))
