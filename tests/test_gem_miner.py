"""The search: against autograd through torch.func.functional_call, and against numbers worked out by hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import tiny_data, tiny_net
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from gemminer.core.errors import UsageError
from gemminer.core.progress import Monitor
from gemminer.core.prunable import prunable_weights
from gemminer.core.randomness import generator
from gemminer.data import TensorBatches
from gemminer.methods.gem_miner import GemMinerRule, Options, find
from gemminer.methods.gem_miner.rule import _first_scores
from gemminer.methods.parts.schedules import freeze_epochs
from gemminer.training.checkpoint import Checkpoint
from gemminer.training.loop import fit
from gemminer.training.task import Task


def fixed(**options: Any) -> Options:
    """Options of a search with a fixed lambda, as published."""
    return Options(**{"ridge": 3e-4, **options})


def parts_of(rule: GemMinerRule, flat: Tensor) -> list[Tensor]:
    """A flat vector by parameter, before anything has been let go of."""
    return [part.view(shape) for part, shape in zip(flat.split(rule.full_sizes), rule.shapes, strict=True)]


def rule_size(model: nn.Module) -> int:
    return sum(p.numel() for p in prunable_weights(model).values())


def state_of(scores: Tensor) -> dict[str, Any]:
    """A rule's state with these scores and nothing frozen."""
    n = len(scores)
    return {"p": scores, "q": torch.ones(n, dtype=torch.bool), "index": None, "vectors": [], "work": 3 * n}


# --- the oracle: straight-through autograd, layer by layer, with nothing of the package in it ------------------


class Rounded(torch.autograd.Function):
    """w * q * r(p) forwards; backwards dL/dp = dL/dw_eff * w * q, as if r were the identity."""

    @staticmethod
    def forward(ctx: Any, p: Tensor, w: Tensor, q: Tensor) -> Tensor:
        ctx.save_for_backward(w * q)
        return w * q * (p > 0.5)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return gradient * ctx.saved_tensors[0], None, None


def oracle(
    model: nn.Module,
    batches: list[tuple[Tensor, Tensor]],
    scores: dict[str, Tensor],
    freezes: dict[int, int],
    optimiser: Callable[[list[Tensor]], torch.optim.Optimizer] | None,
    lr: Callable[[int], float],
    ridge: float = 0.0,
) -> tuple[dict[str, Tensor], dict[str, Tensor], list[float]]:
    """Scores, unfrozen sets and losses after one step a batch. Without an optimiser: momentum 0.5 by hand.

    The scores are one leaf, since an optimiser's kernel rounds the last few numbers of a tensor otherwise than the
    rest of it: where a weight lies decides its last bit.
    """
    sizes = [s.numel() for s in scores.values()]

    def parts(flat: Tensor) -> dict[str, Tensor]:
        return {n: part.view(s.shape) for (n, s), part in zip(scores.items(), flat.split(sizes), strict=True)}

    w = {name: p.detach().clone() for name, p in model.named_parameters()}
    p = torch.cat([s.reshape(-1) for s in scores.values()]).requires_grad_()
    q, velocity = torch.ones_like(p), torch.zeros_like(p)
    opt, losses = optimiser([p]) if optimiser else None, []
    for step, (inputs, targets) in enumerate(batches):
        effective = {name: Rounded.apply(part, w[name], parts(q)[name]) for name, part in parts(p).items()}
        loss = F.cross_entropy(functional_call(model, {**w, **effective}, (inputs,)), targets)
        loss.backward()
        losses.append(float(loss.detach()))
        with torch.no_grad():
            if opt is not None:
                opt.param_groups[0]["lr"] = lr(step)
                opt.step()
            else:
                velocity = 0.5 * velocity + p.grad + 2 * ridge * p
                p -= lr(step) * velocity
            p.clamp_(0, 1)
            p.grad = None
            if step in freezes:
                # The lowest first; equal ones by place, for sorting is stable.
                order = sorted((i for i in range(len(p)) if q[i]), key=lambda i: float(p[i]))
                q[order[: len(order) - freezes[step]]] = 0
    return parts(p.detach()), parts(q.detach()), losses


