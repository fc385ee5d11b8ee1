"""Are two trainings of the same weights connected by a line along which the error does not rise?

Source: Frankle, Dziugaite, Roy, Carbin, "Linear Mode Connectivity and the Lottery Ticket Hypothesis", ICML 2020;
barriers of single examples are of Paul et al., NeurIPS 2022. What is trained is always a ticket: the dense network is
the one that keeps every weight.
"""

from __future__ import annotations

import dataclasses
import math
import statistics as means
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Unpack

import torch
from torch import Tensor, nn

from gemminer import methods
from gemminer.core import numbers
from gemminer.core.errors import UsageError, unknown
from gemminer.core.html import table
from gemminer.core.layers import Shortened
from gemminer.core.model_state import borrowed, copied, gradients, modes, named_state
from gemminer.core.progress import Monitor
from gemminer.core.ticket import Ticket
from gemminer.data import Batches, examples_in
from gemminer.data.picked import Picked
from gemminer.runs import called
from gemminer.runs.diet import DENSE, pretrained
from gemminer.runs.experiment import Experiment, require_test
from gemminer.runs.keywords import takes
from gemminer.runs.settings import default_epochs, draw_of, options_of
from gemminer.runs.typed import InstabilityOptions, ScoringOptions
from gemminer.training.evaluate import recalibrate
from gemminer.training.pretrain import Pretrain
from gemminer.training.scoring import classes_for, example_losses
from gemminer.training.settings import Settings
from gemminer.training.task import Task

STABLE = 0.02  # of error: the source's limit
STATISTICS = ("recalibrate", "average")
CURVES = ("test_error", "test_loss", "train_error", "train_loss")


@dataclass(frozen=True)
class Line:
    """What was measured along the line between the weights of two trainings, at the points of an `Instability`.

    Args:
        test_error: 1 - accuracy, or minus the metric where that is another.
        test_loss, train_error, train_loss: the same of the loss, and on training data without augmentation.
        examples: for each training example its loss half way minus the mean of both ends; None where none has an index.
    """

    test_error: tuple[float, ...]
    test_loss: tuple[float, ...]
    train_error: tuple[float, ...]
    train_loss: tuple[float, ...]
    examples: Tensor | None = None

    @classmethod
    def of(cls, found: Mapping[str, Sequence[float]], examples: Tensor | None) -> Line:
        """From the curves by name."""
        test_error, test_loss, train_error, train_loss = (tuple(map(float, found[curve])) for curve in CURVES)
        return cls(test_error, test_loss, train_error, train_loss, examples)

    def barrier(self, curve: str) -> float:
        """The highest point of a curve over the mean of its ends: max_a E(a) - (E(0) + E(1)) / 2."""
        values: tuple[float, ...] = getattr(self, curve)
        return max(values) - (values[0] + values[-1]) / 2


@dataclass(frozen=True)
class Instability:
    """The lines between pairs of trainings that begin with the same weights and see the data in other orders.

    Args:
        name: what begins: "dense@50" or "ticket@0", the weights of so many steps.
        step: k, the steps that the weights have behind them.
        points: places on the line, 0 to 1.
        lines: one for each pair.
        statistics: of batch norm on the line, "recalibrate" or "average".
        metric: of which the error is.
    """

    name: str
    step: int
    points: tuple[float, ...]
    lines: tuple[Line, ...]
    statistics: str = "recalibrate"
    metric: str = "accuracy"
    facts: Mapping[str, Any] = field(default_factory=dict)

    def barriers(self, curve: str = "test_error") -> tuple[float, ...]:
        """The barrier of a curve for each pair: test_error, test_loss, train_error or train_loss."""
        if curve not in CURVES:
            raise unknown("curve", curve, CURVES)
        return tuple(line.barrier(curve) for line in self.lines)

    def barrier(self, curve: str = "test_error") -> float:
        """The mean barrier of a curve over the pairs."""
        return means.fmean(self.barriers(curve))

    def mean(self, curve: str = "test_error") -> tuple[float, ...]:
        """A curve, mean over the pairs."""
        return tuple(map(means.fmean, zip(*(getattr(line, curve) for line in self.lines), strict=True)))

    @property
    def examples(self) -> Tensor | None:
        """(examples,), the loss barrier of each training example half way, mean over the pairs."""
        known = [line.examples for line in self.lines if line.examples is not None]
        return torch.stack(known).double().mean(0) if known else None

    @property
    def verdict(self) -> Literal["stable", "unstable", "not decided"]:
        """Stable where the mean barrier of the test error is below 2%; an error is of accuracy alone."""
        if self.metric != "accuracy":
            return "not decided"
        return "stable" if self.barrier() < STABLE else "unstable"

    def __repr__(self) -> str:
        return f"Instability({self.name}: {self.verdict}, barrier {self.barrier():.4f}, {len(self.lines)} pairs)"

    def __str__(self) -> str:
        rows = [f"{self.name}: {self.verdict}, {len(self.lines)} pairs of trainings"]
        for curve in CURVES:
            own = self.barriers(curve)
            spread = f" +- {means.stdev(own):.4f}" if len(own) > 1 else ""
            ends = means.fmean((values[0] + values[-1]) / 2 for values in (getattr(x, curve) for x in self.lines))
            rows.append(f"  {curve.replace('_', ' '):<11}  barrier {means.fmean(own):+.4f}{spread}  ends {ends:.4f}")
        return "\n".join(rows)

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        rows = [(curve.replace("_", " "), f"{self.barrier(curve):+.4f}", len(self.lines)) for curve in CURVES]
        return table(f"{self.name}: {self.verdict}", ("of the", "barrier", "pairs"), rows)

    def as_dict(self) -> dict[str, Any]:
        """Everything but the examples' own barriers, as JSON values; of those how they are spread."""
        found: dict[str, Any] = {"name": self.name, "step": self.step, "verdict": self.verdict, "metric": self.metric}
        found |= {"statistics": self.statistics, "points": list(self.points), "facts": dict(self.facts)}
        found["lines"] = [{curve: list(getattr(line, curve)) for curve in CURVES} for line in self.lines]
        found["barriers"] = {curve: list(self.barriers(curve)) for curve in CURVES}
        if (own := self.examples) is not None:
            parts = torch.tensor([0, 0.1, 0.25, 0.5, 0.75, 0.9, 1], dtype=torch.float64)
            found["examples"] = dict(zip(map(str, parts.tolist()), own.quantile(parts).tolist(), strict=True))
        return found


