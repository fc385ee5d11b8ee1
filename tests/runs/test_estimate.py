"""What a comparison costs, by hand, and how much of it is left."""

from __future__ import annotations

import types
from typing import Any

import pytest

from gemminer.runs import estimate
from gemminer.runs.estimate import Facts, Forecast
from tests.runs.helpers import cells_of_seeds, plan


@pytest.mark.parametrize(
    ("fields", "search", "training", "inverted", "rates"),
    [
        ({"method": "gem-miner", "epochs": 10}, 10, 10 * 4, 10, 2 * 4),  # two trials of a step, which is an epoch
        ({"method": "edge-popup", "epochs": 10, "train_epochs": 5}, 10, 5 * 4, 10, 2 * 4),
        ({"method": "imp", "epochs": 10}, 10 * 10, 10 * 4, 10 * 10, 2 * 6),  # 0.8^10 = 0.107
        ({"method": "imp:rate=0.5", "epochs": 10}, 10 * 3, 10 * 4, 10 * 3, 2 * 6),  # 0.5^3 = 0.125
        ({"method": "imp:lr=0.1", "epochs": 10}, 10 * 10, 10 * 4, 10 * 10, 2 * 4),
        ({"method": "imp:lr=0.1", "epochs": 10, "train": {"lr": 0.1}}, 10 * 10, 10 * 4, 10 * 10, 0),
        ({"method": "snip", "epochs": 10}, 0, 10 * 4, 0, 2 * 4),
        ({"method": "snip", "epochs": 10, "checks": [], "check_seeds": 3}, 0, 10, 0, 2),
        ({"method": "gem-miner", "epochs": 10, "checks": ["shuffle"], "check_seeds": 3}, 10, 10 * 3 * 2, 0, 2 * 6),
    ],
)
def test_estimated_epochs(fields: dict[str, Any], search: float, training: int, inverted: float, rates: float) -> None:
    (cell,) = plan(**fields, dense=False).cells()
    found = estimate.estimate_recipe(cell.recipe, Facts(examples=100, prunable=10_000, flops=7.0))
    assert (found.search, found.training, found.checks, found.rates) == (search, training, inverted, rates)
    assert found.flops == 3 * 100 * 7 * (search + training + inverted + rates)


def test_facts_are_those_of_the_network_and_the_data() -> None:
    (cell,) = plan(dense=False, validation=0.0).cells()
    known = estimate.facts(cell.recipe)
    weights = 64 * 300 + 300 * 100 + 100 * 10  # digits are 8x8
    assert known.examples == 300
    assert known.prunable == weights + 0 * 64
    assert known.flops == 2 * weights


def test_time_left_is_the_remaining_flops_at_the_speed_so_far(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(estimate, "time", types.SimpleNamespace(monotonic=lambda: clock[0]))
    cells = cells_of_seeds(4)
    expected = {c.digest: estimate.Estimate(1, 1, 0, flops) for c, flops in zip(cells, (10, 20, 30, 40), strict=True)}
    forecast = Forecast(cells, expected, workers=2)
    forecast.start(cells[0].digest)
    assert forecast.seconds() is None
    costs = {"search": {"flops_dense": 5.0, "seconds": 1.0}, "train": {"flops_dense": 5.0, "seconds": 1.0}}
    done = types.SimpleNamespace(cost={k: types.SimpleNamespace(**v) for k, v in costs.items()})
    forecast.finish(cells[0].digest, done)  # type: ignore[arg-type]
    assert forecast.seconds() == pytest.approx((4 + 6 + 8) / 2)  # 5 FLOPs a second
    forecast.start(cells[3].digest)
    clock[0] = 2.0
    assert forecast.seconds() == pytest.approx((4 + 6 + 6) / 2)
    for cell in cells[1:3]:
        forecast.finish(cell.digest, None)
    assert forecast.seconds() == pytest.approx(6)  # one cell keeps one worker
