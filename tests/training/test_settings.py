"""Settings of a training: learning rates by hand, optimisers by name, and what cannot be."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gemminer.core.errors import UsageError
from gemminer.training.settings import Settings


def test_learning_rates_by_hand() -> None:
    cosine = Settings(epochs=40, lr=0.2)
    assert [cosine.lr_at(e) for e in (0, 40)] == [0.2, 0.0]
    assert cosine.lr_at(20) == pytest.approx(0.1)
    assert cosine.lr_at(10) == pytest.approx(0.2 * (1 + math.sqrt(0.5)) / 2)  # cos 45 degrees
    steps = Settings(epochs=150, lr=0.1, schedule="multistep", milestones=(80, 120))
    rates = [steps.lr_at(e) for e in (0, 79.99, 80, 119.5, 120, 149)]
    assert rates == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.001, 0.001])
    assert Settings(schedule="constant", lr=0.3).lr_at(17.5) == 0.3


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"optimiser": "sdg"}, "unknown optimiser 'sdg'; did you mean 'sgd'"),
        ({"schedule": "cos"}, "unknown schedule 'cos'"),
        ({"epochs": 0}, "epochs must be 1 or more"),
        ({"lr": 0.0}, "lr, the learning rate, must be above 0"),
        ({"lr": math.inf}, "lr, the learning rate, must be above 0"),
        ({"lr": math.nan}, "lr, the learning rate, must be above 0"),
        ({"momentum": 1.0}, "momentum must be at least 0 and below 1"),
        ({"momentum": -0.1}, "momentum must be at least 0 and below 1"),
        ({"weight_decay": -1e-4}, "weight_decay must be 0 or more"),
        ({"weight_decay": math.inf}, "weight_decay must be 0 or more"),
    ],
)
def test_settings_that_cannot_be(fields: Any, text: str) -> None:
    with pytest.raises(UsageError, match=text):
        Settings(**fields)


def test_optimisers_by_name() -> None:
    weights: list[Tensor] = [nn.Parameter(torch.ones(2))]
    sgd = Settings(lr=0.1, nesterov=True, weight_decay=0.5).build(weights)
    assert isinstance(sgd, torch.optim.SGD)
    assert {k: sgd.defaults[k] for k in ("lr", "momentum", "nesterov", "weight_decay")} == {
        "lr": 0.1,
        "momentum": 0.9,
        "nesterov": True,
        "weight_decay": 0.5,
    }
    adam = Settings(lr=0.1, optimiser="adam", momentum=0.8).build(weights)
    assert type(adam) is torch.optim.Adam
    assert adam.defaults["betas"] == (0.8, 0.999)
    assert type(Settings(lr=0.1, optimiser="adamw").build(weights)) is torch.optim.AdamW
    for settings in (Settings(lr=0.1, nesterov=True, optimiser="adam"), Settings(lr=0.1, nesterov=True, momentum=0)):
        with pytest.raises(UsageError, match="nesterov needs optimiser sgd with a momentum"):
            settings.build(weights)


def test_cosine_by_epoch_steps_down_after_each_epoch() -> None:
    stairs, smooth = (Settings(epochs=4, lr=0.2, schedule=kind) for kind in ("cosine-by-epoch", "cosine"))
    assert [stairs.lr_at(e) for e in (0.0, 0.9, 1.0, 1.5)] == [smooth.lr_at(e) for e in (0, 0, 1, 1)]
