"""Models that come back as they were lent."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from gemminer.core.model_state import borrowed, modes, named_state
from tests.helpers import tiny_data, tiny_net


def ruin(model: nn.Module) -> None:
    """All that a method may do to a model it has borrowed."""
    inputs, targets = tiny_data()
    model.train()
    nn.functional.cross_entropy(model(inputs), targets).backward()  # moves running statistics
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(2)
    for p in model.parameters():
        p.data = torch.zeros(p.shape)  # new memory, as Gem-Miner's flat vector is
        p.requires_grad_(False)
    for module in model.modules():
        module.eval()
    model[1].num_batches_tracked += 5


@pytest.mark.parametrize("error", [None, RuntimeError("x"), KeyboardInterrupt(), SystemExit()], ids=repr)
def test_a_borrowed_model_comes_back_bit_for_bit(
    snapshot: Callable[[nn.Module], object], error: BaseException | None
) -> None:
    model = tiny_net()
    inputs, targets = tiny_data()
    nn.functional.cross_entropy(model(inputs), targets).backward()  # the lender's own gradients
    model[0].bias.requires_grad_(False)
    model[3].eval()
    before = snapshot(model)
    if error is None:
        with borrowed(model) as lent:
            assert lent is model
            ruin(model)
    else:
        with pytest.raises(type(error)), borrowed(model):  # noqa: PT012
            ruin(model)
            raise error
    assert snapshot(model) == before


def test_the_lenders_memory_is_never_written() -> None:
    model = tiny_net()
    views = {name: tensor.detach() for name, tensor in named_state(model).items()}
    values = {name: view.clone() for name, view in views.items()}
    with borrowed(model):
        ruin(model)
        assert all(torch.equal(views[name], value) for name, value in values.items())


def test_a_buffer_of_two_modules_stays_one() -> None:
    model = nn.Sequential(nn.BatchNorm1d(3), nn.BatchNorm1d(3), nn.Linear(3, 3))
    model[1]._buffers["running_mean"] = shared = model[0].running_mean
    with borrowed(model):
        assert model[0].running_mean is model[1].running_mean
        assert model[0].running_mean is not shared
        model[0].running_mean.add_(1)
    assert model[0].running_mean is model[1].running_mean is shared
    assert shared.count_nonzero() == 0


def test_modes_are_put_back_after_an_error() -> None:
    model = tiny_net()
    model[1].eval()
    with pytest.raises(KeyboardInterrupt), modes(model):  # noqa: PT012
        model.train()
        raise KeyboardInterrupt
    assert not model[1].training
    assert model[0].training
