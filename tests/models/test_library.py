"""All networks by name: counts by hand, what each must do, and bad input."""

from __future__ import annotations

import copy
import pickle
import random
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from gemminer import models
from gemminer.core.errors import UsageError
from tests.models.helpers import KINDS, NAMES, count, images, prunable, small

PAPER = tuple(n for n in NAMES if n not in ("resnet18", "resnet50", "transformer"))  # no affine norms, no biases


def resnet(n: int, c: int) -> int:
    """He et al.: 2n convolutions a stage of 16, 32, 64 channels, a stage's first widens; free shortcuts."""
    m = 2 * n - 1
    return (c * 16 + 2 * n * 16**2 + 16 * 32 + m * 32**2 + 32 * 64 + m * 64**2) * 9 + 64 * 10


def wide(n: int, k: int) -> int:
    """As resnet, k times as wide, with 1x1 shortcuts where a stage changes the channels."""
    a, b, c = 16 * k, 32 * k, 64 * k
    m = 2 * n - 1
    convs = 3 * 16 + 16 * a + m * a**2 + a * b + m * b**2 + b * c + m * c**2
    return convs * 9 + (16 * a if k > 1 else 0) + a * b + b * c + c * 10


CONV_2 = (3 * 64 + 64 * 64) * 9
CONV_4 = CONV_2 + (64 * 128 + 128 * 128) * 9
CONV_6 = CONV_4 + (128 * 256 + 256 * 256) * 9
VGG_16 = (3 * 64 + 64**2 + 64 * 128 + 128**2 + 128 * 256 + 2 * 256**2 + 256 * 512 + 5 * 512**2) * 9 + 512 * 10
# Expand + depthwise (+ project) + 1x1 shortcut of each stage's first block, then the blocks that repeat.
MOBILENET = (
    3 * 32 * 9
    + (32 * 32 + 9 * 32 + 32 * 16 + 32 * 16)
    + (16 * 96 + 9 * 96 + 96 * 24 + 16 * 24) + (24 * 144 + 9 * 144 + 144 * 24)
    + (24 * 144 + 9 * 144 + 144 * 32) + 2 * (32 * 192 + 9 * 192 + 192 * 32)
    + (32 * 192 + 9 * 192 + 192 * 64) + 3 * (64 * 384 + 9 * 384 + 384 * 64)
    + (64 * 384 + 9 * 384 + 384 * 96 + 64 * 96) + 2 * (96 * 576 + 9 * 576 + 576 * 96)
    + (96 * 576 + 9 * 576 + 576 * 160) + 2 * (160 * 960 + 9 * 960 + 960 * 160)
    + (160 * 960 + 9 * 960 + 960 * 320 + 160 * 320)
    + 320 * 1280 + 1280 * 10
)  # fmt: skip
# Stem; then a stage's convolutions: the first widens (but in stage 1), three or so keep, a 1x1 shortcut.
RESNET_18 = (
    3 * 64 * 49 + 4 * 64**2 * 9
    + (64 * 128 + 3 * 128**2) * 9 + 64 * 128
    + (128 * 256 + 3 * 256**2) * 9 + 128 * 256
    + (256 * 512 + 3 * 512**2) * 9 + 256 * 512
)  # fmt: skip
GREY, SMALL = {"in_channels": 1, "image_size": 28}, {"in_channels": 1, "image_size": 8}

