"""The training benchmark's layouts, and a mask that is not obeyed."""

from __future__ import annotations

import copy

import pytest
from torch import nn

from gemminer import sparse
from gemminer.bench import BENCHES
from gemminer.bench.measure import Setup
from gemminer.core.errors import GemminerError


def test_a_convolutional_network_trains_in_both_layouts() -> None:
    found = list(BENCHES["train"](Setup("resnet20", batch=2, runs=1, memory=False)))
    assert [line.baseline for line in found][:2] == ["dense NCHW", "dense channels-last"]
    assert found[2].fastest in ("dense NCHW", "dense channels-last")
    least = min(found[:2], key=lambda line: line.baseline_ms)
    assert (found[2].fastest, found[2].ratio) == (least.baseline, least.ratio)


def test_training_with_a_mask_that_is_not_obeyed_stops(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sparse, "sparsify", lambda model, ticket: nn.Sequential(copy.deepcopy(model), nn.Softplus()))
    with pytest.raises(GemminerError, match="the sparse network and the masked one compute different things"):
        list(BENCHES["train"](Setup("lenet-300-100", batch=2, runs=1)))
