"""Heads of attention that are dead go as a whole, from attention as people have it."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import gemminer
from gemminer import models
from gemminer.core.errors import UsageError
from gemminer.core.fewer_heads import FewerHeads


def far(a: nn.Module, b: nn.Module, *args: Any, training: bool = False, **kwargs: Any) -> float:
    with torch.no_grad():
        old, new = (copy.deepcopy(m).train(training)(*args, **kwargs) for m in (a, b))
    old, new = (y if isinstance(y, Tensor) else y[0] for y in (old, new))
    return float((old - new).abs().max() / old.abs().max())


def without(layer: nn.Module, rows: slice | None = None, columns: slice | None = None) -> None:
    """Zero weights; what they read or give is dead then, biases stay."""
    with torch.no_grad():
        if rows is not None:
            layer.weight[rows] = 0  # type: ignore[index]
        if columns is not None:
            layer.weight[:, columns] = 0  # type: ignore[index]


def test_of_a_vision_transformer() -> None:
    """timm's: one layer for queries, keys and values, and the number of heads in the code of a reshape."""
    import timm

    torch.manual_seed(0)
    net = timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=8, depth=3, num_classes=10).double()
    without(net.blocks[0].attn.proj, columns=slice(0, 64))  # nothing reads the first head
    without(net.blocks[1].attn.qkv, rows=slice(384 + 64, 384 + 128))  # the second's values are constant
    without(net.blocks[2].attn.proj, columns=slice(0, 32))  # half a head: the others' features stay as wide
    small = gemminer.compact(net, None, torch.randn(2, 3, 32, 32).double())
    assert [block.attn.num_heads for block in small.blocks] == [2, 2, 3]
    assert [block.attn.qkv.out_features for block in small.blocks][:2] == [384, 384]
    assert not any("Gapped" in type(m).__name__ for m in small.blocks[0].attn.modules())
    x = torch.randn(3, 3, 32, 32).double()
    assert far(net, small, x) <= 1e-12
    assert far(net, small, x, training=True) <= 1e-12


@pytest.mark.parametrize("kind", ["sdpa", "eager"])
def test_of_bert(kind: str) -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 2, "intermediate_size": 64}
    net = transformers.BertModel(transformers.BertConfig(**sizes, vocab_size=50, attn_implementation=kind)).double()
    first, second = (layer.attention for layer in net.encoder.layer)
    without(first.output.dense, columns=slice(8, 16))
    without(second.self.value, rows=slice(16, 24))
    with torch.no_grad():
        second.self.value.bias.normal_()
    tokens = torch.randint(0, 50, (2, 7))
    mask = torch.ones_like(tokens)
    small = gemminer.compact(net, None, {"input_ids": tokens, "attention_mask": mask})
    for layer in small.encoder.layer:
        widths = [getattr(layer.attention.self, name).out_features for name in ("query", "key", "value")]
        assert widths == [24, 24, 24]
    mask[1, 4:] = 0
    assert far(net, small, input_ids=tokens, attention_mask=mask) <= 1e-12


def test_of_our_own_transformer() -> None:
    torch.manual_seed(0)
    net = models.build("transformer", in_channels=3, classes=10, image_size=32).double()
    size = net.blocks[0].attention.out.in_features // 4
    without(net.blocks[0].attention.out, columns=slice(0, size))
    without(net.blocks[1].attention.qkv, rows=slice(-size, None))
    small = gemminer.compact(net, None, torch.randn(2, 3, 32, 32).double())
    assert [block.attention.heads for block in small.blocks] == [3, 3, 4, 4]
    assert far(net, small, torch.randn(3, 3, 32, 32).double(), training=True) <= 1e-12


