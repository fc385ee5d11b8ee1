"""Removing whole layers: each score is its formula, the rule stops where it should, and a gem fits inside."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import gemminer
from gemminer import methods, models
from gemminer.core.errors import UsageError
from gemminer.core.layers import without
from gemminer.core.model_state import named_state
from gemminer.core.ticket import Ticket
from gemminer.data import TensorBatches
from gemminer.methods import grasp
from gemminer.methods.layers import CRITERIA, Options
from gemminer.training.task import Task
from tests.conformance.models import Residual, build, task_of
from tests.helpers import Notes, mined

BLOCKS = [f"{stage}.{i}" for stage in ("wide", "small") for i in range(3)]


def found(density: float = 1.0, seed: int = 0, task: Task | None = None, **options: Any) -> Ticket:
    return mined(methods.get("layers").find, task or task_of(build("Residual")), density, Options(**options), seed)


def scores(criterion: str, **options: Any) -> dict[str, float]:
    rows = found(criterion=criterion, remove=1, **options).provenance["layers"]
    return {row["name"]: row["score"] for row in rows}


def batch() -> tuple[Tensor, Tensor]:
    inputs, targets = next(iter(task_of(build("Residual")).train.epoch(0)))
    return inputs, targets


def doubled() -> Task:
    """The task in double precision: sums of weights' scores cancel behind a batch norm."""
    batches = list(task_of(build("Residual")).train.epoch(0))
    x, y = (torch.cat(parts) for parts in zip(*batches, strict=True))
    return Task(build("Residual").double(), TensorBatches(x.double(), y, batch_size=16))


def loss_in_training(model: nn.Module) -> Tensor:
    """With the batch's statistics, as before a training the norms' own say nothing."""
    inputs, targets = batch()
    return nn.functional.cross_entropy(model.train()(inputs), targets)


@pytest.mark.parametrize("reduce", ["mean", "sum"])
@pytest.mark.parametrize("criterion", ["snip", "signed", "l1"])
def test_scores_of_weights_are_their_formulas(criterion: str, reduce: str) -> None:
    task, model = doubled(), build("Residual").double().train()
    x, y = next(iter(task.train.epoch(0)))
    nn.functional.cross_entropy(model(x), y).backward()
    rows = found(criterion=criterion, remove=1, reduce=reduce, task=task).provenance["layers"]
    for row in rows:
        w = model.get_submodule(row["name"]).conv.weight.detach()
        g = model.get_submodule(row["name"]).conv.weight.grad
        each = {"snip": (w * g).abs(), "signed": w * g, "l1": w.abs()}[criterion]
        assert row["score"] == pytest.approx(float(each.mean() if reduce == "mean" else each.sum()), rel=1e-8)


def test_grasp_is_the_weights_times_the_hessian_gradient_product() -> None:
    """In double precision against two plain gradients, on the examples of each class that GraSP takes."""
    task, own = doubled(), grasp.Options()
    seen = grasp.examples_of(task, own)
    model = build("Residual").double().train()
    weights = {n: p for n, p in model.named_parameters() if p.dim() > 1}

    def loss() -> Tensor:
        total = sum(len(y) for _, y in seen)
        parts = [nn.functional.cross_entropy(model(x) / own.temperature, y) * len(y) for x, y in seen]
        return torch.stack(parts).sum() / total

    first = torch.autograd.grad(loss(), list(weights.values()), create_graph=True)
    flow = torch.stack([(f * f.detach()).sum() for f in first]).sum()
    product = dict(zip(weights, torch.autograd.grad(flow, list(weights.values())), strict=True))
    for row in found(criterion="grasp", remove=1, task=task).provenance["layers"]:
        name = f"{row['name']}.conv.weight"
        assert row["score"] == pytest.approx(float((weights[name] * product[name]).detach().mean()), rel=1e-6)
        # Behind a batch norm w g = 0 whatever w is, so along g: w (H g) + g g = 0, but for the norm's epsilon.
        own = first[list(weights).index(name)].detach()
        assert row["score"] == pytest.approx(-float(own.square().mean()), rel=1e-2)


def test_behind_a_batch_norm_signed_is_rounding_and_that_is_said() -> None:
    """The output does not depend on a convolution's scale there, so w g sums to zero, but for the norm's epsilon."""
    notes = Notes()
    net = models.build("resnet20", in_channels=1, image_size=8)
    data = TensorBatches(torch.randn(32, 1, 8, 8), torch.arange(32) % 10, batch_size=32)
    found(criterion="signed", remove=1, task=Task(net, data, monitor=notes))
    assert any("signed scores are rounding here" in note for note in notes.notes)
    plain = models.build("resnet20", in_channels=1, image_size=8, norm="none")
    quiet = Notes()
    found(criterion="signed", remove=1, task=Task(plain, data, monitor=quiet))
    assert not quiet.notes


def test_loss_is_what_the_network_loses_without_the_layer() -> None:
    model = build("Residual")
    whole = float(loss_in_training(model).detach())
    for name, score in scores("loss").items():
        assert score == pytest.approx(
            float(loss_in_training(without(build("Residual"), [name])).detach()) - whole, abs=1e-5
        )


def test_cka_says_how_unlike_the_last_features_are() -> None:
    def features(model: nn.Module) -> Tensor:
        read: list[Tensor] = []
        model.head.register_forward_pre_hook(lambda m, x: read.append(x[0]))
        loss_in_training(model)
        return read[0] - read[0].mean(0)

    full = features(build("Residual")).detach()
    for name, score in scores("cka").items():
        cut = features(without(build("Residual"), [name])).detach()
        right = 1 - (full.T @ cut).norm() ** 2 / ((full.T @ full).norm() * (cut.T @ cut).norm())
        assert score == pytest.approx(float(right), abs=1e-4)


