"""Norms, residuals and ReLUs fused with the convolution before them, and what stops it."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from gemminer import models
from gemminer.sparse.training.convert import sparsify
from gemminer.sparse.training.fuse import SparseNetwork
from tests.sparse.training.helpers import compare, noise, ticket_for


@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("density", [0.02, 0.3])
def test_norm_residual_and_relu_in_both_modes(affine: bool, momentum: float | None, density: float) -> None:
    model = models.build("resnet20", in_channels=2, image_size=8, width=0.25, norm="affine" if affine else "non-affine")
    model = model.double()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = momentum
    ticket = ticket_for(model, density)
    sparse = sparsify(model, ticket, engine="sparse")
    assert isinstance(sparse, SparseNetwork)
    for i, training in enumerate([True, True, False]):
        model.train(training)
        sparse.train(training)
        compare(model, sparse, ticket, noise(5, 2, 8, 8, seed=i))
        assert len(sparse.chains) == 2  # all convolutions in one, the classifier


def test_what_stops_a_chain_stops_nothing_else() -> None:
    class Dropping(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm, self.last = nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Conv2d(2, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            h = F.dropout(F.relu(self.norm(self.conv(x))), 0.5, self.training)
            out: Tensor = self.last(h)
            return out

    model = Dropping()
    sparse = sparsify(model, ticket_for(model, 0.5), engine="sparse")
    assert isinstance(sparse, SparseNetwork)
    x = noise(2, 1, 8, 8, dtype=torch.float32)
    assert not torch.equal(sparse(x), sparse(x))
    assert [len(chain.links.units) for chain in sparse.chains] == [1, 1]
    assert torch.equal(sparse.eval()(x), sparse(x))


# Units in each chain: of commit 7a3455c, where a trace was replayed, with max pools between them since.
FUSED = {
    "resnet20": [21, 1],
    "vgg16": [18, 1],
    "mobilenet-v2": [57, 1],
    "wideresnet-10-1": [1, 2, 3, 3, 1],
    "lenet-5": [4, 3],
    "lenet-300-100": [3],
    "conv-2": [3, 3],
    "torchvision resnet18": [21, 1],
    "torchvision densenet121": (63, 122),
    "torchvision shufflenet_v2_x0_5": [7, 3, 3, 3, 5, 3, 3, 3, 3, 3, 3, 3, 5, 3, 3, 3, 1, 1],
    "timm resnet18": [21, 1],
    "timm convnext_atto": (38, 41),
    "timm vit_tiny_patch16_224": (50, 50),
}


def network(name: str) -> nn.Module:
    source, _, kind = name.rpartition(" ")
    if source == "torchvision":
        return torchvision.models.get_model(kind, num_classes=4)  # type: ignore[no-any-return]
    if source == "timm":
        timm = pytest.importorskip("timm")
        size = {"img_size": 32} if "vit" in kind else {}
        return timm.create_model(kind, num_classes=4, **size)  # type: ignore[no-any-return]
    return models.build(kind, width=1.0 if "lenet" in kind else 0.1)


@pytest.mark.parametrize("name", FUSED)
def test_what_was_fused_stays_fused(name: str) -> None:
    model = network(name).eval()
    sparse = sparsify(model, ticket_for(model, 0.02), engine="sparse")
    assert isinstance(sparse, SparseNetwork)
    with torch.no_grad():
        sparse(noise(2, 3, 32, 32, dtype=torch.float32))
    units = [len(chain.links.units) for chain in sparse.chains]
    expected = FUSED[name]
    assert (len(units), sum(units)) == expected if isinstance(expected, tuple) else units == expected
