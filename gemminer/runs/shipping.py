"""What is shipped of a trained ticket: a compiled program, its size and its latency; ONNX; a smaller dense network.

A format is a row of `FORMATS`: its file's name, and a function that writes it or raises UsageError with the reason why
it cannot. The ticket and the trained weights are there already.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from gemminer.core.copies import duplicate
from gemminer.core.errors import UsageError
from gemminer.core.layers import Shortened
from gemminer.core.model_state import borrowed, named_state
from gemminer.core.ticket import Ticket
from gemminer.data import label_of
from gemminer.export import Exported, onnx, pt2
from gemminer.training.feed import mapped
from gemminer.training.task import Task

if TYPE_CHECKING:
    from gemminer import sparse

ROUNDS = 31  # calls that a latency is the median of
WARM = 3


def place(task: Task, weights: Mapping[str, Tensor]) -> None:
    """Put these values into the task's model, which is borrowed."""
    with torch.no_grad():
        for name, tensor in named_state(task.model).items():
            tensor.copy_(weights[name])


def compiled(task: Task, weights: Mapping[str, Tensor], removed: Sequence[str] = ()) -> sparse.Program:
    """The program of the task's model with these weights, without the layers that are removed.

    Raises UsageError for a model it does not know.
    """
    from gemminer import sparse  # here, for Numba takes half a second

    with borrowed(task.model) as model:
        place(task, weights)
        with Shortened(model, removed):
            return sparse.compile(model, _example(task))


def latencies(task: Task, programs: Mapping[str, Path]) -> dict[str, float]:
    """The seconds that one example takes in each of these programs, by name, and in PyTorch's dense network, "dense".

    Medians of calls in turn, on as many threads as PyTorch has: what disturbs one disturbs all.
    """
    from gemminer import sparse

    net, example = duplicate(task.model).to("cpu", torch.float32).eval(), _example(task)
    loaded = {name: sparse.Program.load(path) for name, path in programs.items()}
    calls: dict[str, Callable[[Tensor], object]] = {**loaded, "dense": net}
    times: dict[str, list[float]] = {name: [] for name in calls}
    with torch.inference_mode():
        for number in range(WARM + ROUNDS):
            for name, call in calls.items():
                begun = time.perf_counter()
                call(example)
                if number >= WARM:
                    times[name].append(time.perf_counter() - begun)
    return {name: statistics.median(values) for name, values in times.items()}


def _example(task: Task) -> Tensor:
    """One example as a program takes it."""
    inputs, _ = task.first_batch()
    if not isinstance(inputs, Tensor):
        raise UsageError("a program takes one tensor of inputs, and this model takes more")
    return inputs[:1].detach().to("cpu", torch.float32)


def example_of(task: Task) -> Any:
    """Inputs as the model takes them, by place or by name, without labels."""
    inputs, _ = task.first_batch()
    given, feed = task.feed.taken(inputs), task.feed
    if feed.own_loss and (label := label_of(given)) is not None:
        given = {name: part for name, part in given.items() if name != label}
    given = mapped(lambda x: feed.typed(x, task.dtype).to("cpu"), given)
    return given if feed.unpacked else (given,)


def _program(task: Task, weights: Mapping[str, Tensor], ticket: Ticket, path: Path) -> Exported:
    compiled(task, weights, ticket.fitted(task.model).removed).save(path)
    return Exported(path, path.stat().st_size, None, "gemminer.sparse.Program.load runs it")


def _onnx(task: Task, weights: Mapping[str, Tensor], ticket: Ticket, path: Path, **how: Any) -> Exported:
    with borrowed(task.model) as model:
        place(task, weights)
        return onnx(model, path, example_of(task), ticket, **how)


def _compact(task: Task, weights: Mapping[str, Tensor], ticket: Ticket, path: Path, **how: Any) -> Exported:
    with borrowed(task.model) as model:
        place(task, weights)
        return pt2(model, path, example_of(task), ticket, **how)


# What is written beside ticket.safetensors and trained.safetensors, by its file's name.
FORMATS: dict[str, Callable[..., Exported]] = {
    "program.safetensors": _program,
    "model.onnx": _onnx,
    "compact.pt2": _compact,
}
