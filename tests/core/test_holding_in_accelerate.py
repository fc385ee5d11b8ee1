"""Hugging Face's accelerate: models and optimisers that it has prepared are held as they are."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import gemminer
from gemminer.core.ticket import Ticket
from tests.helpers import drawn_ticket, tiny_data, tiny_net


@pytest.fixture(autouse=True)
def _anew() -> Iterator[None]:
    """A process has one state of accelerate, and a precision is set once in it."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def train(ticket: Ticket, *, held: bool, precision: str = "no", accumulate: int = 1) -> tuple[nn.Module, list[float]]:
    """The loop of accelerate's guide, clipping and accumulation with it; the model and its gradients' norms."""
    accelerator = Accelerator(cpu=True, mixed_precision=precision, gradient_accumulation_steps=accumulate)
    net = ticket.apply(tiny_net())
    optimiser = torch.optim.AdamW(net.parameters(), lr=0.01)
    loader = DataLoader(TensorDataset(*tiny_data()), batch_size=16)
    model, optimiser, loader = accelerator.prepare(net, optimiser, loader)
    hold, norms = gemminer.hold(model, ticket, optimiser), []
    if not held:
        hold.remove()
    with hold:
        for _ in range(3):
            for inputs, targets in loader:
                with accelerator.accumulate(model):
                    accelerator.backward(nn.functional.cross_entropy(model(inputs), targets))
                    if accelerator.sync_gradients:
                        norms.append(float(accelerator.clip_grad_norm_(model.parameters(), 0.1)))
                    optimiser.step()
                    optimiser.zero_grad()
        if held:
            assert hold.violations() == 0
    return net, norms


def moved(model: nn.Module, ticket: Ticket) -> int:
    return sum(int(model.get_parameter(n).detach()[~mask].count_nonzero()) for n, mask in ticket.masks.items())


@pytest.mark.parametrize(("precision", "accumulate"), [("no", 1), ("bf16", 1), ("no", 4)])
def test_prepared_models_and_optimisers_are_held(precision: str, accumulate: int) -> None:
    ticket = drawn_ticket(tiny_net(), 0.2)
    net, norms = train(ticket, held=True, precision=precision, accumulate=accumulate)
    assert moved(net, ticket) == 0
    assert len(norms) == 18 // accumulate + (2 if accumulate > 1 else 0)  # an epoch's last step is of what is left
    assert any(not torch.equal(net.get_parameter(n)[m], ticket.initial[n][m]) for n, m in ticket.masks.items())


def test_clipping_sees_the_masked_norm_and_unheld_weights_move() -> None:
    ticket = drawn_ticket(tiny_net(), 0.2)
    _, masked = train(ticket, held=True)
    net, whole = train(ticket, held=False)
    assert masked[0] < 0.8 * whole[0]
    assert moved(net, ticket) > 200
