"""Rules of layers on tokens: layer norm and attention."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from gemminer.core.errors import UsageError
from gemminer.sparse.inference import layers
from gemminer.sparse.inference.builder import Builder, Ref
from gemminer.sparse.inference.operations import Attention, Norm, Planes


def layer_norm(
    b: Builder, shape: Any, x: Ref, normalized_shape: Any, weight: Any = None, bias: Any = None, eps: float = 1e-5
) -> Ref:
    """A norm over channels, then a scale and a shift of each."""
    count = math.prod(normalized_shape)
    planes, size = b.tokens(x, count)
    order = b.token_order(shape, count)
    normed = b.add(Norm((count, *size), (planes,), float(eps)), shape, order)
    if weight is None and bias is None:
        return normed
    scale = layers.numbers(weight, 1.0, count).reshape(-1)
    return b.scaled(normed, scale, layers.numbers(bias, 0.0, count).reshape(-1))


def attention(
    b: Builder,
    shape: Any,
    query: Ref,
    key: Ref,
    value: Ref,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Ref:
    """Of (..., heads, tokens, features); all axes before the tokens count heads."""
    if attn_mask is not None or is_causal or dropout_p or enable_gqa:
        raise UsageError("cannot compile attention with a mask, dropout or grouped heads")
    if not all(isinstance(ref, Ref) for ref in (query, key, value)):
        raise UsageError("cannot compile attention to a constant")
    heads = math.prod(shape[:-2])
    planes: list[Planes] = []
    sizes: list[tuple[int, int]] = []
    for ref in (query, key, value):
        cells = b.index(ref).transpose(-2, -1).reshape(-1, ref.shape[-2])
        found, size = b.planes(ref, cells, sizes[1] if len(sizes) == 2 else None)
        planes.append(found)
        sizes.append(size)
    own = query.shape[-1] ** -0.5 if scale is None else float(scale)
    op = Attention((len(planes[2].channel), *sizes[0]), tuple(planes), heads, own)
    order = torch.arange(math.prod(shape)).reshape(*shape[:-2], shape[-1], shape[-2]).transpose(-2, -1)
    return b.add(op, shape, order)


def multihead(
    b: Builder, shape: Any, m: nn.MultiheadAttention, query: Ref, key: Ref, value: Ref, *masks: Any, **options: Any
) -> Any:
    """Three linear layers, attention, and a fourth; the weights that it returns beside are not known."""
    for unasked in ("need_weights", "average_attn_weights"):
        options.pop(unasked, None)
    if any(mask is not None and mask is not False for mask in (*masks, *options.values())):
        raise UsageError("cannot compile nn.MultiheadAttention with a mask")
    if m.bias_k is not None or m.add_zero_attn:
        raise UsageError("cannot compile nn.MultiheadAttention with a key of its own")
    parts = []
    weights = m.in_proj_weight.chunk(3) if m.in_proj_weight is not None else _projections(m)
    biases = (None,) * 3 if m.in_proj_bias is None else m.in_proj_bias.chunk(3)
    for ref, weight, bias in zip((query, key, value), weights, biases, strict=True):
        out = layers.linear(b, (*ref.shape[:-1], len(weight)), ref, weight, bias)
        count = ref.shape[1 if m.batch_first or len(ref.shape) == 2 else 0] if len(ref.shape) == 3 else ref.shape[0]
        parts.append(b.viewed(out, partial(_by_head, count, m.num_heads)))
    seen = attention(b, parts[0].shape, *parts)
    joined = b.viewed(seen, lambda t: t.transpose(0, 1).reshape(query.shape))
    return layers.linear(b, query.shape, joined, m.out_proj.weight, m.out_proj.bias), None


def _by_head(count: int, heads: int, places: Tensor) -> Tensor:
    return places.reshape(count, heads, -1).transpose(0, 1)


def _projections(m: nn.MultiheadAttention) -> tuple[Tensor, ...]:
    return m.q_proj_weight, m.k_proj_weight, m.v_proj_weight
