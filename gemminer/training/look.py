"""A look at a task's first batch, before anything is trained: what the loss and the metric return."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from gemminer.core.errors import GemminerError, cause
from gemminer.core.model_state import borrowed
from gemminer.core.randomness import private_randomness
from gemminer.training.feed import reason
from gemminer.training.losses import Metric, NegativeLoss, accuracy, check_targets, metric_for, metric_name, one_shape
from gemminer.training.task import Task


def with_metric(task: Task, metric: Metric | None, *, measured: bool) -> Task:
    """The task with its metric, after its loss and metric have been tried on the first batch of a borrowed model.

    Args:
        metric: the user's; None for accuracy where the loss is cross-entropy of class indices, else minus the loss.
        measured: whether anything is to be measured, so that the metric must work.

    Raises:
        UsageError: what the loss or the metric returns is no number; it says what to return.
        GemminerError: the loss or the metric does not fit the model and data, or there is no batch.
    """
    inputs, targets = task.first_batch()
    own, name = metric_for(task.step or task.loss, targets)
    if metric is None or (metric is accuracy and name == "accuracy"):  # ours leaves out the labels the loss leaves out
        metric = own
    else:
        name = metric_name(metric)
    task = dataclasses.replace(task, metric=metric, metric_name=name)
    with borrowed(task.model), private_randomness():
        with torch.enable_grad():
            task.train_mode()
            try:
                output = task.forward(inputs)
            except Exception as error:  # whatever a user's model raises where gradients are recorded
                raise GemminerError(f"the model fails in a training step: {reason(error)}") from cause(error)
            check_targets(task.loss, output, targets)
            _say_broadcast(task, "loss", output, targets, lambda given: task.loss_between(output, given))
        if measured:
            with torch.no_grad():
                task.model.eval()
                _say_broadcast(task, "metric", output, targets, lambda given: task.metric_of(inputs, given))
    return task


def _say_broadcast(task: Task, what: str, output: Any, targets: Any, measure: Callable[[Any], Tensor]) -> None:
    """Try what measures targets, and say so where it sets each output against every target, as broadcasting does.

    It does where its value is another once the targets have the output's shape.
    """
    value = measure(targets)
    if (how := one_shape(output, targets)) is None or (isinstance(task.metric, NegativeLoss) and what == "metric"):
        return
    try:
        same = measure(targets.reshape(output.shape))
    except GemminerError:  # it takes these shapes alone
        return
    if not torch.allclose(value.double().mean(), same.double().mean()):
        task.note(
            f"warning: the {what} broadcasts outputs of shape {tuple(output.shape)} and targets of shape "
            f"{tuple(targets.shape)}, so that each output is measured against every target: give {how}"
        )
