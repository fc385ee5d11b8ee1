"""Networks: counts by hand; torchvision, nn.MultiheadAttention, textbook formulas as oracles; bad input."""

from __future__ import annotations

import copy
import pickle
import random
import shutil
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from gemminer import models
from gemminer.core.errors import GemminerError, UsageError
from gemminer.models import residual, transformer
from gemminer.models.layers import Layers

NAMES = models.names()
PAPER = tuple(n for n in NAMES if n not in ("resnet18", "resnet50", "transformer"))  # no affine norms, no biases
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


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_same_function_as_torchvision(name: str) -> None:
    ours = models.build(name, classes=1000).eval()
    with torch.device("meta"):
        theirs = getattr(torchvision.models, name)()
    theirs = theirs.to_empty(device="cpu").eval()
    theirs.load_state_dict(ours.state_dict(), strict=True)
    x = images(2, 3, 64)
    torch.testing.assert_close(ours(x), theirs(x))


def test_attention_agrees_with_torch() -> None:
    for causal in (False, True):
        ours = transformer.Attention(Layers("none", 1.0, True), dim=12, heads=3, causal=causal)
        theirs = nn.MultiheadAttention(12, 3, batch_first=True)
        theirs.load_state_dict(
            {
                "in_proj_weight": ours.qkv.weight,
                "in_proj_bias": ours.qkv.bias,
                "out_proj.weight": ours.out.weight,
                "out_proj.bias": ours.out.bias,
            }
        )
        x = torch.randn(2, 5, 12, generator=torch.Generator().manual_seed(1))
        mask = torch.ones(5, 5, dtype=torch.bool).triu(1) if causal else None
        torch.testing.assert_close(ours(x), theirs(x, x, x, attn_mask=mask, need_weights=False)[0])


def test_language_model_is_causal_and_knows_positions() -> None:
    net = models.build("transformer", task="tokens", classes=11, depth=2, length=9)
    ids = torch.tensor([[1, 2, 3, 4, 5, 6]])
    logits = net(ids)
    assert logits.shape == (1, 6, 11)
    changed = net(torch.tensor([[1, 2, 3, 9, 5, 6]]))
    assert torch.equal(changed[:, :3], logits[:, :3])
    assert all(not torch.allclose(changed[0, t], logits[0, t]) for t in (3, 4, 5))
    flat = models.build("transformer", task="tokens", classes=11, depth=1)  # sees a set but for the positions
    swapped = flat(torch.tensor([[2, 1, 3, 4, 5, 6]]))
    assert not torch.allclose(swapped[0, 5], flat(ids)[0, 5])
    assert net(ids.expand(2, 6)[:, :1]).shape == (2, 1, 11)
    F.cross_entropy(logits.flatten(0, 1), ids.flatten()).backward()
    assert all(w.grad is not None and w.grad.any() for w in prunable(net).values())
    assert all(m.causal for m in net.modules() if isinstance(m, transformer.Attention))
    with pytest.raises(UsageError, match=r"10 tokens are too many.* 9"):
        net(torch.zeros(1, 10, dtype=torch.long))


def test_image_transformer_looks_both_ways() -> None:
    net = models.build("transformer", in_channels=1, image_size=8, patch=4)
    assert net.embed.kernel_size == (4, 4)
    assert not any(m.causal for m in net.modules() if isinstance(m, transformer.Attention))
    assert models.build("transformer", image_size=28).embed.kernel_size == (4, 4)
    assert models.build("transformer", image_size=8).embed.kernel_size == (2, 2)


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


def test_stem() -> None:
    small_stem = models.build("resnet18", stem="small", width=0.25)
    assert small_stem.conv1.kernel_size == (3, 3)
    assert small_stem.layer1(small_stem.maxpool(small_stem.conv1(images(2, 3, 32)))).shape[-1] == 32
    assert models.build("resnet18", width=0.25).conv1.stride == (2, 2)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """torch.hub's folder, empty; and no network."""

    def no_network(*_: object, **__: object) -> None:
        raise URLError("no route to host")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", no_network)
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


WEIGHTS = "resnet18-f37072fd.pth"


def test_pretrained_weights_are_loaded(
    hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with torch.random.fork_rng():
        theirs = torchvision.models.resnet18().state_dict()
    torch.save(theirs, tmp_path / "there.pth")
    monkeypatch.setattr(
        torch.hub, "download_url_to_file", lambda _url, to, *_, **__: shutil.copy(tmp_path / "there.pth", to)
    )
    net = models.build("resnet18", classes=1000, pretrained=True)
    assert (hub / WEIGHTS).exists()
    assert capsys.readouterr().out == ""  # stdout is for --json
    assert all(torch.equal(w, theirs[key]) for key, w in net.state_dict().items())
    tuned = models.build("resnet18", classes=5, in_channels=1, stem="small", pretrained=True).state_dict()
    differ = {key for key, w in tuned.items() if w.shape != theirs[key].shape or not torch.equal(w, theirs[key])}
    assert differ == {"conv1.weight", "fc.weight", "fc.bias"}


def test_pretrained_weights_that_cannot_be_had(hub: Path) -> None:
    sentence = f"cannot load the pretrained weights .*{{}}.*leave pretrained out or put .*{WEIGHTS} into {hub}"
    with pytest.raises(GemminerError, match=sentence.format("no route to host")):
        models.build("resnet18", pretrained=True)
    (hub / WEIGHTS).write_bytes(b"an html page of the proxy")
    with pytest.raises(GemminerError, match=sentence.format("")):
        models.build("resnet18", pretrained=True)
    (hub / WEIGHTS).write_bytes(b"")
    with pytest.raises(GemminerError, match=sentence.format("")):
        models.build("resnet18", pretrained=True)
    torch.save({"fc.weight": torch.zeros(1000, 512)}, hub / WEIGHTS)
    with pytest.raises(GemminerError, match=sentence.format("bn1.bias is missing")):
        models.build("resnet18", pretrained=True)


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