def test_hrank_is_the_mean_rank_of_a_layers_maps() -> None:
    model, read = build("Residual").train(), {}
    for name in BLOCKS:
        model.get_submodule(name).register_forward_hook(lambda m, x, out, name=name: read.update({name: out}))
    model(batch()[0])
    for name, score in scores("hrank").items():
        maps = read[name]
        assert score == pytest.approx(float(torch.linalg.matrix_rank(maps).double().mean()) / maps.shape[-1])


def test_random_layers_are_the_seeds() -> None:
    tickets = [found(criterion="random", remove=2, seed=seed) for seed in range(8)]
    assert len({t.removed for t in tickets}) > 3
    assert tickets[0] == found(criterion="random", remove=2, seed=0)


@pytest.mark.parametrize("criterion", CRITERIA)
def test_the_lowest_go_first_and_inverted_the_highest(criterion: str) -> None:
    for invert in (False, True):
        ticket = found(criterion=criterion, remove=1, invert=invert, least=0)
        own = {row["name"]: row["score"] for row in ticket.provenance["layers"]}
        best = (max if invert else min)(own, key=lambda name: own[name])
        assert own[ticket.removed[0]] == own[best]


def test_as_many_go_as_asked_for_and_as_the_density_needs() -> None:
    assert len(found(1.0, remove=3).removed) == 3
    assert len(found(0.8).removed) == 2  # of six that hold 144 of 948 weights each
    assert len(found(0.8, remove=4).removed) == 4
    assert not found(1.0).removed
    ticket = found(1.0, remove=4)
    assert {name.split(".")[0] for name in ticket.removed} == {"wide", "small"}  # one of each stage stays
    assert len(found(1.0, remove=6, least=0).removed) == 6


def test_what_cannot_be_is_said_with_what_can() -> None:
    with pytest.raises(UsageError, match=r"remove=5 asks .* at most 4 of 6 .*least=1 .* density 0.3924 is left"):
        found(1.0, remove=5)
    with pytest.raises(UsageError, match=r"density 0.05 asks .* at most 6 of 6 .*least=0 .* density 0.08861 is left"):
        found(0.05, least=0)
    for wrong, said in (
        ({"criterion": "pls"}, "unknown criterion 'pls'"),
        ({"reduce": "max"}, "unknown reduce"),
        ({"remove": -1}, "remove must be 0 or more"),
        ({"least": -1}, "least must be 0 or more"),
        ({"batches": 0}, "batches must be 1 or more"),
        ({"then": "layers", "remove": 1}, "unknown method for then 'layers'"),
        ({"then": "gem-miner"}, "say how many layers go before"),
    ):
        with pytest.raises(UsageError, match=said):
            Options(**wrong)
    notes = Notes()
    found(1.0, task=dataclasses.replace(task_of(build("Residual")), monitor=notes))
    assert any("removes no layer" in note for note in notes.notes)


def test_it_stays_inside_no_mask() -> None:
    data = (torch.randn(24, 1, 4, 4), torch.arange(24) % 3)
    net = build("Residual")
    within = gemminer.mine(net, data, 0.9, method="random")
    with pytest.raises(UsageError, match="cannot stay inside a mask"):
        gemminer.mine(net, data, 0.5, method="layers", within=within)


@pytest.mark.parametrize("then", ["gem-miner", "snip", "imp", "edge-popup"])
def test_another_method_prunes_what_is_left_to_the_exact_count(then: str) -> None:
    data = (torch.randn(48, 1, 4, 4), torch.arange(48) % 3)
    net, draw = build("Residual"), "signed-constant"
    before = {n: t.clone() for n, t in named_state(net).items()}
    how = {"criterion": "l1", "remove": 3, "then": then, "epochs": 2, "batch_size": 16, "initialiser": draw}
    ticket = gemminer.mine(net, data, 0.1, method="layers", **how)
    assert ticket.kept == round(0.1 * ticket.prunable)
    assert len(ticket.removed) == 3
    assert all(torch.equal(t, before[n]) for n, t in named_state(net).items())
    assert list(ticket.initial) == list(before)
    rows = ticket.provenance.get("rows", [])
    assert all(len(row["layers_kept"]) == len(ticket.masks) for row in rows)
    # It is the ticket that the method finds in the network without the layers, from the same values.
    short = ticket.shallow(build("Residual"))
    start = ticket.shortened()
    if then in ("gem-miner", "snip"):
        start.start_from(short)
        count = ticket.kept / start.prunable
        alone = {"epochs": 2} if then == "gem-miner" else {}
        inner = gemminer.mine(short, data, count, method=then, batch_size=16, initialiser="keep", **alone)
        assert all(torch.equal(inner.masks[n], start.masks[n]) for n in inner.masks)
    result = gemminer.train(net, ticket, data, data, epochs=2, batch_size=16, lr=0.05)
    assert result.test > 0


def test_too_few_weights_left_for_what_comes_then() -> None:
    with pytest.raises(UsageError, match="lower the density or remove fewer layers"):
        found(0.9, remove=4, then="snip")


def test_scores_are_of_the_layers_that_a_checkpointed_or_wrapped_model_has() -> None:
    model = build("Residual")
    wrapped = dataclasses.replace(task_of(model), model=nn.DataParallel(model))
    assert found(0.6, task=wrapped).removed == found(0.6).removed


def test_a_head_that_may_go_has_no_features_before_it() -> None:
    """The output stands for what the last layer reads where that layer is inside one that can be removed."""
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), *Residual().wide, nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    task = dataclasses.replace(task_of(net), train=task_of(build("Residual")).train)
    own = {row["name"]: row["score"] for row in found(criterion="cka", remove=1, task=task).provenance["layers"]}
    assert len(own) == 3
    assert min(own.values()) > 1e-6
