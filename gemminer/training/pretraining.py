"""The dense network's first k steps on some of the examples.

Source: Paul, Larsen, Ganguli, Frankle, Dziugaite, "Lottery Tickets on a Data Diet", NeurIPS 2022, and its repository
mansheej/lth_diet. Ours keeps an epoch's last ragged batch, as everywhere, and pairs its arms: equal seeds, equal
balance.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from gemminer.core.errors import UsageError
from gemminer.core.randomness import generator, mixed
from gemminer.data import Batches, Whole
from gemminer.data.picked import Picked, Repeated, classes_of, described, examples_by_index, size_of
from gemminer.training.loop import fit
from gemminer.training.pretrain import Pretrain
from gemminer.training.rules import Dense
from gemminer.training.scores import Scores, chosen
from gemminer.training.settings import Settings
from gemminer.training.shards import Own, Shard, reseeded
from gemminer.training.task import Task

LONG = 0.1  # of a training: a pre-training of more steps is no short one
BINS = 24


def whole_of(batches: Batches) -> Batches:
    """The batches of all ranks; raises UsageError where each rank has its own data."""
    if isinstance(batches, Own):
        raise UsageError("examples are chosen from the data of all ranks: give each rank the whole data set")
    return batches.batches if isinstance(batches, Shard) else batches


def noisy(classes: Tensor | None, noise: float) -> Tensor | None:
    """The labels with a fraction of them drawn anew, the same for every seed: scores and pre-trainings see one noise.

    >>> labels = noisy(torch.zeros(1000, dtype=torch.long) + 3, 0.5)
    >>> int((labels != 3).sum()) in range(320, 420)  # a new label is the old one in one of four
    True
    """
    if not noise or classes is None:
        return classes
    count, source = len(classes), generator("label noise", noise)
    where = torch.randperm(count, generator=source)[: round(noise * count)]
    fresh = torch.randint(int(classes.max()) + 1, (len(where),), generator=source)
    return classes.clone().index_put((where,), fresh)


def noisy_classes(task: Task, noise: float) -> Tensor | None:
    """The class of each training example, with noise; raises UsageError where noise could not reach the loss."""
    inside = task.step is not None or task.feed.own_loss or isinstance(whole_of(task.train), Whole)
    classes = None if inside and noise else classes_of(whole_of(task.train))
    if noise and classes is None:
        raise UsageError("noise draws labels anew: that needs one class number for each example, beside its inputs")
    return noisy(classes, noise)


@dataclasses.dataclass(frozen=True)
class Choice:
    """The examples of a pre-training: their indices, and the labels of all examples where they are not the data's."""

    indices: Tensor | None
    labels: Tensor | None
    facts: dict[str, Any]


def choice(task: Task, asked: Pretrain, scores: Scores | None, seed: int) -> Choice:
    """Choose the examples; raises UsageError for scores of other data, and for more examples than there are."""
    facts: dict[str, Any] = {"steps": asked.steps, "examples": asked.examples, "noise": asked.noise}
    if asked.examples == "all" and not asked.noise:
        return Choice(None, None, {**facts, "count": task.train.examples})
    data = whole_of(task.train)
    total, classes = examples_by_index(data), noisy_classes(task, asked.noise)
    if scores is not None:
        _check(scores, described(data), asked, task)
        facts |= {"kind": scores.kind, "runs": scores.runs, "score_epochs": scores.epochs, "scores": scores.checksum}
        classes = classes if asked.noise else scores.classes
    values = torch.zeros(total) if scores is None else scores.values
    indices = chosen(asked.count, asked.examples, values, classes, asked.balanced, seed)
    facts |= {"count": len(indices), "balanced": asked.balanced, "indices": checksum(indices)}
    if classes is not None:
        facts["class_counts"] = classes[indices].bincount(minlength=int(classes.max()) + 1).tolist()
    if scores is not None:
        facts["histogram"] = _histogram(values, indices)
    if (seen := asked.steps * task.accumulate * size_of(data)) < len(indices) and asked.examples != "all":
        task.note(f"{asked.steps} steps see {seen} examples: the rest of the {len(indices)} chosen is never seen")
    return Choice(indices, classes if asked.noise else None, facts)


def _check(scores: Scores, data: str, asked: Pretrain, task: Task) -> None:
    if scores.data != data:
        raise UsageError(
            f"the scores are of other examples ({scores.data}; here {data}): score these, with the same data, limit "
            "and validation part"
        )
    if (own := float(scores.facts.get("noise", 0.0))) != asked.noise:
        task.note(
            f"warning: the scores are of labels with noise {own:g}, the pre-training's have {asked.noise:g}: they do "
            "not know which labels are wrong"
        )


def checksum(indices: Tensor) -> str:
    """SHA-256 over the indices as 64-bit numbers."""
    return hashlib.sha256(indices.long().contiguous().numpy().tobytes()).hexdigest()


def _histogram(values: Tensor, indices: Tensor) -> dict[str, Any]:
    """How many scores fall into each of equal bins: of all examples and of those chosen; infinite ones apart."""
    finite = values[values.isfinite()]
    low, high = (float(finite.min()), float(finite.max())) if len(finite) else (0.0, 1.0)
    high = high if high > low else low + 1.0

    def counted(some: Tensor) -> list[int]:
        return [int(n) for n in torch.histc(some[some.isfinite()].double(), BINS, low, high).tolist()]

    own = values[indices]
    infinite = [int(some.isinf().sum()) for some in (values, own)]
    return {"low": low, "high": high, "all": counted(values), "chosen": counted(own), "infinite": infinite}


def trained(task: Task, settings: Settings, asked: Pretrain, picked: Choice, seed: int) -> Sequence[dict[str, Any]]:
    """Train the task's network, as it is, for the first k steps of a training; returns the rows of their epochs."""
    data: Batches
    if picked.indices is None and picked.labels is None:
        data = reseeded(task.train, seed, "pre-training batches")
    else:
        own = mixed(seed, "pre-training batches")
        data = Picked(whole_of(task.train), picked.indices, seed=own, labels=picked.labels)
        data = Shard(data, task.train.rank, task.train.world) if isinstance(task.train, Shard) else data
    epoch, over = task.position(asked.steps, settings.epochs)
    if asked.steps > LONG * settings.epochs * task.steps:
        task.note(
            f"the pre-training has {asked.steps} steps, {asked.steps / (settings.epochs * task.steps):.0%} of the "
            f"{settings.epochs * task.steps} of a training"
        )
    lent = dataclasses.replace(task, train=Repeated(data, len(task.train)), validation=None)
    return fit(
        lent,
        Dense(lent.model),
        settings,
        seed=mixed(seed, "pre-training"),
        phase="pretrain",
        last_epoch=epoch + bool(over),
        last_step=over or None,
    )
