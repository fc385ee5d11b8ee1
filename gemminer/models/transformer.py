"""A small transformer for images by patches, or for tokens."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from gemminer.core.errors import UsageError
from gemminer.models.layers import Layers, Shape, named


class Attention(nn.Module):
    """Multi-head self-attention; written out, as fused kernels lack the second derivative GraSP needs."""

    def __init__(self, make: Layers, dim: int, heads: int, causal: bool) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.qkv, self.out = make.linear(dim, 3 * dim), make.linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        n, t, _ = x.shape
        q, k, v = self.qkv(x).view(n, t, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        a = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5  # (N, heads, T, T)
        if self.causal:
            a = a.masked_fill(torch.ones(t, t, dtype=torch.bool, device=x.device).triu(1), -math.inf)
        y: Tensor = self.out((a.softmax(-1) @ v).transpose(1, 2).flatten(2))
        return y


class TransformerBlock(nn.Module):
    """Pre-norm: x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, make: Layers, dim: int, heads: int, causal: bool) -> None:
        super().__init__()
        self.norm1, self.attention = make.layer_norm(dim), Attention(make, dim, heads, causal)
        self.norm2 = make.layer_norm(dim)
        self.mlp = named(fc1=make.linear(dim, 4 * dim), gelu=nn.GELU(), fc2=make.linear(4 * dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        y: Tensor = x + self.mlp(self.norm2(x))
        return y


class Transformer(nn.Module):
    """Images (N, C, H, W) -> logits (N, classes), or token ids (N, T) -> logits (N, T, classes).

    `embed` is the convolution that cuts patches or the embedding of tokens, `length` the most tokens taken.
    """

    positions: Tensor

    def __init__(self, embed: nn.Module, length: int, blocks: nn.Sequential, norm: nn.Module, head: nn.Linear) -> None:
        super().__init__()
        self.embed, self.blocks, self.norm, self.head = embed, blocks, norm, head
        self.reads_tokens = isinstance(embed, nn.Embedding)
        # (length, dim), sines and cosines (Vaswani et al. 2017): a gem tells positions before any training
        dim = head.in_features
        rate = torch.exp(torch.arange(0, dim, 2) * (-math.log(10_000.0) / dim))
        angle = torch.arange(length)[:, None] * rate
        table = torch.stack((angle.sin(), angle.cos()), -1).flatten(1)[:, :dim]
        self.register_buffer("positions", table, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        x = x if self.reads_tokens else x.flatten(2).transpose(1, 2)  # (N, T, dim)
        t, length = x.shape[1], len(self.positions)
        if t > length:
            raise UsageError(f"{t} tokens are too many: this transformer was built for {length}")
        x = self.norm(self.blocks(x + self.positions[:t]))
        logits: Tensor = self.head(x if self.reads_tokens else x.mean(1))
        return logits


def make_transformer(
    shape: Shape,
    make: Layers,
    *,
    task: str = "images",
    dim: int = 64,
    depth: int = 4,
    heads: int = 4,
    causal: bool | None = None,
    patch: int | None = None,
    length: int | None = None,
) -> nn.Module:
    tokens = task == "tokens"
    if (patch if tokens else length) is not None:
        raise UsageError("patch is for task='images' and length for task='tokens': leave the other one out")
    if dim % heads:
        raise UsageError(f"dim={dim} is not a multiple of heads={heads}: choose a dim that is")
    dim = heads * make.channels(dim // heads)
    causal = tokens if causal is None else causal
    if tokens:
        embed: nn.Module = nn.Embedding(shape.classes, dim)
        length = length or 128
    else:
        patch = patch or _patch(shape.image_size)
        if shape.image_size % patch:
            raise UsageError(f"patch={patch} does not divide image_size={shape.image_size}: choose a divisor")
        embed = nn.Conv2d(shape.in_channels, dim, patch, patch, bias=make.bias)
        length = (shape.image_size // patch) ** 2
    blocks = nn.Sequential(*(TransformerBlock(make, dim, heads, causal) for _ in range(depth)))
    return Transformer(embed, length, blocks, make.layer_norm(dim), make.linear(dim, shape.classes))


def _patch(size: int) -> int:
    """The smallest patch, of 2 or more, that leaves at most 8 a side."""
    return next(p for p in range(min(2, size), size + 1) if size % p == 0 and size <= 8 * p)
