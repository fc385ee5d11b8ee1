"""Norms, residuals and ReLUs fused with the convolution before them, and what stops it."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
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
    assert sum(op.kind == "chain" for op in sparse.operations) == 2  # all convolutions in one, the classifier
    for i, training in enumerate([True, True, False]):
        model.train(training)
        sparse.train(training)
        compare(model, sparse, ticket, noise(5, 2, 8, 8, seed=i))


def test_a_mode_in_the_control_flow_or_a_hook_stops_fusion() -> None:
    class Dropping(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(1, 2, 3)

        def forward(self, x: Tensor) -> Tensor:
            return F.dropout(self.conv(x), 0.5, self.training)

    model = Dropping()
    sparse = sparsify(model, ticket_for(model, 0.5), engine="sparse")
    assert type(sparse) is Dropping
    assert torch.equal(sparse.eval()(torch.ones(1, 1, 4, 4)), sparse(torch.ones(1, 1, 4, 4)))
    hooked = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU())
    ticket = ticket_for(hooked, 0.5)
    seen: list[int] = []
    hooked[1].register_forward_hook(lambda *_: seen.append(1))
    sparsify(hooked, ticket, engine="sparse")(torch.ones(1, 1, 4, 4))
    assert seen