def conv_net() -> nn.Module:
    """Convolution, batch norm, attention and a linear layer on 4 channels of 6 numbers."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv1d(1, 4, 3, padding=1)
            self.norm = nn.BatchNorm1d(4)
            self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
            self.head = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = F.relu(self.norm(self.conv(x.unsqueeze(1)))).transpose(1, 2)
            return self.head(self.attention(x, x, x, need_weights=False)[0].mean(1))

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Net()


def shared_net() -> nn.Module:
    model = nn.Sequential(nn.Linear(6, 6, bias=False), nn.Tanh(), nn.Linear(6, 6, bias=False), nn.Linear(6, 3))
    model[2].weight = model[0].weight
    return model


@pytest.mark.parametrize("build", [tiny_net, conv_net, shared_net])
@pytest.mark.parametrize("optimiser", ["sgd", "nesterov", "adam"])
def test_the_search_is_autograd_bit_for_bit(build: Callable[[], nn.Module], optimiser: str) -> None:
    options = Options(
        epochs=3,
        optimiser="adam" if optimiser == "adam" else "sgd",
        nesterov=optimiser == "nesterov",
        lr=0.05 if optimiser == "adam" else 20.0,  # so large that many scores are clipped, however a CPU rounds
        ridge=1e-3,
    )
    model, data = build(), TensorBatches(*tiny_data(64), batch_size=16, seed=1)
    batches = [batch for epoch in range(3) for batch in data.epoch(epoch)]
    parameters = prunable_weights(model)
    total = sum(p.numel() for p in parameters.values())
    scores = {n: torch.rand(p.shape, generator=generator(7, "scores", n)) for n, p in parameters.items()}
    freezes = options.freeze_schedule(4, 0.1, total)
    assert len(freezes) >= 5
    model.train()
    copy = build()
    copy.load_state_dict(model.state_dict())

    def optim(leaves: list[Tensor]) -> torch.optim.Optimizer:
        if optimiser == "adam":
            return torch.optim.Adam(leaves, lr=0.05, betas=(0.9, 0.999), weight_decay=2e-3, fused=True)
        nesterov = optimiser == "nesterov"
        return torch.optim.SGD(leaves, lr=20.0, momentum=0.9, nesterov=nesterov, weight_decay=2e-3, fused=True)

    p, q, losses = oracle(copy, batches, scores, freezes, optim, lambda step: options.lr_at(step / 4))

    ticket = find(Task(model, data), 0.1, options, 7)  # leaves the model as it was, so it can be searched again
    for name in parameters:
        assert torch.equal(ticket.masks[name], q[name].bool()), name

    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for parameter in parameters.values():
        parameter.requires_grad_(True)
    rule = GemMinerRule(parameters, options, freezes, 7)
    rows = fit(Task(model, data), rule, options_for_fit(options), seed=0)

    ours = dict(zip(parameters, parts_of(rule, rule.p), strict=True))
    for name in parameters:
        assert torch.equal(ours[name], p[name]), name
        assert torch.equal(rule.masks()[name], q[name].bool()), name
    epochs = [losses[i : i + 4] for i in range(0, 12, 4)]
    assert [row["loss"] for row in rows] == [sum(e) / 4 for e in epochs]
    assert [row["loss"] for row in ticket.provenance["rows"]] == [sum(e) / 4 for e in epochs]
    assert int(rule.q.sum()) == round(0.1 * total)
    clipped = torch.cat([s.reshape(-1) for s in p.values()])
    assert int((clipped == 0).sum()) >= 2  # the case with ties is in the test


def options_for_fit(options: Options) -> Any:
    """What `find` hands to the loop: the ridge as the optimiser's L2 term."""
    import dataclasses

    from gemminer.training.settings import Settings

    fields = {f.name: getattr(options, f.name) for f in dataclasses.fields(Settings)}
    return Settings(**{**fields, "weight_decay": 2 * (options.ridge or 0.0)})


