"""Threads that sleep until a kernel needs them.

Python's threads, because kernels run without the interpreter's lock. A pool of OpenMP's would spin beside PyTorch's
(6 milliseconds a launch where another process has a core), does not survive a fork, and doubles the time to compile;
one of `concurrent.futures` takes fifty microseconds more a launch, of which a ResNet-20 step has fifty.
"""

from __future__ import annotations

import ctypes
import functools
import os
import threading
from collections.abc import Callable
from queue import SimpleQueue

import torch

from gemminer.core.errors import UsageError

_Task = tuple[Callable[[int], None], int, "SimpleQueue[BaseException | None]"]
MOST = 1024  # threads of a launch: each waits for the next one ever after
_SOFT = 1  # omp_pause_soft: end the waiting threads, keep what OpenMP knows


def require_compiler() -> None:
    """Raise UsageError where Numba compiles nothing: the kernels are machine code that Python cannot run."""
    if os.environ.get("NUMBA_DISABLE_JIT", "0") not in ("", "0"):
        raise UsageError("the sparse engine is compiled by Numba: unset NUMBA_DISABLE_JIT, or use engine dense")


def run_on_threads(work: Callable[[int], None], threads: int) -> None:
    """Run work(0), ..., work(threads - 1) at the same time, the first on the caller's thread; raises what one raises.

    PyTorch's own threads are ended first. After each parallel operation they spin for up to five milliseconds
    waiting for the next, on the very cores a kernel is to run on: with two cores, a third of a ResNet-20 step. The
    next operation of PyTorch's starts them again, in some 50 microseconds; with none waiting the call takes one.
    """
    if threads == 1:
        work(0)
        return
    _pause()(_SOFT)
    ended: SimpleQueue[BaseException | None] = SimpleQueue()
    for t in range(1, threads):
        _tasks(os.getpid(), t).put((work, t, ended))
    try:
        work(0)
    finally:
        errors = [ended.get() for _ in range(1, threads)]
    for error in errors:
        if error is not None:
            raise error


@functools.cache
def _tasks(process: int, number: int) -> SimpleQueue[_Task]:
    """The queue from which the thread of this number takes its work; a forked child starts threads of its own."""
    tasks: SimpleQueue[_Task] = SimpleQueue()
    threading.Thread(target=_serve, args=(tasks,), name=f"gemminer-sparse-{number}", daemon=True).start()
    return tasks


def _serve(tasks: SimpleQueue[_Task]) -> None:
    while True:
        work, number, ended = tasks.get()
        error: BaseException | None = None
        try:
            work(number)
        except BaseException as raised:  # the caller's thread raises it
            error = raised
        del work  # and the arrays it holds, which the caller's next launch may want from their pool
        ended.put(error)
        del ended, error


@functools.cache
def _pause() -> Callable[[int], int]:
    """OpenMP 5's `omp_pause_resource_all` of the library PyTorch is linked to; nothing where it has none."""
    try:
        found: Callable[[int], int] = ctypes.CDLL(torch._C.__file__).omp_pause_resource_all
    except (OSError, AttributeError, TypeError):
        return lambda kind: 0
    return found
