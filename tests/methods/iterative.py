"""Searches of several epochs or rounds on a tiny network, and what is killed and resumed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gemminer import methods
from gemminer.core.progress import Monitor
from gemminer.core.ticket import Ticket
from gemminer.data import TensorBatches
from gemminer.training.checkpoint import Checkpoint
from gemminer.training.task import Task
from tests.helpers import mined, tiny_data, tiny_net

EPOCHS = 4


def task_of(model: nn.Module | None = None, batch_size: int = 16, **fields: Any) -> Task:
    return Task(model or tiny_net(), TensorBatches(*tiny_data(), batch_size=batch_size), **fields)


def search(method: str, density: float, task: Task | None = None, **fields: Any) -> Ticket:
    row = methods.get(method)
    return mined(row.find, task or task_of(), density, row.options(**{"epochs": EPOCHS, **fields}), 0)


def flat(masks: Any) -> Tensor:
    return torch.cat([m.reshape(-1) for m in masks.values()])


class Kill(Monitor):
    """Ctrl-C after so many epochs of the whole search."""

    def __init__(self, after: int) -> None:
        self.left, self.seen = after, list[str]()

    def epoch(self, row: dict[str, Any]) -> None:
        self.seen.append(f"{row['phase']}/{row['epoch']}")
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt


def _timeless(row: dict[str, Any]) -> dict[str, Any]:
    rate = {"rate": {**row["rate"], "seconds": 0}} if "rate" in row else {}
    return {**row, "seconds": 0, **rate}


def assert_resumes(method: str, density: float, path: Path, epochs: int, **fields: Any) -> None:
    """Killed after any number of epochs and resumed, the ticket is the same, and no finished epoch is repeated."""
    whole = Kill(0)
    expected = search(method, density, task_of(monitor=whole), **fields)
    assert len(whole.seen) == epochs
    for after in range(1, epochs):
        file = path / f"{after}.pt"
        first, second = Kill(after), Kill(0)
        with pytest.raises(KeyboardInterrupt):
            search(method, density, task_of(monitor=first, checkpoint=Checkpoint(file, every=0.0)), **fields)
        found = search(method, density, task_of(monitor=second, checkpoint=Checkpoint(file, every=0.0)), **fields)
        assert found == expected
        numbers = [[_timeless(row) for row in t.provenance["rows"]] for t in (found, expected)]
        assert numbers[0] == numbers[1]
        # The epoch the kill fell in was not saved yet; all before it were.
        assert first.seen[:-1] + second.seen == whole.seen
