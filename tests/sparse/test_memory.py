"""Buffers that come with whatever was in them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from gemminer import models
from gemminer.sparse import memory
from gemminer.sparse.training.convert import sparsify
from gemminer.sparse.training.modules import SparseLayer
from tests.sparse.training.helpers import compare, noise, ticket_for


@pytest.mark.parametrize("sift", [False, True])
def test_nothing_is_read_that_was_not_written(monkeypatch: pytest.MonkeyPatch, sift: bool) -> None:
    """Buffers come with whatever was in them: here NaN. With dead filters and, in a search, filters all off."""

    def poisoned(size: int, dtype: np.dtype[Any]) -> Any:
        return np.full(size, np.nan, dtype)

    monkeypatch.setattr(memory, "_aligned", poisoned)
    model = models.build("resnet20", image_size=8, width=0.25).double()
    ticket = ticket_for(model, 0.1)
    if sift:
        with torch.no_grad():
            for name in ticket.masks:
                model.get_parameter(name)[::2] = 0
    sparse = sparsify(model, ticket, engine="sparse")
    for module in sparse.modules():
        if isinstance(module, SparseLayer):
            module.sift = sift
    assert any(not layer.pattern().alive.all() for layer in sparse.modules() if isinstance(layer, SparseLayer))
    for training in (True, False):
        model.train(training)
        sparse.train(training)
        compare(model, sparse, ticket, noise(5, 3, 8, 8))
