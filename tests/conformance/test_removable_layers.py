"""The zero probe on networks that nobody wrote for it: which of their layers can go, and why the others cannot."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks.architectures import ARCHITECTURES, Inputs
from gemminer import models
from gemminer.core import layers
from gemminer.core.layers import find_blocks
from gemminer.core.model_state import named_state
from gemminer.core.prunable import find_prunable
from tests.conformance.models import Recurrent

SMALL = {a.name: a for a in ARCHITECTURES}


class Encoder(nn.Module):
    """PyTorch's own transformer, which reads the attention of its first layer."""

    def __init__(self, norm_first: bool) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=norm_first)
        self.encoder, self.head = nn.TransformerEncoder(layer, 4, enable_nested_tensor=False), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.encoder(x, mask=torch.zeros(x.shape[1], x.shape[1])))
        return out


class Written(nn.Module):
    """Residual sums in the network's own forward: there is no module that holds one."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(8, 8), nn.Linear(8, 2)
        self.branches = nn.ModuleList(nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8)) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for branch in self.branches:
            x = x + branch(x)
        out: Tensor = self.head(x)
        return out


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(x)


class Repeated(nn.Module):
    """One block that runs four times, as ALBERT's does, inside a module that runs once."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.block, self.head = nn.Linear(8, 8), Residual(), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for _ in range(4):
            x = self.block(x)
        out: Tensor = self.head(x)
        return out


class Tied(nn.Module):
    """Two blocks of one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = Residual(), Residual(), nn.Linear(8, 2)
        self.b.inner[0].weight = self.a.inner[0].weight

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.b(self.a(x)))
        return out


OWN: dict[str, Any] = {
    "Encoder, norm first": lambda: Encoder(True),
    "Encoder, norm last": lambda: Encoder(False),
    "Written": Written,
    "Repeated": Repeated,
    "Tied": Tied,
}

# Network -> how many layers can go; beside 0, a reason that its sentence must give. Small forms, random weights.
TABLE: dict[str, tuple[int, str]] = {
    "resnet20": (7, ""),
    "resnet32": (13, ""),
    "resnet56": (25, ""),
    "resnet18": (5, ""),
    "resnet50": (12, ""),
    "wideresnet-28-2": (9, ""),
    "mobilenet-v2": (10, ""),
    "transformer": (4, ""),
    "vgg16": (0, "the model has no module that holds several layers"),
    "lenet-5": (0, "the model has no module that holds several layers"),
    "torchvision resnet18": (1, ""),  # one block a stage, and three of four sample down
    "torchvision densenet121": (0, layers.NOT_ONE_TENSOR),
    "torchvision shufflenet_v2": (0, layers.NO_IDENTITY),  # half of the channels go round the branch
    "torchvision squeezenet1_1": (0, layers.RESHAPES),
    "torchvision googlenet": (0, layers.IDLE),
    "timm convnext_atto": (9, ""),
    "timm vit_tiny": (6, ""),
    "torchvision efficientnet_b0": (2, ""),
    "torchvision mobilenet_v3_small": (7, ""),
    "torchvision mnasnet1_0": (10, ""),
    "torchvision fasterrcnn": (5, ""),
    "torchvision lraspp_mobilenet_v3": (10, ""),
    "torchvision regnet_y_400mf": (12, ""),
    "torchvision swin_t": (4, ""),
    "timm edgenext_xx_small": (12, ""),
    "timm ghostnet_050": (11, ""),
    "transformers BERT": (0, layers.NO_IDENTITY),  # its norm stands on the sum
    "transformers BART": (0, layers.NO_IDENTITY),
    "transformers GPT-2": (2, ""),
    "transformers Llama": (2, ""),
    "transformers ViT": (2, ""),
    "Encoder, norm first": (3, ""),  # of four: the code around reads the attention of the first
    "Encoder, norm last": (0, layers.NO_IDENTITY),
    "Written": (0, layers.NO_IDENTITY),
    "Repeated": (0, layers.REPEATED),
    "Tied": (0, layers.SHARED),
    "Recurrent": (0, "the model has no module that holds several layers"),
}


def built(name: str) -> tuple[nn.Module, Inputs]:
    """A network of the table, small, and a batch for it."""
    if name in SMALL:
        return SMALL[name].build(True), SMALL[name].batch(True, 0)
    if name in OWN:
        return OWN[name](), Inputs((torch.randn(2, 5, 8),))
    if name == "Recurrent":
        return Recurrent(), Inputs((torch.randn(2, 1, 4, 4),))
    side = 32 if name in ("vgg16", "lenet-5", "mobilenet-v2") else 16
    width = {"width": 0.125} if name.startswith(("resnet", "vgg", "wide", "mobile")) else {}
    return models.build(name, image_size=side, **width), Inputs((torch.randn(2, 3, side, side),))


@pytest.mark.parametrize("name", TABLE)
def test_the_layers_that_can_go(name: str) -> None:
    count, reason = TABLE[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, batch = built(name)
    before = {n: (t.data_ptr(), t.clone()) for n, t in named_state(model).items()}
    modes, state = [m.training for m in model.modules()], torch.get_rng_state()
    run = functools.partial(model, *batch.args, **(batch.kwargs or {}))
    blocks = find_blocks(model, run, find_prunable(model))
    assert len(blocks.removable) == count, blocks.none()
    assert count or reason in blocks.none()
    after = named_state(model)
    assert all(after[n].data_ptr() == place and torch.equal(after[n], old) for n, (place, old) in before.items())
    assert modes == [m.training for m in model.modules()]
    assert torch.equal(state, torch.get_rng_state())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
