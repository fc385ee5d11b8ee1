"""A training step against plain dense training: `search` and `train`."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from gemminer.bench import memory, networks
from gemminer.bench.contestants import compiled, reason
from gemminer.bench.measure import OURS, Measurement, Setup, against_each, alternate, require_equal
from gemminer.bench.steps import EPOCHS, Step, plain_step, sparse_net, stepper
from gemminer.core.copies import duplicate
from gemminer.core.prunable import prunable_weights
from gemminer.core.selection import target
from gemminer.data import TensorBatches
from gemminer.methods import gem_miner
from gemminer.methods.gem_miner import GemMinerRule
from gemminer.training.settings import Settings
from gemminer.training.task import Task

# An epoch of 60,000 images: a search's freezes are spread over this many steps of each of its epochs.
EXAMPLES = 60_000
RUNS = 15
NCHW, CHANNELS_LAST = "dense NCHW", "dense channels-last"


def _dense_steps(model: nn.Module, setup: Setup) -> dict[str, Step]:
    """Steps of copies of the model, in each layout it can have."""
    layouts = {NCHW: False} | ({CHANNELS_LAST: True} if networks.convolutional(model) else {})
    return {name: plain_step(duplicate(model), setup, channels_last=last) for name, last in layouts.items()}


def search(setup: Setup) -> Iterator[Measurement]:
    """A Gem-Miner search step (scores, ridge, clipping, freezes) against plain SGD steps of the same model.

    The freezes are those of a ten-epoch search of 60,000 images, from its start, where they cost most.
    """
    setup.trains()
    model = networks.build(setup.model)
    options = gem_miner.Options(EPOCHS)
    target(setup.density, sum(p.numel() for p in prunable_weights(model).values()))
    calls = _dense_steps(model, setup)
    dense = list(calls)
    images, labels = networks.images_of(setup.model, setup.batch)
    task = Task(model, TensorBatches(images, labels), channels_last=networks.convolutional(model))
    rule = _scores(task, options, max(1, EXAMPLES // setup.batch), setup.density)
    settings = Settings(EPOCHS, lr=options.lr, weight_decay=2 * (options.ridge or 0.0))
    calls[OURS] = stepper(task, rule, settings, images, labels)
    yield from against_each("search", setup, alternate(calls, runs=setup.runs or RUNS), dense)


def _scores(task: Task, options: gem_miner.Options, steps: int, density: float) -> GemMinerRule:
    """The rule that `gem_miner.find` makes."""
    parameters = prunable_weights(task.model)
    total = sum(p.numel() for p in parameters.values())
    schedule = options.freeze_schedule(steps, density, total)

    def live_at(step: int) -> int:
        return options.live_count(step, steps, density, total)

    return GemMinerRule(parameters, options, schedule, 0, live_at if options.ridge is None else None, task)


def train(setup: Setup) -> Iterator[Measurement | memory.Memory]:
    """A training step of a ticket's kept weights against dense steps of the same model, and their peak memory."""
    setup.trains()
    model = networks.build(setup.model)
    net = sparse_net(setup.model, model, setup.density)
    _require_same(setup, model, net)
    calls = _dense_steps(model, setup)
    dense = list(calls)
    left_out = _add_compiled(calls, duplicate(model), setup) if setup.compile else {}
    calls[OURS] = plain_step(net, setup)
    times = alternate(calls, runs=setup.runs or RUNS)
    yield from against_each("train", setup, times, dense, left_out=left_out)
    if setup.memory:
        yield from memory.compare(setup)


@torch.no_grad()
def _require_same(setup: Setup, model: nn.Module, net: nn.Module) -> None:
    """Raise GemminerError unless our network computes the same as the masked dense one."""
    images, _ = networks.images_of(setup.model, setup.batch)
    masked = networks.ticket_of(setup.model, model, setup.density).apply(duplicate(model))
    require_equal({"the sparse network": duplicate(net)(images), "the masked one": masked(images)}, "the masked one")


def _add_compiled(calls: dict[str, Step], model: nn.Module, setup: Setup) -> dict[str, str]:
    """Add a step through torch.compile to the calls; returns the reason where it is left out."""
    run = compiled(model)
    plain = plain_step(model, setup, channels_last=networks.convolutional(model), run=run)
    try:
        plain()
    except Exception as error:  # no compiler on this machine, an operation it does not know, ...
        return {"torch.compile": reason(error)}
    calls["torch.compile"] = plain
    return {}
