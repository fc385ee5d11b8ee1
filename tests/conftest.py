"""What the tests share: one thread, tiny networks and tiny data."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator

import pytest
import torch
from hypothesis import settings
from torch import Tensor, nn

from gemminer.core.model_state import named_state

# Under nohup, or in the background of a shell without job control, Ctrl-C is ignored, and programs that the tests start
# would inherit that.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

torch.set_num_threads(1)  # as deterministic and as fast as it gets on networks of a few hundred weights
settings.register_profile("gemminer", deadline=None)  # a shared machine stalls now and then
settings.load_profile("gemminer")


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    yield
    torch.set_num_threads(1)


def tiny_net(seed: int = 0, norm: bool = True) -> nn.Sequential:
    """6 -> 16 -> 12 -> 3 with batch norm and biases: 96 + 192 + 36 = 324 prunable weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Linear(6, 16),
            nn.BatchNorm1d(16) if norm else nn.Identity(),
            nn.ReLU(),
            nn.Linear(16, 12),
            nn.ReLU(),
            nn.Linear(12, 3),
        )


def tiny_data(examples: int = 96, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Points of 6 numbers around 3 centres: any working classifier gets nearly all of them right."""
    source = torch.Generator().manual_seed(seed)
    targets = torch.arange(examples) % 3
    centres = 2 * torch.eye(6)[:3]
    return centres[targets] + 0.3 * torch.randn(examples, 6, generator=source), targets


@pytest.fixture
def net() -> nn.Sequential:
    return tiny_net()


@pytest.fixture
def pair() -> tuple[Tensor, Tensor]:
    return tiny_data()


@pytest.fixture
def snapshot() -> Callable[[nn.Module], object]:
    """Everything of a model a lender would miss: values, gradients, flags, modes, and where they live."""

    def take(model: nn.Module) -> object:
        tensors = [(n, t.data_ptr(), t.detach().clone().numpy().tobytes()) for n, t in named_state(model).items()]
        flags = [(n, p.requires_grad, None if p.grad is None else p.grad.tolist()) for n, p in model.named_parameters()]
        return tensors, flags, [m.training for m in model.modules()], list(model.state_dict())

    return take
