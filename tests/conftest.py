"""What every test gets: one thread, a tiny network and its data, and a full disk where asked for."""

from __future__ import annotations

import resource
import signal
from collections.abc import Callable, Iterator

import pytest
import torch
from hypothesis import settings
from torch import Tensor, nn

from gemminer.core.model_state import named_state
from tests.helpers import tiny_data, tiny_net

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


@pytest.fixture
def full_disk() -> Iterator[None]:
    """No file of this process may grow past 4 KiB: writes fail as they do on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Slow tests first: one that starts last would keep one worker waiting for the other."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)
