"""What one-shot scores have in common: scopes, settings, costs, refusals."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gemminer import methods, models
from gemminer.core.errors import GemminerError, UsageError
from gemminer.methods import grasp, prospr, smart_ratio, snip, synflow
from tests.methods.oracles import ones_task, small, task_of


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


def test_a_layers_scope_gives_every_layer_its_share() -> None:
    for method in ("magnitude", "snip", "synflow"):
        model = models.build("lenet-300-100", in_channels=1, image_size=4)
        task = ones_task(model, 1, 4, 4)
        row = methods.get(method)
        ticket = row.find(task, 0.1, row.options(scope="layer"), 0)
        assert ticket.kept == round(0.1 * ticket.prunable)
        assert all(abs(layer.kept - 0.1 * layer.prunable) < 1 for layer in ticket.per_layer()), method


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
