"""Setups and measurements of benchmarks: contestants take turns in one process, so ratios survive a noisy machine.

ratio = time of the baseline's call / time of ours, the median over `runs` rounds of blocks
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from typing import Any

import torch
from torch import Tensor

from gemminer.core.errors import GemminerError, UsageError
from gemminer.runs import environment

Calls = Mapping[str, Callable[[], object]]
Times = Mapping[str, Sequence[float]]

OURS = "ours"
# Relative to the largest output: float32 sums in another order differ by some 1e-6.
TOLERANCE = 1e-4
# A block is long beside the clock's and the scheduler's grain.
SECONDS = 0.4


@dataclass(frozen=True)
class Setup:
    """A network, its density and the sizes of one measurement.

    Args:
        batch: examples in a batch.
        runs: rounds of blocks; None for the benchmark's default.
        compile: whether torch.compile is a contestant (it compiles for a minute); None for the benchmark's default.
        memory: whether peak memory is measured too, where the benchmark does that.
        epochs, examples: the length of an end-to-end run.
    """

    model: str
    density: float = 0.0144
    batch: int = 128
    runs: int | None = None
    compile: bool | None = None
    memory: bool = True
    epochs: int = 4
    examples: int = 2048

    def __post_init__(self) -> None:
        for name in ("batch", "runs", "epochs", "examples"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"{name} must be 1 or more, not {value}")

    def trains(self) -> None:
        """Raises UsageError where batch norm cannot train on the batch."""
        if self.batch < 2:
            raise UsageError(f"a training step needs a batch size of 2 or more, not {self.batch}")


def versions() -> dict[str, str]:
    """Versions of the libraries that a ratio depends on, the baselines' included."""
    found = environment.versions()
    for package in ("scipy", "onnx", "onnxruntime"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


@dataclass(frozen=True)
class Measurement:
    """One line of a benchmark: `ratio` = baseline's time / ours, the median over `runs` rounds.

    `low` and `high` are the 10th and 90th percentile of the rounds' ratios; milliseconds are medians, for scale.
    `fastest` names the baseline, where it is the fastest of several. `left_out` says why a
    baseline is missing, by its name.
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
    fastest: str = ""
    note: str = ""
    left_out: Mapping[str, str] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=versions)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        more = "; ".join(filter(None, (self.fastest, self.note)))
        return (
            f"{self.bench} {self.model}, density {self.density:g}, batch {self.batch}: {self.ratio:.3f} "
            f"({self.low:.3f} to {self.high:.3f}, {self.runs} runs; {self.baseline}{f' ({more})' if more else ''} "
            f"{self.baseline_ms:.2f} ms, ours {self.ours_ms:.2f} ms)"
        )


def alternate(calls: Calls, *, runs: int, seconds: float | None = None) -> dict[str, list[float]]:
    """Seconds per call of each contestant, a list by name: blocks of about `seconds`, in turns that begin with each."""
    seconds = SECONDS if seconds is None else seconds
    for call in (*calls.values(), *calls.values()):
        call()  # warm-up: buffers, kernel selection
    blocks = {name: max(1, round(seconds / max(1e-6, _time(call, 1)))) for name, call in calls.items()}
    times: dict[str, list[float]] = {name: [] for name in calls}
    names = list(calls)
    for run in range(runs):
        first = run % len(names)
        for name in names[first:] + names[:first]:
            calls[name]()  # untimed: fills the caches while the previous contestant's threads go to sleep
            times[name].append(_time(calls[name], blocks[name]))
    return times


def _time(call: Callable[[], object], count: int) -> float:
    begun = time.perf_counter()
    for _ in range(count):
        call()
    return (time.perf_counter() - begun) / count


def measurement(
    bench: str, setup: Setup, baseline: str, times: tuple[Sequence[float], Sequence[float]], **more: Any
) -> Measurement:
    """The ratio of paired times, the baseline's first, with its spread."""
    ratios = sorted(a / b for a, b in zip(*times, strict=True))
    last = len(ratios) - 1
    return Measurement(
        bench,
        setup.model,
        setup.density,
        setup.batch,
        baseline,
        statistics.median(ratios),
        ratios[round(0.1 * last)],
        ratios[round(0.9 * last)],
        len(ratios),
        "cpu",
        torch.get_num_threads(),
        1e3 * statistics.median(times[0]),
        1e3 * statistics.median(times[1]),
        **more,
    )


def fastest(times: Times, names: Sequence[str]) -> str:
    """The name with the least median time."""
    return min(names, key=lambda name: statistics.median(times[name]))


def against_each(
    bench: str, setup: Setup, times: Times, rivals: Sequence[str], notes: Mapping[str, str] | None = None, **more: Any
) -> Iterator[Measurement]:
    """A line for each baseline of `times`, and one against the fastest of `rivals`, those that are there.

    `notes` are remarks about baselines, by name.
    """
    notes = notes or {}
    for name in times:
        if name != OURS:
            yield measurement(bench, setup, name, (times[name], times[OURS]), note=notes.get(name, ""), **more)
    there = [name for name in rivals if name in times]
    best = fastest(times, there)
    label, pair = f"fastest of {' and '.join(there)}", (times[best], times[OURS])
    yield measurement(bench, setup, label, pair, fastest=best, note=notes.get(best, ""), **more)


def require_equal(outputs: Mapping[str, Tensor], reference: str) -> None:
    """Raise GemminerError unless all outputs equal the reference's within 1e-4 of its largest."""
    expected = outputs[reference]
    for name, found in outputs.items():
        error = float((found - expected).abs().max() / expected.abs().max())
        if not error <= TOLERANCE:
            raise GemminerError(
                f"{name} and {reference} compute different things: outputs differ by {error:.2g} of the largest, "
                f"more than {TOLERANCE:g}, so their times cannot be compared"
            )
