"""`end-to-end`: a gem's search and its training, from the first step to the last, against one dense training.

Data are random images of the network's usual size, for time does not depend on what they show.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace

from torch import Tensor

from gemminer import api
from gemminer.bench import networks
from gemminer.bench.measure import Measurement, Setup, measurement
from gemminer.core.errors import UsageError
from gemminer.core.prunable import prunable_weights
from gemminer.core.ticket import Ticket
from gemminer.methods import imp
from gemminer.training.loop import fit
from gemminer.training.rules import Dense
from gemminer.training.settings import Settings

RUNS = 3
IMP_RATE = 0.2
SEARCH, TRAIN = "search", "train"


def end_to_end(setup: Setup) -> Iterator[Measurement]:
    """(Search + training of `epochs` each) against a dense training of as many; IMP's rounds against the search."""
    setup.trains()
    if setup.examples < 2 * setup.batch:
        raise UsageError(f"examples must be two batches or more, {2 * setup.batch}, not {setup.examples}")
    best = _warm(replace(setup, epochs=1, examples=2 * setup.batch))
    times: dict[str, list[float]] = {name: [] for name in (best, SEARCH, TRAIN)}
    for run in range(setup.runs or RUNS):
        work = _work(setup)
        for names in ((best,), (SEARCH, TRAIN))[:: 1 if run % 2 == 0 else -1]:
            for name in names:
                times[name].append(_seconds(work[name]))
    ours = [a + b for a, b in zip(times[SEARCH], times[TRAIN], strict=True)]
    length = f"{setup.epochs} epochs of {setup.examples} images each"
    yield measurement("end-to-end", setup, "dense training", (times[best], ours), fastest=best, note=length)
    rounds = _rounds(setup)
    imp_times = [rounds * t for t in times[best]]
    note = f"{rounds} rounds, each as long as the dense training, against the search alone; {length}"
    yield measurement("end-to-end", setup, "imp", (imp_times, times[SEARCH]), note=note)


def _warm(setup: Setup) -> str:
    """Run everything once, so that all is loaded and compiled; returns the faster of the dense layouts."""
    work = _work(setup)
    for call in work.values():
        call()
    dense = [name for name in work if name not in (SEARCH, TRAIN)]
    least = {name: min(_seconds(work[name]) for _ in range(3)) for name in dense}
    return min(dense, key=lambda name: least[name])


def _work(setup: Setup) -> dict[str, Callable[[], object]]:
    """The calls to time, by name; the ticket trained is the one found before."""
    data = networks.images_of(setup.model, setup.examples)
    layouts = {"NCHW": False}
    if networks.convolutional(networks.build(setup.model)):
        layouts["channels-last"] = True
    found: list[Ticket] = []
    model = networks.build(setup.model)

    def search() -> None:
        found.append(api.mine(model, data, setup.density, epochs=setup.epochs, batch_size=setup.batch))

    def train() -> None:
        api.train(model, found[-1], data, epochs=setup.epochs, batch_size=setup.batch)

    dense = {name: _dense(setup, data, last) for name, last in layouts.items()}
    return {**dense, SEARCH: search, TRAIN: train}


def _dense(setup: Setup, data: tuple[Tensor, Tensor], channels_last: bool) -> Callable[[], object]:
    def run() -> None:
        model = networks.build(setup.model)
        task = networks.task_of(model, *data, batch=setup.batch, channels_last=channels_last)
        fit(task, Dense(model), Settings(setup.epochs, lr=0.1), seed=0)

    return run


def _seconds(call: Callable[[], object]) -> float:
    begun = time.perf_counter()
    call()
    return time.perf_counter() - begun


def _rounds(setup: Setup) -> int:
    """IMP's trainings until 0.8^n is the density."""
    total = sum(p.numel() for p in prunable_weights(networks.build(setup.model)).values())
    return len(imp.round_counts(total, setup.density, IMP_RATE))
