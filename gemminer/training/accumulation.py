"""Several batches to one optimiser step: their gradients are added up to that of all their examples together."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

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


def shares(task: Task, group: Sequence[Batch]) -> list[Any]:
    """The part of each batch in a step's loss: n_i / sum(n), n_i the terms of which its loss is the mean.

    Those are the labels that cross-entropy does not ignore, and the examples for every other loss.
    """
    if len(group) == 1:
        return [1.0]
    counts = [_terms(task, *batch) for batch in group]
    total = sum(counts)
    if isinstance(total, Tensor):  # on its device: nothing waits for it
        total = total.clamp(min=1)
    return [count / total for count in counts]


def _terms(task: Task, inputs: Any, targets: Any) -> Any:
    ignored = ignored_label(task.loss)
    if ignored is None or not isinstance(targets, Tensor) or targets.is_floating_point():
        return examples_in(inputs, targets)
    return (targets != ignored).sum()


def step_loss(task: Task, group: Sequence[Batch], *, backward: bool = False) -> Tensor:
    """The loss of a step's batches, the mean over all that they hold, detached.

        L = sum_i n_i / sum(n) * L_i

    It equals the loss of the joined batch where that is a mean over `n_i` terms, and each example is computed alone:
    batch norm, dropout and a user's loss over pairs see one batch at a time.

    Args:
        backward: add its gradient to that of the parameters, batch by batch, so that one batch's activations are held.
    """
    total: Tensor | None = None
    for batch, part in zip(group, shares(task, group), strict=True):
        loss = task.loss_of(*batch)
        loss = loss if len(group) == 1 else loss * part
        if backward:
            loss.backward()
        total = loss.detach() if total is None else total + loss.detach()
    assert total is not None
    return total
