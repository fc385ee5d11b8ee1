"""When a weighted sum of channels is a constant, and what it reads: the rule by which units are found to be dead.

`structure` asks it of a model's layers (`gemminer.compact`), `sparse.compile` of the operations that it made of them.
A sum's entries are a row (what it computes), a channel (what it reads) and a weight that is not zero, all (entries,).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


def foldable(constant: Array, inside: Array) -> Array:
    """(entries,): those that a bias can take in: of a constant channel that padding, which is zero, never stands for.

    Args:
        constant: (entries,) of the channel that each reads, NaN where it varies.
        inside: (entries,) whether it never reads padding.

    >>> foldable(np.array([np.nan, 2.0, 2.0, 0.0]), np.array([True, True, False, False]))
    array([False,  True, False,  True])
    """
    return np.asarray(~np.isnan(constant) & (inside | (constant == 0)))


def folded(bias: Array, row: Array, value: Array, constant: Array, fixed: Array) -> Array:
    """(rows,): the bias with the entries taken in that are `fixed`: bias + sum of value * constant."""
    bias = bias.copy()
    np.add.at(bias, row[fixed], value[fixed] * constant[fixed])
    return bias


def settled(bias: Array, row: Array) -> Array:
    """(rows,): the constant that a row comes to, its bias; NaN where one of the entries that are left is its.

    >>> settled(np.array([1.0, 2.0]), np.array([1, 1]))
    array([ 1., nan])
    """
    return np.where(np.bincount(row, minlength=len(bias)) > 0, np.nan, bias)


def read(row: Array, channel: Array, wanted: Array, channels: int) -> Array:
    """(channels,): those that the rows in `wanted`, (rows,), read; nothing else of them matters.

    >>> read(np.array([0, 1]), np.array([2, 0]), np.array([True, False]), 3)
    array([False, False,  True])
    """
    found = np.zeros(channels, np.bool_)
    found[channel[wanted[row]]] = True
    return found
