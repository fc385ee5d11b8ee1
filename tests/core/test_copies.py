"""A copy of a model, whatever it holds."""

from __future__ import annotations

import io
import logging
import threading
from typing import Any

import torch
from torch import Tensor, nn

from gemminer.core.copies import duplicate


class Settings:
    def __init__(self, layer: nn.Module) -> None:
        self.lock, self.sizes, self.layer = threading.Lock(), [1, 2], layer


class Holder(nn.Module):
    """Holds what a plain deep copy stops at."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)
        self.lock, self.log = threading.RLock(), logging.getLogger(__name__)
        self.file, self.numbers = io.TextIOWrapper(io.BytesIO()), iter(x for x in range(3))
        self.settings, self.held = Settings(self.layer), {"list": [threading.Lock(), self.layer]}
        self.features: Any = None

    def forward(self, x: Tensor) -> Tensor:
        self.features = [self.layer(x)]
        return self.features[0]  # type: ignore[no-any-return]


def test_what_cannot_be_copied_is_shared_and_all_else_is_not() -> None:
    model = Holder()
    model(torch.ones(1, 2))
    new = duplicate(model)
    assert new.lock is model.lock
    assert new.file is model.file
    assert new.numbers is model.numbers
    assert new.settings.lock is model.settings.lock
    assert new.settings.sizes is not model.settings.sizes
    assert new.settings.layer is new.layer
    assert new.held["list"][1] is new.layer
    assert torch.equal(new.features[0], model.features[0])
    assert not new.features[0].requires_grad
    assert new.layer.weight.data_ptr() != model.layer.weight.data_ptr()


def test_an_activation_alone_is_copied_without_its_graph() -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    model.register_buffer("state", model(torch.ones(1, 2)))
    new = duplicate(model)
    assert torch.equal(new.state, model.state)  # type: ignore[arg-type]
    assert new.state.grad_fn is None  # type: ignore[union-attr]


def test_hooks_on_gradients_go_along() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[1].weight = model[0].weight  # type: ignore[assignment]
    seen: list[torch.Size] = []
    model[0].weight.register_hook(lambda g: g * 0)  # type: ignore[operator]
    model[0].bias.register_post_accumulate_grad_hook(lambda p: seen.append(p.shape))  # type: ignore[operator]
    new = duplicate(model)
    new(torch.ones(1, 2)).sum().backward()
    assert not new[0].weight.grad.any()
    assert seen == [(2,)]
    assert model[0].weight.grad is None
