"""How easy each training example is: scores from networks that are trained a few epochs.

Sources: EL2N is of Paul et al., "Deep Learning on a Data Diet", NeurIPS 2021; forgetting of Toneva et al., ICLR 2019.
Low is easy. Scores of networks at initialisation follow the norm of the input and do not reproduce (Kirsch, 2023):
there must be an epoch before an example is scored.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from gemminer.core.errors import GemminerError, UsageError, unknown
from gemminer.core.model_state import gradients, modes
from gemminer.core.numbers import whole
from gemminer.core.randomness import mixed
from gemminer.data.picked import Picked, classes_of
from gemminer.training import rate
from gemminer.training.evaluate import recalibrate
from gemminer.training.loop import fit
from gemminer.training.losses import cross_entropy, ignored_label
from gemminer.training.rules import Dense
from gemminer.training.scores import Kind
from gemminer.training.settings import Settings
from gemminer.training.task import Task


def checked_kind(kind: str, runs: int, epochs: int) -> None:
    """Raise UsageError for a score that there is not, or that would be of untrained networks."""
    if kind not in get_args(Kind):
        raise unknown("kind of score", kind, get_args(Kind))
    whole("runs, the networks to score with,", runs, least=1)
    if whole("epochs before an example is scored", epochs, least=0) == 0:
        raise UsageError(
            "scores of untrained networks follow the norm of the input and do not reproduce: give epochs of 1 or more"
        )


def classes_for(task: Task, kind: str) -> Tensor | None:
    """The class of each training example, if the loss is cross-entropy of class numbers, a row of outputs for each.

    Raises UsageError where the score needs that and it is not so.
    """
    classes = classes_of(task.train) if task.step is None and ignored_label(task.loss) is not None else None
    if classes is not None:
        inputs, _ = task.first_batch()
        with modes(task.model), torch.no_grad():
            task.model.eval()
            output = task.output(inputs)
        if not isinstance(output, Tensor) or output.dim() != 2 or int(classes.max()) >= output.shape[1]:
            classes = None
    if classes is None and kind != "loss":
        raise UsageError(
            f"the score {kind} is of a classifier: the loss must be cross-entropy of one class number for each "
            "example; give kind='loss' for any other"
        )
    return classes


@gradients()
def scored_once(
    task: Task, kind: str, classes: Tensor | None, settings: Settings, seed: int, run: int
) -> tuple[Tensor, float]:
    """(examples,), the scores after training the task's network for `settings.epochs` epochs, and the epochs it took.

        el2n         ||softmax(f(x_i)) - onehot(y_i)||_2, in [0, sqrt 2]
        loss         the loss of example i alone
        forgetting   how often i goes from right to wrong in the batches it is trained in; infinite if never right

    The first two are of the trained network in evaluation mode, without augmentation, batch-norm statistics estimated
    anew: those of a few steps lag so far behind that they, and not the examples, would decide.
    """
    own = mixed(seed, "scores", run)
    phase = f"scores:{run}"
    batches = Picked(task.train, seed=own, labels=classes)
    seen = None
    if kind == "forgetting":
        assert classes is not None
        seen = _Seen(batches, classes, task.loss)
        lent = dataclasses.replace(task, train=seen, loss=seen.loss, validation=None, checkpoint=None)
    else:
        lent = dataclasses.replace(task, train=batches, validation=None, checkpoint=None)
    rule = Dense(lent.model)
    settings, found = rate.settled(lent, rule, settings, seed=own, phase=phase)
    if seen is not None:
        seen.forget()  # the trials of a rate are no training
    fit(lent, rule, settings, seed=own, phase=phase)
    took = settings.epochs + (found["steps"] / max(1, lent.steps) if found else 0.0)
    if seen is not None:
        return seen.scores(), took
    recalibrate(task)
    return example_losses(task, classes) if kind == "loss" else _el2n(task, classes), took


class _Seen:
    """Training batches whose targets are the examples' indices, so that their loss sees which of them are right."""

    def __init__(self, batches: Picked, classes: Tensor, loss: Any) -> None:
        self.batches, self.classes, self._loss = batches, classes, loss
        self.forget()

    def forget(self) -> None:
        self.right = torch.zeros(len(self.classes), dtype=torch.bool)
        self.ever, self.forgotten = self.right.clone(), torch.zeros(len(self.classes))

    def __len__(self) -> int:
        return len(self.batches)

    @property
    def examples(self) -> int:
        return self.batches.examples

    def epoch(self, index: int) -> Iterator[tuple[Any, Any]]:
        return ((inputs, numbers) for numbers, inputs, _ in self.batches.numbered(index))

    def loss(self, output: Tensor, numbers: Tensor) -> Tensor:
        numbers = numbers.cpu()
        classes = self.classes[numbers]
        if torch.is_grad_enabled():
            right = output.detach().argmax(1).cpu() == classes
            self.forgotten[numbers] += (self.right[numbers] & ~right).float()
            self.right[numbers] = right
            self.ever[numbers] |= right
        found: Tensor = self._loss(output, classes.to(output.device))
        return found

    def scores(self) -> Tensor:
        return torch.where(self.ever, self.forgotten, torch.inf)


@torch.no_grad()
def _el2n(task: Task, classes: Tensor | None) -> Tensor:
    assert classes is not None
    found = torch.empty(len(classes))
    with modes(task.model):
        task.model.eval()
        for numbers, inputs, _ in Picked(task.train, shuffle=False, augment=False).numbered(0):
            output = task.output(inputs).float().softmax(1)
            wanted = F.one_hot(classes[numbers], output.shape[1]).to(output)
            found[numbers] = (output - wanted).norm(dim=1).cpu()
    return found


@torch.no_grad()
def example_losses(task: Task, classes: Tensor | None) -> Tensor:
    """The loss of each example: of a whole batch at once where that can be, else of one example at a time."""
    known = classes is not None and any(task.loss is f for f in (cross_entropy, F.cross_entropy))
    picked = Picked(task.train, shuffle=False, augment=False, size=None if known else 1)
    found = torch.empty(picked.examples)
    with modes(task.model):
        task.model.eval()
        for numbers, inputs, targets in picked.numbered(0):
            if known and classes is not None:
                output = task.output(inputs).float()
                losses = F.cross_entropy(output, classes[numbers].to(output.device), reduction="none")
            else:
                losses = task.loss_of(inputs, targets).reshape(1)
            found[numbers] = losses.float().cpu()
    if not bool(found.isfinite().all()):
        raise GemminerError("the loss of an example is not finite: lower the learning rate or check the data for NaN")
    return found