def test_sgd_by_hand_bit_for_bit() -> None:
    """lr, momentum and ridge are powers of two, so that rounding cannot hide a wrong formula."""
    options = Options(epochs=5, lr=0.5, momentum=0.5, ridge=2**-6, schedule="constant", repair=0.0)
    model, data = tiny_net(), TensorBatches(*tiny_data(32), batch_size=16)
    batches = [batch for epoch in range(5) for batch in data.epoch(epoch)]
    parameters = prunable_weights(model)
    scores = {n: torch.rand(p.shape, generator=generator(0, "scores", n)) for n, p in parameters.items()}
    model.train()
    p, q, _ = oracle(tiny_net(), batches, scores, {4: 200, 9: 100}, None, lambda _: 0.5, 2**-6)
    rule = GemMinerRule(parameters, options, {4: 200, 9: 100}, 0)
    fit(Task(model, data), rule, options_for_fit(options), seed=0)
    for (name, ours), kept in zip(zip(p, parts_of(rule, rule.p), strict=True), rule.masks().values(), strict=True):
        assert torch.allclose(ours, p[name], rtol=0, atol=1e-7)  # a fused multiply-add rounds once, not twice
        assert torch.equal(kept, q[name].bool())


# --- by hand ---------------------------------------------------------------------------------------------------


def hand_rule(scores: list[float], schedule: dict[int, int], **options: Any) -> tuple[nn.Linear, GemMinerRule]:
    """One linear unit, w = (1, -2, 3, -4), with given scores."""
    layer = nn.Linear(4, 1, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, -2.0, 3.0, -4.0]]))
    rule = GemMinerRule({"weight": layer.weight}, fixed(**options), schedule, 0)
    rule.load_state_dict(state_of(torch.tensor(scores)))
    return layer, rule


def test_a_step_and_a_freeze_by_hand() -> None:
    # p = (0.75, 0.5, 0.25, 0.625): r(p) = (1, 0, 0, 1), for 0.5 is not above 0.5.  w_eff = (1, 0, 0, -4).
    layer, rule = hand_rule([0.75, 0.5, 0.25, 0.625], {0: 4, 1: 2}, ridge=0.125, epochs=2)
    assert layer.weight.tolist() == [[1.0, 0.0, 0.0, -4.0]]
    # L = sum of w_eff * x with x = (1, 1, -1, 0.5): dL/dw_eff = x, so g = x * w = (1, -2, -3, -2).
    optimiser = torch.optim.SGD(rule.parameters(), lr=0.125, weight_decay=2 * 0.125)
    inputs = torch.tensor([[1.0, 1.0, -1.0, 0.5]])
    layer(inputs).sum().backward()
    rule.after_backward()
    assert rule.p.grad is not None
    assert rule.p.grad.tolist() == [1.0, -2.0, -3.0, -2.0]
    # g + 2 * lambda * p = (1.1875, -1.875, -2.9375, -1.84375); p - 0.125 of it:
    optimiser.step()
    # = (0.75 - 0.1484375, 0.5 + 0.234375, 0.25 + 0.3671875, 0.625 + 0.23046875)
    rule.after_step(0)
    assert rule.p.tolist() == [0.6015625, 0.734375, 0.6171875, 0.85546875]
    assert layer.weight.tolist() == [[1.0, -2.0, 3.0, -4.0]]  # all four are on now
    # Step 1 with 100 times the input in two places: p = clip(p - 0.125 * (x * w + p / 4)) = (0, 1, ., .),
    # and of the four the two lowest are frozen: index 0 and then 2 or 3.
    layer(torch.tensor([[100.0, 100.0, 0.0, 0.0]])).sum().backward()
    rule.after_backward()
    optimiser.step()
    rule.after_step(1)
    # p_2 = 0.6171875 * (1 - 1/32) = 0.597900390625; p_3 = 0.85546875 * (1 - 1/32) = 0.8287353515625
    assert rule.p.tolist() == [0.0, 1.0, 0.597900390625, 0.8287353515625]
    assert rule.masks()["weight"].tolist() == [[False, True, False, True]]
    assert layer.weight.tolist() == [[0.0, -2.0, 0.0, -4.0]]
    row = rule.numbers()
    assert (row["kept"], row["live"], row["freezes"], row["layers_kept"]) == (0.5, 0.5, 1, [2])
    assert rule.numbers()["freezes"] == 0  # counted anew each epoch
    # A frozen weight's score gets no gradient from the loss any more, whatever the input.
    layer(inputs).sum().backward()
    rule.after_backward()
    assert rule.p.grad.tolist() == [0.0, -2.0, 0.0, -2.0]


