"""Trackers get each phase's numbers under its name, and a step that only rises."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn

import gemminer
from gemminer.core.errors import UsageError
from gemminer.integrations import trackers


class Run:
    """A run of wandb, as far as it is used."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []
        self.metrics: dict[str, str] = {}
        self.finished = False

    def define_metric(self, name: str, step_metric: str) -> None:
        assert name not in self.metrics
        self.metrics[name] = step_metric

    def log(self, numbers: dict[str, float]) -> None:
        self.rows.append(numbers)

    def finish(self) -> None:
        self.finished = True


def search_and_train(net: nn.Module, pair: tuple[Tensor, Tensor], monitor: gemminer.Monitor) -> None:
    ticket = gemminer.mine(net, pair, 0.3, epochs=3, batch_size=32, monitor=monitor)
    gemminer.train(net, ticket, pair, epochs=2, batch_size=32, monitor=monitor)
    monitor.close()


def test_steps_rise_over_phases(net: nn.Module, pair: tuple[Tensor, Tensor]) -> None:
    seen: list[tuple[int, dict[str, float]]] = []
    search_and_train(net, pair, trackers.Tracker(lambda numbers, step: seen.append((step, numbers))))
    assert [step for step, _ in seen] == [3, 6, 9, 12, 15]  # 96 examples in batches of 32
    assert [next(iter(numbers)).split("/")[0] for _, numbers in seen] == ["search"] * 3 + ["train"] * 2
    assert {"search/loss", "search/kept", "search/lr"} <= seen[0][1].keys()
    assert all(type(value) is float for _, numbers in seen for value in numbers.values())


def test_rounds_are_phases_too(net: nn.Module, pair: tuple[Tensor, Tensor]) -> None:
    seen: list[tuple[int, dict[str, float]]] = []
    monitor = trackers.Tracker(lambda numbers, step: seen.append((step, numbers)))
    gemminer.mine(net, pair, 0.3, method="imp", epochs=2, batch_size=32, monitor=monitor)
    steps = [step for step, _ in seen]
    assert steps == sorted(set(steps))
    assert "search/round1/loss" in seen[0][1]


def test_tensorboard_reads_what_is_written(net: nn.Module, pair: tuple[Tensor, Tensor], tmp_path: Path) -> None:
    search_and_train(net, pair, trackers.tensorboard(tmp_path / "events"))
    events = EventAccumulator(str(tmp_path / "events")).Reload()
    assert {"search/loss", "train/loss"} <= set(events.Tags()["scalars"])
    assert [event.step for event in events.Scalars("search/loss")] == [3, 6, 9]
    assert [event.step for event in events.Scalars("train/loss")] == [12, 15]


def test_wandb_gets_a_step_of_its_own(
    net: nn.Module, pair: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    runs: list[Run] = []

    def init(**options: Any) -> Run:
        assert options == {"project": "gems"}
        runs.append(Run())
        return runs[-1]

    module = ModuleType("wandb")
    module.init = init  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", module)
    search_and_train(net, pair, trackers.wandb(project="gems"))
    assert [row["gemminer/step"] for row in runs[0].rows] == [3, 6, 9, 12, 15]
    assert set(runs[0].metrics.values()) == {"gemminer/step"}
    assert {"search/loss", "train/loss"} <= runs[0].metrics.keys()
    assert runs[0].finished
    own = Run()
    trackers.wandb(own).close()
    assert not own.finished


def test_what_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("wandb", "torch.utils.tensorboard"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UsageError, match=r"wandb is not installed: pip install 'gemminer\[trackers\]'"):
        trackers.wandb()
    with pytest.raises(UsageError, match=r"tensorboard is not installed"):
        trackers.tensorboard(tmp_path)
