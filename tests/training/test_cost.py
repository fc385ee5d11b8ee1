"""FLOPs against counts by hand: a multiply-add is two."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import gemminer
from gemminer.core.prunable import prunable_weights
from gemminer.data import TensorBatches
from gemminer.training.cost import TRAINING_PASSES, Flops, count
from gemminer.training.task import Task
from tests.helpers import Notes, tiny_data, tiny_net


def flops(model: nn.Module, inputs: Tensor, targets: Tensor | None = None) -> Flops:
    targets = torch.zeros(len(inputs), dtype=torch.long) if targets is None else targets
    return count(Task(model, TensorBatches(inputs, targets, batch_size=5)), prunable_weights(model))


def test_linear_layers() -> None:
    found = flops(tiny_net(), torch.rand(10, 6))
    assert found.by_parameter == {"0.weight": 2 * 96, "3.weight": 2 * 192, "5.weight": 2 * 36}
    assert found.rest == 0
    assert found.dense == 2 * 324
    assert found.sparse({"0.weight": 0.5, "3.weight": 0.0}) == 2 * (48 + 36)
    assert TRAINING_PASSES == 3


def test_convolutions() -> None:
    model = nn.Sequential(nn.Conv2d(2, 4, 3, stride=2), nn.Conv2d(4, 6, 3, padding=1, groups=2), nn.Flatten())
    found = flops(model, torch.rand(5, 2, 9, 9))
    assert found.by_parameter == {"0.weight": 2 * 16 * 4 * 2 * 9, "1.weight": 2 * 16 * 6 * 2 * 9}  # 4x4 places


class Memory(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(3, 4, batch_first=True)
        self.gru = nn.GRU(4, 2, num_layers=2, bidirectional=True, batch_first=True)
        self.cell = nn.RNNCell(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.gru(self.lstm(x)[0])[0]
        out: Tensor = self.cell(x[:, 1], self.cell(x[:, 0]))
        return out


@pytest.mark.parametrize("trainable", [True, False])
def test_recurrent_layers_are_counted_in_every_step(trainable: bool) -> None:
    """7 steps of a sequence: an LSTM has 4 matrices, a GRU 3; the cell takes two steps."""
    model = Memory()
    names = prunable_weights(model)
    model.requires_grad_(trainable)
    task = Task(model, TensorBatches(torch.rand(10, 7, 3), torch.zeros(10, dtype=torch.long), batch_size=5))
    found = count(task, names)
    expected = {"lstm.weight_ih_l0": 7 * 2 * 16 * 3, "lstm.weight_hh_l0": 7 * 2 * 16 * 4}
    for way in ("", "_reverse"):
        expected |= {f"gru.weight_ih_l{i}{way}": 7 * 2 * 6 * 4 for i in (0, 1)}
        expected |= {f"gru.weight_hh_l{i}{way}": 7 * 2 * 6 * 2 for i in (0, 1)}
    expected |= {"cell.weight_ih": 2 * 2 * 5 * 4, "cell.weight_hh": 2 * 2 * 5 * 5}
    assert found.by_parameter == expected
    assert found.rest == 0
    assert all(p.requires_grad == trainable and p.grad is None for p in model.parameters())


def test_weights_stored_transposed_are_counted() -> None:
    class Conv1D(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.bias = nn.Parameter(torch.rand(3, 5)), nn.Parameter(torch.zeros(5))

        def forward(self, x: Tensor) -> Tensor:
            flat = torch.addmm(self.bias, x.view(-1, 3), self.weight)  # as GPT-2's
            return flat.view(*x.shape[:-1], 5)

    assert flops(nn.Sequential(Conv1D()), torch.rand(10, 7, 3)).by_parameter == {"0.weight": 7 * 2 * 3 * 5}


def test_tied_weights_work_twice_and_unused_ones_not() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.head, self.unused = nn.Embedding(7, 4), nn.Linear(4, 7, bias=False), nn.Linear(4, 4)
            self.head.weight = self.table.weight

        def forward(self, x: Tensor) -> Tensor:
            x = self.table(x)
            return self.head(torch.nn.functional.linear(x @ self.table.weight.t(), self.table.weight.t()))

    model = Net()
    names = {**prunable_weights(model, embeddings=True)}
    assert list(names) == ["table.weight", "unused.weight"]
    task = Task(model, TensorBatches(torch.zeros(5, 3, dtype=torch.long), torch.zeros(5, 3, dtype=torch.long)))
    assert count(task, names).by_parameter == {"table.weight": 3 * 3 * 2 * 28, "unused.weight": 0.0}


def test_attention_has_a_rest_that_no_mask_changes() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    found = flops(layer, torch.rand(5, 3, 8))
    assert found.by_parameter == {
        "self_attn.in_proj_weight": 2 * 3 * 3 * 64,
        "self_attn.out_proj.weight": 2 * 3 * 64,
        "linear1.weight": 2 * 3 * 128,
        "linear2.weight": 2 * 3 * 128,
    }
    assert found.rest == 2 * (2 * 3 * 3 * 8)  # queries x keys and weights x values: 2 heads of 4
    assert found.sparse(dict.fromkeys(found.by_parameter, 0.0)) == found.rest


@pytest.mark.parametrize("training", [True, False])
def test_counting_changes_nothing(training: bool, snapshot: Callable[[nn.Module], object]) -> None:
    model = nn.Sequential(tiny_net(), nn.Dropout(0.5)).train(training)
    before, generators = snapshot(model), torch.get_rng_state()
    flops(model, torch.rand(4, 6, generator=torch.Generator()))
    assert snapshot(model) == before
    assert torch.equal(torch.get_rng_state(), generators)


def test_attention_fused_by_pytorch_is_counted() -> None:
    """16 tokens of 64, 4 heads: 3 * 2*16*64*64 in, 2*16*64*64 out, 2 * 2*16*16*64 of queries, keys, values; 640 * 2."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attend, self.head = nn.MultiheadAttention(64, 4, bias=False, batch_first=True), nn.Linear(64, 10)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.attend(x, x, x, need_weights=False)[0].mean(1))

    found = flops(Net(), torch.rand(5, 16, 64))
    assert found.by_parameter == {
        "attend.in_proj_weight": 3 * 131072,
        "attend.out_proj.weight": 131072,
        "head.weight": 1280,
    }
    assert found.rest == 65536
    assert found.dense == 591_104