def between(a: Mapping[str, Tensor], b: Mapping[str, Tensor], part: float) -> dict[str, Tensor]:
    """(1 - part) a + part b; whole-number buffers, which no line goes through, are those of `a`.

    >>> between({"w": torch.zeros(1)}, {"w": torch.ones(1)}, 0.25)["w"]
    tensor([0.2500])
    """
    return {
        name: torch.lerp(value, b[name].to(value), part) if value.is_floating_point() else value
        for name, value in a.items()
    }


@gradients()
def line(
    experiment: Experiment,
    ends: tuple[Mapping[str, Tensor], Mapping[str, Tensor]],
    points: Sequence[float],
    statistics: str,
    removed: Sequence[str] = (),
) -> Line:
    """Measure the network along the line between two states; the model is left as it was.

    Args:
        statistics: "recalibrate" estimates those of batch norm anew at every point, both ends included; "average"
            takes the line's own, which raises the barrier half way.
        removed: layers that are not there.
    """
    task = experiment.task
    try:
        train: Batches = Picked(task.train, shuffle=False, augment=False)
        classes = classes_for(task, "loss")
    except UsageError:  # a stream
        train, classes = task.train, None
    indexed = isinstance(train, Picked)
    found: dict[str, list[float]] = {curve: [] for curve in CURVES}
    losses: dict[float, Tensor] = {}
    with borrowed(task.model) as model, Shortened(model, removed):
        for part in dict.fromkeys((*points, 0.5)):
            with torch.no_grad():
                state = between(*ends, part)
                for name, tensor in named_state(model).items():
                    tensor.copy_(state[name])
            if statistics == "recalibrate":
                recalibrate(task)
            if part in (0.0, 0.5, 1.0) and indexed:
                losses[part] = example_losses(task, classes)
            if part in points:
                for where, batches in (("test", require_test(experiment.test)), ("train", train)):
                    metric, loss = measured(task, batches)
                    found[f"{where}_error"].append(1 - metric if task.metric_name == "accuracy" else -metric)
                    found[f"{where}_loss"].append(loss)
    examples = losses[0.5] - (losses[0.0] + losses[1.0]) / 2 if indexed else None
    return Line.of(found, examples)


@torch.no_grad()
def measured(task: Task, batches: Batches) -> tuple[float, float]:
    """The mean metric and the mean loss over batches, in evaluation mode."""
    metric = loss = count = 0.0
    with modes(task.model):
        task.model.eval()
        for inputs, targets in batches.epoch(0):
            values, examples = task.metric_of(inputs, targets), examples_in(inputs, targets)
            metric += float(values.double().mean()) * examples
            loss += float(task.loss_of(inputs, targets)) * examples
            count += examples
    return metric / count, loss / count


def dense_ticket(experiment: Experiment, state: Mapping[str, Tensor], step: int) -> Ticket:
    """The dense network as a ticket that keeps every weight of a state that has `step` steps behind it."""
    masks = {name: torch.ones_like(p, dtype=torch.bool) for name, p in experiment.task.prunable().items()}
    return Ticket(masks, state, {"method": DENSE, "rewind_step": step or None})


def checked(pairs: int, points: int, statistics: str) -> tuple[float, ...]:
    """The points of a line; raises UsageError for what cannot be."""
    numbers.whole("pairs of trainings", pairs, least=1)
    count = numbers.whole("points on the line", points, least=3)
    if statistics not in STATISTICS:
        raise unknown("statistics", statistics, STATISTICS)
    return tuple(i / (count - 1) for i in range(count))


