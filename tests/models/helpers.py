"""The networks by name, small ones of them, and counts of their weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from gemminer import models

NAMES = models.names()

KINDS = tuple(n for n in NAMES if n not in ("resnet32", "resnet56", "conv-4"))  # differ in repeats only
NORMED = tuple(n for n in NAMES if n.startswith(("resnet", "vgg", "mobilenet", "wideresnet", "transformer")))
THIN = {"conv-2", "conv-4", "conv-6", "vgg16", "mobilenet-v2", "resnet18", "resnet50"}  # thinned to be quick


def small(name: str, **options: Any) -> nn.Module:
    return models.build(name, width=0.25 if name in THIN else 1.0, **options)


def prunable(net: nn.Module) -> dict[str, nn.Parameter]:
    layers = ((n, m) for n, m in net.named_modules() if isinstance(m, nn.Conv2d | nn.Linear))
    return {f"{name}.weight": layer.weight for name, layer in layers}


def count(name: str, **options: Any) -> int:
    with torch.device("meta"):  # shapes without memory
        net = models.build(name, **options)
    return sum(w.numel() for w in prunable(net).values())


def images(n: int, channels: int, size: int) -> Tensor:
    return torch.randn(n, channels, size, size, generator=torch.Generator().manual_seed(size))
