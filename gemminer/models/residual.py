"""Residual networks: CIFAR and ImageNet ResNets, WideResNets, MobileNet-V2."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gemminer.core.errors import UsageError
from gemminer.models.layers import Layers, Shape, head, named
from gemminer.models.pretrained import load_pretrained


class PadShortcut(nn.Module):
    """He et al.'s option A: every stride-th pixel, new channels zero; no weights."""

    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.stride, self.before = stride, (c_out - c_in) // 2
        self.after = c_out - c_in - self.before

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.before, self.after))


def _shortcut(make: Layers, c_in: int, c_out: int, stride: int, *, project: bool = True) -> nn.Module:
    if stride == 1 and c_in == c_out:
        return nn.Identity()
    if project:
        return nn.Sequential(make.conv(c_in, c_out, 1, stride), make.batch_norm(c_out))
    return PadShortcut(c_in, c_out, stride)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut; names as in torchvision, whose weights load."""

    expansion = 1

    def __init__(self, make: Layers, c_in: int, c_out: int, stride: int, *, project: bool = True) -> None:
        super().__init__()
        self.conv1, self.bn1 = make.conv(c_in, c_out, 3, stride), make.batch_norm(c_out)
        self.conv2, self.bn2 = make.conv(c_out, c_out), make.batch_norm(c_out)
        self.downsample = _shortcut(make, c_in, c_out, stride, project=project)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(y)) + self.downsample(x))


class Bottleneck(nn.Module):
    """1x1 reduce, 3x3 (with the stride, as in torchvision), 1x1 expand by four, and a shortcut."""

    expansion = 4

    def __init__(self, make: Layers, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        c = c_out // self.expansion
        self.conv1, self.bn1 = make.conv(c_in, c, 1), make.batch_norm(c)
        self.conv2, self.bn2 = make.conv(c, c, 3, stride), make.batch_norm(c)
        self.conv3, self.bn3 = make.conv(c, c_out, 1), make.batch_norm(c_out)
        self.downsample = _shortcut(make, c_in, c_out, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.bn1(self.conv1(x)))
        y = torch.relu(self.bn2(self.conv2(y)))
        return torch.relu(self.bn3(self.conv3(y)) + self.downsample(x))


class PreactBlock(nn.Module):
    """WideResNet's block: norm and ReLU come before each convolution."""

    def __init__(self, make: Layers, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.bn1, self.conv1 = make.batch_norm(c_in), make.conv(c_in, c_out, 3, stride)
        self.bn2, self.conv2 = make.batch_norm(c_out), make.conv(c_out, c_out)
        self.shortcut = make.conv(c_in, c_out, 1, stride) if stride > 1 or c_in != c_out else None

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.bn1(x))
        skip = x if self.shortcut is None else self.shortcut(y)
        out: Tensor = self.conv2(torch.relu(self.bn2(self.conv1(y)))) + skip
        return out


class InvertedResidual(nn.Module):
    """MobileNet-V2's block: 1x1 expand, 3x3 depthwise, 1x1 reduce; a shortcut whenever the stride is 1."""

    def __init__(self, expansion: int, make: Layers, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        c = expansion * c_in
        self.conv1, self.bn1 = make.conv(c_in, c, 1), make.batch_norm(c)
        self.conv2, self.bn2 = make.conv(c, c, 3, stride, groups=c), make.batch_norm(c)
        self.conv3, self.bn3 = make.conv(c, c_out, 1), make.batch_norm(c_out)
        self.shortcut = _shortcut(make, c_in, c_out, 1) if stride == 1 else None

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.bn1(self.conv1(x)))
        y = torch.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        out: Tensor = y if self.shortcut is None else y + self.shortcut(x)
        return out


def _stage(
    block: Callable[..., nn.Module], make: Layers, c_in: int, c_out: int, repeats: int, stride: int
) -> nn.Sequential:
    rest = (block(make, c_out, c_out, 1) for _ in range(repeats - 1))
    return nn.Sequential(block(make, c_in, c_out, stride), *rest)


