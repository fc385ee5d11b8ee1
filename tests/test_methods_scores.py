"""Score methods against oracles that share no code with them: explicit Hessians, finite differences, hand counts."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from gemminer import methods, models
from gemminer.core.errors import GemminerError, UsageError
from gemminer.data import TensorBatches
from gemminer.methods import grasp, prospr, smart_ratio, snip, synflow
from gemminer.methods.parts import one_shot
from gemminer.methods.random_tickets import erk_ratio
from gemminer.training.task import Task


def small(seed: int = 0) -> nn.Sequential:
    """4 -> 5 -> 3, smooth, float64: 35 prunable weights and biases beside them."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()


def task_of(model: nn.Module, batch_size: int = 12) -> Task:
    source = torch.Generator().manual_seed(1)
    x = torch.randn(48, 4, generator=source, dtype=torch.float64)
    return Task(model, TensorBatches(x, torch.randint(3, (48,), generator=source), batch_size=batch_size))


def flat_weights(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().reshape(-1) for p in model.parameters() if p.dim() == 2])


def loss_at(model: nn.Module, flat: Tensor, x: Tensor, y: Tensor, temperature: float = 1.0) -> Tensor:
    """The loss as a function of one vector of all prunable weights."""
    named = {n: p for n, p in model.named_parameters() if p.dim() == 2}
    parts = flat.split([p.numel() for p in named.values()])
    values = {n: part.view(p.shape) for (n, p), part in zip(named.items(), parts, strict=True)}
    return F.cross_entropy(functional_call(model, values, (x,)) / temperature, y)


