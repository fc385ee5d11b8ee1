"""Residual networks against textbook formulas and torchvision."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor

from gemminer import models
from gemminer.models import residual
from gemminer.models.layers import Layers
from tests.models.helpers import images


def test_option_a_by_hand() -> None:
    """Every other pixel of 0..15 in a 4x4 map, one zero channel before and two after."""
    x = torch.arange(16.0).view(1, 1, 4, 4)
    y = residual.PadShortcut(1, 4, 2)(x)
    zero = torch.zeros(2, 2)
    assert torch.equal(y, torch.stack([zero, torch.tensor([[0.0, 2.0], [8.0, 10.0]]), zero, zero])[None])


def test_resnet20_is_the_textbook_one() -> None:
    """An independent functional forward pass from the same weights."""
    net = models.build("resnet20", in_channels=1, image_size=8).eval()
    w = net.state_dict()

    def unit(x: Tensor, key: str, stride: int = 1) -> Tensor:
        y = F.conv2d(x, w[f"{key}.weight"], stride=stride, padding=1)
        bn = key.replace("conv", "bn")
        return F.batch_norm(y, w[f"{bn}.running_mean"], w[f"{bn}.running_var"])

    x = images(2, 1, 8)
    h = unit(x, "conv1").relu()
    for stage, channels in enumerate((16, 32, 64), 1):
        for block in range(3):
            stride = 2 if stage > 1 and block == 0 else 1
            skip = torch.zeros(2, channels, h.shape[2] // stride, h.shape[3] // stride)
            lo = (channels - h.shape[1]) // 2
            skip[:, lo : lo + h.shape[1]] = h[:, :, ::stride, ::stride]
            y = unit(h, f"layer{stage}.{block}.conv1", stride).relu()
            h = (unit(y, f"layer{stage}.{block}.conv2") + skip).relu()
    torch.testing.assert_close(net(x), h.mean((2, 3)) @ w["fc.weight"].T)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("c_out", [4, 6])
def test_wide_and_mobile_blocks_by_formula(stride: int, c_out: int) -> None:
    make, x = Layers("none", 1.0, False), images(2, 4, 5)
    pre = residual.PreactBlock(make, 4, c_out, stride)
    y = x.relu()  # a widening block activates its shortcut's input too
    skip = x if stride == 1 and c_out == 4 else F.conv2d(y, pre.shortcut.weight, stride=stride)
    h = F.conv2d(y, pre.conv1.weight, stride=stride, padding=1).relu()
    torch.testing.assert_close(pre(x), F.conv2d(h, pre.conv2.weight, padding=1) + skip)

    mobile = residual.InvertedResidual(6, make, 4, c_out, stride)
    h = F.conv2d(x, mobile.conv1.weight).relu()
    h = F.conv2d(h, mobile.conv2.weight, stride=stride, padding=1, groups=24).relu()
    h = F.conv2d(h, mobile.conv3.weight)
    if stride == 1:
        h = h + (x if c_out == 4 else F.conv2d(x, mobile.shortcut[0].weight))
    torch.testing.assert_close(mobile(x), h)


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_same_function_as_torchvision(name: str) -> None:
    ours = models.build(name, classes=1000).eval()
    with torch.device("meta"):
        theirs = getattr(torchvision.models, name)()
    theirs = theirs.to_empty(device="cpu").eval()
    theirs.load_state_dict(ours.state_dict(), strict=True)
    x = images(2, 3, 64)
    torch.testing.assert_close(ours(x), theirs(x))


def test_stem() -> None:
    small_stem = models.build("resnet18", stem="small", width=0.25)
    assert small_stem.conv1.kernel_size == (3, 3)
    assert small_stem.layer1(small_stem.maxpool(small_stem.conv1(images(2, 3, 32)))).shape[-1] == 32
    assert models.build("resnet18", width=0.25).conv1.stride == (2, 2)
