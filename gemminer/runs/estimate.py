"""The cost of a comparison's cells, and the time left."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gemminer import methods
from gemminer.core.errors import GemminerError
from gemminer.runs import checks, execute
from gemminer.runs.experiment import BATCH_SIZE
from gemminer.runs.grid import Cell
from gemminer.runs.recipe import ALONE, Recipe
from gemminer.runs.record import Record
from gemminer.runs.settings import resolve_recipe
from gemminer.training import cost, rate
from gemminer.training.pretrain import Pretrain
from gemminer.training.settings import Settings


@dataclass(frozen=True)
class Facts:
    """Sizes of a network on a data set: training examples, prunable weights, forward FLOPs of an example."""

    examples: int
    prunable: int
    flops: float


@dataclass(frozen=True)
class Estimate:
    """The epochs that a cell will take, and the dense FLOPs of them all.

    `search` counts the search's epochs and those of a pre-training and its scores, `training` those of the ticket and
    its checks, `checks` those of searches by checks, `rates` what finding learning rates usually takes. Methods that
    score a few batches count as no epochs.
    """

    search: float
    training: int
    checks: float
    flops: float
    rates: float = 0.0

    @property
    def epochs(self) -> float:
        return self.search + self.training + self.checks + self.rates


def facts(recipe: Recipe, **where: Any) -> Facts:
    """The sizes that a cell's cost depends on, from a forward pass of one batch; `where` goes to `execute.prepare`."""
    bare = recipe.replace(method="uniform", density=1.0, options={}, checks=()).changed(ALONE)
    experiment = execute.prepare(bare, device="cpu", **where).experiment
    prunable = sum(p.numel() for p in experiment.task.prunable().values())
    return Facts(experiment.task.train.examples, prunable, experiment.flops.dense)


def estimate_recipe(recipe: Recipe, known: Facts) -> Estimate:
    """search = the method's epochs, training = epochs * seeds * (1 + checks), and the search of checks that search."""
    resolved = resolve_recipe(recipe, known.examples)
    search = methods.get(recipe.method).cost(resolved.options, recipe.density, known.prunable)
    trainings = (recipe.check_seeds if recipe.checks else 1) * (1 + len(recipe.checks))
    searches = 1 + sum(checks.get(name).kept_as is not None for name in recipe.checks)
    batches = math.ceil(known.examples / (recipe.batch_size or BATCH_SIZE))
    steps = math.ceil(batches / recipe.accumulate)
    rates = trainings * rate.usual(resolved.settings, steps)
    if isinstance(resolved.options, Settings):  # a search that trains the weights
        rates += searches * rate.usual(resolved.options, steps)
    early = 0.0
    if (before := Pretrain.given(recipe.pretrain, recipe.scores)) is not None:
        early = before.steps / max(1, steps)
        early += before.runs * before.epochs if before.needs_scores and before.scores is None else 0
    found = Estimate(search + early, resolved.settings.epochs * trainings, search * (searches - 1), 0.0, rates)
    return dataclasses.replace(found, flops=found.epochs * cost.TRAINING_PASSES * known.examples * known.flops)


def estimates(cells: Sequence[Cell], **where: Any) -> dict[str, Estimate]:
    """Estimates by a cell's digest, without the cells that cannot be estimated, whose run will raise the error.

    Raises the first error where no cell can be estimated.
    """
    known: dict[tuple[str, str], Facts | GemminerError] = {}
    found, errors = {}, []
    for cell in cells:
        key = (cell.recipe.data, cell.recipe.model)
        try:
            if key not in known:
                known[key] = facts(cell.recipe, **where)
        except GemminerError as error:
            known[key] = error
        fact = known[key]
        try:
            if isinstance(fact, GemminerError):
                raise fact
            found[cell.digest] = estimate_recipe(cell.recipe, fact)
        except GemminerError as error:
            errors.append(error)
    if errors and not found:
        raise errors[0]
    return found


class Forecast:
    """The time left, from the FLOPs a second of the finished cells: those of the same network and data, if any."""

    def __init__(self, cells: Sequence[Cell], expected: Mapping[str, Estimate], workers: int) -> None:
        self.left = {c.digest: expected[c.digest].flops for c in cells if c.digest in expected}
        self.kinds = {c.digest: (c.recipe.data, c.recipe.model) for c in cells}
        self.begun: dict[str, float] = {}
        self.workers = max(1, workers)
        self._speeds: dict[tuple[str, str], list[float]] = {}

    def start(self, digest: str) -> None:
        self.begun[digest] = time.monotonic()

    def finish(self, digest: str, result: Record | None) -> None:
        self.left.pop(digest, None)
        self.begun.pop(digest, None)
        if result is not None:
            speed = self._speeds.setdefault(self.kinds[digest], [0.0, 0.0])
            own = [cost for name, cost in result.cost.items() if name != "score"]  # another machine may have scored
            speed[0] += sum(c.flops_dense for c in own)
            speed[1] += sum(c.seconds for c in own)

    def seconds(self) -> float | None:
        """The seconds left; None before the first cell is finished."""
        every = [sum(part) for part in zip(*self._speeds.values(), strict=True)] if self._speeds else [0.0, 0.0]
        if every[0] <= 0 or every[1] <= 0:
            return None
        ends = []
        for digest, flops in self.left.items():
            done, seconds = self._speeds.get(self.kinds[digest], every)
            passed = time.monotonic() - self.begun[digest] if digest in self.begun else 0.0
            ends.append(max(0.0, flops * seconds / (done or flops or 1.0) - passed))
        return max(sum(ends) / self.workers, *ends, 0.0) if ends else 0.0
