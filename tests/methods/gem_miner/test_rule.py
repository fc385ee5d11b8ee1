"""The rule of the search: against autograd through functional_call, and by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from gemminer.core.errors import UsageError
from gemminer.core.prunable import prunable_weights
from gemminer.core.randomness import generator
from gemminer.data import TensorBatches
from gemminer.methods.gem_miner import GemMinerRule, Options, find
from gemminer.methods.gem_miner.rule import _first_scores
from gemminer.training.loop import fit
from gemminer.training.task import Task
from tests.helpers import tiny_data, tiny_net
from tests.methods.gem_miner.helpers import fixed, options_for_fit


def parts_of(rule: GemMinerRule, flat: Tensor) -> list[Tensor]:
    """A flat vector by parameter, before anything has been let go of."""
    return [part.view(shape) for part, shape in zip(flat.split(rule.full_sizes), rule.shapes, strict=True)]


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


def test_weights_on_two_devices_are_refused() -> None:
    parameters = {"a": nn.Parameter(torch.ones(2, 2)), "b": nn.Parameter(torch.ones(2, 2, device="meta"))}
    with pytest.raises(UsageError, match="spread over several devices"):
        GemMinerRule(parameters, fixed(), {}, 0)


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