class _Of(nn.Module):
    """A function of the input and one weight (4, 6) beside it."""

    def __init__(self, f: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.layer, self.f = nn.Linear(6, 4, bias=False), f

    def forward(self, x: Tensor) -> Tensor:
        return self.f(x, self.layer.weight)


def _sdpa(x: Tensor, w: Tensor, **options: object) -> Tensor:
    q = x.unflatten(-1, (2, 3)).transpose(1, 2)
    return nn.functional.scaled_dot_product_attention(q, q, q, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("f", "owned", "rest"),
    [
        (lambda x, w: torch.einsum("bti,oi->bto", x, w), 2 * 7 * 24, 0),
        (lambda x, w: torch.bmm(x, w.t().expand(len(x), 6, 4)), 2 * 7 * 24, 0),
        (lambda x, w: torch.baddbmm(torch.zeros(1), x, w.t().expand(len(x), 6, 4)), 2 * 7 * 24, 0),
        (lambda x, w: torch.addbmm(torch.zeros(7, 4), x, w.t().expand(len(x), 6, 4)), 2 * 7 * 24, 0),
        (lambda x, w: torch.addmm(torch.zeros(4), x.flatten(0, 1), w.t()), 2 * 7 * 24, 0),
        (lambda x, w: torch.stack([w.mv(row) for row in x[:, 0]]), 2 * 24, 0),
        (lambda x, w: torch.stack([torch.addmv(torch.zeros(4), w, row) for row in x[:, 0]]), 2 * 24, 0),
        (lambda x, w: torch.stack([w[0].dot(row) for row in x[:, 0]]), 2 * 6, 0),
        (lambda x, w: x @ x.transpose(1, 2), 0, 2 * 7 * 7 * 6),
        (_sdpa, 0, 2 * 2 * 7 * 7 * 6),
        (lambda x, w: _sdpa(x, w, is_causal=True), 0, 2 * 2 * 7 * 7 * 6),
        (lambda x, w: _sdpa(x, w, attn_mask=torch.zeros(7, 7)), 0, 2 * 2 * 7 * 7 * 6),
        (lambda x, w: _sdpa(x, w, dropout_p=0.1), 0, 2 * 2 * 7 * 7 * 6),
    ],
)
def test_products_by_whatever_call(f: Callable[[Tensor, Tensor], Tensor], owned: int, rest: int) -> None:
    found = flops(_Of(f), torch.rand(5, 7, 6))
    assert (found.by_parameter["layer.weight"], found.rest) == (owned, rest)


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad])
def test_no_mode_hides_an_encoder_layer(mode: Callable[[], Any], frozen: bool) -> None:
    """Without gradients, in evaluation mode, PyTorch computes the whole layer as one operation."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True).requires_grad_(not frozen)
            self.head = nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.layer.eval()(x)[:, 0])

    with mode():
        found = flops(Net(), torch.rand(5, 3, 8))
    assert found.dense == 2 * 3 * (3 * 64 + 64 + 128 + 128) + 2 * (2 * 3 * 3 * 8) + 2 * 24


@pytest.mark.parametrize(("kind", "gates"), [(nn.LSTM, 4), (nn.GRU, 3), (nn.RNN, 1)])
def test_recurrent_layers_take_each_weight_once_a_step(kind: type[nn.RNNBase], gates: int) -> None:
    """Two layers, both directions: 5 hidden from 6 inputs and from 10, over 7 steps."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.over, self.head = kind(6, 5, 2, batch_first=True, bidirectional=True), nn.Linear(10, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.over(x)[0][:, -1])

    assert flops(Net(), torch.rand(5, 7, 6)).dense == 2 * 7 * gates * 2 * (30 + 25 + 50 + 25) + 2 * 30