@pytest.mark.parametrize(
    ("scores", "kept", "expected"),
    [
        ([0.0, 0.0, 0.0, 0.0], 2, [False, False, True, True]),  # all tie at 0: the lower indices go
        ([1.0, 1.0, 1.0, 1.0], 1, [False, False, False, True]),
        ([0.0, 1.0, 0.0, 1.0], 3, [False, True, True, True]),  # a threshold alone would take both zeros
        ([1.0, 0.0, 1.0, 1.0], 1, [False, False, False, True]),
        ([0.5, 0.5, 0.25, 0.5], 2, [False, True, False, True]),
    ],
)
def test_ties_are_broken_by_index(scores: list[float], kept: int, expected: list[bool]) -> None:
    _, rule = hand_rule(scores, {0: kept})
    rule.after_step(0)
    assert rule.q.tolist() == expected


def test_the_inversion_freezes_the_highest() -> None:
    _, rule = hand_rule([0.9, 0.1, 0.4, 0.9], {0: 2}, invert=True)
    rule.after_step(0)
    assert rule.q.tolist() == [False, True, True, False]


def test_scores_are_clipped_to_the_unit_interval() -> None:
    _, rule = hand_rule([0.5, 0.5, 0.5, 0.5], {})
    with torch.no_grad():
        rule.p.copy_(torch.tensor([-3.0, 0.25, 1.5, 1.0]))
    rule.after_step(0)
    assert rule.p.tolist() == [0.0, 0.25, 1.0, 1.0]


def test_live_and_unfrozen_masks_differ() -> None:
    layer, rule = hand_rule([0.9, 0.1, 0.4, 0.9], {0: 3}, mask="live", threshold=0.3)
    rule.after_step(0)
    assert rule.q.tolist() == [True, False, True, True]
    with torch.no_grad():
        rule.p[0] = 0.3  # not above the threshold
    rule.after_step(1)
    assert rule.masks()["weight"].tolist() == [[False, False, True, True]]
    assert rule.numbers()["live"] == 0.5
    assert layer.weight.tolist() == [[0.0, 0.0, 3.0, -4.0]]


@pytest.mark.parametrize(
    ("floor", "kept", "first", "invert"),
    [(0, 3, [], False), (1, 3, [1], False), (2, 4, [1, 2], False), (9, 7, [0, 1, 2, 3], False), (1, 3, [0, 3], True)],
)
def test_a_floor_protects_each_layers_best(floor: int, kept: int, first: list[int], invert: bool) -> None:
    model = nn.Sequential(nn.Linear(4, 1, bias=False), nn.Linear(1, 3, bias=False))
    scores = torch.tensor([0.1, 0.3, 0.2, 0.1, 0.9, 0.8, 0.7])  # the first layer has all the lowest
    rule = GemMinerRule(prunable_weights(model), fixed(floor=floor, invert=invert), {0: kept}, 0)
    rule.load_state_dict(state_of(scores))
    rule.after_step(0)
    found = rule.q.nonzero().flatten().tolist()
    assert len(found) == kept
    assert [i for i in found if i < 4] == first
    assert not invert or found[-1] == 6  # the lowest of the second layer


@pytest.mark.parametrize(("kind", "variance"), [("uniform", 1 / 12), ("bernoulli", 1 / 4), ("beta", 1 / 20)])
def test_first_scores(kind: str, variance: float) -> None:
    scores = _first_scores(kind, torch.empty(20_000), generator(0, kind))
    assert float(scores.mean()) == pytest.approx(0.5, abs=0.02)
    assert float(scores.var()) == pytest.approx(variance, rel=0.05)  # Beta(2, 2): 4 / (16 * 5)
    assert float(scores.min()) >= 0
    assert float(scores.max()) <= 1
    if kind == "bernoulli":
        assert scores.unique().tolist() == [0.0, 1.0]


# --- schedules -------------------------------------------------------------------------------------------------


