"""`infer`: a compiled program against other engines, on one network with a realistic ticket's zeros."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from gemminer import sparse
from gemminer.bench import contestants, networks
from gemminer.bench.measure import OURS, Measurement, Setup, Times, against_each, alternate, fastest, require_equal

RUNS = 15
# Batches that give batch norm its statistics.
CALIBRATION = 8
EAGER, ORT, COMPILED, CSR = "PyTorch eager", "onnxruntime", "torch.compile", "scipy CSR"
LAYOUTS = ("NCHW", "channels-last")


def network(setup: Setup) -> nn.Module:
    """The network in eval mode with a realistic ticket's zeros and batch norms that have seen data."""
    model = networks.build(setup.model)
    networks.ticket_of(setup.model, model, setup.density).apply(model)
    images, _ = networks.images_of(setup.model, 16 * CALIBRATION)
    with torch.no_grad():
        for part in images.split(16):
            model(part)
    return model.eval()


def infer(setup: Setup) -> Iterator[Measurement]:
    """The program's time for a batch against each engine's, and against the fastest of eager and ONNX Runtime."""
    model = network(setup)
    images, _ = networks.images_of(setup.model, setup.batch)
    program = sparse.compile(model, images)
    calls, left_out = _others(setup, model, images)
    with torch.inference_mode():
        calls[OURS] = lambda: program(images)
        require_equal({name: call() for name, call in calls.items()}, f"{EAGER} {LAYOUTS[0]}")
        times = alternate(calls, runs=setup.runs or RUNS)
    layout, kept = _one_eager(times)
    yield from against_each("infer", setup, kept, (EAGER, ORT), {EAGER: layout}, left_out=left_out)


def _others(setup: Setup, model: nn.Module, images: Tensor) -> tuple[dict[str, Callable[[], Tensor]], dict[str, str]]:
    """Calls of the other engines, and the reason for each one that is left out."""
    layouts = LAYOUTS if networks.convolutional(model) else LAYOUTS[:1]
    calls = {
        f"{EAGER} {layout}": contestants.eager(model, images, channels_last=layout == LAYOUTS[1]) for layout in layouts
    }
    calls[CSR] = contestants.scipy_csr(model, images)
    left_out: dict[str, str] = {}
    try:
        calls[ORT] = contestants.onnxruntime(model, images)
    except ImportError:
        left_out[ORT] = contestants.MISSING
    if setup.compile is False:
        return calls, left_out
    try:
        calls[COMPILED] = contestants.torch_compile(model, images)
    except Exception as error:  # no compiler on this machine, an operation it does not know, ...
        left_out[COMPILED] = contestants.reason(error)
    return calls, left_out


def _one_eager(times: Times) -> tuple[str, Times]:
    """The faster layout's name, and the times with eager in that layout alone."""
    named = {f"{EAGER} {layout}": layout for layout in LAYOUTS}
    best = fastest(times, [name for name in named if name in times])
    return named[best], {EAGER: times[best]} | {name: t for name, t in times.items() if name not in named}
