"""Which layers run sparse, by the densities at which it pays."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from gemminer.core.ticket import Ticket
from gemminer.sparse.training import crossover
from gemminer.sparse.training.convert import sparsify
from gemminer.sparse.training.held import is_held
from gemminer.sparse.training.modules import SparseConv2d, SparseLinear
from tests.sparse.training.helpers import ticket_for


def test_auto_takes_the_cheaper_of_the_two(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(crossover, "_crossover", lambda kind, precision: calls.append(precision) or 0.1)
    crossover.crossovers.cache_clear()
    try:
        model = nn.Sequential(nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 3))
        masks = {f"{i}.weight": torch.zeros(8, 8, 3, 3, dtype=torch.bool) for i in (0, 1)}
        masks["0.weight"].view(-1)[:57] = True  # of 576
        masks["1.weight"].view(-1)[:58] = True
        sparse = sparsify(model, Ticket(masks, model.state_dict()))
        assert [is_held(m) for m in sparse.modules() if isinstance(m, nn.Conv2d | SparseConv2d)] == [False, True]
        expected = dict.fromkeys(crossover._PROBES, 0.1)
        crossover.crossovers.cache_clear()
        assert crossover.crossovers(torch.get_num_threads()) == expected
        assert len(calls) == len(expected)  # the second time from the file
        assert crossover.crossovers(torch.get_num_threads(), "bf16") == expected
        assert calls == ["fp32"] * len(expected) + ["bf16"] * len(expected)  # a file of its own
        for damaged in ("{", '{"conv 16": 0.1}', "[]"):
            for path in tmp_path.rglob("crossover-*.json"):
                path.write_text(damaged)
            crossover.crossovers.cache_clear()
            assert crossover.crossovers(torch.get_num_threads()) == expected
    finally:
        crossover.crossovers.cache_clear()


@pytest.mark.parametrize(("density", "sparse"), [(0.1, True), (0.9, False)])
def test_a_depthwise_layer_goes_with_those_around_it(
    monkeypatch: pytest.MonkeyPatch, density: float, sparse: bool
) -> None:
    monkeypatch.setattr(crossover, "crossovers", lambda *asked: dict.fromkeys(crossover._PROBES, 0.5))
    model = nn.Sequential(nn.Conv2d(4, 8, 1), nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 4, 1))
    found = [m for m in sparsify(model, ticket_for(model, density)).modules() if hasattr(m, "groups")]
    assert [(isinstance(m, SparseConv2d), is_held(m)) for m in found] == 3 * [(sparse, not sparse)]


@pytest.mark.parametrize(("density", "sparse"), [(0.1, True), (0.9, False)])
def test_a_small_linear_layer_goes_with_the_large_ones(
    monkeypatch: pytest.MonkeyPatch, density: float, sparse: bool
) -> None:
    monkeypatch.setattr(crossover, "crossovers", lambda *asked: dict.fromkeys(crossover._PROBES, 0.5))
    model = nn.Sequential(nn.Linear(784, 100), nn.ReLU(), nn.Linear(100, 10))
    found = sparsify(model, ticket_for(model, density)).modules()
    assert [is_held(m) for m in found if isinstance(m, SparseLinear) or is_held(m)] == 2 * [not sparse]
    head = nn.Sequential(nn.Conv2d(4, 4, 1), nn.Flatten(), nn.Linear(4, 2))  # of a convolutional network: alone
    found = sparsify(head, ticket_for(head, 0.1)).modules()
    assert any(isinstance(m, SparseConv2d) for m in found)
    assert not any(isinstance(m, SparseLinear) for m in found)


def test_a_crossover_is_a_density() -> None:
    assert all(0 <= crossover._crossover("conv 64", precision) <= 1 for precision in ("fp32", "bf16"))
