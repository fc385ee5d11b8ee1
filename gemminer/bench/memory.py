"""Peak memory of training steps, each network in a process of its own.

    memory = bytes of parameters and buffers + growth of the process's peak over three steps

The growth holds activations, gradients, the optimiser's state and what the kernels need. Before it is read, a twin of
the network has trained on a batch of two, so that libraries and compiled kernels are loaded already.
"""

from __future__ import annotations

import ctypes
import dataclasses
import gc
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from gemminer.bench import networks
from gemminer.bench.measure import Setup, versions
from gemminer.bench.steps import plain_step, sparse_net
from gemminer.core.copies import duplicate
from gemminer.core.errors import GemminerError

STEPS = 3
KINDS = ("dense NCHW", "dense channels-last", "ours")
_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")
# Freed memory goes back to the system at once, or steps would reuse memory that loading has left behind.
_ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1"}


@dataclass(frozen=True)
class Memory:
    """A line of a benchmark: `memory_ratio` = ours / the baseline's, below 1 is less; MiB for scale."""

    bench: str
    model: str
    density: float
    batch: int
    baseline: str
    memory_ratio: float
    device: str
    threads: int
    baseline_mib: float
    ours_mib: float
    left_out: Mapping[str, str] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=versions)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        return (
            f"{self.bench} {self.model}, density {self.density:g}, batch {self.batch}: {self.memory_ratio:.3f} of the "
            f"memory ({self.baseline} {self.baseline_mib:.1f} MiB, ours {self.ours_mib:.1f} MiB)"
        )


def compare(setup: Setup) -> Iterator[Memory]:
    """A line for each layout of dense training; none where the system does not report a process's peak."""
    if not _RESET.exists():
        return
    kinds = KINDS if networks.convolutional(networks.build(setup.model)) else (KINDS[0], KINDS[-1])
    *dense, ours = (measured(setup, kind) / 2**20 for kind in kinds)
    for kind, used in zip(kinds, dense, strict=False):
        name, threads = f"{kind}, peak memory", torch.get_num_threads()
        yield Memory("train", setup.model, setup.density, setup.batch, name, ours / used, "cpu", threads, used, ours)


def measured(setup: Setup, kind: str) -> float:
    """Bytes that training of this kind takes, from a fresh process."""
    given = json.dumps([asdict(setup), kind, torch.get_num_threads()])
    code = "import sys; from gemminer.bench.memory import child; child(sys.argv[1])"
    done = subprocess.run(
        [sys.executable, "-c", code, given], env=os.environ | _ALLOCATOR, capture_output=True, text=True, check=False
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise GemminerError(f"measuring the memory of {setup.model} ({kind}) failed: {last}")
    return float(done.stdout.splitlines()[-1])


def child(given: str) -> None:
    """The program of the fresh process, which prints bytes."""
    fields, kind, threads = json.loads(given)
    torch.set_num_threads(threads)
    print(of_steps(Setup(**fields), kind))


def of_steps(setup: Setup, kind: str) -> int:
    """Bytes that training takes in this process: parameters, buffers, and what the steps add to its peak."""
    model = networks.build(setup.model)
    net = sparse_net(setup.model, model, setup.density) if kind == "ours" else model
    twin = duplicate(net)
    last = kind == KINDS[1]
    _repeat(plain_step(twin, dataclasses.replace(setup, batch=2), channels_last=last))
    run = plain_step(net, setup, channels_last=last)
    del model, twin
    _give_back()
    _RESET.write_text("5")  # the peak starts again from what is held now: man 5 proc
    before = _peak()
    _repeat(run)
    held = sum(t.numel() * t.element_size() for t in (*net.parameters(), *net.buffers()))
    return held + _peak() - before


def _give_back() -> None:
    """Give free memory back to the system, so that steps do not reuse the twin's."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's
    if trim is not None:
        trim(0)


def _repeat(run: Callable[[], object]) -> None:
    for _ in range(STEPS):
        run()


def _peak() -> int:
    """The process's largest resident set since the last reset, in bytes."""
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith("VmHWM"))
    return 1024 * int(line.split()[1])
