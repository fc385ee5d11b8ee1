"""Norms and ReLUs of a sparse network, which put themselves off."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from gemminer.sparse import sparsify
from gemminer.sparse.training.fuse import SparseNetwork
from tests.sparse.training.helpers import compare, noise, ticket_for

MAPS: list[Callable[[], nn.Module]] = [
    lambda: nn.BatchNorm2d(4),
    lambda: nn.BatchNorm2d(4, momentum=None),
    lambda: nn.BatchNorm2d(4, track_running_stats=False),
    lambda: nn.BatchNorm2d(4, affine=False, eps=0.1, momentum=0.3),
    lambda: nn.BatchNorm2d(4).eval(),
    lambda: nn.GroupNorm(2, 4),
    lambda: type("Own", (nn.BatchNorm2d,), {"forward": lambda s, x: nn.BatchNorm2d.forward(s, x) * 2})(4),
]
FUSED = [True, True, True, True, True, False, False]  # the last two: no norm is told of, or its result is changed


@pytest.mark.parametrize(("norm", "in_one"), list(zip(MAPS, FUSED, strict=True)))
@pytest.mark.parametrize("in_place", [False, True])
def test_a_norm_is_the_modules_own(norm: Callable[[], nn.Module], in_one: bool, in_place: bool) -> None:
    model = nn.Sequential(nn.Conv2d(2, 4, 3), norm(), nn.ReLU(inplace=in_place), nn.Conv2d(4, 3, 2)).double()
    for module in model:
        module.train(module.training)
    ticket = ticket_for(model, 0.5)
    sparse = sparsify(model, ticket, engine="sparse")
    assert isinstance(sparse, SparseNetwork)
    for i in range(3):
        compare(model, sparse, ticket, noise(5, 2, 6, 6, seed=i))
        assert (len(sparse.chains) == 1) == in_one
    for net in (model, sparse):
        net.eval()
    compare(model, sparse, ticket, noise(5, 2, 6, 6, seed=4))
    for again in (
        copy.deepcopy(sparse),
        pickle.loads(pickle.dumps(sparse)) if type(model[1]).__name__ != "Own" else sparse,
    ):
        assert torch.equal(again(noise(2, 2, 6, 6)), sparse(noise(2, 2, 6, 6)))


@pytest.mark.parametrize("shape", [(6, 5), (6, 5, 3)])
def test_a_norm_of_vectors_or_of_sequences(shape: tuple[int, ...]) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.m, self.b = (
                nn.Linear(shape[-1], 4),
                nn.BatchNorm1d(4 if len(shape) == 2 else 5),
                nn.Linear(4, 3),
            )

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.b(torch.relu(self.m(self.a(x))))
            return y.flatten(1)

    model = Net().double()
    ticket = ticket_for(model, 0.8)  # no dead unit, whose sign before the ReLU is a matter of rounding
    compare(model, sparsify(model, ticket, engine="sparse"), ticket, noise(*shape))


def test_a_user_still_finds_the_classes_of_the_model() -> None:
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
    sparse = sparsify(model, ticket_for(model, 0.5), engine="sparse")
    assert isinstance(sparse.get_submodule("net.1"), nn.BatchNorm2d)
    assert isinstance(sparse.get_submodule("net.2"), nn.ReLU)
    assert type(model[1]) is nn.BatchNorm2d  # the model itself is left as it is