def named(ticket: Ticket | None, step: int) -> str:
    """What begins, in a word."""
    return f"{'dense' if ticket is None else 'ticket'}@{step}"


@takes("gemminer.instability", lambda _: ("", InstabilityOptions.__annotations__))
def instability(
    model: nn.Module,
    train_data: Any,
    test_data: Any,
    *,
    ticket: Ticket | str | Path | None = None,
    at: int = 0,
    pairs: int = 3,
    points: int = 11,
    statistics: Literal["recalibrate", "average"] = "recalibrate",
    progress: bool = False,
    monitor: Monitor | None = None,
    **how: Unpack[InstabilityOptions],
) -> Instability:
    """Train the same weights twice, in other orders of the data, and measure along the line between the two.

    The instability is the barrier max_a E((1-a) w_1 + a w_2) - (E(w_1) + E(w_2)) / 2 of the test error, mean over the
    pairs; below 2% the weights are stable: what a training comes to no longer depends on the order of the data, up to
    a line. Lottery tickets are found from weights that are.

    Args:
        model: as in `mine`; left as it was.
        train_data: as in `mine`.
        test_data: as `train_data`; the error is measured on it.
        ticket: what to begin with, or its file; None is the dense network.
        at: the dense network's step k to begin with; a ticket knows its own.
        pairs: of trainings; each has two of its own.
        points: on the line, ends included.
        statistics: of batch norm: "recalibrate" estimates them anew at every point, "average" takes the line's.
        progress: as in `mine`.
        monitor: as in `mine`.
        how: epochs, seed, batch_size, initialiser ("keep" by default: the model's own weights), loss, step, metric,
            precision, accumulate and engine as in `train`, and settings of the training.

    Returns:
        The curves of error and loss on test and training data, the barrier of each, that of each training example half
        way, and the verdict. Printed, it is a few lines.

    Raises:
        UsageError: a ticket of another model, a step that a training has not.

    Source: Frankle et al., ICML 2020.

    >>> import gemminer, torch
    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 16), torch.nn.ReLU(), torch.nn.Linear(16, 2))
    >>> data = (x := torch.randn(64, 4), (x[:, 0] > 0).long())
    >>> found = gemminer.instability(net, data, data, at=2, pairs=1, points=3, epochs=4)
    >>> found.name, len(found.mean("test_loss")), len(found.examples)
    ('dense@2', 3, 64)
    """
    places, given = checked(pairs, points, statistics), dict[str, Any](how)
    own, initialiser = None if ticket is None else Ticket.given(ticket), given.pop("initialiser", "keep")
    experiment = _experiment(model, train_data, test_data, own, monitor, given)
    if own is None:
        draw = draw_of(initialiser, methods.get(DENSE), 1.0, experiment.seed)
        begun = begin(experiment, draw, numbers.whole("at, a step of the dense network,", at, least=0))
    else:
        begun = own.fitted(model)
    step = begun.provenance.get("rewind_step") or 0
    lines = []
    for pair in range(pairs):
        ends = _trained(experiment, begun, 2 * pair), _trained(experiment, begun, 2 * pair + 1)
        lines.append(line(experiment, ends, places, statistics, begun.removed))
    return Instability(named(own, step), step, places, tuple(lines), statistics, experiment.task.metric_name)


def _experiment(
    model: nn.Module, train: Any, test: Any, ticket: Ticket | None, monitor: Monitor | None, given: dict[str, Any]
) -> Experiment:
    """The experiment of a call; what is left of `given` are settings of its trainings."""
    read = {name: given.pop(name) for name in (*ScoringOptions.__annotations__, "engine", "metric") if name in given}
    facts = {} if ticket is None else ticket.provenance
    read |= {key: tuple(facts.get(key, ())) for key in ("include", "exclude")}
    read |= {"embeddings": facts.get("embeddings", False), "seed": numbers.seed_of(given.pop("seed", 0))}
    read = {"metric": None, **read}
    found = called.experiment_of(model, train, test=test, tested=True, monitor=monitor, **read)
    require_test(found.test)
    epochs = given.pop("epochs", None) or default_epochs(found.task.train.examples)
    settings = options_of(Settings, {**given, "epochs": epochs}, "training")
    return dataclasses.replace(found, settings=settings).with_engine()


def begin(experiment: Experiment, draw: Any, step: int) -> Ticket:
    """The dense network at a step of its training, as a ticket."""
    if step == 0:
        with experiment.drawn(draw):
            return dense_ticket(experiment, copied(experiment.task.model), 0)
    state, _ = pretrained(experiment, Pretrain(steps=step), None, draw, dataclasses.asdict(experiment.settings))
    return dense_ticket(experiment, state, step)


def _trained(experiment: Experiment, ticket: Ticket, index: int) -> dict[str, Tensor]:
    held: dict[str, Tensor] = {}
    experiment.train(ticket, index, f"train:{index}", lambda net: held.update(copied(net)))
    if not all(math.isfinite(float(t.sum())) for t in held.values() if t.is_floating_point()):
        raise UsageError("a training came to weights that are not finite: lower the learning rate")
    return held
