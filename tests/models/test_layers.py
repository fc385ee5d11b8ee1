"""Norms, biases and widths, and the last map before the classifier."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from gemminer import models
from tests.models.helpers import NORMED, count, images, prunable


@pytest.mark.parametrize("name", NORMED)
def test_norm(name: str) -> None:
    kinds = (nn.BatchNorm2d, nn.LayerNorm)

    def norms(net: nn.Module) -> list[nn.Module]:
        return [m for m in net.modules() if isinstance(m, kinds)]

    with torch.device("meta"):
        plain, affine, none = (models.build(name, norm=n, bias=False) for n in ("non-affine", "affine", "none"))
    assert norms(plain)
    assert dict(plain.named_parameters()).keys() - prunable(plain).keys() == set()
    assert len(norms(affine)) == len(norms(plain))
    assert all(m.weight is not None and m.bias is not None for m in norms(affine))
    assert not norms(none)
    assert prunable(none).keys() == prunable(affine).keys() == prunable(plain).keys()


def test_norm_none_is_true_of_a_network_without_norm() -> None:
    assert models.build("conv-2", norm="none", image_size=8)(images(2, 3, 8)).shape == (2, 10)


def test_bias_is_where_no_norm_cancels_it() -> None:
    def biased(name: str, **options: Any) -> list[str]:
        return [k for k, _ in models.build(name, image_size=8, bias=True, **options).named_parameters() if "bias" in k]

    assert biased("resnet20") == ["fc.bias"]
    assert len(biased("resnet20", norm="none")) == 20
    assert biased("lenet-5") == ["conv1.bias", "conv2.bias", "fc1.bias", "fc2.bias", "fc3.bias"]
    assert len(biased("transformer", norm="none")) == 1 + 4 * 4 + 1


def test_width_multiplies_channels() -> None:
    half = models.build("resnet18", width=0.5)
    assert {m.out_channels for m in half.modules() if isinstance(m, nn.Conv2d)} == {32, 64, 128, 256}
    assert count("resnet18", width=0.01) > 0  # at least one channel everywhere
    assert count("mobilenet-v2", width=0.01) > 0
    assert models.build("transformer", dim=30, heads=3, width=1.5).head.in_features == 45


@pytest.mark.parametrize(
    ("name", "size", "last_map"),
    [
        ("resnet20", 32, (64, 8, 8)),
        ("wideresnet-28-2", 32, (128, 8, 8)),
        ("mobilenet-v2", 32, (1280, 4, 4)),
        ("vgg16", 32, (512, 1, 1)),
        ("vgg16", 64, (512, 2, 2)),
        ("resnet18", 224, (512, 7, 7)),
        ("resnet50", 224, (2048, 7, 7)),
    ],
)
def test_map_before_the_global_average(name: str, size: int, last_map: tuple[int, int, int]) -> None:
    seen: list[torch.Size] = []
    with torch.device("meta"):
        net = models.build(name, image_size=size)
        net.avgpool.register_forward_pre_hook(lambda _, x: seen.append(x[0].shape))
        net(torch.empty(2, 3, size, size))
    assert seen == [(2, *last_map)]
