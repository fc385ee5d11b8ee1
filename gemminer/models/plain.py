"""Networks without shortcuts: LeNets, Conv-N, VGG."""

from __future__ import annotations

from torch import nn

from gemminer.models.layers import Layers, Shape, classifier, halved, head, named


def lenet_300_100(shape: Shape, make: Layers) -> nn.Module:
    inputs = shape.in_channels * shape.image_size**2
    return named(**classifier(make, inputs, make.channels(300), make.channels(100), shape.classes))


def lenet_5(shape: Shape, make: Layers) -> nn.Module:
    c1, c2 = make.channels(6), make.channels(16)
    # LeCun et al. pad 28x28 to 32x32 and nothing after; we pad the second map where 5x5 would not fit.
    pad1 = 0 if shape.image_size >= 32 else 2
    pool1, size = halved(shape.image_size + 2 * pad1 - 4)
    pad2 = 0 if size >= 6 else 2
    pool2, size = halved(size + 2 * pad2 - 4)
    return named(
        conv1=nn.Conv2d(shape.in_channels, c1, 5, padding=pad1, bias=make.bias),
        relu1=nn.ReLU(),
        pool1=pool1,
        conv2=nn.Conv2d(c1, c2, 5, padding=pad2, bias=make.bias),
        relu2=nn.ReLU(),
        pool2=pool2,
        **classifier(make, c2 * size**2, make.channels(120), make.channels(84), shape.classes),
    )


def _features(shape: Shape, make: Layers, plan: list[list[int]]) -> tuple[dict[str, nn.Module], int, int]:
    """Stages of 3x3 convolutions with norm and ReLU, each pooled; the channels and map size they end in."""
    modules: dict[str, nn.Module] = {}
    c_in, size = shape.in_channels, shape.image_size
    for s, stage in enumerate(plan, 1):
        for i, c in enumerate(map(make.channels, stage), 1):
            modules[f"conv{s}_{i}"] = make.conv(c_in, c)
            if make.norm != "none":
                modules[f"bn{s}_{i}"] = make.batch_norm(c)
            modules[f"relu{s}_{i}"] = nn.ReLU()
            c_in = c
        modules[f"pool{s}"], size = halved(size)
    return modules, c_in, size


def conv_n(n: int, shape: Shape, make: Layers) -> nn.Module:
    modules, channels, size = _features(shape, make, [[64, 64], [128, 128], [256, 256]][: n // 2])
    hidden = make.channels(256)
    return named(**modules, **classifier(make, channels * size**2, hidden, hidden, shape.classes))


def vgg16(shape: Shape, make: Layers) -> nn.Module:
    modules, channels, _ = _features(shape, make, [[64] * 2, [128] * 2, [256] * 3, [512] * 3, [512] * 3])
    return named(**modules, **head(make, channels, shape.classes))