COUNTS = [
    ("lenet-300-100", GREY, 784 * 300 + 300 * 100 + 100 * 10, 266_200),
    ("lenet-300-100", SMALL, 64 * 300 + 300 * 100 + 100 * 10, 50_200),
    ("lenet-300-100", GREY | {"width": 0.5}, 784 * 150 + 150 * 50 + 50 * 10, 125_600),
    # 28 + 4 - 4 -> 14 - 4 -> 5, and 32 - 4 -> 14 - 4 -> 5: 400 features both times
    ("lenet-5", GREY, 6 * 25 + 6 * 16 * 25 + 400 * 120 + 120 * 84 + 84 * 10, 61_470),
    ("lenet-5", {}, 3 * 6 * 25 + 6 * 16 * 25 + 400 * 120 + 120 * 84 + 84 * 10, 61_770),
    # 8 + 4 - 4 -> 4 + 4 - 4 -> 2: 64 features
    ("lenet-5", SMALL, 6 * 25 + 6 * 16 * 25 + 64 * 120 + 120 * 84 + 84 * 10, 21_150),
    # Frankle & Carbin's table: 38K and 260K, 1.1M convolutional weights; 4.3M, 2.4M in all
    ("conv-2", {}, CONV_2 + 64 * 16**2 * 256 + 256 * 256 + 256 * 10, 4_300_992),
    ("conv-4", {}, CONV_4 + 128 * 8**2 * 256 + 256 * 256 + 256 * 10, 2_425_024),
    ("conv-6", {}, CONV_6 + 256 * 4**2 * 256 + 256 * 256 + 256 * 10, 2_261_184),
    ("conv-6", SMALL, CONV_6 - 2 * 64 * 9 + 256 * 1 * 256 + 256 * 256 + 256 * 10, 1_276_992),
    ("resnet20", {}, resnet(3, 3), 268_336),
    ("resnet20", {"in_channels": 1}, resnet(3, 1), 268_048),
    ("resnet20", {"image_size": 8, "classes": 100}, resnet(3, 3) + 90 * 64, 274_096),
    ("resnet32", {}, resnet(5, 3), 461_872),
    ("resnet56", {}, resnet(9, 3), 848_944),
    ("vgg16", {}, VGG_16, 14_715_584),
    ("vgg16", {"image_size": 8}, VGG_16, 14_715_584),
    ("mobilenet-v2", {}, MOBILENET, 2_261_824),
    ("wideresnet-28-2", {}, wide(4, 2), 1_463_984),
    # known with 10 biases and an affine norm on 8,976 or 1,808 channels: 36,479,194 and 2,748,890 parameters
    ("wideresnet-28-10", {}, wide(4, 10), 36_479_194 - 10 - 2 * 8976),
    ("wideresnet-16-4", {}, wide(2, 4), 2_748_890 - 10 - 2 * 1808),
    ("wideresnet-10-1", {}, wide(1, 1), 77_360),
    ("resnet18", {"classes": 1000}, RESNET_18 + 512 * 1000, 11_678_912),
    # torchvision documents 25,557,032 parameters: 1,000 biases and 2 x 26,560 in batch norm are not prunable
    ("resnet50", {"classes": 1000}, 25_557_032 - 1000 - 2 * 26_560, 25_502_912),
    ("resnet18", {"stem": "small", "classes": 200}, RESNET_18 - 3 * 64 * 40 + 512 * 200, 11_261_632),
    # patches of 4x4 pixels; a block has qkv 3, out 1 and an mlp of 4 + 4, times dim^2
    ("transformer", {}, 3 * 16 * 64 + 4 * 12 * 64**2 + 64 * 10, 200_320),
    ("transformer", SMALL | {"depth": 2, "dim": 32, "width": 2}, 4 * 64 + 2 * 12 * 64**2 + 64 * 10, 99_200),
    ("transformer", {"task": "tokens", "classes": 50}, 4 * 12 * 64**2 + 64 * 50, 199_808),
]  # fmt: skip


@pytest.mark.parametrize(("name", "options", "by_hand", "number"), COUNTS)
def test_prunable_weights(name: str, options: dict[str, Any], by_hand: int, number: int) -> None:
    assert count(name, **options) == by_hand == number


def test_every_network_is_counted() -> None:
    assert {row[0] for row in COUNTS} >= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("channels", "size"), [(1, 8), (1, 28), (3, 32)])
def test_output_and_gradients(name: str, channels: int, size: int) -> None:
    net = small(name, in_channels=channels, image_size=size, classes=7)
    logits = net(images(3, channels, size))
    assert logits.shape == (3, 7)
    assert logits.isfinite().all()
    F.cross_entropy(logits, torch.tensor([0, 3, 6])).backward()
    dead = [key for key, w in prunable(net).items() if w.grad is None or not w.grad.any()]
    assert dead == []


@pytest.mark.parametrize("name", KINDS)
def test_any_image_size(name: str) -> None:
    with torch.device("meta"):
        for size in (1, 3, 12, 31):
            net = models.build(name, in_channels=2, classes=1, image_size=size)
            assert net(torch.empty(2, 2, size, size)).shape == (2, 1)


@pytest.mark.parametrize("name", KINDS)
def test_channels_last(name: str) -> None:
    net, x = small(name).eval(), images(2, 3, 32)
    expected = net(x)
    torch.testing.assert_close(net(x.to(memory_format=torch.channels_last)), expected, rtol=1e-4, atol=1e-4)
    net = net.to(memory_format=torch.channels_last)
    torch.testing.assert_close(net(x.to(memory_format=torch.channels_last)), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", KINDS)
def test_second_derivatives(name: str) -> None:
    """GraSP and ProsPr differentiate a gradient."""
    net = small(name, in_channels=1, image_size=8)
    weights = list(prunable(net).values())
    loss = F.cross_entropy(net(images(4, 1, 8)), torch.tensor([0, 1, 2, 3]))
    grads = torch.autograd.grad(loss, weights, create_graph=True)
    torch.stack([(g**2).sum() for g in grads]).sum().backward()
    assert all(w.grad is not None and w.grad.isfinite().all() for w in weights)


@pytest.mark.parametrize("name", [n for n in KINDS if n != "transformer"])
def test_layers_are_in_forward_order_and_traceable(name: str) -> None:
    net, order = small(name), []
    for key, module in net.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(lambda *_, key=key: order.append(f"{key}.weight"))
    x = images(2, 3, 32)
    traced = torch.fx.symbolic_trace(net)
    expected = net(x)
    # A shortcut is listed with its block, whichever of the two runs first.
    rank = {key: i for i, key in enumerate(prunable(net))}
    main = [rank[key] for key in order if "shortcut" not in key and "downsample" not in key]
    assert main == sorted(main)
    assert set(order) == set(rank)
    torch.testing.assert_close(traced(x), expected)


@pytest.mark.parametrize("name", PAPER)
def test_by_default_every_parameter_is_prunable(name: str) -> None:
    net = small(name)
    assert dict(net.named_parameters()).keys() == prunable(net).keys()


@pytest.mark.parametrize("name", ["lenet-5", "resnet20", "transformer"])
def test_building_is_deterministic_and_leaves_the_random_state(name: str) -> None:
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002
    a = models.build(name)
    assert torch.equal(torch.get_rng_state(), before[0])
    torch.rand(1)
    b = models.build(name)
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before[1:]  # noqa: NPY002
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))
    assert all(p.device.type == "cpu" for p in a.parameters())
    with torch.device("meta"):
        assert all(p.is_meta for p in models.build(name).parameters())


