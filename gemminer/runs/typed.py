"""Types of what `mine`, `train` and `check` take by keyword and of what `train` returns, for checkers and editors.

The fields repeat those of `training.settings.Settings` and of the methods' options; a test holds them together.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, TypedDict, overload

from gemminer.core.progress import Monitor
from gemminer.training.losses import Loss, Metric, Step
from gemminer.training.rate import Found as Rate


class TrainOptions(TypedDict, total=False):
    """The settings of a training: the fields of `gemminer.training.settings.Settings`."""

    optimiser: Literal["sgd", "adam", "adamw"]
    lr: float | Literal["auto"]
    momentum: float
    nesterov: bool
    weight_decay: float
    schedule: Literal["cosine", "cosine-by-epoch", "multistep", "constant"]
    milestones: tuple[int, ...]
    gamma: float
    max_norm: float | None


class MineOptions(TrainOptions, total=False):
    """The options of the package's methods, all together; `gemminer.methods.get(name).options` are one method's."""

    ridge: float | None
    scale: bool | None
    start: float
    slack: float
    freeze_every: int
    repair: float
    scores: Literal["uniform", "bernoulli", "beta"]
    threshold: float
    mask: Literal["q", "live"]
    floor: int
    invert: bool
    rung: Literal["layer", "global", "gradual", "ridge"]
    clip: float
    scope: Literal["global", "layer"]
    batches: int
    temperature: float
    per_class: int
    rewind: Literal["cold", "warm", "lr"]
    rewind_steps: int
    rate: float
    steps: int
    detach_first: bool
    shape: Literal["resnet", "vgg"]
    classifier: float
    rounds: int
    freeze_late: bool
    mode: Literal["train", "eval"]
    criterion: Literal["snip", "grasp", "signed", "loss", "cka", "hrank", "l1", "random"]
    reduce: Literal["mean", "sum"]
    remove: int
    least: int
    then: str


class SmallestOptions(TypedDict, total=False):
    """What `smallest` takes besides its question: how densities are searched and trained, as `mine` and `train` say."""

    epochs: int | None
    train_epochs: int | None
    seed: int
    batch_size: int
    initialiser: str
    loss: Loss
    step: Step | None
    metric: Metric | None
    include: str | Sequence[str]
    exclude: str | Sequence[str]
    embeddings: bool
    engine: str
    precision: str
    accumulate: int
    distributed: bool | None
    options: Mapping[str, Any]
    train: Mapping[str, Any]
    progress: bool
    monitor: Monitor | None


class ScoringOptions(TypedDict, total=False):
    """How `scores` reads the data, as `mine` does."""

    batch_size: int
    loss: Loss
    step: Step | None
    precision: str
    accumulate: int


class ScoreOptions(TrainOptions, ScoringOptions, total=False):
    """What `scores` takes besides its question: how the data is read, and the settings of a training."""

    noise: float


class InstabilityOptions(TrainOptions, ScoringOptions, total=False):
    """What `instability` takes besides its question: how the network is trained, as `train` says."""

    epochs: int | None
    seed: int
    initialiser: str
    metric: Metric | None
    engine: str


class Cost(TypedDict):
    """What a training took: epochs, seconds, and FLOPs of all weights and of those kept."""

    epochs: float
    seconds: float
    flops_dense: float
    flops_sparse: float


@dataclass(frozen=True, eq=False)
class TrainResult(Mapping[str, Any]):
    """What a training came to; a mapping too, so that `result["test"]`, `dict(result)` and `**result` work.

    Printed, it is a few lines.

    Args:
        test: the metric on the test data, None without any.
        classes: the metric by class, where there is one class index and one value for each test example.
        validation: the metric on validation data after the last epoch, None without any.
        cost: epochs, seconds and FLOPs.
        rate: the learning rate and how it was found, as `gemminer.training.rate` says.

    >>> import gemminer, torch
    >>> net, data = torch.nn.Linear(4, 2), (torch.ones(4, 4), torch.ones(4).long())
    >>> result = gemminer.train(net, gemminer.mine(net, data, density=0.5, epochs=1), data, data, epochs=1)
    >>> result.test == result["test"], list(result)
    (True, ['test', 'classes', 'validation', 'cost', 'rate'])
    """

    test: float | None
    classes: list[float | None] | None
    validation: float | None
    cost: Cost
    rate: Rate

    @overload  # type: ignore[override]  # other names are errors on purpose
    def __getitem__(self, name: Literal["test", "validation"]) -> float | None: ...
    @overload
    def __getitem__(self, name: Literal["classes"]) -> list[float | None] | None: ...
    @overload
    def __getitem__(self, name: Literal["cost"]) -> Cost: ...
    @overload
    def __getitem__(self, name: Literal["rate"]) -> Rate: ...
    def __getitem__(self, name: str) -> Any:
        if name not in _NAMES:
            raise KeyError(name)
        return getattr(self, name)

    def __iter__(self) -> Iterator[str]:
        return iter(_NAMES)

    def __len__(self) -> int:
        return len(_NAMES)

    def __repr__(self) -> str:
        return f"TrainResult(test={self.test}, validation={self.validation}, epochs={self.cost['epochs']:g})"

    def __str__(self) -> str:
        cost, rate = self.cost, self.rate
        rows = {
            "test": _four(self.test),
            "by class": _four(*(self.classes or ())[:MOST]) + (" ..." if len(self.classes or ()) > MOST else ""),
            "validation": _four(self.validation),
            "training": f"{cost['epochs']:g} epochs, {cost['seconds']:.3g} s",
            "FLOPs": f"{cost['flops_sparse']:.3g} of the weights kept, {cost['flops_dense']:.3g} of all",
            "rate": f"lr {rate['lr']:.3g}" + (f", found in {rate['steps']} steps" if rate.get("steps") else ""),
        }
        if rate.get("max_norm") is not None:
            rows["rate"] += f"; gradients at most {rate['max_norm']:.3g} long"
        return "\n".join(f"{name:<10}  {text}" for name, text in rows.items() if text)

    def __eq__(self, other: object) -> bool:
        return dict(self.items()) == dict(other.items()) if isinstance(other, Mapping) else NotImplemented

    __hash__ = None  # type: ignore[assignment]  # as a dictionary


MOST = 10  # classes that are printed


def _four(*values: float | None) -> str:
    """Numbers side by side, four digits each; nothing where there is only None."""
    return "" if values == (None,) else "  ".join("-" if value is None else f"{value:.4f}" for value in values)


_NAMES = tuple(field.name for field in fields(TrainResult))
