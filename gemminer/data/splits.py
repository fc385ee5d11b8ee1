"""Splits that never vary: training, validation and test parts that hold the classes in proportion."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from gemminer.core.errors import UsageError

SPLIT_SEED = 2022  # of every fixed split; changing it changes every result ever recorded
TEST_FRACTION = 0.2  # of data sets that come without a test set


def stratified_order(labels: Tensor) -> Tensor:
    """A fixed shuffle of range(n), every prefix and suffix of which holds the classes in proportion.

    Example number r (of n_c, shuffled) of class c stands at (r + 1/2) / n_c on a line from 0 to 1, so a part
    of m examples has m * n_c / n of class c, give or take one. Labels that are no class numbers (regression,
    token sequences) are shuffled as one class. NumPy's RandomState has a frozen stream (NEP 19), so the split
    is the same in every release.

    >>> labels = torch.tensor([7, 7, 7, 7, 9, 9])
    >>> labels[stratified_order(labels)[:3]].sort().values.tolist()
    [7, 7, 9]
    """
    count = len(labels)
    shuffled = np.random.RandomState(SPLIT_SEED).permutation(count)
    is_class = labels.dim() == 1 and not labels.is_floating_point()
    values = labels.cpu().numpy()[shuffled] if is_class else np.zeros(count, np.int64)
    _, classes, sizes = np.unique(values, return_inverse=True, return_counts=True)
    rank = np.empty(count)
    rank[np.argsort(classes, kind="stable")] = np.arange(count) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return torch.from_numpy(shuffled[np.argsort((rank + 0.5) / sizes[classes], kind="stable")])


def split(labels: Tensor, fraction: float) -> tuple[Tensor, Tensor]:
    """Indices (kept, held out): the last ceil(fraction * n) of the fixed stratified order are held out.

    Both are in ascending order. Raises UsageError where either would be empty and `fraction` is not 0.
    """
    held = math.ceil(fraction * len(labels) - 1e-9)  # 0.1 * 30 is 3 even where floating point says 3.0000000004
    if fraction > 0 and held >= len(labels):
        raise UsageError(f"{len(labels)} training examples are too few to hold out {fraction:g} of them")
    order = stratified_order(labels)
    cut = len(labels) - held
    return order[:cut].sort().values, order[cut:].sort().values