def test_the_published_schedule() -> None:
    epochs = freeze_epochs(150, 5)
    assert epochs == list(range(5, 146, 5))
    assert len(epochs) == 29 == math.floor((150 - 1) / 5)
    # 100 steps an epoch: at the last step of epoch 5, 10, ...; 1 - density^(1/29) of the rest each time.
    schedule = Options(epochs=150, freeze_every=5).freeze_schedule(100, 0.0144, 268_336)
    assert list(schedule) == [499 + 500 * i for i in range(29)]
    assert list(schedule.values()) == [round(268_336 * 0.0144 ** (k / 29)) for k in range(1, 30)]
    assert list(schedule.values())[-1] == 3864 == round(0.0144 * 268_336)


@given(st.integers(1, 400), st.integers(1, 40))
def test_published_freezes_leave_time_to_recover_and_never_come_first(epochs: int, every: int) -> None:
    found = freeze_epochs(epochs, every)
    assert all(e % every == 0 and e >= every >= 1 for e in found)
    assert all(e < epochs or every == 1 for e in found)
    assert not found or epochs - found[-1] >= every - 1
    most = math.floor((epochs - 1) / every)
    assert most - 1 <= len(found) <= most  # at most the last one is left out
    assert found == [every * k for k in range(1, len(found) + 1)]


SETTINGS = {
    "epochs": st.integers(2, 60),
    "steps": st.integers(1, 50),
    "total": st.integers(10, 10**7),
    "density": st.floats(0.001, 1.0),
    "every": st.integers(0, 12),
    "repair": st.floats(0.0, 0.95),
}


@given(**SETTINGS)
def test_every_freeze_leaves_the_exact_count(
    epochs: int, steps: int, total: int, density: float, every: int, repair: float
) -> None:
    if round(density * total) == 0:
        return
    if every and not freeze_epochs(epochs, every):
        with pytest.raises(UsageError, match="leave no time to freeze"):
            Options(epochs=epochs, freeze_every=every)
        return
    schedule = fixed(epochs=epochs, freeze_every=every, repair=repair).freeze_schedule(steps, density, total)
    counts = list(schedule.values())
    assert counts[-1] == round(density * total)
    assert counts == sorted(counts, reverse=True)
    assert list(schedule) == sorted(schedule)
    assert min(schedule) >= 0
    assert max(schedule) < epochs * steps
    if every:
        k_all = len(freeze_epochs(epochs, every))
        assert counts == [round(total * density ** (k / k_all)) for k in range(1, k_all + 1)]
        assert min(schedule) == every * steps - 1  # the last step of epoch E, never epoch 0
    else:
        # Exponential in time, and the last `repair` of the search is free of freezes.
        assert max(schedule) + 1 == max(1, round(epochs * steps * (1 - repair)))
        for step, count in schedule.items():
            assert count == max(counts[-1], round(total * density ** ((step + 1) / (max(schedule) + 1))))


def test_a_continuous_search_takes_little_at_a_time() -> None:
    schedule = fixed(epochs=40).freeze_schedule(22, 0.0059, 268_048)
    counts = [268_048, *schedule.values()]
    assert counts[-1] == 1581
    assert max(schedule) < 0.75 * 40 * 22
    assert max(1 - b / a for a, b in pairwise(counts)) < 0.02


@given(
    density=st.floats(0.02, 1.0),
    every=st.sampled_from([0, 1, 2]),
    epochs=st.integers(3, 6),
    seed=st.integers(0, 10**6),
    scores=st.sampled_from(["uniform", "bernoulli", "beta"]),
)
@hypothesis_settings(max_examples=20)
def test_a_search_hits_every_count_of_its_schedule(
    density: float, every: int, epochs: int, seed: int, scores: str
) -> None:
    """Bernoulli scores tie at 0 and 1 from the beginning; a huge rate clips nearly all of them."""
    options = fixed(epochs=epochs, freeze_every=every, lr=50.0, scores=scores)  # type: ignore[arg-type]
    model, data = tiny_net(), TensorBatches(*tiny_data(24), batch_size=12)
    schedule = options.freeze_schedule(2, density, 324)
    seen: dict[int, int] = {}

    class Watched(GemMinerRule):
        def after_step(self, step: int) -> None:
            super().after_step(step)
            if step in self.schedule:
                seen[step] = int(self.q.sum())
            assert self.remaining == int(self.q.sum())
            assert torch.equal(self.kept_initial, self.initial * self.q)
            assert all(p.grad is None or not p.grad.count_nonzero() for p in self.weights)  # cleared

    rule = Watched(prunable_weights(model), options, schedule, seed)
    fit(Task(model, data), rule, options_for_fit(options), seed=seed)
    assert seen == schedule
    exact = Fraction(density) * 324
    assert abs(int(rule.q.sum()) - exact) <= Fraction(1, 2) + Fraction(1, 2**40)


