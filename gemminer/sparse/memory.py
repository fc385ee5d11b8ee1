"""A pool of reusable buffers: fresh memory costs a page fault every 4 KB, as much as a sparse layer's arithmetic."""

from __future__ import annotations

import contextlib
import math
import mmap
import threading
import weakref
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
ALIGNMENT = 64
# A large buffer lies on whole huge pages of this size, if there are any: a 512th of the address look-ups.
HUGE = 1 << 21


class _Loan(weakref.ref[Array]):
    """A weak reference to an array that is lent out, at a third of the cost of `weakref.finalize`."""

    __slots__ = ("array", "key")
    key: tuple[int, Any]
    array: Array


class BufferPool:
    """Lends arrays, and takes each back when nothing refers to it any more.

    Only the array lent counts: a view of it does not keep it out. A copy or an unpickled pool starts empty.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._free: dict[tuple[int, Any], list[Array]] = {}
        self._lent: dict[int, _Loan] = {}
        # callbacks run at any point, also while the lock is held: they only append, which is atomic
        self._returned: list[_Loan] = []

    def take(self, shape: tuple[int, ...], dtype: Any) -> Array:
        """An uninitialised array on a 64-byte boundary."""
        key = (math.prod(shape), dtype)
        with self._lock:
            while self._returned:
                back = self._returned.pop()
                del self._lent[id(back)]
                self._free.setdefault(back.key, []).append(back.array)
            free = self._free.get(key)
            array = free.pop() if free else _aligned(key[0], np.dtype(dtype))
            lent = array.reshape(shape)  # a new array object, whose deletion is noticed
            loan = _Loan(lent, self._returned.append)
            loan.key, loan.array = key, array
            self._lent[id(loan)] = loan
        return lent

    def __deepcopy__(self, memo: Any) -> BufferPool:
        return BufferPool()

    def __reduce__(self) -> tuple[type[BufferPool], tuple[()]]:
        return BufferPool, ()


def _aligned(size: int, dtype: np.dtype[Any]) -> Array:
    count = size * dtype.itemsize
    if count < HUGE or not hasattr(mmap, "MADV_HUGEPAGE"):
        raw = np.empty(count + ALIGNMENT, dtype=np.uint8)
        start = -raw.ctypes.data % ALIGNMENT
    else:  # Linux
        pages = mmap.mmap(-1, count + HUGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        raw = np.frombuffer(pages, dtype=np.uint8)
        start = -raw.ctypes.data % HUGE
        with contextlib.suppress(OSError):  # a kernel without huge pages
            pages.madvise(mmap.MADV_HUGEPAGE, start, count // HUGE * HUGE)
    return raw[start : start + count].view(dtype)
