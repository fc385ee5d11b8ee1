"""What a checkpoint says of a user's function."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gemminer.runs.identity import called

Loss = Callable[[Any, Tensor], Tensor]


def smoothed(amount: Any) -> Loss:
    return lambda output, target: F.cross_entropy(output, target, label_smoothing=amount)


def of_a_tensor(weight: Tensor) -> Loss:
    def weighed(output: Any, target: Tensor, power: float = 2.0) -> Tensor:
        return ((output - target).abs() ** power * weight).mean()

    return weighed


class Odd:
    """Without a text of its own: its repr is an address."""


def test_functions_that_compute_otherwise_have_other_names() -> None:
    one: Loss = lambda o, t: (o - t).square().mean()  # noqa: E731
    two: Loss = lambda o, t: (o - t).abs().mean()  # noqa: E731
    three: Loss = lambda o, t: (o - t).abs().mean() * 3  # noqa: E731
    made = [
        *(one, two, three, smoothed(0.1), smoothed(0.3), of_a_tensor(torch.ones(2)), of_a_tensor(torch.zeros(2))),
        *(functools.partial(F.cross_entropy, label_smoothing=a) for a in (0.1, 0.2)),
        *(nn.CrossEntropyLoss(weight=torch.full((2,), a)) for a in (1.0, 2.0)),
    ]
    assert len({called(function) for function in made}) == len(made)


def test_a_function_made_anew_has_the_same_name() -> None:
    """As in the process that goes on: no address is in it."""
    for make in (
        lambda: smoothed(0.1),
        lambda: of_a_tensor(torch.ones(2)),
        lambda: smoothed(Odd()),
        lambda: smoothed([1]),
    ):
        assert called(make()) == called(make())
        assert " at 0x" not in called(make())
    assert called(F.cross_entropy) == "cross_entropy"
