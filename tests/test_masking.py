"""What is prunable, exact counts, and models that come back as they were lent."""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from conftest import tiny_data, tiny_net
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor, nn

from gemminer.core.errors import UsageError
from gemminer.core.model_state import borrowed, named_state
from gemminer.core.prunable import prunable_weights
from gemminer.core.selection import highest_but, keep_highest, lowest, target
from gemminer.core.ticket import Ticket
from gemminer.methods.parts.allocation import allocate, random_masks
from gemminer.methods.random_tickets import erk_ratio
from gemminer.training.rules import Dense, KeepMask
from gemminer.training.settings import Settings

# Few values, so that most scores tie, as scores clipped to 0 and 1 do.
CLIPPED = st.lists(st.sampled_from([0.0, 0.0, 0.25, 0.5, 1.0, 1.0]), min_size=1, max_size=60)


# --- which weights ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("module", "weights"),
    [
        (nn.Conv1d(2, 3, 5), 30),
        (nn.Conv2d(4, 6, 3, groups=2), 108),
        (nn.Conv3d(2, 3, 2), 48),
        (nn.ConvTranspose1d(2, 3, 5), 30),
        (nn.ConvTranspose2d(2, 3, 3), 54),
        (nn.ConvTranspose3d(2, 3, 2), 48),
        (nn.Linear(7, 5), 35),
        (nn.Bilinear(2, 3, 4), 24),
        (nn.MultiheadAttention(8, 2), 3 * 64 + 64),
        (nn.MultiheadAttention(8, 2, kdim=6, vdim=4), 64 + 48 + 32 + 64),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else None,
)
def test_prunable_counts(module: nn.Module, weights: int) -> None:
    found = prunable_weights(nn.Sequential(module, nn.LayerNorm(3), nn.Embedding(4, 4)))
    assert sum(p.numel() for p in found.values()) == weights
    assert not any("bias" in name for name in found)


def test_prunable_in_the_models_order_with_embeddings_and_without_some() -> None:
    model = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Conv1d(1, 1, 3), nn.Linear(4, 2))
    assert list(prunable_weights(model)) == ["1.weight", "3.weight", "4.weight"]
    assert list(prunable_weights(model, embeddings=True)) == ["0.weight", "1.weight", "3.weight", "4.weight"]
    assert list(prunable_weights(model, exclude=["4.*"])) == ["1.weight", "3.weight"]
    assert list(prunable_weights(model, exclude=["1.*", "3.weight"])) == ["4.weight"]
    model[1].weight.requires_grad_(False)
    assert list(prunable_weights(model)) == ["3.weight", "4.weight"]


def test_tied_weights_count_once() -> None:
    table = nn.Embedding(6, 4)
    head = nn.Linear(4, 6, bias=False)
    head.weight = table.weight
    assert {n: p.numel() for n, p in prunable_weights(nn.Sequential(table, head)).items()} == {"0.weight": 24}


def test_nothing_to_prune_is_an_error() -> None:
    frozen = nn.Linear(2, 2).requires_grad_(False)
    for model in (nn.LayerNorm(4), frozen, nn.Sequential()):
        with pytest.raises(UsageError, match="nothing to prune"):
            prunable_weights(model)
    with pytest.raises(UsageError, match="nothing to prune"):
        prunable_weights(nn.Linear(2, 2), exclude=["*"])
    with pytest.raises(UsageError, match=r"exclude='head\.\*' matches no prunable weight; they are: weight"):
        prunable_weights(nn.Linear(2, 2), exclude=["head.*"])
    with pytest.raises(UsageError, match="lazy layers: run one batch"):
        prunable_weights(nn.LazyLinear(3))


# --- exact counts ----------------------------------------------------------------------------------------------


@given(st.floats(1e-6, 1.0), st.integers(1, 10**9))
def test_target_is_the_nearest_whole_number(density: float, total: int) -> None:
    exact = Fraction(density) * total
    if round(density * total) == 0:
        with pytest.raises(UsageError, match=f"keeps none of {total} weights"):
            target(density, total)
    else:
        assert abs(target(density, total) - exact) <= Fraction(1, 2) + Fraction(total, 2**52)


@given(st.integers(1, 10**12), st.data())
def test_a_realised_density_keeps_as_many_again(total: int, data: st.DataObject) -> None:
    kept = data.draw(st.integers(1, total))
    assert target(kept / total, total) == kept


@pytest.mark.parametrize("density", [0, -0.1, 1.0001, 2, math.nan, math.inf, "0.1", None])
def test_densities_that_cannot_be(density: Any) -> None:
    with pytest.raises(UsageError, match="density is the fraction of weights kept, above 0 and at most 1"):
        target(density, 100)


@given(CLIPPED, st.integers(-2, 70))
def test_lowest_takes_exactly_so_many_and_ties_by_index(values: list[float], count: int) -> None:
    expected = sorted(range(len(values)), key=lambda i: (values[i], i))[: max(count, 0)]
    assert sorted(lowest(torch.tensor(values), count).tolist()) == sorted(expected)


@given(st.lists(st.floats(allow_nan=False, width=32), min_size=1, max_size=60), st.integers(0, 60))
def test_lowest_of_any_numbers(values: list[float], count: int) -> None:
    chosen = lowest(torch.tensor(values), count).tolist()
    rest = [values[i] for i in range(len(values)) if i not in chosen]
    assert len(set(chosen)) == min(count, len(values))
    assert not chosen or not rest or max(values[i] for i in chosen) <= min(rest)


