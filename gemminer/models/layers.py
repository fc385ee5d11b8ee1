"""The layers of all networks, with the chosen norm, width and biases."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

from torch import nn


class Shape(NamedTuple):
    """The sizes of a network's inputs and outputs."""

    in_channels: int
    classes: int
    image_size: int


@dataclass(frozen=True)
class Layers:
    """Makes a network's layers with its norm, width and biases.

    A convolution gets a bias only where no norm would cancel it.
    """

    norm: str
    width: float
    bias: bool

    def channels(self, n: int) -> int:
        return max(1, round(n * self.width))

    def conv(self, c_in: int, c_out: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> nn.Conv2d:
        bias = self.bias and self.norm == "none"
        return nn.Conv2d(c_in, c_out, kernel, stride, padding=kernel // 2, groups=groups, bias=bias)

    def linear(self, n_in: int, n_out: int) -> nn.Linear:
        return nn.Linear(n_in, n_out, bias=self.bias)

    def batch_norm(self, channels: int) -> nn.Module:
        affine = self.norm == "affine"
        return nn.BatchNorm2d(channels, affine=affine) if self.norm != "none" else nn.Identity()

    def layer_norm(self, features: int) -> nn.Module:
        affine = self.norm == "affine"
        return nn.LayerNorm(features, elementwise_affine=affine) if self.norm != "none" else nn.Identity()


def named(**modules: nn.Module) -> nn.Sequential:
    return nn.Sequential(OrderedDict(modules))


def halved(size: int) -> tuple[nn.Module, int]:
    """Halve a map of size x size; a map of 1x1 stays."""
    return (nn.MaxPool2d(2), size // 2) if size > 1 else (nn.Identity(), 1)


def classifier(make: Layers, *sizes: int) -> dict[str, nn.Module]:
    """fc1, relu, fc2, ... through the given sizes, nothing after the last."""
    modules: dict[str, nn.Module] = {"flatten": nn.Flatten()}
    for i, (n_in, n_out) in enumerate(pairwise(sizes), 1):
        modules |= {f"fc{i}": make.linear(n_in, n_out), f"fc{i}_relu": nn.ReLU()}
    modules.popitem()
    return modules


def head(make: Layers, channels: int, classes: int) -> dict[str, nn.Module]:
    return {"avgpool": nn.AdaptiveAvgPool2d(1), "flatten": nn.Flatten(), "fc": make.linear(channels, classes)}
