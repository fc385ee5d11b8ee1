"""Dense or sparse? The density at which both take equal time, measured once on each machine and kept in a file.

A training step of a sparse layer takes b + c * density seconds, that of a dense one d whatever the density; both
grow alike with the map, so d = b + c * density gives a crossover that a kind of layer has on a machine. Layers are
timed as they occur in a network: three in a row, with ReLU, convolutions with batch norm before it.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from gemminer.core.errors import GemminerError
from gemminer.core.files import atomic, read_json
from gemminer.sparse.training.fuse import fused
from gemminer.sparse.training.modules import SparseConv2d, SparseLinear

VERSION = 8
_BATCH, _IN_A_ROW = 64, 3
_REPEATS, _SECONDS = (9, 25), 1.5  # the least and most turns; after these seconds no more than the least
_DENSITIES = (0.02, 0.3)
# A sparse layer is chosen if it takes at most this share of the dense time. A layer left dense by mistake loses only
# the rest; one made sparse by mistake, in another network or on a busier machine than measured, may lose any amount.
_SURE = 0.85
# The layers timed: kind -> (module, shape of an example); each stands for layers with a similar number of channels.
_PROBES: dict[str, tuple[Callable[[], nn.Conv2d | nn.Linear], tuple[int, ...]]] = {
    "conv 16": (lambda: nn.Conv2d(16, 16, 3, padding=1, bias=False), (16, 32, 32)),
    "conv 64": (lambda: nn.Conv2d(64, 64, 3, padding=1, bias=False), (64, 8, 8)),
    "conv 256": (lambda: nn.Conv2d(256, 256, 3, padding=1, bias=False), (256, 4, 4)),
    "point": (lambda: nn.Conv2d(64, 64, 1, bias=False), (64, 16, 16)),
    "linear 512": (lambda: nn.Linear(512, 512, bias=False), (512,)),
    "linear 2048": (lambda: nn.Linear(2048, 2048, bias=False), (2048,)),
}


def of_layer(layer: nn.Module, precision: str = "fp32") -> float:
    """The density below which a convolution or linear layer trains faster sparse than dense on this machine."""
    return crossovers(torch.get_num_threads(), precision)[_kind(layer)]


def _kind(layer: nn.Module) -> str:
    if isinstance(layer, nn.Linear):
        side = layer.weight.numel() ** 0.5
        return "linear 512" if side < 1024 else "linear 2048"
    assert isinstance(layer, nn.Conv2d)
    if layer.kernel_size == (1, 1):
        return "point"
    channels = (layer.in_channels * layer.out_channels) ** 0.5 / layer.groups
    return "conv 16" if channels < 32 else "conv 64" if channels < 128 else "conv 256"


@functools.cache
def crossovers(threads: int, precision: str = "fp32") -> dict[str, float]:
    """The density below which each kind of layer is faster sparse: from this machine's file, or measured now.

    Measuring takes some ten seconds; the file is written atomically, one for each machine, number of threads, PyTorch
    and precision ("bf16": both are timed under autocast), in the user's cache folder. Delete it to measure again. If
    several processes measure at the same time, all use the file of the first to finish, so that they choose alike.
    """
    path = _path(threads, precision)
    if (known := _read(path)) is not None:
        return known
    found = {kind: _crossover(kind, precision) for kind in _PROBES}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if (known := _read(path)) is not None:
            return known
        with atomic(path) as temporary:
            Path(temporary).write_text(json.dumps(found))
    except (OSError, GemminerError):
        pass  # if the home cannot be written, each process measures anew
    return found


def _read(path: Path) -> dict[str, float] | None:
    """A machine's crossovers; None where there are none yet, or damaged ones."""
    try:
        known = {str(kind): float(density) for kind, density in read_json(path.read_text()).items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return None
    return known if known.keys() >= _PROBES.keys() else None


def _path(threads: int, precision: str) -> Path:
    facts: list[Any] = [VERSION, platform.machine(), platform.processor(), torch.backends.cpu.get_cpu_capability()]
    facts += [os.cpu_count(), threads, torch.__version__, precision]
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "gemminer" / f"crossover-{hashlib.sha256(repr(facts).encode()).hexdigest()[:16]}.json"


def _crossover(kind: str, precision: str) -> float:
    """The density at which the line through two densities' times meets `_SURE` times the dense time."""
    nets = [_stack(kind, None), *(fused(_stack(kind, density)) for density in _DENSITIES)]
    steps = [_step(net, kind, precision, dense=net is nets[0]) for net in nets]
    for step in steps * 3:
        step()  # compiles, fills buffers
    times: list[list[float]] = []  # in turns, so that a disturbance affects all
    while len(times) < _REPEATS[0] or (len(times) < _REPEATS[1] and sum(map(sum, times)) < _SECONDS):
        times.append([_time(step) for step in steps])
    # Medians of times relative to the dense one of the same turn: single times on a shared machine differ by half.
    few, many = (statistics.median(run[i] / run[0] for run in times) for i in (1, 2))
    if few >= _SURE:
        return 0.0
    slope = max(many - few, 0.05 * few) / (_DENSITIES[1] - _DENSITIES[0])
    return min(1.0, _DENSITIES[0] + (_SURE - few) / slope)


def _stack(kind: str, density: float | None) -> nn.Sequential:
    parts: list[nn.Module] = []
    with torch.random.fork_rng(devices=[]):
        for _ in range(_IN_A_ROW):
            layer = _PROBES[kind][0]()
            part: nn.Module = layer
            if density is not None:
                mask = torch.zeros(layer.weight.shape, dtype=torch.bool)
                places = torch.arange(round(density * mask.numel())) / density
                mask.view(-1)[places.long()] = True
                part = (
                    SparseLinear(layer, mask)
                    if isinstance(layer, nn.Linear)
                    else SparseConv2d(layer, mask, padding=(layer.kernel_size[0] // 2, layer.kernel_size[1] // 2))
                )
            conv = isinstance(layer, nn.Conv2d)
            parts += [part, nn.BatchNorm2d(layer.weight.shape[0]), nn.ReLU()] if conv else [part, nn.ReLU()]
    return nn.Sequential(*parts)


def _step(net: nn.Module, kind: str, precision: str, *, dense: bool) -> Callable[[], None]:
    """A call of a forward and backward pass; dense layers in channels-last, PyTorch's fastest layout on a CPU."""
    x = torch.randn(_BATCH, *_PROBES[kind][1], generator=torch.Generator().manual_seed(0))
    if dense and x.dim() == 4:
        x = x.contiguous(memory_format=torch.channels_last)
        for parameter in net.parameters():
            if parameter.dim() == 4:
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    x.requires_grad_()

    def step() -> None:
        with torch.enable_grad():
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
                y = net(x)
            y.float().sum().backward()

    return step


def _time(step: Callable[[], None]) -> float:
    begun = time.perf_counter()
    step()
    return time.perf_counter() - begun
