"""Steps of training that the benchmarks of time and of memory share."""

from __future__ import annotations

import itertools
from collections.abc import Callable

from torch import Tensor, nn

from gemminer import sparse
from gemminer.bench import networks
from gemminer.bench.measure import Setup
from gemminer.core.copies import duplicate
from gemminer.training.loop import step
from gemminer.training.rules import Dense, Rule
from gemminer.training.settings import Settings
from gemminer.training.task import Task

EPOCHS = 10

Step = Callable[[], object]


def stepper(task: Task, rule: Rule, settings: Settings, images: Tensor, labels: Tensor) -> Step:
    """A call that makes the next step of a training, always on the same batch."""
    optimiser = settings.build(rule.parameters())
    rule.begin(optimiser)
    count = itertools.count()
    return lambda: step(task, rule, optimiser, [(images, labels)], next(count))


def plain_step(model: nn.Module, setup: Setup, *, channels_last: bool = False, run: nn.Module | None = None) -> Step:
    """A training step of all of a model's parameters; `run` computes it, by default the model itself."""
    images, labels = networks.images_of(setup.model, setup.batch)
    task = networks.task_of(run or model, images, labels, batch=setup.batch, channels_last=channels_last)
    return stepper(task, Dense(model), Settings(EPOCHS, lr=0.1, weight_decay=1e-4), images, labels)


def sparse_net(name: str, model: nn.Module, density: float) -> nn.Module:
    """The model with a realistic ticket applied, holding its kept weights only."""
    ticket = networks.ticket_of(name, model, density)
    return sparse.sparsify(ticket.apply(duplicate(model)), ticket)
