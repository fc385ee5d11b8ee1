"""The first k steps on some of the examples, against plain loops."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from gemminer.core.errors import UsageError
from gemminer.core.model_state import copied
from gemminer.core.randomness import mixed
from gemminer.data import TensorBatches, as_batches, as_wholes
from gemminer.data.picked import Picked, described
from gemminer.training.pretrain import Pretrain
from gemminer.training.pretraining import checksum, choice, noisy, noisy_classes, trained
from gemminer.training.scores import Scores
from gemminer.training.settings import Settings
from gemminer.training.shards import reseeded
from gemminer.training.task import Task
from tests.helpers import Notes, tiny_data, tiny_net

SETTINGS, SEED = Settings(epochs=4, lr=0.1), 3


def task_of(**fields: Any) -> Task:
    return Task(tiny_net(), TensorBatches(*tiny_data(), batch_size=16), **fields)


def scores_for(task: Task, **facts: Any) -> Scores:
    return Scores(torch.arange(96.0)[None], "el2n", 3, 0, described(task.train), tiny_data()[1], {}, facts)


def reference(asked: Pretrain, indices: Tensor | None) -> dict[str, Tensor]:
    """6 steps an epoch of the whole data: the rate is that of the schedule of all, the batches are of the subset."""
    model, all_ = tiny_net(), TensorBatches(*tiny_data(), batch_size=16)
    if indices is None:
        batches: Any = reseeded(all_, SEED, "pre-training batches")
    else:
        batches = Picked(all_, indices, seed=mixed(SEED, "pre-training batches"))
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    model.train()
    step = epoch = 0
    while step < asked.steps:
        for x, y in batches.epoch(epoch):
            optimiser.param_groups[0]["lr"] = SETTINGS.lr_at(step / 6)
            optimiser.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimiser.step()
            step += 1
            if step == asked.steps:
                break
        epoch += 1
    return copied(model)


@pytest.mark.parametrize("steps", [1, 6, 9, 20])
@pytest.mark.parametrize("examples", ["all", "easiest", "hardest", "random"])
def test_the_weights_are_those_of_plain_steps(steps: int, examples: Any) -> None:
    task = task_of()
    asked = Pretrain(steps=steps, examples=examples, count=40)
    picked = choice(task, asked, scores_for(task) if asked.needs_scores else None, SEED)
    rows = trained(task, SETTINGS, asked, picked, SEED)
    expected = reference(asked, picked.indices)
    for name, value in copied(task.model).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-6)
    assert rows[-1]["step"] == steps
    assert sum(row.get("fraction", 1.0) for row in rows) == pytest.approx(steps / 6)
    assert picked.facts["count"] == (96 if examples == "all" else 40)


def test_the_examples_are_those_of_the_scores_balanced_or_not() -> None:
    task = task_of()
    for examples, best in (("easiest", range(30)), ("hardest", range(66, 96))):
        asked = Pretrain(steps=9, examples=examples, count=30, balanced=False)  # type: ignore[arg-type]
        found = choice(task, asked, scores_for(task), SEED)
        assert found.indices is not None
        assert found.indices.tolist() == list(best)
        assert found.facts["indices"] == checksum(found.indices)
        assert sum(found.facts["histogram"]["chosen"]) == 30
        assert sum(found.facts["histogram"]["all"]) == 96
    assert choice(task, Pretrain(9, "easiest", 30), scores_for(task), SEED).facts["class_counts"] == [10, 10, 10]
    random = [choice(task, Pretrain(9, "random", 30), None, seed).indices for seed in (0, 0, 1)]
    assert torch.equal(random[0], random[1])  # type: ignore[arg-type]
    assert not torch.equal(random[0], random[2])  # type: ignore[arg-type]


def test_noise_is_in_these_labels_alone_and_the_same_for_every_seed() -> None:
    task, (_, targets) = task_of(), tiny_data()
    asked = Pretrain(steps=6, noise=0.5)
    first, second = (choice(task, asked, None, seed) for seed in (0, 1))
    assert first.labels is not None
    assert torch.equal(first.labels, second.labels)  # type: ignore[arg-type]
    wrong = int((first.labels != targets).sum())
    assert 20 <= wrong <= 44  # 48 are drawn anew, a third of them comes out as before
    assert torch.equal(task.train.targets, targets)  # type: ignore[attr-defined]
    seen: list[Tensor] = []

    def loss(output: Tensor, labels: Tensor) -> Tensor:
        seen.append(labels)
        return F.cross_entropy(output, labels)

    trained(dataclasses.replace(task, loss=loss), SETTINGS, asked, first, SEED)
    assert torch.equal(torch.cat(seen).bincount(), first.labels.bincount())
    assert torch.equal(noisy(targets, 0.0), targets)  # type: ignore[arg-type]
    assert torch.equal(noisy_classes(task, 0.5), first.labels)  # type: ignore[arg-type]


def test_noise_that_could_not_reach_the_loss_is_refused() -> None:
    inputs, targets = tiny_data()
    step = Task(
        tiny_net(), as_wholes((inputs, targets), batch_size=16), step=lambda m, b: F.cross_entropy(m(b[0]), b[1])
    )
    values = Task(tiny_net(), TensorBatches(inputs, F.one_hot(targets, 3).float()), loss=F.mse_loss)
    for task in (step, values):
        with pytest.raises(UsageError, match="noise draws labels anew"):
            choice(task, Pretrain(steps=3, noise=0.5), None, SEED)


def test_what_is_worth_a_word() -> None:
    notes = Notes()
    task = task_of(monitor=notes)
    choice(task, Pretrain(steps=2, examples="random", count=40), None, SEED)
    assert notes.notes == ["2 steps see 32 examples: the rest of the 40 chosen is never seen"]
    asked = Pretrain(steps=6)
    trained(task, SETTINGS, asked, choice(task, asked, None, SEED), SEED)
    assert notes.notes[1:] == ["the pre-training has 6 steps, 25% of the 24 of a training"]
    choice(task, Pretrain(9, "easiest", 40, noise=0.5), scores_for(task), SEED)
    assert "do not know which labels are wrong" in notes.notes[2]
    choice(task, Pretrain(9, "easiest", 40, noise=0.5), scores_for(task, noise=0.5), SEED)
    assert len(notes.notes) == 3


def test_scores_of_other_examples_and_choices_that_cannot_be_are_refused() -> None:
    task, other = task_of(), Task(tiny_net(), TensorBatches(*tiny_data(90), batch_size=16))
    with pytest.raises(UsageError, match="scores are of other examples"):
        choice(task, Pretrain(9, "easiest", 30), scores_for(other), SEED)
    with pytest.raises(UsageError, match="is 97, and there are 96"):
        choice(task, Pretrain(9, "random", 97), None, SEED)
    asked = Pretrain(steps=24)
    with pytest.raises(UsageError, match="24 steps"):
        trained(task, SETTINGS, asked, choice(task, asked, None, SEED), SEED)


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return zip(*tiny_data(), strict=True)


def test_a_stream_can_be_pretrained_on_as_a_whole() -> None:
    task = Task(tiny_net(), as_batches(DataLoader(Stream(), batch_size=16)))
    before = copied(task.model)
    asked = Pretrain(steps=9)
    trained(task, SETTINGS, asked, choice(task, asked, None, SEED), SEED)
    assert not torch.equal(copied(task.model)["0.weight"], before["0.weight"])
    with pytest.raises(UsageError, match="no index"):
        choice(task, Pretrain(steps=9, examples="random", count=20), None, SEED)