def together(seen: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    return torch.cat([x for x, _ in seen]), torch.cat([y for _, y in seen])


def assert_ranked(method: str, scores: Tensor, task: Task, options: Any) -> None:
    """The method's ticket of every size is the oracle's top k; and so for its inversion, the lowest k."""
    d = scores.numel()
    for invert, order in ((False, scores.argsort(descending=True)), (True, scores.argsort())):
        chosen = dataclasses.replace(options, invert=invert)
        for k in range(1, d + 1):
            masks = methods.get(method).find(task, k / d, chosen, 0).masks
            kept = torch.cat([m.reshape(-1) for m in masks.values()]).nonzero().flatten().tolist()
            assert kept == sorted(order[:k].tolist()), (method, invert, k)


def first(task: Task, count: int) -> list[tuple[Tensor, Tensor]]:
    return [batch for _, batch in zip(range(count), task.train.epoch(0), strict=False)]


# --- snip and grasp ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batches", [1, 3])
def test_snip_is_the_losss_derivative_in_the_mask(batches: int) -> None:
    model = small()
    task = task_of(model)
    x, y = together(first(task, batches))
    w = flat_weights(model)
    by_mask = torch.autograd.functional.jacobian(lambda c: loss_at(model, c * w, x, y), torch.ones_like(w))
    assert_ranked("snip", by_mask.abs(), task, snip.Options(batches=batches))


@pytest.mark.parametrize("batches", [1, 2])
def test_grasp_is_the_explicit_hessian_times_the_gradient(batches: int) -> None:
    model = small()
    task = task_of(model)
    x, y = together(first(task, batches))
    w = flat_weights(model)

    def loss(v: Tensor) -> Tensor:
        return loss_at(model, v, x, y, temperature=200.0)

    g = torch.autograd.functional.jacobian(loss, w)
    s = -w * (torch.autograd.functional.hessian(loss, w) @ g)  # the highest are removed
    assert_ranked("grasp", -s, task, grasp.Options(per_class=0, batches=batches))


def test_grasps_temperature_and_examples_of_each_class_matter_as_said() -> None:
    model = small()
    task = task_of(model)
    x, y = together(first(task, 4))
    rows = sorted(i for c in range(3) for i in (y == c).nonzero().flatten()[:5].tolist())
    w = flat_weights(model)

    def loss(v: Tensor) -> Tensor:
        return loss_at(model, v, x[rows], y[rows], temperature=3.0)

    g = torch.autograd.functional.jacobian(loss, w)
    score = w * (torch.autograd.functional.hessian(loss, w) @ g)
    assert_ranked("grasp", score, task, grasp.Options(per_class=5, temperature=3.0))


def test_examples_of_each_class_come_in_even_batches() -> None:
    task = task_of(small())
    seen = grasp.of_each_class(task, 5)
    assert [len(y) for _, y in seen] == [7, 8]
    assert torch.cat([y for _, y in seen]).bincount().tolist() == [5, 5, 5]


def test_grasps_product_goes_through_pytorchs_own_attention() -> None:
    """Against the difference of two gradients, along g: the fused kernels have no second derivative."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layer = nn.TransformerEncoderLayer(4, 2, 6, dropout=0.0, batch_first=True)
        model = nn.Sequential(layer, nn.Flatten(), nn.Linear(12, 3)).double()
    source = torch.Generator().manual_seed(0)
    x, y = torch.randn(6, 3, 4, generator=source).double(), torch.arange(6) % 3
    task = Task(model, TensorBatches(x, y, batch_size=6))
    weights = [p for p in model.parameters() if p.dim() == 2]
    g = torch.autograd.grad(F.cross_entropy(model(x), y), weights)
    ends = []
    for h in (1e-5, -1e-5):
        moved = copy.deepcopy(model)
        there = [p for p in moved.parameters() if p.dim() == 2]
        with torch.no_grad():
            for p, direction in zip(there, g, strict=True):
                p += h * direction
        ends.append(torch.autograd.grad(F.cross_entropy(moved(x), y), there))
    with one_shot.twice_differentiable("grasp"):
        found = grasp.hessian_gradient(task, first(task, 1), weights)
    for product, up, down in zip(found, *ends, strict=True):
        torch.testing.assert_close(product, (up - down) / 2e-5, rtol=1e-5, atol=1e-8)
        assert float(product.abs().sum()) > 0


class Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return g


class Bagged(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return F.embedding_bag(torch.arange(len(x))[:, None], super().forward(x), mode="max")


class Custom(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = Once.apply(super().forward(x))
        return out


@pytest.mark.parametrize("method", ["grasp", "prospr"])
@pytest.mark.parametrize("model", [Bagged, Custom])
def test_a_model_without_second_derivatives_gets_one_sentence(method: str, model: type[nn.Linear]) -> None:
    row = methods.get(method)
    with pytest.raises(GemminerError, match=f"{method} needs second derivatives"):
        row.find(task_of(model(4, 3).double()), 0.5, row.options(), 0)


# --- prospr -----------------------------------------------------------------------------------------------------


def loss_after_sgd(model: nn.Module, masks: Tensor, seen: list[tuple[Tensor, Tensor]], n: int) -> float:
    """Torch's own SGD on a copy whose weights were masked at the start."""
    net = copy.deepcopy(model)
    with torch.no_grad():
        weights = [p for p in net.parameters() if p.dim() == 2]
        for p, m in zip(weights, masks.split([p.numel() for p in weights]), strict=True):
            p.mul_(m.view(p.shape))
    optimiser = torch.optim.SGD(net.parameters(), lr=0.5, momentum=0.9)
    groups = [together(seen[i : i + n]) for i in range(0, len(seen), n)]
    for x, y in groups[:-1]:
        optimiser.zero_grad()
        F.cross_entropy(net(x), y).backward()
        optimiser.step()
    x, y = groups[-1]
    return float(F.cross_entropy(net(x), y).detach())


@pytest.mark.parametrize(("steps", "batches"), [(0, 1), (3, 1), (1, 2)])
def test_prosprs_meta_gradient_is_the_finite_difference_of_real_training(steps: int, batches: int) -> None:
    model = small()
    task = task_of(model)
    options = prospr.Options(steps=steps, batches=batches)
    seen = first(task, batches * (steps + 1))
    d = flat_weights(model).numel()
    h, slopes = 1e-5, []
    for i in range(d):
        step = torch.zeros(d, dtype=torch.float64)
        step[i] = h
        up, down = (loss_after_sgd(model, 1 + sign * step, seen, batches) for sign in (1, -1))
        slopes.append((up - down) / (2 * h))
    oracle = torch.tensor(slopes, dtype=torch.float64)

    named = {n: torch.ones_like(p, requires_grad=True) for n, p in model.named_parameters() if p.dim() == 2}
    found = torch.autograd.grad(prospr.loss_after(task, named, seen, options), list(named.values()))
    torch.testing.assert_close(torch.cat([g.reshape(-1) for g in found]), oracle, rtol=1e-6, atol=1e-9)
    assert_ranked("prospr", oracle.abs(), task, options)


def test_prospr_without_the_first_momentums_graph_is_another_score() -> None:
    task = task_of(small())
    full, cut = (methods.get("prospr").find(task, 0.5, prospr.Options(detach_first=x), 0) for x in (False, True))
    assert full != cut


# --- synflow ----------------------------------------------------------------------------------------------------


def ones_task(model: nn.Module, *shape: int) -> Task:
    return Task(model, TensorBatches(torch.randn(8, *shape), torch.zeros(8, dtype=torch.long), batch_size=4))


def test_synflow_by_hand_on_two_layers() -> None:
    """R = 1' |W2| |W1| 1, so a weight's score is |w_ij| times what flows in at j times what flows out at i."""
    model = nn.Sequential(nn.Linear(3, 4, bias=False), nn.ReLU(), nn.Linear(4, 2, bias=False)).double()
    first_, second = (model[i].weight.detach().abs() for i in (0, 2))
    scores = torch.cat([(first_ * second.sum(0)[:, None]).reshape(-1), (second * first_.sum(1)).reshape(-1)])
    assert_ranked("synflow", scores, ones_task(model, 3), synflow.Options(rounds=1))


@pytest.mark.parametrize("invert", [False, True])
def test_synflow_scores_anew_in_each_round_and_nothing_returns(invert: bool) -> None:
    model = nn.Sequential(nn.Linear(3, 4, bias=False), nn.ReLU(), nn.Linear(4, 2, bias=False)).double()
    weights = [model[i].weight.detach().abs() for i in (0, 2)]
    alive = torch.ones(20, dtype=torch.bool)
    for k in range(1, 5):
        one, two = (w * m.view(w.shape) for w, m in zip(weights, alive.split([12, 8]), strict=True))
        scores = torch.cat([(one * two.sum(0)[:, None]).reshape(-1), (two * one.sum(1)).reshape(-1)])
        order = sorted(alive.nonzero().flatten().tolist(), key=lambda i: float(scores[i]), reverse=not invert)
        alive = torch.zeros(20, dtype=torch.bool)
        alive[order[: round(20 * 0.3 ** (k / 4))]] = True
    ticket = methods.get("synflow").find(ones_task(model, 3), 0.3, synflow.Options(rounds=4, invert=invert), 0)
    assert torch.equal(torch.cat([m.reshape(-1) for m in ticket.masks.values()]), alive)


@pytest.mark.parametrize("density", [1.0, 0.05])
def test_synflow_is_conserved_through_vgg16(density: float) -> None:
    """Between input and output every cut carries the same flow: each layer's scores sum to R."""
    model = models.build("vgg16", width=0.25)
    task = ones_task(model, 3, 32, 32)
    ticket = methods.get("random").find(task, density, methods.get("random").options(), 0)
    with one_shot.scoring(task, 0) as weights, synflow.linearised(model):
        for name, w in weights.items():
            w.data *= ticket.masks[name]
        scores = synflow.flow(task, torch.ones(1, 3, 32, 32, dtype=torch.float64), weights)
        total = float(model(torch.ones(1, 3, 32, 32, dtype=torch.float64)).sum().detach())
    assert total > 0
    for name, s in scores.items():
        assert abs(float(s.sum()) - total) <= 1e-9 * total, name


@pytest.mark.parametrize("density", [0.01, 0.001])
def test_synflow_collapses_no_layer_of_vgg16(density: float) -> None:
    model = models.build("vgg16", width=0.25)
    ticket = methods.get("synflow").find(ones_task(model, 3, 32, 32), density, synflow.Options(), 0)
    assert ticket.kept == round(density * ticket.prunable)
    assert min(layer.kept for layer in ticket.per_layer()) > 0


def test_synflow_sees_tokens_as_the_sum_of_the_embeddings_rows() -> None:
    model = nn.Sequential(nn.Embedding(5, 3), nn.Linear(3, 2, bias=False)).double()
    x = torch.randint(5, (6, 4), generator=torch.Generator().manual_seed(0))
    task = Task(model, TensorBatches(x, x % 2, batch_size=3), embeddings=True)
    table, head = (p.detach().abs() for p in model.parameters())
    length = x.shape[1]
    scores = length * torch.cat([(table * head.sum(0)).reshape(-1), (head * table.sum(0)).reshape(-1)])
    assert_ranked("synflow", scores, task, synflow.Options(rounds=1))


def test_synflow_does_not_look_at_the_data() -> None:
    model = small()
    a = task_of(model)
    b = dataclasses.replace(a, train=TensorBatches(torch.randn(48, 4).double(), torch.zeros(48).long(), batch_size=12))
    assert methods.get("synflow").find(a, 0.3, synflow.Options(), 0) == methods.get("synflow").find(
        b, 0.3, synflow.Options(), 0
    )


# --- allocations ------------------------------------------------------------------------------------------------


class Layers(nn.Module):
    """Convolutions 3x3 of 1 -> 2 -> 4 -> 10 channels and a classifier 10 -> 10: 18, 72, 360 and 100 weights."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(1, 2, 3), nn.Conv2d(2, 4, 3), nn.Conv2d(4, 10, 3)
        self.fc = nn.Linear(10, 10)


def kept(method: str, density: float, **options: Any) -> list[int]:
    row = methods.get(method)
    return [layer.kept for layer in row.find(ones_task(Layers(), 1), density, row.options(**options), 0).per_layer()]


def test_erk_by_hand() -> None:
    """Relative densities (1+2+6)/18, (2+4+6)/72, (4+10+6)/360, (10+10)/100, so weights go as 9 : 12 : 20 : 20."""
    ratios = [erk_ratio(p.shape) for p in Layers().parameters() if p.dim() > 1]
    assert ratios == pytest.approx([1 / 2, 1 / 6, 1 / 18, 1 / 5])
    assert kept("erk", 61 / 550) == [9, 12, 20, 20]
    # 161 would ask 23.8 of the first 18: it is full, and 143 go as 12 : 20 : 20 to the others.
    assert kept("erk", 161 / 550) == [18, 33, 55, 55]


def test_smart_ratio_by_hand() -> None:
    """L = 4: (L-l+1)^2 + (L-l+1) = 20, 12, 6, 2; the classifier keeps 0.3 of 100, the rest 360, 864, 2160 parts."""
    assert smart_ratio.smart_ratios(4) == [20, 12, 6, 2]
    assert kept("smart-ratio", (30 + 94) / 550) == [10, 24, 60, 30]  # 94 * 360 / 3384 = 10, 24, 60
    # 197 would ask 20.96 of the first 18: full, and 179 go as 864 : 2160 to the others.
    assert kept("smart-ratio", (30 + 197) / 550) == [18, 51, 128, 30]  # 51.14, 127.86
    assert kept("smart-ratio", 1.0) == [18, 72, 360, 100]
    # Divided by l^2: 20, 3, 2/3 of 18, 72, 360 = 360 : 216 : 240; 34 parts of 24 = 15, 9, 10.
    assert kept("smart-ratio", (30 + 34) / 550, shape="vgg") == [15, 9, 10, 30]
    # Upside down, 2, 6, 12 and the classifier's 20: 36 : 432 : 4320.
    assert kept("smart-ratio", (30 + 133) / 550, invert=True) == [1, 12, 120, 30]
    # Without a share of its own the classifier has ratio 2: 360 : 864 : 2160 : 200.
    assert kept("smart-ratio", 112 / 550, classifier=0.0) == [11, 27, 68, 6]  # 11.25, 27, 67.5, 6.25


def test_smart_ratio_says_when_the_classifier_alone_is_too_much() -> None:
    with pytest.raises(UsageError, match="classifier"):
        kept("smart-ratio", 25 / 550)


def test_a_layers_scope_gives_every_layer_its_share() -> None:
    for method in ("magnitude", "snip", "synflow"):
        model = models.build("lenet-300-100", in_channels=1, image_size=4)
        task = ones_task(model, 1, 4, 4)
        row = methods.get(method)
        ticket = row.find(task, 0.1, row.options(scope="layer"), 0)
        assert ticket.kept == round(0.1 * ticket.prunable)
        assert all(abs(layer.kept - 0.1 * layer.prunable) < 1 for layer in ticket.per_layer()), method


def test_magnitude_is_the_largest_weights() -> None:
    model = small()
    assert_ranked("magnitude", flat_weights(model).abs(), task_of(model), methods.get("magnitude").options())


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        (snip.Options, {"batches": 0}),
        (snip.Options, {"scope": "globl"}),
        (grasp.Options, {"temperature": 0.0}),
        (grasp.Options, {"per_class": -1}),
        (synflow.Options, {"rounds": 0}),
        (prospr.Options, {"steps": -1}),
        (prospr.Options, {"lr": 0.0}),
        (prospr.Options, {"momentum": 1.0}),
        (smart_ratio.Options, {"shape": "vg"}),
        (smart_ratio.Options, {"classifier": 1.5}),
    ],
)
def test_settings_that_cannot_be_are_refused(kind: type[Any], fields: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=next(iter(fields))):
        kind(**fields)


def test_costs_count_gradients() -> None:
    task = task_of(small())  # 4 batches of 12
    row = methods.get
    assert row("snip").find(task, 0.3, snip.Options(batches=2), 0).provenance["epochs"] == 0.5
    assert row("prospr").find(task, 0.3, prospr.Options(), 0).provenance["epochs"] == 10 / 4
    assert row("grasp").find(task, 0.3, grasp.Options(per_class=8), 0).provenance["epochs"] == 4 * 2 / 4
    assert row("synflow").find(task, 0.3, synflow.Options(), 0).provenance["epochs"] == pytest.approx(100 / 48)
    assert row("magnitude").find(task, 0.3, row("magnitude").options(), 0).provenance["epochs"] == 0
