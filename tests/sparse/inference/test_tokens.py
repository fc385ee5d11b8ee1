"""Layer norm, attention and whatever turns maps into tokens equal eager evaluation."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gemminer.sparse.inference.compiler import compile
from gemminer.sparse.inference.operations import Attention, Gather, Norm
from tests.sparse.inference.helpers import Net, assert_equal, images, masked


class Block(nn.Module):
    """Tokens of patches, a class token, self-attention, a residual and a norm."""

    def __init__(self, heads: int = 2, dim: int = 8) -> None:
        super().__init__()
        self.heads = heads
        self.patches, self.norm = nn.Conv2d(3, dim, 2, 2), nn.LayerNorm(dim)
        self.token, self.place = nn.Parameter(torch.randn(1, 1, dim)), nn.Parameter(torch.randn(1, 13, dim))
        self.qkv, self.out, self.head = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim), nn.Linear(dim, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        n, _, d = x.shape
        x = torch.cat([self.token.expand(n, -1, -1), x], dim=1) + self.place
        q, k, v = self.qkv(self.norm(x)).reshape(n, 13, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, 13, d)
        out: Tensor = self.head((x + self.out(y))[:, 0])
        return out


@pytest.mark.parametrize("heads", [1, 2])
def test_attention_reads_tokens_where_they_lie(heads: int) -> None:
    net = masked(Block(heads), 0.6, dead=0)
    program = compile(net, input_shape=(3, 6, 8))
    assert sum(isinstance(op, Gather) for op in program.operations) == 1  # patches in a line
    assert sum(isinstance(op, Attention) for op in program.operations) == 1
    for lanes in (1, 2, 8, 64):
        program._most_lanes = lanes
        assert_equal(program, net, images(lanes + 1, 3, 6, 8), threads=1)


def multihead(m: nn.Module, x: Tensor) -> Tensor:
    tokens = m.norm(x.flatten(2).transpose(1, 2))  # type: ignore[operator]
    out: Tensor = m.attend(tokens, tokens, tokens, need_weights=False)[0]  # type: ignore[operator]
    return out


NETS: dict[str, nn.Module] = {
    "layer norm of features": nn.Sequential(nn.Flatten(), nn.Linear(96, 5), nn.LayerNorm(5), nn.Linear(5, 3)),
    "layer norm of an image": nn.LayerNorm((4, 4, 6)),
    "layer norm of rows": nn.LayerNorm(6, elementwise_affine=False),
    "layer norm of channels": Net(
        lambda m, x: m.a(m.n(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)), n=nn.LayerNorm(4), a=nn.Conv2d(4, 3, 3)
    ),
    "linear layer of channels": Net(lambda m, x: m.a(x.permute(0, 2, 3, 1)), a=nn.Linear(4, 5)),
    "linear layer of columns": nn.Sequential(nn.Linear(6, 5), nn.GELU(), nn.Linear(5, 2)),
    "tokens mixed": Net(
        lambda m, x: m.a((t := x.flatten(2).transpose(1, 2)).transpose(1, 2)).transpose(1, 2) + t, a=nn.Linear(24, 24)
    ),
    "batch norm of tokens": Net(
        lambda m, x: m.n((t := x.flatten(2).transpose(1, 2)).flatten(0, 1)).reshape_as(t), n=nn.BatchNorm1d(4)
    ),
    "batch norm of lines": Net(lambda m, x: m.n(x.flatten(2)), n=nn.BatchNorm1d(4)),
    "mean of tokens": Net(lambda m, x: m.a(x.flatten(2).transpose(1, 2).mean(1)), a=nn.Linear(4, 3)),
    "mean of channels": Net(lambda m, x: m.a(x.mean(1).flatten(1)), a=nn.Linear(24, 3)),
    "mean of all": Net(lambda m, x: x.mean(dim=(-1, 1)) + x.flatten(1).mean(-1, keepdim=True)),
    "shuffled channels": Net(
        lambda m, x: m.a(x.view(-1, 2, 2, 4, 6).transpose(1, 2).reshape(-1, 4, 4, 6)), a=nn.Conv2d(4, 4, 3, groups=2)
    ),
    "chunks": Net(
        lambda m, x: torch.cat([(y := m.a(x).chunk(2, 1))[1], F.relu(y[0])], 1) + y[0].repeat(1, 2, 1, 1),
        a=nn.Conv2d(4, 8, 1),
    ),
    "pixels to channels": nn.Sequential(nn.PixelUnshuffle(2), nn.Conv2d(16, 8, 1), nn.PixelShuffle(2)),
    "rolled and flipped": Net(lambda m, x: m.a(torch.roll(x, (1, 2), (2, 3)).flip(3)), a=nn.Conv2d(4, 3, 3)),
    "stacked": Net(lambda m, x: m.a(torch.stack([x, x.flip(1)], 1).flatten(1, 2)), a=nn.Conv2d(8, 3, 3)),
    "rows behind rows": Net(lambda m, x: m.a(torch.cat([x, x[:, :, :1], torch.ones(len(x), 4, 2, 6)], 2)),
                            a=nn.Conv2d(4, 3, 3)),
    "columns behind features": Net(lambda m, x: torch.cat([x.flatten(1), x[:, 0, 0], torch.ones(len(x), 2)], 1)),
    "reshape of pixels": Net(lambda m, x: m.a(x.reshape(-1, 1, 12, 8)), a=nn.Conv2d(1, 2, 3)),
    "multihead attention": Net(multihead, norm=nn.LayerNorm(4), attend=nn.MultiheadAttention(4, 2, batch_first=True)),
    "multihead attention, tokens first": Net(
        lambda m, x: m.a(m.b(x[:, 0]).transpose(0, 1), (y := x[:, 1].transpose(0, 1)), y)[0].transpose(0, 1),
        a=nn.MultiheadAttention(6, 3, kdim=6, bias=False), b=nn.Linear(6, 6),
    ),
    "encoder layer": Net(
        lambda m, x: m.a(x.flatten(2).transpose(1, 2)),
        a=nn.TransformerEncoderLayer(4, 2, 8, activation="gelu", batch_first=True),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", NETS)
def test_tokens_equal_eager(case: str) -> None:
    net = copy.deepcopy(NETS[case])
    for norm in (m for m in net.modules() if isinstance(m, nn.LayerNorm) and m.elementwise_affine):
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    net = masked(net, 0.8, dead=0)
    program = compile(net, input_shape=(4, 4, 6))
    for batch in (1, 5, 37):
        assert_equal(program, net, images(batch, 4, 4, 6), threads=1)


def test_channels_last_are_channels() -> None:
    """Permutations around a norm or a linear layer cost nothing."""
    program = compile(masked(NETS["layer norm of channels"], 0.8), input_shape=(4, 4, 6))
    assert [isinstance(op, Norm) for op in program.operations].count(True) == 1
    assert not any(isinstance(op, Gather) for op in program.operations)
