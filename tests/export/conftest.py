"""Networks with tickets, as they are exported."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from gemminer import models
from gemminer.core.ticket import Ticket
from tests.helpers import drawn_ticket

Ticketed = tuple[nn.Module, Ticket, Tensor]
NETWORKS = ("lenet-300-100", "resnet20", "transformer")


@pytest.fixture(scope="session")
def ticketed() -> Callable[[str], Ticketed]:
    """By name a network whose batch norms have seen something, a ticket of it at 0.8%, and images it was not run on."""
    made: dict[str, Ticketed] = {}

    def build(name: str) -> Ticketed:
        if name not in made:
            torch.manual_seed(0)
            model, images = models.build(name, in_channels=1, classes=10, image_size=8), torch.randn(7, 1, 8, 8)
            with torch.no_grad():
                model(torch.randn(16, 1, 8, 8))  # in training mode
            made[name] = model, drawn_ticket(model, 0.008), images
        model, ticket, images = made[name]
        return copy.deepcopy(model), ticket, images

    return build


@pytest.fixture
def masked() -> Callable[[nn.Module, Ticket, Tensor], Tensor]:
    """What the model gives in eval mode with the pruned of its own weights at zero."""

    def run(model: nn.Module, ticket: Ticket, images: Tensor) -> Tensor:
        model = copy.deepcopy(model).eval()
        with torch.no_grad():
            for name, mask in ticket.masks.items():
                model.get_parameter(name).mul_(mask)
            result: Tensor = model(images)
        return result

    return run
