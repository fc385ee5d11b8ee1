"""A pre-training in front of a search, on awkward models: exact counts, the model left as it was, the same again."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import gemminer
from tests.conformance.models import ALL, build, task_of
from tests.conformance.test_every_method import snapshot


@pytest.mark.parametrize("method", ["gem-miner", "imp", "snip"])
@pytest.mark.parametrize("name", ALL)
def test_any_model_can_be_pretrained_first(method: str, name: str) -> None:
    model: Any = build(name)
    data = task_of(model).train
    before = snapshot(model)
    how: dict[str, Any] = {"epochs": 2} if method != "snip" else {}
    how |= {"pretrain": gemminer.Pretrain(steps=2, train={"lr": 0.01, "epochs": 3}), "initialiser": "keep"}
    ticket = gemminer.mine(model, data, 0.3, method=method, **how)
    assert snapshot(model) == before
    assert ticket.kept == round(0.3 * ticket.prunable)
    assert gemminer.mine(build(name), data, 0.3, method=method, **how) == ticket
    assert not ticket.provenance["at_initialisation"]
    moved = [n for n, p in model.named_parameters() if n in ticket.masks and not torch.equal(p, ticket.initial[n])]
    assert moved
    result = gemminer.train(build(name), ticket, data, data, epochs=3, lr=0.01)
    assert result.cost["epochs"] == pytest.approx(3 - 2 / len(data))
