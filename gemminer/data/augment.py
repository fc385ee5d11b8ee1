"""Random crops and mirror images of training batches."""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch
from torch import Tensor

from gemminer.core.errors import UsageError


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
            offsets = torch.randint(2 * self.crop + 1, (2, count), generator=generator)
            offsets = offsets.to(images.device, non_blocking=True)
            windows = padded.unfold(2, height, 1).unfold(3, width, 1)  # a view (n, c, offset, offset, h, w)
            images = windows[torch.arange(count, device=images.device), :, offsets[0], offsets[1]]
        if self.flip:
            mirrored = torch.randint(2, (count, 1, 1, 1), generator=generator).bool()
            mirrored = mirrored.to(images.device, non_blocking=True)
            images = torch.where(mirrored, images.flip(3), images)
        return images


def augmentation(name: str | None) -> Augment | None:
    """The augmentation with this name: 'crop' with a number of pixels, 'flip', both joined by '+', or 'none'."""
    if name in (None, "none", ""):
        return None
    match = re.fullmatch(r"crop(\d+)(\+flip)?|flip", str(name))
    if not match:
        raise UsageError(f"unknown augmentation {name!r}: use none, flip, crop4, crop8+flip and the like")
    return Augment(int(match[1] or 0), flip=str(name).endswith("flip"))
