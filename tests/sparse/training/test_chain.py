"""Whole networks in chains of layers, on any number of threads."""

from __future__ import annotations

import copy

import pytest
import torch

from gemminer import models
from gemminer.sparse.training.convert import sparsify
from tests.sparse.training.helpers import compare, noise, ticket_for


@pytest.mark.parametrize(
    "name", ["lenet-5", "conv-2", "vgg16", "mobilenet-v2", "resnet18", "resnet50", "wideresnet-10-1"]
)
def test_networks_equal_masked_dense(name: str) -> None:
    size = {"resnet18": 33, "resnet50": 33}.get(name, 16)
    width = {"lenet-5": 1.0}.get(name, 0.1)
    model = models.build(name, image_size=size, width=width).double()
    ticket = ticket_for(model, 0.3)
    sparse = sparsify(model, ticket, engine="sparse")
    for training in (True, False):
        model.train(training)
        sparse.train(training)
        compare(model, sparse, ticket, noise(4, 3, size, size), 1e-7)


def test_threads_give_the_same_bits_again() -> None:
    model = models.build("resnet20", image_size=16, width=0.5)
    sparse = sparsify(model, ticket_for(model, 0.1), engine="sparse")
    x = noise(40, 3, 16, 16, dtype=torch.float32)
    results = []
    for threads in (1, 2, 2):
        torch.set_num_threads(threads)
        sparse.zero_grad()
        copied = copy.deepcopy(sparse)
        copied(x).sum().backward()
        results.append(torch.cat([p.grad.flatten() for p in copied.parameters()]))
    assert torch.equal(results[1], results[2])
    torch.testing.assert_close(results[0], results[1], rtol=1e-3, atol=1e-5)
