"""Threads that sleep until a kernel needs them.

Python's threads, because kernels run without the interpreter's lock: a launch costs some 15 microseconds. A pool of
OpenMP's would spin beside PyTorch's (6 milliseconds a launch where another process has a core), does not survive a
fork, and doubles the time to compile.
"""

from __future__ import annotations

import functools
import os
from concurrent.futures import ThreadPoolExecutor


def helpers(threads: int) -> ThreadPoolExecutor:
    """`threads` - 1 of them, at least one, beside the caller; a forked child starts its own."""
    return _helpers(os.getpid(), max(1, threads - 1))


@functools.cache
def _helpers(process: int, count: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(count, thread_name_prefix="gemminer-sparse")
