"""Models nobody has seen: mined, trained and checked as they come."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision.models
from torch import Tensor, nn
from torch.nn import functional as F

import gemminer
from tests.helpers import Notes, Snapshot


class Words(nn.Module):
    """A token-level language model: an encoder from PyTorch, the head tied to the embedding."""

    def __init__(self, tokens: int = 11, width: int = 16) -> None:
        super().__init__()
        self.table = nn.Embedding(tokens, width)
        layer = nn.TransformerEncoderLayer(width, 2, 32, dropout=0.1, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(width, tokens, bias=False)
        self.head.weight = self.table.weight

    def forward(self, ids: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(ids.shape[1])
        return self.head(self.encoder(self.table(ids), mask=mask, is_causal=True))


def test_a_language_model(snapshot: Snapshot) -> None:
    """Counting on from a number, modulo 11: each token follows from the one before."""
    ids = (torch.arange(64).unsqueeze(1) + torch.arange(9)) % 11
    data = (ids[:, :-1].contiguous(), ids[:, 1:].contiguous())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Words()
    before = snapshot(model)
    ticket = gemminer.mine(model, data, 0.5, epochs=5, batch_size=16, seed=0)
    assert snapshot(model) == before
    d = 2 * (4 * 16 * 16 + 2 * 16 * 32)  # attention and feed-forward; the head is the table, an embedding
    assert (ticket.prunable, ticket.kept) == (d, round(0.5 * d))
    assert "encoder.layers.0.self_attn.in_proj_weight" in ticket.masks
    result = gemminer.train(model, ticket, data, data, epochs=15, batch_size=16, lr=0.01, optimiser="adamw")
    assert result["test"] > 0.9
    assert result["cost"]["flops_sparse"] < result["cost"]["flops_dense"]
    for name, mask in ticket.masks.items():
        assert dict(model.named_parameters())[name][~mask].count_nonzero() == 0


def test_a_regression_with_its_own_loss_and_metric() -> None:
    source = torch.Generator().manual_seed(0)
    inputs = torch.randn(128, 4, generator=source)
    data = (inputs, inputs[:, :1] - 0.5 * inputs[:, 1:2])
    model = nn.Sequential(nn.Linear(4, 48), nn.ReLU(), nn.Linear(48, 1))

    def negative_error(output: Tensor, target: Tensor) -> Tensor:
        return -(output - target).square()

    common: dict[str, Any] = {"loss": F.mse_loss, "metric": negative_error, "batch_size": 32}
    ticket = gemminer.mine(model, data, 0.3, epochs=10, optimiser="adam", lr=0.05, **common)
    assert ticket.kept == 72
    result = gemminer.train(model, ticket, data, data, epochs=20, lr=0.02, **common)
    variance = float(data[1].var())
    assert -0.1 * variance < result["test"] < 0
    verdict = gemminer.check(model, ticket, data, data, epochs=3, lr=0.02, seeds=2, names=["shuffle"], **common)
    assert set(verdict.checks) == {"shuffle"}
    assert verdict.checks["shuffle"].mean < 0


def test_a_resnet18_of_torchvision(snapshot: Snapshot) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = torchvision.models.resnet18(num_classes=10)
    source = torch.Generator().manual_seed(0)
    data = (torch.randn(32, 3, 32, 32, generator=source), torch.arange(32) % 10)
    before = snapshot(model)
    ticket = gemminer.mine(model, data, 0.01, epochs=2, batch_size=16)
    assert snapshot(model) == before
    total = sum(m.weight.numel() for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear)))
    assert (ticket.prunable, ticket.kept) == (total, round(0.01 * total))
    assert "layer2.0.downsample.0.weight" in ticket.masks  # the shortcut that lists by hand forget
    gemminer.train(model, ticket, data, epochs=1, batch_size=16)
    named = dict(model.named_parameters())
    assert all(named[name][~mask].count_nonzero() == 0 for name, mask in ticket.masks.items())


def test_gpt2_of_transformers(tmp_path: Path, snapshot: Snapshot) -> None:
    """Its own classes at random weights: `Conv1D` is pruned, the embedding that is the head too is named."""
    transformers = pytest.importorskip("transformers")
    size = {"vocab_size": 64, "n_positions": 8, "n_embd": 16, "n_layer": 2, "n_head": 2}

    def gpt2() -> nn.Module:
        net: nn.Module = transformers.GPT2LMHeadModel(transformers.GPT2Config(**size, use_cache=False))
        return net

    ids = (torch.arange(44).unsqueeze(1) + torch.arange(9)) % 11
    data = (ids[:, :-1].contiguous(), ids[:, 1:].contiguous())
    how: dict[str, Any] = {
        "loss": lambda output, target: F.cross_entropy(output.logits.flatten(0, 1), target.flatten()),
        "metric": lambda output, target: (output.logits.argmax(-1) == target).double(),
        "monitor": (said := Notes()),
    }
    model = gpt2()
    before = snapshot(model)
    ticket = gemminer.mine(model, data, 0.3, epochs=3, batch_size=16, include="*wpe*", **how)
    assert snapshot(model) == before
    convolutions = {n for n, m in model.named_modules() if type(m).__name__ == "Conv1D"}
    assert set(ticket.masks) == {f"{name}.weight" for name in convolutions} | {"transformer.wpe.weight"}
    assert ticket.prunable == 2 * 12 * 16 * 16 + 8 * 16
    assert ticket.kept == round(0.3 * ticket.prunable)
    assert [(one.name, one.reason) for one in ticket.left_dense] == [("transformer.wte.weight", "tied to an embedding")]
    ticket = gemminer.mine(model, data, 0.3, epochs=3, batch_size=16, **how)
    assert ticket.prunable == 2 * 12 * 16 * 16
    assert any("Embedding transformer.wte.weight (tied to an embedding; embeddings=True" in n for n in said.notes)
    ticket.apply(model)
    other = gpt2()
    assert not torch.equal(other(ids[:, :-1]).logits, model(ids[:, :-1]).logits)
    gemminer.Ticket.load(ticket.save(tmp_path / "gpt2", weights=False)).apply(other)
    model.eval()
    other.eval()
    assert torch.equal(other(ids[:, :-1]).logits, model(ids[:, :-1]).logits)
    assert other.lm_head.weight is other.transformer.wte.weight
    gemminer.train(other, ticket, data, data, epochs=3, **how)
    for name, mask in ticket.masks.items():
        assert not other.get_parameter(name)[~mask].any()
        assert other.get_parameter(name)[mask].any()
