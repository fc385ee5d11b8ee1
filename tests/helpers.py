"""What the tests of several rooms share: tiny networks and data, tickets drawn at random, a monitor."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gemminer import methods
from gemminer.core.draw import Draw
from gemminer.core.masks import State
from gemminer.core.model_state import borrowed, named_state
from gemminer.core.progress import Monitor
from gemminer.core.prunable import prunable_weights
from gemminer.core.selection import keep_highest
from gemminer.core.ticket import Ticket
from gemminer.methods import Find
from gemminer.training.task import Task

# The methods that keep an exact number of single weights of any network.
EXACT = tuple(name for name in methods.names() if methods.get(name).exact)


def tiny_net(seed: int = 0, norm: bool = True) -> nn.Sequential:
    """6 -> 16 -> 12 -> 3 with batch norm and biases: 96 + 192 + 36 = 324 prunable weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Linear(6, 16),
            nn.BatchNorm1d(16) if norm else nn.Identity(),
            nn.ReLU(),
            nn.Linear(16, 12),
            nn.ReLU(),
            nn.Linear(12, 3),
        )


def tiny_data(examples: int = 96, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Points of 6 numbers around 3 centres: any working classifier gets nearly all of them right."""
    source = torch.Generator().manual_seed(seed)
    targets = torch.arange(examples) % 3
    centres = 2 * torch.eye(6)[:3]
    return centres[targets] + 0.3 * torch.randn(examples, 6, generator=source), targets


def drawn_ticket(model: nn.Module, density: float = 0.1, seed: int = 0, **provenance: Any) -> Ticket:
    """A random ticket whose weights are a recorded draw."""
    draw = Draw("signed-constant", seed)
    shapes = {name: p.shape for name, p in prunable_weights(model).items()}
    source = torch.Generator().manual_seed(seed)
    scores = {name: torch.rand(shape, generator=source) for name, shape in shapes.items()}
    masks = keep_highest(scores, round(density * sum(s.numel() for s in shapes.values())))
    return Ticket(masks, {**named_state(model), **draw.weights(shapes)}, {"method": "test", **provenance}, draw)


def mined(find: Find, task: Task, density: float, options: Any, seed: int) -> Ticket:
    """The ticket of a method on a borrowed model; all that was found is in its provenance."""
    with borrowed(task.model) as model:
        initial = State(named_state(model))
        found = find(task, density, options, seed)
    facts = {} if found.live is None else {"live": found.live}
    facts |= {"rows": list(found.rows), "at_initialisation": found.draw_holds, **found.facts}
    facts["epochs"] = len(found.rows) if found.epochs is None else found.epochs
    return Ticket(found.masks, initial if found.start is None else found.start, facts, removed=found.removed)


class Elsewhere(torch.Tensor):
    """A tensor that says it is on a GPU, so that the way without numpy is taken."""

    device = torch.device("cuda")  # type: ignore[assignment]


def states() -> tuple[Any, ...]:
    legacy = np.random.get_state()  # noqa: NPY002
    return torch.get_rng_state().tolist(), legacy[1].tolist(), legacy[2], random.getstate()


Snapshot = Callable[[nn.Module], object]
Pair = tuple[Tensor, Tensor]


class Notes(Monitor):
    def __init__(self) -> None:
        self.notes: list[str] = []
        self.rows: list[dict[str, Any]] = []

    def note(self, text: str) -> None:
        self.notes.append(text)

    def epoch(self, row: dict[str, Any]) -> None:
        self.rows.append(row)