# --- find ------------------------------------------------------------------------------------------------------


def task(model: nn.Module, **changes: Any) -> Task:
    return Task(model, TensorBatches(*tiny_data(), batch_size=16), **changes)


def test_find_leaves_the_model_as_it_was_and_keeps_the_exact_count(
    net: nn.Sequential, snapshot: Callable[[nn.Module], object]
) -> None:
    net[0].bias.requires_grad_(False)
    net.eval()
    before, generators = snapshot(net), torch.get_rng_state()
    ticket = find(task(net), 0.1, Options(epochs=4), 0)
    assert snapshot(net) == before
    assert torch.equal(torch.get_rng_state(), generators)
    assert ticket.kept == 32 == round(0.1 * 324)
    assert all(torch.equal(ticket.initial[n], t) for n, t in net.state_dict().items())
    assert len(ticket.provenance["rows"]) == 4
    assert 0 < ticket.provenance["live"] <= 0.1


class Stop(nn.Module):
    """Passes its input on, and raises at the given call."""

    def __init__(self, at: int, error: BaseException) -> None:
        super().__init__()
        self.calls, self.at, self.error = 0, at, error

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        if self.calls == self.at:
            raise self.error
        return x


@pytest.mark.parametrize("at", [1, 5, 11])
@pytest.mark.parametrize("error", [RuntimeError("broken"), KeyboardInterrupt()], ids=repr)
def test_an_interrupted_search_gives_the_weights_back(
    net: nn.Sequential, snapshot: Callable[[nn.Module], object], error: BaseException, at: int
) -> None:
    model = nn.Sequential(net, Stop(at, error))
    before, generators = snapshot(model), torch.get_rng_state()
    with pytest.raises(type(error)):
        find(task(model), 0.1, Options(epochs=4), 0)
    assert snapshot(model) == before
    assert torch.equal(torch.get_rng_state(), generators)


