"""Attention against nn.MultiheadAttention, and who sees whom."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from gemminer import models
from gemminer.core.errors import UsageError
from gemminer.models import transformer
from gemminer.models.layers import Layers
from tests.models.helpers import prunable


def test_attention_agrees_with_torch() -> None:
    for causal in (False, True):
        ours = transformer.Attention(Layers("none", 1.0, True), dim=12, heads=3, causal=causal)
        theirs = nn.MultiheadAttention(12, 3, batch_first=True)
        theirs.load_state_dict(
            {
                "in_proj_weight": ours.qkv.weight,
                "in_proj_bias": ours.qkv.bias,
                "out_proj.weight": ours.out.weight,
                "out_proj.bias": ours.out.bias,
            }
        )
        x = torch.randn(2, 5, 12, generator=torch.Generator().manual_seed(1))
        mask = torch.ones(5, 5, dtype=torch.bool).triu(1) if causal else None
        torch.testing.assert_close(ours(x), theirs(x, x, x, attn_mask=mask, need_weights=False)[0])


def test_language_model_is_causal_and_knows_positions() -> None:
    net = models.build("transformer", task="tokens", classes=11, depth=2, length=9)
    ids = torch.tensor([[1, 2, 3, 4, 5, 6]])
    logits = net(ids)
    assert logits.shape == (1, 6, 11)
    changed = net(torch.tensor([[1, 2, 3, 9, 5, 6]]))
    assert torch.equal(changed[:, :3], logits[:, :3])
    assert all(not torch.allclose(changed[0, t], logits[0, t]) for t in (3, 4, 5))
    flat = models.build("transformer", task="tokens", classes=11, depth=1)  # sees a set but for the positions
    swapped = flat(torch.tensor([[2, 1, 3, 4, 5, 6]]))
    assert not torch.allclose(swapped[0, 5], flat(ids)[0, 5])
    assert net(ids.expand(2, 6)[:, :1]).shape == (2, 1, 11)
    F.cross_entropy(logits.flatten(0, 1), ids.flatten()).backward()
    assert all(w.grad is not None and w.grad.any() for w in prunable(net).values())
    assert all(m.causal for m in net.modules() if isinstance(m, transformer.Attention))
    with pytest.raises(UsageError, match=r"10 tokens are too many.* 9"):
        net(torch.zeros(1, 10, dtype=torch.long))


def test_image_transformer_looks_both_ways() -> None:
    net = models.build("transformer", in_channels=1, image_size=8, patch=4)
    assert net.embed.kernel_size == (4, 4)
    assert not any(m.causal for m in net.modules() if isinstance(m, transformer.Attention))
    assert models.build("transformer", image_size=28).embed.kernel_size == (4, 4)
    assert models.build("transformer", image_size=8).embed.kernel_size == (2, 2)