def _stages(
    block: Callable[..., nn.Module], make: Layers, c_in: int, planes: list[int], repeats: list[int]
) -> dict[str, nn.Sequential]:
    """layer1, layer2, ...: each but the first halves the map."""
    modules = {}
    for s, (c_out, n) in enumerate(zip(planes, repeats, strict=True), 1):
        modules[f"layer{s}"] = _stage(block, make, c_in, c_out, n, 1 if s == 1 else 2)
        c_in = c_out
    return modules


def cifar_resnet(depth: int, shape: Shape, make: Layers) -> nn.Module:
    planes = [make.channels(c) for c in (16, 32, 64)]
    return named(
        conv1=make.conv(shape.in_channels, planes[0]),
        bn1=make.batch_norm(planes[0]),
        relu=nn.ReLU(),
        **_stages(partial(BasicBlock, project=False), make, planes[0], planes, [(depth - 2) // 6] * 3),
        **head(make, planes[-1], shape.classes),
    )


def wide_resnet(depth: int, k: int, shape: Shape, make: Layers) -> nn.Module:
    stem, *planes = (make.channels(c) for c in (16, 16 * k, 32 * k, 64 * k))
    return named(
        conv1=make.conv(shape.in_channels, stem),
        **_stages(PreactBlock, make, stem, planes, [(depth - 4) // 6] * 3),
        bn=make.batch_norm(planes[-1]),
        relu=nn.ReLU(),
        **head(make, planes[-1], shape.classes),
    )


# expansion, channels, repeats, stride of MobileNet-V2's stages. As in the Rare Gems code (after kuangliu's
# pytorch-cifar) the first convolution and the second stage have stride 1 for CIFAR.
_MOBILE = (
    (1, 16, 1, 1),
    (6, 24, 2, 1),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


def mobilenet_v2(shape: Shape, make: Layers) -> nn.Module:
    c, last = make.channels(32), make.channels(1280)
    modules: dict[str, nn.Module] = {"conv1": make.conv(shape.in_channels, c), "bn1": make.batch_norm(c)}
    modules["relu1"] = nn.ReLU()
    for s, (expansion, planes, repeats, stride) in enumerate(_MOBILE, 1):
        c_in, c = c, make.channels(planes)
        modules[f"layer{s}"] = _stage(partial(InvertedResidual, expansion), make, c_in, c, repeats, stride)
    modules |= {"conv2": make.conv(c, last, 1), "bn2": make.batch_norm(last), "relu2": nn.ReLU()}
    return named(**modules, **head(make, last, shape.classes))


def imagenet_resnet(
    block: type[BasicBlock] | type[Bottleneck],
    repeats: list[int],
    weights: str,
    shape: Shape,
    make: Layers,
    *,
    stem: str = "imagenet",
    pretrained: bool = False,
) -> nn.Module:
    if pretrained and (make.norm != "affine" or make.width != 1):
        raise UsageError("pretrained weights need norm='affine' and width=1: leave norm and width out")
    c, imagenet = make.channels(64), stem == "imagenet"
    planes = [make.channels(p) * block.expansion for p in (64, 128, 256, 512)]
    net = named(
        conv1=make.conv(shape.in_channels, c, 7, 2) if imagenet else make.conv(shape.in_channels, c),
        bn1=make.batch_norm(c),
        relu=nn.ReLU(),
        maxpool=nn.MaxPool2d(3, 2, padding=1) if imagenet else nn.Identity(),
        **_stages(block, make, c, planes, repeats),
        **head(make, planes[-1], shape.classes),
    )
    if pretrained:
        from torchvision.models import get_weight  # a second of import time for two networks only

        load_pretrained(net, get_weight(weights), {"conv1.weight", "fc.weight", "fc.bias"})
    return net
