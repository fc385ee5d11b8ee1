"""Numbers of bfloat16 as the kernels read and write them: PyTorch's rounding, whatever the number."""

from __future__ import annotations

import numba
import numpy as np
import pytest
import torch

from gemminer.sparse.training import vectors
from gemminer.sparse.training.kernels import _move
from gemminer.sparse.training.patterns import Array


@numba.njit
def _by_number(source: Array, out: Array) -> None:
    for i in range(source.size):
        vectors.put(out, i, vectors.get(source, i))


@numba.njit
def _by_vector(source: Array, out: Array) -> None:
    _move(source, np.int64(0), out, np.int64(0), source.size)


def _numbers() -> Array:
    """Of every exponent and sign: places, what lies between them, ties, subnormal ones, infinity and NaN."""
    upper = np.arange(1 << 16, dtype=np.uint32) << 16
    lower = np.array([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF], dtype=np.uint32)
    return (upper[:, None] | lower).reshape(-1).view(np.float32)


@pytest.mark.parametrize("copy", [_by_number, _by_vector])
def test_rounding_is_pytorchs(copy: object) -> None:
    assert callable(copy)
    numbers = _numbers()
    bits, back = np.empty(numbers.size, np.uint16), np.empty(numbers.size, np.float32)
    copy(numbers, bits)
    theirs = torch.from_numpy(numbers).bfloat16()
    ours = torch.from_numpy(bits).view(torch.bfloat16)
    nan = theirs.isnan()
    assert ours.isnan().equal(nan)
    assert ours[~nan].view(torch.int16).equal(theirs[~nan].view(torch.int16))
    copy(bits, back)
    assert torch.from_numpy(back)[~nan].equal(ours.float()[~nan])
    same = np.empty_like(bits)
    copy(bits, same)
    assert (same == bits).all()


@numba.njit
def _turned(source: Array, out: Array, rows: int, columns: int) -> None:
    vectors.turn(source, 1, columns, out, 2, rows)


@pytest.mark.parametrize("kind", [np.float64, np.float32, np.uint16])
@pytest.mark.parametrize("becomes", [np.float64, np.float32, np.uint16])
def test_a_square_is_transposed(kind: type, becomes: type) -> None:
    if np.float64 in (kind, becomes) and kind is not becomes:
        pytest.skip("maps of double precision are of one type")
    side = vectors.VECTOR_BYTES // max(np.dtype(kind).itemsize, np.dtype(becomes).itemsize)
    rows, columns = side + 3, side + 5
    numbers = np.arange(rows * columns + 1) % 200  # whole numbers that bfloat16 holds
    source, out = _as(numbers, kind), np.zeros(2 + rows * columns, becomes)
    _turned(source, out, rows, columns)
    square = numbers[1:].reshape(rows, columns)[:side, :side]
    given = _floats(out)[2:].reshape(columns, rows)
    assert (given[:side, :side] == square.T).all()
    assert np.count_nonzero(given) == np.count_nonzero(square)  # nothing is written beside it


def _as(numbers: Array, kind: type) -> Array:
    if kind is np.uint16:
        return torch.from_numpy(numbers).bfloat16().view(torch.uint16).numpy()
    return numbers.astype(kind)


def _floats(numbers: Array) -> Array:
    if numbers.dtype == np.uint16:
        return torch.from_numpy(numbers).view(torch.bfloat16).double().numpy()
    return numbers