class _Elsewhere(torch.Tensor):
    """A tensor that says it is on a GPU, so that the way without numpy is taken."""

    device = torch.device("cuda")  # type: ignore[assignment]


@given(CLIPPED, st.integers(1, 59))
def test_a_gpus_lowest_is_the_cpus(values: list[float], count: int) -> None:
    assume(count < len(values))
    scores = torch.tensor(values)
    elsewhere = scores.as_subclass(_Elsewhere)
    assert sorted(lowest(elsewhere, count).tolist()) == sorted(lowest(scores, count).tolist())


@given(st.lists(CLIPPED, min_size=1, max_size=4), st.data())
def test_keep_highest_keeps_exactly_so_many_over_all_layers(layers: list[list[float]], data: st.DataObject) -> None:
    scores = {f"layer{i}": torch.tensor(layer).reshape(-1, 1) for i, layer in enumerate(layers)}
    flat = [value for layer in layers for value in layer]
    count = data.draw(st.integers(0, len(flat)))
    masks = keep_highest(scores, count)
    expected = sorted(range(len(flat)), key=lambda i: (-flat[i], i))[:count]
    kept = torch.cat([masks[name].reshape(-1) for name in scores]).nonzero().flatten().tolist()
    assert kept == sorted(expected)
    assert all(masks[name].shape == score.shape and masks[name].dtype == torch.bool for name, score in scores.items())


def test_keep_highest_refuses() -> None:
    with pytest.raises(UsageError, match="cannot keep 3 of 2"):
        keep_highest({"a": torch.zeros(2)}, 3)
    with pytest.raises(UsageError, match="cannot keep -1 of 2"):
        keep_highest({"a": torch.zeros(2)}, -1)
    with pytest.raises(UsageError, match="scores are NaN"):
        keep_highest({"a": torch.tensor([0.0, math.nan])}, 1)


@given(
    st.lists(st.tuples(st.integers(1, 1000), st.sampled_from([0.0, 1e-9, 0.3, 1.0, 7.0, 1e6])), min_size=1, max_size=8),
    st.data(),
)
def test_allocate_is_exact_and_capped(layers: list[tuple[int, float]], data: st.DataObject) -> None:
    sizes = {f"layer{i}": size for i, (size, _) in enumerate(layers)}
    ratios = {f"layer{i}": ratio for i, (_, ratio) in enumerate(layers)}
    total = data.draw(st.integers(1, sum(sizes.values())))
    counts = allocate(sizes, ratios, total)
    assert sum(counts.values()) == total
    assert list(counts) == list(sizes)
    assert all(0 <= counts[n] <= sizes[n] for n in sizes)
    partly = {n: counts[n] / ratios[n] / sizes[n] for n in sizes if ratios[n] and 0 < counts[n] < sizes[n]}
    for n, c in partly.items():  # one c for all that are not full, up to rounding of one weight
        for m, other in partly.items():
            assert abs(c - other) <= 1.001 / (ratios[n] * sizes[n]) + 1.001 / (ratios[m] * sizes[m])


def test_allocate_by_hand() -> None:
    # c * 4 > 1 for a, so a is full and b takes the other 45.
    assert allocate({"a": 10, "b": 100}, {"a": 4.0, "b": 1.0}, 55) == {"a": 10, "b": 45}
    # 10/3 each: the two remainders of 1/3 and... all tie, so the first layer gets the weight that is left.
    assert allocate({"a": 5, "b": 5, "c": 5}, {"a": 1.0, "b": 1.0, "c": 1.0}, 10) == {"a": 4, "b": 3, "c": 3}
    for total in (0, 16):
        with pytest.raises(UsageError, match=f"cannot keep {total} of 15"):
            allocate({"a": 15}, {"a": 1.0}, total)


def test_erk_of_a_convolution_by_hand() -> None:
    assert erk_ratio(torch.Size([16, 8, 3, 3])) == (8 + 16 + 3 + 3) / (8 * 16 * 3 * 3)
    assert erk_ratio(torch.Size([10, 20])) == 30 / 200


def test_random_masks_keep_their_counts_and_vary_with_the_seed() -> None:
    shapes = {"a": torch.Size([5, 4]), "b": torch.Size([3, 2, 2])}
    first, second = (random_masks(shapes, {"a": 7, "b": 12}, seed) for seed in (0, 1))
    assert [int(m.sum()) for m in first.values()] == [7, 12]
    assert not torch.equal(first["a"], second["a"])
    assert torch.equal(first["a"], random_masks(shapes, {"a": 7, "b": 12}, 0)["a"])


# --- lending a model out ---------------------------------------------------------------------------------------


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


# --- what holds weights at a mask ------------------------------------------------------------------------------

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
    Settings().build(rule.parameters()).step()
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


@given(data=st.data())
def test_the_highest_but_some_is_that_of_a_sort(data: st.DataObject) -> None:
    values = data.draw(st.lists(st.sampled_from([0.0, 0.25, 0.5, 0.5625, 0.75, 1.0]), min_size=1, max_size=30))
    among = data.draw(st.none() | st.lists(st.booleans(), min_size=len(values), max_size=len(values)))
    count = data.draw(st.integers(0, 30))
    reach = sorted((v for i, v in enumerate(values) if v >= 0.5 and (among is None or among[i])), reverse=True)
    expected = None if len(reach) <= count else reach[max(count, 1) - 1]
    if count:
        mask = None if among is None else torch.tensor(among)
        assert highest_but(torch.tensor(values), mask, count, 0.5) == expected
