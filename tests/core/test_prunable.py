"""Which weights are prunable."""

from __future__ import annotations

import pytest
from torch import nn

from gemminer.core.errors import UsageError
from gemminer.core.prunable import prunable_weights


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