def test_gradients_of_before_do_not_leak_into_the_search() -> None:
    fresh, used = tiny_net(), tiny_net()
    inputs, targets = tiny_data()
    (1000 * F.cross_entropy(used(inputs), targets)).backward()
    used[1].reset_running_stats()
    ours, theirs = (find(task(model), 0.2, Options(epochs=3), 0).masks for model in (fresh, used))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_only_scores_move_during_a_search(net: nn.Sequential) -> None:
    """No weight decay on effective weights, biases and norms where they were, whatever the optimiser."""
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    seen: list[dict[str, Tensor]] = []

    class Watching(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            seen.append({name: p.detach().clone() for name, p in net.named_parameters()})
            return x

    find(task(nn.Sequential(net, Watching()), engine="dense"), 0.1, Options(epochs=3, weight_decay=0.1, ridge=0.1), 0)
    assert len(seen) == 18
    for state in seen:
        for name, value in state.items():
            same = value == before[name]
            if name in ("0.weight", "3.weight", "5.weight"):
                same |= value == 0
            assert bool(same.all()), name


def test_seeds_and_options_vary_the_ticket() -> None:
    first, again, other = (find(task(tiny_net()), 0.2, Options(epochs=2), seed) for seed in (0, 0, 1))
    assert first == again
    assert first != other
    inverted = find(task(tiny_net()), 0.2, Options(epochs=2, invert=True), 0)
    assert inverted.kept == first.kept
    assert inverted != first


def test_a_live_mask_may_keep_fewer_and_says_so() -> None:
    ticket = find(task(tiny_net()), 0.5, Options(epochs=6, mask="live", ridge=3e-2, lr=0.5), 0)
    assert ticket.kept < 162
    assert ticket.provenance["live"] == ticket.density


def test_other_types_are_mined_too() -> None:
    inputs, targets = tiny_data()
    double = tiny_net().double()
    data = TensorBatches(inputs.double(), targets, batch_size=16)
    assert find(Task(double, data), 0.1, Options(epochs=2), 0).kept == 32
    mixed = tiny_net(norm=False)
    mixed[5].to(torch.bfloat16)

    class Cast(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.bfloat16()

    mixed.insert(5, Cast())
    before = mixed[6].weight.detach().clone()
    ticket = find(task(mixed), 0.1, Options(epochs=3, lr=1.0), 0)
    assert ticket.kept == 32
    assert 0 < ticket.masks.kept("6.weight") < 36
    assert torch.equal(mixed[6].weight, before)
    assert mixed[6].weight.dtype == torch.bfloat16


def test_weights_on_two_devices_are_refused() -> None:
    parameters = {"a": nn.Parameter(torch.ones(2, 2)), "b": nn.Parameter(torch.ones(2, 2, device="meta"))}
    with pytest.raises(UsageError, match="spread over several devices"):
        GemMinerRule(parameters, fixed(), {}, 0)


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"ridge": -1.0}, "lambda .ridge. must be 0 or more"),
        ({"ridge": math.inf}, "lambda .ridge. must be 0 or more"),
        ({"repair": 1.0}, "repair, a fraction of the search"),
        ({"repair": -0.1}, "repair, a fraction of the search"),
        ({"start": 0.0}, "start, the fraction live at first"),
        ({"slack": 0.5}, "slack, unfrozen weights for each live one"),
        ({"threshold": 0.4}, "threshold is 0.5 where lambda is solved for"),
        ({"threshold": 0.0}, "threshold must lie between 0 and 1"),
        ({"threshold": 1.0}, "threshold must lie between 0 and 1"),
        ({"freeze_every": -1}, "freeze_every is a number of epochs"),
        ({"floor": -1}, "floor is a number of weights"),
        ({"scores": "gamma"}, "scores must be uniform, bernoulli or beta"),
        ({"mask": "p"}, "mask must be q or live"),
        ({"epochs": 5, "freeze_every": 5}, "leave no time to freeze every 5: search for at least 10"),
        ({"epochs": 0}, "epochs must be 1 or more"),
        ({"lr": math.nan}, "lr, the learning rate"),
    ],
)
def test_options_that_cannot_be(fields: Any, text: str) -> None:
    with pytest.raises(UsageError, match=text):
        Options(**fields)


def test_a_floor_above_the_asked_count_is_refused() -> None:
    """Three layers of 50 each are more than the 32 weights that density 0.1 keeps."""
    with pytest.raises(UsageError, match="floor"):
        find(task(tiny_net()), 0.1, Options(epochs=2, floor=50), 0)


# --- lambda solved for -----------------------------------------------------------------------------------------


def test_the_live_weights_follow_their_schedule_and_what_is_frozen_is_off() -> None:
    live: list[tuple[int, int]] = []

    class Watched(GemMinerRule):
        def after_step(self, step: int) -> None:
            before = self.remaining
            super().after_step(step)
            assert self.live_at is not None
            on = int(self.live().sum())
            live.append((on, self.live_at(step)))
            if before > self.remaining:  # a freeze takes only what is off already
                assert on == int((self.p > self.threshold).sum())

    options, model = Options(epochs=10), tiny_net()
    batches = TensorBatches(*tiny_data(), batch_size=16)
    total = sum(p.numel() for p in prunable_weights(model).values())

    def live_at(step: int) -> int:
        return options.live_count(step, len(batches), 0.1, total)

    schedule = options.freeze_schedule(len(batches), 0.1, total)
    rule = Watched(prunable_weights(model), options, schedule, 0, live_at)
    rows = fit(Task(model, batches, batches), rule, options_for_fit(options), seed=0)
    assert all(on <= most for on, most in live)
    assert live[-1][0] == int(rule.q.sum()) == round(0.1 * total)
    assert rows[0]["lambda"] > 0  # something had to be shrunk
    assert [row["kept"] for row in rows] == sorted((row["kept"] for row in rows), reverse=True)


