"""The metric of a network on data, and batch-norm statistics estimated anew."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gemminer.core.errors import GemminerError
from gemminer.core.model_state import has_statistics, modes
from gemminer.core.names import named_modules
from gemminer.data import Batches, examples_in
from gemminer.training.losses import ignored_label
from gemminer.training.task import Task


def mean_metric(task: Task, batches: Batches) -> float:
    """The mean metric over `batches` in evaluation mode; the model's modes are put back."""
    return measure(task, batches, by_class=False)[0]


@torch.no_grad()
def measure(task: Task, batches: Batches, *, by_class: bool = True) -> tuple[float, list[float | None] | None]:
    """The mean metric over `batches`, and over each class's examples, in one pass in evaluation mode.

    The second is None unless there is one class index and one value of the metric for each example; a class without
    examples is None in it. The model's modes are put back.
    """
    total, count = 0.0, 0
    seen: list[tuple[Tensor, Tensor]] | None = [] if by_class else None
    ignored = ignored_label(task.metric)
    with modes(task.model):
        task.model.eval()
        for inputs, targets in batches.epoch(0):
            placed = task.place_targets(targets)
            values = task.metric_of(inputs, targets)
            if values.numel() == 0:  # every label of the batch is ignored
                continue
            mean = values.dim() == 0 or (values.numel() == 1 and ignored is None)  # of the batch
            examples = examples_in(inputs, targets) if mean else values.numel()
            total += float(values.double().mean()) * examples
            count += examples
            if seen is not None:
                single = isinstance(placed, Tensor) and placed.dtype == torch.int64 and placed.dim() == 1
                if single and ignored is not None:
                    placed = placed[placed != ignored]
                if single and values.shape == placed.shape:
                    seen.append((placed, values))
                else:
                    seen = None
    if count == 0:
        raise GemminerError("there is nothing to evaluate on: the data set is empty, or no example has a label")
    return total / count, _by_class(seen) if seen else None


def _by_class(seen: list[tuple[Tensor, Tensor]]) -> list[float | None] | None:
    targets, values = (torch.cat(parts).cpu() for parts in zip(*seen, strict=True))
    if not 0 <= int(targets.min()) <= int(targets.max()) < 10_000:
        return None
    counts, sums = targets.bincount().tolist(), targets.bincount(values.double()).tolist()
    return [s / n if n else None for s, n in zip(sums, counts, strict=True)]


@torch.no_grad()
def recalibrate(task: Task, steps: int = 100) -> None:
    """Estimate batch-norm statistics anew, as plain averages over at most `steps` training batches.

    Statistics gathered by a dense network, or by the many networks a search passes through, are not the ticket's.
    Dropout stays off. Norms that their owner keeps in evaluation mode (`Task.held`) are left as they are.
    """
    held = set(task.held or ())
    norms = [m for name, m in named_modules(task.model) if has_statistics(m) and name not in held]
    if not norms:
        return
    momenta = [m.momentum for m in norms]
    with modes(task.model):
        task.model.eval()
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # a cumulative average
            norm.training = True
        try:
            for i, (inputs, _) in zip(range(steps), filter(None, task.train.epoch(0)), strict=False):
                for norm in norms:
                    if isinstance(norm, nn.modules.instancenorm._InstanceNorm):  # reads None as no update
                        norm.momentum = 1 / (i + 1)
                task.forward(inputs)
        finally:
            for norm, momentum in zip(norms, momenta, strict=True):
                norm.momentum = momentum
    if task.ranks is not None:
        task.ranks.take_over(buffer for norm in norms for buffer in norm.buffers())
