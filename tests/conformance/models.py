"""Awkward little networks, and their tasks, that every method must cope with."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from gemminer import methods
from gemminer.data import TensorBatches
from gemminer.training.task import Task


class Plain(nn.Module):
    """Convolution, batch norm, linear layers: nothing that is random in a forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4)
        self.hidden, self.head = nn.Linear(16, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.conv(x))).flatten(1)
        out: Tensor = self.head(torch.relu(self.hidden(x)))
        return out


class Awkward(nn.Module):
    """No convolution; tied weights, a frozen layer, unused parameters, dropout, a buffer that counts."""

    calls: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.first, self.again = nn.Linear(16, 16), nn.Linear(16, 16)
        self.again.weight = self.first.weight
        self.spare, self.scale = nn.Linear(16, 2), nn.Parameter(torch.ones(7))
        self.frozen = nn.Linear(16, 16).requires_grad_(False)
        self.drop, self.head = nn.Dropout(0.2), nn.Linear(16, 3)
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        x = torch.relu(self.again(torch.relu(self.first(x.flatten(1)))))
        out: Tensor = self.head(self.drop(torch.relu(self.frozen(x))))
        return out


class Signal(nn.Module):
    """Convolutions in one dimension, one transposed, one grouped."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv1d(1, 4, 3),
            nn.GroupNorm(2, 4),
            nn.GELU(),
            nn.ConvTranspose1d(4, 6, 2, stride=2),
            nn.ReLU(),
            nn.Conv1d(6, 6, 3, groups=3),
        )
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.net(x.flatten(2).flatten(1)[:, None]).mean(-1))
        return out


class Tokens(nn.Module):
    """PyTorch's own attention on token numbers, its output layer tied to the embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(9, 8)
        self.block = nn.TransformerEncoderLayer(8, 2, 12, dropout=0.1, batch_first=True)
        self.head = nn.Linear(8, 9, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.block(self.embed(x)))
        return out


class Recurrent(nn.Module):
    """Layers with a state: an LSTM, a GRU of two layers and two directions, a cell in a loop."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(4, 4, batch_first=True)
        self.gru = nn.GRU(4, 3, num_layers=2, bidirectional=True, batch_first=True)
        self.cell, self.head = nn.RNNCell(6, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        x, state = self.gru(self.lstm(x.flatten(1, 2))[0])[0], None
        for t in range(x.shape[1]):
            state = self.cell(x[:, t], state)
        out: Tensor = self.head(state)
        return out


class Conv1D(nn.Module):
    """GPT-2's linear layer, as transformers has it: the weight is (inputs, outputs)."""

    def __init__(self, nf: int, nx: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(nx, nf) * 0.3), nn.Parameter(torch.zeros(nf))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight + self.bias


class Gpt(nn.Module):
    """The layers of GPT-2: an embedding that is the head too, and Conv1D."""

    def __init__(self) -> None:
        super().__init__()
        self.wte, self.up, self.down = nn.Embedding(9, 8), Conv1D(12, 8), Conv1D(8, 12)
        self.head = nn.Linear(8, 9, bias=False)
        self.head.weight = self.wte.weight

    def forward(self, x: Tensor) -> Tensor:
        h = self.wte(x)
        out: Tensor = self.head(h + self.down(self.up(h).relu()))
        return out


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.norm(self.conv(x)))


class Residual(nn.Module):
    """Two stages of three blocks that can be removed."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.narrow = nn.Conv2d(1, 4, 3, padding=1), nn.MaxPool2d(2)
        self.wide, self.small = nn.Sequential(*(Block() for _ in range(3))), nn.Sequential(Block(), Block(), Block())
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.small(self.narrow(self.wide(torch.relu(self.stem(x)))))
        out: Tensor = self.head(x.flatten(1))
        return out


MODELS: dict[str, Callable[[], nn.Module]] = {k.__name__: k for k in (Plain, Awkward, Signal, Tokens)}  # have pins
ALL = MODELS | {k.__name__: k for k in (Recurrent, Gpt, Residual)}


def build(name: str) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = ALL[name]()
    if name == "Awkward":  # leave a caller's traces, to be found again afterwards
        for p in model.parameters():
            p.grad = torch.full_like(p, 0.5) if p.requires_grad else None
        model.get_submodule("drop").eval()
    return model


def task_of(model: nn.Module) -> Task:
    source = torch.Generator().manual_seed(5)
    if isinstance(model, Tokens | Gpt):
        x = torch.randint(9, (24, 5), generator=source)
        return Task(model, TensorBatches(x, (x + 1) % 9, batch_size=8))
    y = torch.arange(48) % 3
    x = torch.randn(48, 1, 4, 4, generator=source) + y[:, None, None, None]
    return Task(model, TensorBatches(x, y, batch_size=16))


def options_of(method: str, **fields: Any) -> Any:
    kind = methods.get(method).options
    known = {f.name for f in dataclasses.fields(kind)}
    return kind(**({"epochs": 3} if "epochs" in known else {}), **fields)