@pytest.mark.parametrize("name", KINDS)
def test_copies_and_pickles(name: str) -> None:
    net = small(name, image_size=8).eval()
    x = images(2, 3, 8)
    for twin in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert torch.equal(twin(x), net(x))


BAD = [
    ("vgg-16", {}, "unknown model 'vgg-16'; did you mean 'vgg16'"),
    ("", {}, "unknown model"),
    (None, {}, "unknown model 'None'"),
    (["resnet20"], {}, "unknown model"),
    ("wideresnet-27-2", {}, "6n [+] 4 .*not 27"),
    ("wideresnet-4-2", {}, "6n [+] 4 .*not 4"),
    ("wideresnet-28-0", {}, "unknown model"),
    ("wideresnet-28", {}, "unknown model"),
    ("resnet20", {"classes": 0}, "classes must be a whole number of at least 1, not 0"),
    ("resnet20", {"classes": 10.0}, "classes must be a whole number"),
    ("resnet20", {"classes": True}, "classes must be a whole number"),
    ("resnet20", {"classes": None}, "classes must be a whole number"),
    ("resnet20", {"in_channels": -1}, "in_channels must be a whole number"),
    ("conv-2", {"image_size": "32"}, "image_size must be a whole number"),
    ("conv-2", {"image_size": (32, 32)}, "image_size must be a whole number"),
    ("resnet20", {"norm": "batch"}, "unknown norm 'batch'; known: affine, non-affine, none"),
    ("resnet20", {"norm": "afine"}, "did you mean 'affine'"),
    ("lenet-5", {"norm": "affine"}, "lenet-5 has no option 'norm'; it has: width, bias"),
    ("resnet20", {"pretrained": True}, "resnet20 has no option 'pretrained'; it has: norm, width, bias"),
    ("resnet20", {"stem": "small"}, "no option 'stem'"),
    ("resnet20", {"depth": 3}, "no option 'depth'"),
    ("resnet20", {"width": 0}, "width must be a number above 0, not 0"),
    ("resnet20", {"width": float("nan")}, "width must be a number above 0"),
    ("resnet20", {"width": float("inf")}, "width must be a number above 0"),
    ("resnet20", {"width": "wide"}, "width must be a number above 0"),
    ("resnet20", {"width": True}, "width must be a number above 0"),
    ("resnet20", {"bias": "yes"}, "bias must be True or False, not 'yes'"),
    ("resnet18", {"stem": "tiny"}, "unknown stem 'tiny'"),
    ("resnet18", {"pretrained": "yes"}, "pretrained must be True or False"),
    (
        "resnet18",
        {"pretrained": True, "norm": "non-affine"},
        "pretrained weights need norm='affine' and width=1",
    ),
    ("resnet50", {"pretrained": True, "width": 0.5}, "pretrained weights need norm='affine' and width=1"),
    ("transformer", {"task": "speech"}, "unknown task 'speech'"),
    ("transformer", {"dim": 10}, "dim=10 is not a multiple of heads=4"),
    ("transformer", {"depth": 0}, "depth must be a whole number of at least 1"),
    ("transformer", {"patch": 5}, "patch=5 does not divide image_size=32"),
    ("transformer", {"length": 5}, "patch is for task='images' and length for task='tokens'"),
    (
        "transformer",
        {"task": "tokens", "patch": 4},
        "patch is for task='images' and length for task='tokens'",
    ),
]


@pytest.mark.parametrize(("name", "options", "sentence"), BAD)
def test_bad_input(name: Any, options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence) as error:
        models.build(name, **options)
    assert "\n" not in str(error.value)


def test_names_and_descriptions() -> None:
    assert len(NAMES) == len(set(NAMES)) == 14
    assert "wideresnet-28-2" in NAMES
    for name in (*NAMES, "wideresnet-40-4"):
        assert "options: " in models.describe(name)
        assert "\n" not in models.describe(name)
    assert "depth 40, widened 4 times" in models.describe("wideresnet-40-4")
    with pytest.raises(UsageError, match="unknown model"):
        models.describe("alexnet")


def test_numpy_numbers_and_none_are_fine() -> None:
    a = models.build("transformer", classes=np.int64(3), width=np.float32(0.5), norm=None, causal=None, patch=None)
    assert a(images(1, 3, 32)).shape == (1, 3)


def test_docstrings() -> None:
    import doctest

    assert doctest.testmod(models.library, extraglobs={"torch": torch}).failed == 0
