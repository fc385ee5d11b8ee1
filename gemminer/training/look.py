"""A look at a task's first batch, before anything is trained: what the loss and the metric return."""

from __future__ import annotations

import dataclasses

import torch

from gemminer.core.errors import GemminerError, cause
from gemminer.core.model_state import borrowed
from gemminer.core.randomness import private_randomness
from gemminer.training.feed import reason
from gemminer.training.losses import Metric, accuracy, check_targets, metric_for, metric_name
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
            task.loss_between(output, targets)
        if measured:
            with torch.no_grad():
                task.model.eval()
                task.metric_of(inputs, targets)
    return task