@pytest.mark.filterwarnings("ignore:Support for mismatched", "ignore:enable_nested_tensor")
@pytest.mark.parametrize("batch_first", [True, False])
def test_of_pytorchs_own_layers(batch_first: bool) -> None:
    torch.manual_seed(0)
    net = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 4, 32, 0.0, batch_first=batch_first), 2).double()
    first, second = (layer.self_attn for layer in net.layers)
    with torch.no_grad():
        first.in_proj_bias.normal_()
        second.in_proj_bias.normal_()
        second.in_proj_weight[-4:] = 0  # constant values of the last head
    without(first.out_proj, columns=slice(4, 8))
    small = gemminer.compact(net, None, torch.randn(2, 5, 16).double())
    assert [layer.self_attn.num_heads for layer in small.layers] == [3, 3]
    assert str(small.removed).count("36 of 48 units") == 2
    x = torch.randn(5, 5, 16).double()
    causal, hidden = torch.ones(5, 5).triu(1).bool(), torch.arange(25).view(5, 5) > 21
    assert far(net, small, x, training=True) <= 1e-12
    assert far(net, small, x, mask=causal, src_key_padding_mask=hidden) <= 1e-12
    assert far(net, small, x[0]) <= 1e-12  # without a batch


class Alone(nn.Module):
    def __init__(self, weights: bool, dropout: float = 0.0) -> None:
        super().__init__()
        self.attention, self.weights = nn.MultiheadAttention(8, 2, dropout, batch_first=True), weights

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x, x, x, need_weights=self.weights)[0]  # type: ignore[no-any-return]


def test_a_head_whose_weights_are_asked_for_stays_and_is_named() -> None:
    net = Alone(weights=True)
    without(net.attention.out_proj, columns=slice(0, 4))
    small = gemminer.compact(net, None, torch.randn(2, 3, 8))
    assert type(small.attention) is nn.MultiheadAttention
    assert "1 dead heads" in small.removed.left["attention"]


def test_of_heads_that_are_all_dead_one_stays() -> None:
    net = Alone(weights=False)
    without(net.attention.out_proj, columns=slice(None))
    small = gemminer.compact(net, None, torch.randn(2, 3, 8))
    assert small.attention.num_heads == 1
    with pytest.raises(UsageError, match="heads of this attention were removed"):
        small.attention(*[torch.randn(2, 3, 8)] * 3)


def test_dropout_of_attention_makes_no_constant_of_constant_values() -> None:
    net = Alone(weights=False, dropout=0.5)
    with torch.no_grad():
        net.attention.in_proj_weight[-4:] = 0
        assert type(gemminer.compact(net, None, torch.randn(2, 3, 8)).attention) is FewerHeads  # zero, dropped or not
        net.attention.in_proj_bias[-4:] = 1.0
        assert type(gemminer.compact(net, None, torch.randn(2, 3, 8)).attention) is nn.MultiheadAttention


def test_code_around_that_counts_heads_keeps_them_and_is_named() -> None:
    class Counts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qkv, self.out = nn.Linear(8, 24), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            q, k, v = self.qkv(x).view(len(x), -1, 3, 2, 4).permute(2, 0, 3, 1, 4).unbind(0)
            y = nn.functional.scaled_dot_product_attention(q, k, v)
            return self.out(y.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]

    net = Counts().double()
    without(net.out, columns=slice(0, 4))
    small = gemminer.compact(net, None, torch.randn(2, 3, 8).double())
    assert "1 dead heads" in small.removed.left[""]
    assert far(net, small, torch.randn(2, 5, 8).double()) <= 1e-12


def test_of_an_encoder_that_packs_its_padded_input() -> None:
    """Its fused layers leave zeros at padding; others cannot: then heads stay. Without padding they go."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 4, 16, batch_first=True)
    net = nn.TransformerEncoder(layer, 2).eval()
    without(net.layers[0].self_attn.out_proj, columns=slice(2, 4))
    x, padding = torch.randn(4, 5, 8), torch.zeros(4, 5).bool()
    padding[:, 3:] = True
    given = {"src": x, "src_key_padding_mask": padding}
    kept = gemminer.compact(net, None, given)
    assert "dead heads" in kept.removed.left["layers.0.self_attn"]
    assert far(net, kept, **given) <= 1e-5
    small = gemminer.compact(net, None, x)
    assert small.layers[0].self_attn.num_heads == 3
    with torch.no_grad():
        assert torch.allclose(small(**given)[:, :3], net(**given)[:, :3], atol=1e-5)
