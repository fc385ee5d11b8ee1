"""Architectures that nobody tuned for: a sparse copy computes what the masked dense model computes.

Their list, and how they are compared, are the benchmark's: what stands in its table is tested here in its small form.
"""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import gemminer
from benchmarks.architectures import ARCHITECTURES, cast, differences
from gemminer.sparse.training import crossover

NAMES = {a.name: a for a in ARCHITECTURES}


def some_kinds(layer: nn.Module, precision: str) -> float:
    """A machine on which convolutions of one pixel and linear layers are faster sparse, and no others are."""
    return 1.0 if isinstance(layer, nn.Linear) or getattr(layer, "kernel_size", ()) == (1, 1) else 0.0


@pytest.mark.parametrize("name", NAMES)
def test_a_sparse_copy_is_the_masked_dense_model(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Outputs, gradients, running statistics; every other one with engine sparse, the rest with auto."""
    monkeypatch.setattr(crossover, "of_layer", some_kinds)
    engine = ("sparse", "auto")[list(NAMES).index(name) % 2]
    _, gaps = differences(NAMES[name], engine, small=True, dtype=torch.float64, density=0.3)
    assert max(gaps.values()) < 1e-8, gaps


@pytest.mark.parametrize(
    "name", ["torchvision efficientnet_b0", "timm mobilenetv3_small_050", "torchvision swin_t", "timm convnext_atto"]
)
def test_a_step_of_search_and_of_training_is_that_of_the_dense_engine(name: str) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = NAMES[name].build(True).double()
    images = cast(NAMES[name].batch(True, 0), torch.float64).args[0]
    data = (images, torch.arange(len(images)))
    ticket = gemminer.mine(model, data, 0.1, epochs=1, batch_size=len(images), seed=0, engine="sparse")
    assert ticket.kept == round(0.1 * ticket.prunable)
    trained = {}
    for engine in ("dense", "sparse"):
        net = copy.deepcopy(model)
        gemminer.train(net, ticket, data, epochs=1, batch_size=len(images), lr=0.01, seed=0, engine=engine)
        trained[engine] = net.state_dict()
    for key, right in trained["dense"].items():
        torch.testing.assert_close(trained["sparse"][key], right, rtol=1e-7, atol=1e-9)