def test_the_search_does_not_depend_on_the_scale_of_the_loss() -> None:
    """A power of two rounds nothing: the same ticket from a loss 1,024 times as large."""
    masks = [
        find(task(tiny_net(), loss=lambda x, y, c=c: c * F.cross_entropy(x, y)), 0.1, Options(epochs=4), 0).masks
        for c in (1.0, 1024.0)
    ]
    assert all(torch.equal(masks[0][name], masks[1][name]) for name in masks[0])


def test_one_layer_cannot_run_away_with_the_scores() -> None:
    """A layer whose gradient is a thousand times the others' moves at most CAP times their median."""
    from gemminer.methods.gem_miner.rule import CAP, RATE

    parameters = {name: nn.Parameter(torch.ones(4, 4)) for name in "abc"}
    rule = GemMinerRule(parameters, Options(), {}, 0, lambda step: 48)
    for name, p in parameters.items():
        p.grad = torch.full((4, 4), 1000.0 if name == "c" else 1.0)
    rule.after_backward()
    a, b, c = (float(part[0]) for part in rule.gradient.split(16))
    assert a == pytest.approx(b)
    assert c == pytest.approx(CAP * a)
    assert float(rule.gradient.square().mean().sqrt()) == pytest.approx(RATE)


# Adam makes a full step of what rounding leaves of a zero gradient, so without a ridge the two part company.
@pytest.mark.parametrize(("ridge", "optimiser"), [(None, "sgd"), (1e-3, "sgd"), (1e-3, "adam")])
def test_kept_weights_only_give_the_search_of_all_weights(ridge: float | None, optimiser: str) -> None:
    """In double precision, the same scores at every step and the same ticket; the rows agree."""
    model = nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6), nn.ReLU(),
        nn.Conv2d(6, 6, 3, 2, 1), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(96, 10),
    ).double()  # fmt: skip
    source = torch.Generator().manual_seed(0)
    inputs = torch.randn(40, 1, 8, 8, generator=source, dtype=torch.float64)
    data = TensorBatches(inputs, torch.arange(40) % 10, batch_size=16)
    options = Options(epochs=12, ridge=ridge, optimiser=optimiser, lr=0.2 if optimiser == "sgd" else 0.02)  # type: ignore[arg-type]
    found = [find(Task(model, data, data, engine=engine), 0.05, options, 0) for engine in ("dense", "sparse")]
    dense, sparse = (ticket.provenance["rows"] for ticket in found)
    for ours, theirs in zip(sparse, dense, strict=True):
        assert ours["layers_kept"] == theirs["layers_kept"]
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-6)
        assert ours["live"] == theirs["live"]
    assert all(torch.equal(found[0].masks[name], found[1].masks[name]) for name in found[0].masks)


@pytest.mark.parametrize("killed", [2, 7])  # with vectors of all weights, and with shorter ones
def test_a_search_on_kept_weights_is_resumed_bit_for_bit(tmp_path: Path, killed: int) -> None:
    model, data = tiny_net(), TensorBatches(*tiny_data(), batch_size=16)
    options = Options(epochs=8)
    whole = find(Task(model, data, engine="sparse"), 0.1, options, 0)

    class Killed(Monitor):
        def epoch(self, row: dict[str, Any]) -> None:
            if row["epoch"] == killed:
                raise KeyboardInterrupt

    checkpoint = Checkpoint(tmp_path / "state", 0.0)
    with pytest.raises(KeyboardInterrupt):
        find(Task(model, data, engine="sparse", checkpoint=checkpoint, monitor=Killed()), 0.1, options, 0)
    state = checkpoint.load()
    assert state is not None
    assert len(state["rule"]["vectors"]) == 3
    assert (len(state["rule"]["index"]) == rule_size(model)) == (killed == 2)
    again = find(Task(model, data, engine="sparse", checkpoint=checkpoint), 0.1, options, 0)
    assert all(torch.equal(again.masks[name], whole.masks[name]) for name in whole.masks)
    losses = [[row["loss"] for row in ticket.provenance["rows"]] for ticket in (again, whole)]
    assert losses[0] == losses[1]
