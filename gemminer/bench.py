"""A step against plain dense training: alternating blocks in one process, so ratios survive a noisy machine."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from gemminer import data, models, record
from gemminer.errors import UsageError
from gemminer.initialise import Draw, generator
from gemminer.masking import Dense, KeepMask, Rule, keep_highest, prunable, target
from gemminer.methods import gem_miner
from gemminer.task import Task
from gemminer.ticket import Ticket, named_state
from gemminer.train import Settings, step

# The networks of the documentation with the inputs they are measured on: (channels, side).
INPUTS = {"resnet20": (3, 32), "lenet-300-100": (1, 28), "vgg16": (3, 32), "mobilenet-v2": (3, 32)}
# An epoch of 60,000 images: a search's freezes are spread over this many steps of each of its epochs.
EXAMPLES, EPOCHS = 60_000, 10


@dataclass(frozen=True)
class Measurement:
    """One line of a benchmark: `ratio` = baseline's time / ours, the median over `runs` pairs of blocks.

    `low` and `high` are the 10th and 90th percentile of the pairs' ratios; milliseconds are medians, for scale.
    """

    bench: str
    model: str
    density: float
    batch: int
    baseline: str
    ratio: float
    low: float
    high: float
    runs: int
    device: str
    threads: int
    baseline_ms: float
    ours_ms: float
    versions: dict[str, str] = field(default_factory=record.versions)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def alternate(
    baseline: Callable[[], object], ours: Callable[[], object], *, runs: int, seconds: float = 0.4
) -> tuple[list[float], list[float]]:
    """Times of a call, in seconds, of each: blocks of about `seconds`, taking turns in who goes first."""
    for call in (baseline, ours) * 2:
        call()  # warm-up: buffers, kernel selection
    begun = time.perf_counter()
    baseline()
    block = max(1, round(seconds / max(1e-6, time.perf_counter() - begun)))
    times: tuple[list[float], list[float]] = ([], [])
    for run in range(runs):
        for which in (0, 1) if run % 2 == 0 else (1, 0):
            call = (baseline, ours)[which]
            begun = time.perf_counter()
            for _ in range(block):
                call()
            times[which].append((time.perf_counter() - begun) / block)
    return times


def measurement(
    bench: str, model: str, density: float, batch: int, baseline: str, times: tuple[list[float], list[float]]
) -> Measurement:
    """The ratio of paired times, with its spread."""
    ratios = sorted(a / b for a, b in zip(*times, strict=True))
    last = len(ratios) - 1
    return Measurement(
        bench,
        model,
        density,
        batch,
        baseline,
        statistics.median(ratios),
        ratios[round(0.1 * last)],
        ratios[round(0.9 * last)],
        len(ratios),
        "cpu",
        torch.get_num_threads(),
        1e3 * statistics.median(times[0]),
        1e3 * statistics.median(times[1]),
    )


def _task(name: str, batch: int) -> tuple[Task, Tensor, Tensor]:
    """A task of the model's usual input size with one batch of random images."""
    if name not in INPUTS:
        raise UsageError(f"no benchmark of {name!r}; there are: {', '.join(INPUTS)}")
    channels, side = INPUTS[name]
    source = generator("bench", name)
    images = torch.randn(batch, channels, side, side, generator=source)
    labels = torch.randint(10, (batch,), generator=source)
    model = models.build(name, in_channels=channels, classes=10, image_size=side)
    _draw(model)
    convolutional = any(isinstance(m, nn.Conv2d) for m in model.modules())
    batches = data.TensorBatches(images, labels, batch_size=batch)
    model.train()
    return Task(model, batches, channels_last=convolutional), images, labels


def _draw(model: nn.Module) -> None:
    parameters = prunable(model)
    with torch.no_grad():
        for name, weight in Draw().weights({n: p.shape for n, p in parameters.items()}).items():
            parameters[name].copy_(weight)


def _stepper(task: Task, rule: Rule, settings: Settings, images: Tensor, labels: Tensor) -> Callable[[], object]:
    optimiser = settings.build(rule.parameters())
    count = iter(range(10**9))
    return lambda: step(task, rule, optimiser, images, labels, next(count))


def search(name: str, density: float, batch: int, runs: int) -> Measurement:
    """A Gem-Miner search step (scores, ridge, clipping, freezes) against a plain SGD step of the same model.

    The freezes are those of a ten-epoch search of 60,000 images, from its start, where they cost most.
    """
    plain, images, labels = _task(name, batch)
    searched, _, _ = _task(name, batch)
    settings = Settings(EPOCHS, weight_decay=1e-4)
    options = gem_miner.Options(EPOCHS)
    parameters = prunable(searched.model)
    total = sum(p.numel() for p in parameters.values())
    target(density, total)
    schedule = gem_miner.freeze_schedule(options, EXAMPLES // batch, density, total)
    rule = gem_miner.Scores(parameters, options, schedule, seed=0)
    times = alternate(
        _stepper(plain, Dense(plain.model), settings, images, labels),
        _stepper(searched, rule, Settings(EPOCHS, weight_decay=2 * options.ridge), images, labels),
        runs=runs,
    )
    return measurement("search", name, density, batch, "dense training step", times)


def train(name: str, density: float, batch: int, runs: int) -> Measurement:
    """A training step under a mask against a plain one of the same model, both on the dense path."""
    plain, images, labels = _task(name, batch)
    masked, _, _ = _task(name, batch)
    settings = Settings(EPOCHS, weight_decay=1e-4)
    scores = {n: torch.rand(p.shape, generator=generator("bench mask", n)) for n, p in prunable(plain.model).items()}
    masks = keep_highest(scores, target(density, sum(s.numel() for s in scores.values())))
    Ticket(masks, named_state(masked.model)).apply(masked.model)
    times = alternate(
        _stepper(plain, Dense(plain.model), settings, images, labels),
        _stepper(masked, KeepMask(masked.model, masks), settings, images, labels),
        runs=runs,
    )
    return measurement("train", name, density, batch, "dense training step", times)


BENCHES = {"search": search, "train": train}


def run(bench: str, names: list[str], density: float, batch: int, runs: int) -> Iterator[Measurement]:
    """The benchmark for each network, as it is measured."""
    for name in names:
        yield BENCHES[bench](name, density, batch, runs)
