"""Several batches to one optimiser step: their gradients are added up to that of all their examples together."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from gemminer.data import examples_in
from gemminer.training.losses import ignored_label
from gemminer.training.task import Task

Batch = tuple[Any, Any]  # inputs, targets


def grouped(batches: Iterable[Batch], count: int) -> Iterator[list[Batch]]:
    """The batches of each step: `count` at a time; an epoch's last step has those that are left.

    >>> [len(group) for group in grouped([(0, 0)] * 5, 2)]
    [2, 2, 1]
    """
    rest = iter(batches)
    while group := list(itertools.islice(rest, count)):
        yield group


def shares(task: Task, group: Sequence[Batch]) -> tuple[list[Any], Any]:
    """The part of each batch in a step's loss, n_i / sum(n), and sum(n): n_i the terms of which its loss is the mean.

    Those are the labels that cross-entropy does not ignore, and the examples for every other loss.
    """
    if len(group) == 1 and task.ranks is None:
        return [1.0], 1
    counts = [_terms(task, *batch) for batch in group]
    total = sum(counts)
    some = total.clamp(min=1) if isinstance(total, Tensor) else total  # on its device: nothing waits for it
    return [count / some for count in counts], total


def _terms(task: Task, inputs: Any, targets: Any) -> Any:
    ignored = ignored_label(task.loss)
    if ignored is None or not isinstance(targets, Tensor) or targets.is_floating_point():
        return examples_in(inputs, targets)
    return (targets != ignored).sum()


def step_loss(task: Task, group: Sequence[Batch | None], *, backward: bool = False) -> Tensor:
    """The loss of a step's batches, the mean over all that they hold on all ranks, detached.

        L = sum_i n_i / sum(n) * L_i

    It equals the loss of the joined batch where that is a mean over `n_i` terms, and each example is computed alone:
    batch norm, dropout and a user's loss over pairs see one batch at a time.

    Args:
        group: the batches; None where this rank has none.
        backward: add its gradient to that of the parameters, batch by batch, so that one batch's activations are held.
    """
    own = [batch for batch in group if batch is not None]
    parts, terms = shares(task, own)
    total = torch.zeros((), device=task.device)
    for batch, part in zip(own, parts, strict=True):
        loss = task.loss_of(*batch)
        loss = loss if len(own) == 1 else loss * part
        if backward:
            loss.backward()
        total = loss.detach() if len(own) == 1 else total + loss.detach()
    if task.ranks is None:
        return total
    return task.ranks.mean(total, terms, task.model.parameters() if backward else ())
