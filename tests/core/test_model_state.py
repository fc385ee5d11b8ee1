"""Models that come back as they were lent."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from gemminer.core.model_state import borrowed, held_in_evaluation, modes, modes_note, named_state, train_mode
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


def frozen_cases() -> dict[str, tuple[nn.Module, str]]:
    """Nets of images whose norm its owner froze, and the norm's name."""

    def around(norm: nn.Module, conv: type[nn.Module] = nn.Conv2d) -> nn.Sequential:
        return nn.Sequential(conv(2, 8, 3), norm, nn.ReLU(), nn.Dropout(0.5), nn.Flatten(), nn.LazyLinear(3))

    cases: dict[str, tuple[nn.Module, str]] = {
        "batch norm": (around(nn.BatchNorm2d(8)), "1"),
        "synchronised": (around(nn.SyncBatchNorm(8)), "1"),
        "instance norm": (around(nn.InstanceNorm2d(8, affine=True, track_running_stats=True)), "1"),
        "without weights": (around(nn.BatchNorm2d(8, affine=False)), "1"),
        "three dimensions": (around(nn.BatchNorm3d(8), nn.Conv3d), "1"),
        "in a frozen block": (nn.Sequential(around(nn.BatchNorm2d(8))), "0.1"),
    }
    return cases


@pytest.mark.parametrize("name", frozen_cases())
def test_a_norm_that_was_frozen_is_held_in_evaluation_mode(name: str) -> None:
    model, norm = frozen_cases()[name]
    assert held_in_evaluation(model) == ()
    model.get_submodule(norm).eval()
    wrapped = nn.DataParallel(model)
    assert held_in_evaluation(model) == held_in_evaluation(wrapped) == (norm,)
    train_mode(wrapped, (norm,))
    assert [n for n, m in model.named_modules() if not m.training] == [norm]
    assert "the statistics of" in str(modes_note(model, (norm,)))
    # A model that is in evaluation mode as a whole is trained, but for what its owner froze in both ways.
    model.eval()
    assert held_in_evaluation(wrapped) == ()
    model.get_submodule(norm).requires_grad_(False)
    assert held_in_evaluation(wrapped) == (() if name == "without weights" else (norm,))


def test_what_was_left_in_evaluation_mode_is_said() -> None:
    model = nn.Sequential(*(nn.BatchNorm1d(2) for _ in range(5)), nn.Dropout(), nn.Linear(2, 2))
    assert modes_note(model, ()) is None
    for module in model:
        module.eval()
    text = modes_note(model, held_in_evaluation(model))
    assert text is not None
    assert text.startswith("the statistics of 0, 1, 2 and 2 more stay as they are")
    assert "; 5 drops in training" in text
