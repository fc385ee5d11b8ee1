"""Threads that sleep until a kernel needs them.

Python's threads, because kernels run without the interpreter's lock: a launch costs some 15 microseconds. A pool of
OpenMP's would spin beside PyTorch's (6 milliseconds a launch where another process has a core), does not survive a
fork, and doubles the time to compile.
"""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch

_SOFT = 1  # omp_pause_soft: end the waiting threads, keep what OpenMP knows


def helpers(threads: int) -> ThreadPoolExecutor:
    """`threads` - 1 of them, at least one, beside the caller; a forked child starts its own.

    PyTorch's own threads are ended first. After each parallel operation they spin for up to five milliseconds
    waiting for the next, on the very cores a kernel is to run on: with two cores, a third of a ResNet-20 step. The
    next operation of PyTorch's starts them again, in some 50 microseconds; with none waiting the call takes one.
    """
    _pause()(_SOFT)
    return _helpers(os.getpid(), max(1, threads - 1))


@functools.cache
def _helpers(process: int, count: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(count, thread_name_prefix="gemminer-sparse")


@functools.cache
def _pause() -> Callable[[int], int]:
    """OpenMP 5's `omp_pause_resource_all` of the library PyTorch is linked to; nothing where it has none."""
    try:
        found: Callable[[int], int] = ctypes.CDLL(torch._C.__file__).omp_pause_resource_all
    except (OSError, AttributeError, TypeError):
        return lambda kind: 0
    return found
