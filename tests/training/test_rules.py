"""What holds weights at a mask."""

from __future__ import annotations

import copy
import random

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from gemminer.core.model_state import borrowed, named_state
from gemminer.core.prunable import prunable_weights
from gemminer.core.ticket import Ticket
from gemminer.methods.parts.allocation import random_masks
from gemminer.training.rules import Dense, KeepMask
from gemminer.training.settings import Settings
from tests.helpers import tiny_data, tiny_net

OPTIMISERS = {
    "sgd": Settings(optimiser="sgd", lr=0.1, momentum=0.0, weight_decay=0.0),
    "momentum": Settings(optimiser="sgd", lr=0.1, momentum=0.9, weight_decay=0.0),
    "weight decay": Settings(optimiser="sgd", lr=0.1, momentum=0.9, weight_decay=0.1),
    "nesterov": Settings(optimiser="sgd", lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.1),
    "adam": Settings(optimiser="adam", lr=0.01, momentum=0.9, weight_decay=0.1),
    "adamw": Settings(optimiser="adamw", lr=0.01, momentum=0.9, weight_decay=0.1),
}


def steps(model: nn.Module, rule: Dense, optimiser: torch.optim.Optimizer, count: int) -> None:
    inputs, targets = tiny_data()
    for step in range(count):
        nn.functional.cross_entropy(model(inputs), targets).backward()
        rule.after_backward()
        optimiser.step()
        rule.after_step(step)


def masked(seed: int = 0) -> tuple[nn.Module, dict[str, Tensor]]:
    model = tiny_net(seed)
    shapes = {name: p.shape for name, p in prunable_weights(model).items()}
    masks = random_masks(shapes, {"0.weight": 20, "3.weight": 30, "5.weight": 9}, seed)
    Ticket(masks, named_state(model)).apply(model)
    return model, masks


@pytest.mark.parametrize("settings", OPTIMISERS.values(), ids=OPTIMISERS)
def test_zeros_stay_exactly_zero_and_so_does_their_optimiser_state(settings: Settings) -> None:
    """Also after a resume: the second half runs on a new model and optimiser that load the first one's state."""
    model, masks = masked()
    rule = KeepMask(model, masks)
    optimiser = settings.build(rule.parameters())
    steps(model, rule, optimiser, 5)
    resumed, _ = masked(seed=1)
    resumed.load_state_dict(model.state_dict())
    other = KeepMask(resumed, masks)
    other.load_state_dict(rule.state_dict())
    again = settings.build(other.parameters())
    again.load_state_dict(copy.deepcopy(optimiser.state_dict()))  # as a file would give it
    steps(model, rule, optimiser, 5)
    steps(resumed, other, again, 5)
    for net, opt in ((model, optimiser), (resumed, again)):
        named = dict(net.named_parameters())
        for name, mask in masks.items():
            assert named[name][~mask].count_nonzero() == 0
            assert named[name][mask].count_nonzero() == mask.sum()
            state = [v for v in opt.state[named[name]].values() if torch.is_tensor(v) and v.shape == mask.shape]
            assert all(value[~mask].count_nonzero() == 0 for value in state)
            assert all(value[mask].count_nonzero() > 0 for value in state)
            assert bool(state) == (settings.momentum > 0)
        assert all(p.grad is None for p in net.parameters())  # cleared
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), resumed.parameters(), strict=True))


def test_without_the_rule_pruned_weights_wake_up() -> None:
    """What the test above would miss if it could not fail."""
    model, masks = masked()
    optimiser = OPTIMISERS["momentum"].build(list(model.parameters()))
    steps(model, Dense(model), optimiser, 1)
    assert all(dict(model.named_parameters())[name][~mask].count_nonzero() > 0 for name, mask in masks.items())


def test_a_mask_follows_the_weights_layout_and_type() -> None:
    model = nn.Conv2d(3, 4, 3).to(torch.float64, memory_format=torch.channels_last)
    mask = torch.rand(4, 3, 3, 3, generator=torch.Generator().manual_seed(0)) > 0.5
    rule = KeepMask(model, {"weight": mask})
    model.weight.grad = torch.ones_like(model.weight)
    rule.after_backward()
    assert torch.equal(model.weight.grad, mask.double())
    assert model.weight.grad.is_contiguous(memory_format=torch.channels_last)


def test_parameters_without_gradient_are_left_alone() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))  # the second is not used
    model[0].bias.requires_grad_(False)
    rule = KeepMask(model, {"0.weight": torch.eye(2).bool(), "1.weight": torch.eye(2).bool()})
    assert len(rule.parameters()) == 3
    unused = model[1].bias.detach().clone()
    model[0](torch.ones(1, 2)).sum().backward()
    rule.after_backward()
    Settings(lr=0.1).build(rule.parameters()).step()
    rule.after_step(0)
    assert torch.equal(model[1].bias, unused)
    assert rule.numbers() == {}
    KeepMask(nn.Linear(2, 2), {"weight": torch.eye(2).bool()}).after_backward()  # before any backward pass


def test_masks_leave_the_global_generators_alone() -> None:
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()  # noqa: NPY002
    model, masks = masked()
    random_masks({"a": torch.Size([3, 3])}, {"a": 3}, 0)
    with borrowed(model):
        KeepMask(model, masks)
    after = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()  # noqa: NPY002
    assert torch.equal(before[0], after[0])
    assert before[1:] == after[1:]