@pytest.mark.parametrize(("kind", "gates"), [(nn.LSTMCell, 4), (nn.GRUCell, 3), (nn.RNNCell, 1)])
def test_recurrent_cells(kind: type[nn.Module], gates: int) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell, self.head = kind(6, 5), nn.Linear(5, 3)

        def forward(self, x: Tensor) -> Tensor:
            h = self.cell(x)
            return self.head(h[0] if isinstance(h, tuple) else h)

    assert flops(Net(), torch.rand(4, 6)).dense == 2 * gates * (30 + 25) + 2 * 15


def test_bilinear_layers() -> None:
    """y_o = sum_j (sum_i x_i W_oij) z_j: 2 * 5*3*4 for W, and 2 * 5*4 for z, which no mask changes."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.pair = nn.Bilinear(3, 4, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.pair(x[:, :3], x[:, 3:])

    found = flops(Net(), torch.rand(5, 7))
    assert found.by_parameter == {"pair.weight": 120}
    assert found.rest == 40


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_convolutions_of_every_kind(layout: torch.memory_format) -> None:
    """5x5 -> transposed, stride 2, groups 2: each of 25 places meets 4 * 3 * 9 weights; 11x11 -> depthwise 9x9; 1x1."""
    model = nn.Sequential(
        nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2), nn.Conv2d(6, 6, 3, groups=6), nn.Conv2d(6, 2, 1, bias=False)
    ).to(memory_format=layout)
    found = flops(model, torch.rand(5, 4, 5, 5).to(memory_format=layout))
    assert found.by_parameter == {"0.weight": 2 * 25 * 4 * 3 * 9, "1.weight": 2 * 81 * 6 * 9, "2.weight": 2 * 81 * 12}
    assert found.rest == 0


def test_grouped_products_of_experts() -> None:
    """14 tokens, each to one of two experts (6, 4): 2 * 14 * 24, whoever takes how many."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.experts, self.head = nn.Parameter(torch.rand(2, 16, 8)), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            ends = torch.tensor([5, len(x)], dtype=torch.int32)
            return self.head(torch._grouped_mm(x.bfloat16(), self.experts.bfloat16(), offs=ends).float())

    found = flops(Net(), torch.rand(16, 16))
    assert found.dense * found.examples == 2 * found.examples * 16 * 8 + 2 * found.examples * 24


class Average(nn.Module):
    """Writes into a frozen parameter of its own as it runs, as momentum encoders do."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.mean = nn.Linear(6, 3), nn.Parameter(torch.zeros(6), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        self.mean.mul_(0.9).add_(0.1 * x.detach().mean(0))
        return self.body(x - self.mean)


def test_a_model_that_writes_into_its_frozen_weights_is_counted() -> None:
    net, notes = Average(), Notes()
    assert flops(net, torch.rand(5, 6)).by_parameter == {"body.weight": 36}
    gemminer.mine(net, tiny_data(), 0.5, method="snip", monitor=notes)
    assert not net.mean.any()
    assert notes.notes == []


class Watchful(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        if torch.utils._python_dispatch._len_torch_dispatch_stack():
            raise ValueError("nobody may watch")
        return super().forward(input)


@pytest.mark.parametrize("call", ["mine", "train", "check"])
def test_a_model_that_cannot_be_counted_is_mined_and_trained_with_a_note(call: str) -> None:
    net, data, notes = Watchful(6, 3), tiny_data(), Notes()
    ticket = gemminer.mine(Watchful(6, 3), data, 0.5, epochs=1)
    if call == "mine":
        assert gemminer.mine(net, data, 0.5, epochs=1, monitor=notes).kept == 9
    elif call == "train":
        assert gemminer.train(net, ticket, data, data, epochs=1, monitor=notes).cost["flops_dense"] == 0
    else:
        gemminer.check(net, ticket, data, data, epochs=1, seeds=1, names=["shuffle"], monitor=notes)
    assert notes.notes == ["warning: the model's FLOPs cannot be counted and are given as 0: nobody may watch"]
