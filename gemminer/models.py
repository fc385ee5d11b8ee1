"""The paper's networks and the small ones, as plain modules: names(), describe(name), build(name, ...).

Every network takes square images of any size (pooling stops at a map of 1x1) and gives logits. Layers are
registered in forward order, so a table of layers reads from input to output. Weights are PyTorch's default
draw from a fixed seed; gemminer.initialise draws those a search starts from.
"""

from __future__ import annotations

import inspect
import math
import re
import sys
from collections import OrderedDict
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from numbers import Integral, Real
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gemminer.errors import GemminerError, UsageError, unknown


class Shape(NamedTuple):
    """What the data asks of a network."""

    in_channels: int
    classes: int
    image_size: int


@dataclass(frozen=True)
class Layers:
    """How a network makes its layers, in one place.

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


def _named(**modules: nn.Module) -> nn.Sequential:
    return nn.Sequential(OrderedDict(modules))


def _pool(size: int) -> tuple[nn.Module, int]:
    """Halve a map of size x size; a map of 1x1 stays."""
    return (nn.MaxPool2d(2), size // 2) if size > 1 else (nn.Identity(), 1)


# LeNets, Conv-N, VGG


def _classifier(make: Layers, *sizes: int) -> dict[str, nn.Module]:
    """fc1, relu, fc2, ... through the given sizes, nothing after the last."""
    modules: dict[str, nn.Module] = {"flatten": nn.Flatten()}
    for i, (n_in, n_out) in enumerate(pairwise(sizes), 1):
        modules |= {f"fc{i}": make.linear(n_in, n_out), f"fc{i}_relu": nn.ReLU()}
    modules.popitem()
    return modules


def _lenet_300_100(shape: Shape, make: Layers) -> nn.Module:
    inputs = shape.in_channels * shape.image_size**2
    return _named(**_classifier(make, inputs, make.channels(300), make.channels(100), shape.classes))


def _lenet_5(shape: Shape, make: Layers) -> nn.Module:
    c1, c2 = make.channels(6), make.channels(16)
    # LeCun et al. pad 28x28 to 32x32 and nothing after; we pad the second map where 5x5 would not fit.
    pad1 = 0 if shape.image_size >= 32 else 2
    pool1, size = _pool(shape.image_size + 2 * pad1 - 4)
    pad2 = 0 if size >= 6 else 2
    pool2, size = _pool(size + 2 * pad2 - 4)
    return _named(
        conv1=nn.Conv2d(shape.in_channels, c1, 5, padding=pad1, bias=make.bias),
        relu1=nn.ReLU(),
        pool1=pool1,
        conv2=nn.Conv2d(c1, c2, 5, padding=pad2, bias=make.bias),
        relu2=nn.ReLU(),
        pool2=pool2,
        **_classifier(make, c2 * size**2, make.channels(120), make.channels(84), shape.classes),
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
        modules[f"pool{s}"], size = _pool(size)
    return modules, c_in, size


def _conv_n(n: int, shape: Shape, make: Layers) -> nn.Module:
    modules, channels, size = _features(shape, make, [[64, 64], [128, 128], [256, 256]][: n // 2])
    hidden = make.channels(256)
    return _named(**modules, **_classifier(make, channels * size**2, hidden, hidden, shape.classes))


def _vgg16(shape: Shape, make: Layers) -> nn.Module:
    modules, channels, _ = _features(shape, make, [[64] * 2, [128] * 2, [256] * 3, [512] * 3, [512] * 3])
    return _named(**modules, **_head(make, channels, shape.classes))


def _head(make: Layers, channels: int, classes: int) -> dict[str, nn.Module]:
    return {"avgpool": nn.AdaptiveAvgPool2d(1), "flatten": nn.Flatten(), "fc": make.linear(channels, classes)}


# residual networks


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
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.downsample(x))


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
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        return F.relu(self.bn3(self.conv3(y)) + self.downsample(x))


class PreactBlock(nn.Module):
    """WideResNet's block: norm and ReLU come before each convolution."""

    def __init__(self, make: Layers, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.bn1, self.conv1 = make.batch_norm(c_in), make.conv(c_in, c_out, 3, stride)
        self.bn2, self.conv2 = make.batch_norm(c_out), make.conv(c_out, c_out)
        self.shortcut = make.conv(c_in, c_out, 1, stride) if stride > 1 or c_in != c_out else None

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(x))
        skip = x if self.shortcut is None else self.shortcut(y)
        out: Tensor = self.conv2(F.relu(self.bn2(self.conv1(y)))) + skip
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
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
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


def _cifar_resnet(depth: int, shape: Shape, make: Layers) -> nn.Module:
    planes = [make.channels(c) for c in (16, 32, 64)]
    return _named(
        conv1=make.conv(shape.in_channels, planes[0]),
        bn1=make.batch_norm(planes[0]),
        relu=nn.ReLU(),
        **_stages(partial(BasicBlock, project=False), make, planes[0], planes, [(depth - 2) // 6] * 3),
        **_head(make, planes[-1], shape.classes),
    )


def _wide_resnet(depth: int, k: int, shape: Shape, make: Layers) -> nn.Module:
    stem, *planes = (make.channels(c) for c in (16, 16 * k, 32 * k, 64 * k))
    return _named(
        conv1=make.conv(shape.in_channels, stem),
        **_stages(PreactBlock, make, stem, planes, [(depth - 4) // 6] * 3),
        bn=make.batch_norm(planes[-1]),
        relu=nn.ReLU(),
        **_head(make, planes[-1], shape.classes),
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


def _mobilenet_v2(shape: Shape, make: Layers) -> nn.Module:
    c, last = make.channels(32), make.channels(1280)
    modules: dict[str, nn.Module] = {"conv1": make.conv(shape.in_channels, c), "bn1": make.batch_norm(c)}
    modules["relu1"] = nn.ReLU()
    for s, (expansion, planes, repeats, stride) in enumerate(_MOBILE, 1):
        c_in, c = c, make.channels(planes)
        modules[f"layer{s}"] = _stage(partial(InvertedResidual, expansion), make, c_in, c, repeats, stride)
    modules |= {"conv2": make.conv(c, last, 1), "bn2": make.batch_norm(last), "relu2": nn.ReLU()}
    return _named(**modules, **_head(make, last, shape.classes))


def _imagenet_resnet(
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
    net = _named(
        conv1=make.conv(shape.in_channels, c, 7, 2) if imagenet else make.conv(shape.in_channels, c),
        bn1=make.batch_norm(c),
        relu=nn.ReLU(),
        maxpool=nn.MaxPool2d(3, 2, padding=1) if imagenet else nn.Identity(),
        **_stages(block, make, c, planes, repeats),
        **_head(make, planes[-1], shape.classes),
    )
    if pretrained:
        _load_pretrained(net, weights)
    return net


def _load_pretrained(net: nn.Module, weights: str) -> None:
    """Load torchvision's weights; a stem or classifier of another shape keeps its fresh draw."""
    from torchvision.models import get_weight  # a second of import time for two networks only

    source = get_weight(weights)
    try:
        with redirect_stdout(sys.stderr):  # torch.hub prints the address; stdout belongs to --json
            theirs = source.get_state_dict(check_hash=True, map_location="cpu", weights_only=True)
        ours = net.state_dict()
        fits = {key: w for key, w in theirs.items() if key in ours and w.shape == ours[key].shape}
        if missing := ours.keys() - fits.keys() - {"conv1.weight", "fc.weight", "fc.bias"}:
            raise ValueError(f"{min(missing)} is missing")
    except Exception as error:  # network, disk, hash, unpickler: the remedy is the same
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise GemminerError(
            f"cannot load the pretrained weights {weights} ({reason}): leave pretrained out "
            f"or put a sound copy of {source.url} into {torch.hub.get_dir()}/checkpoints"
        ) from error
    net.load_state_dict(fits, strict=False)


# a small transformer


class Attention(nn.Module):
    """Multi-head self-attention; written out, as fused kernels lack the second derivative GraSP needs."""

    def __init__(self, make: Layers, dim: int, heads: int, causal: bool) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.qkv, self.out = make.linear(dim, 3 * dim), make.linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        n, t, dim = x.shape
        q, k, v = self.qkv(x).view(n, t, 3, self.heads, dim // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        a = q @ k.transpose(-2, -1) * (dim // self.heads) ** -0.5  # (N, heads, T, T)
        if self.causal:
            a = a.masked_fill(torch.ones(t, t, dtype=torch.bool, device=x.device).triu(1), -math.inf)
        y: Tensor = self.out((a.softmax(-1) @ v).transpose(1, 2).reshape(n, t, dim))
        return y


class TransformerBlock(nn.Module):
    """Pre-norm: x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, make: Layers, dim: int, heads: int, causal: bool) -> None:
        super().__init__()
        self.norm1, self.attention = make.layer_norm(dim), Attention(make, dim, heads, causal)
        self.norm2 = make.layer_norm(dim)
        self.mlp = _named(fc1=make.linear(dim, 4 * dim), gelu=nn.GELU(), fc2=make.linear(4 * dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        y: Tensor = x + self.mlp(self.norm2(x))
        return y


class Transformer(nn.Module):
    """Images (N, C, H, W) -> logits (N, classes), or token ids (N, T) -> logits (N, T, classes).

    `embed` is the convolution that cuts patches or the embedding of tokens, `length` the most tokens taken.
    """

    positions: Tensor

    def __init__(self, embed: nn.Module, length: int, blocks: nn.Sequential, norm: nn.Module, head: nn.Linear) -> None:
        super().__init__()
        self.embed, self.blocks, self.norm, self.head = embed, blocks, norm, head
        self.reads_tokens = isinstance(embed, nn.Embedding)
        # (length, dim), sines and cosines (Vaswani et al. 2017): a gem tells positions before any training
        dim = head.in_features
        rate = torch.exp(torch.arange(0, dim, 2) * (-math.log(10_000.0) / dim))
        angle = torch.arange(length)[:, None] * rate
        table = torch.stack((angle.sin(), angle.cos()), -1).flatten(1)[:, :dim]
        self.register_buffer("positions", table, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        x = x if self.reads_tokens else x.flatten(2).transpose(1, 2)  # (N, T, dim)
        t, length = x.shape[1], len(self.positions)
        if t > length:
            raise UsageError(f"{t} tokens are too many: this transformer was built for {length}")
        x = self.norm(self.blocks(x + self.positions[:t]))
        logits: Tensor = self.head(x if self.reads_tokens else x.mean(1))
        return logits


def _transformer(
    shape: Shape,
    make: Layers,
    *,
    task: str = "images",
    dim: int = 64,
    depth: int = 4,
    heads: int = 4,
    causal: bool | None = None,
    patch: int | None = None,
    length: int | None = None,
) -> nn.Module:
    tokens = task == "tokens"
    if (patch if tokens else length) is not None:
        raise UsageError("patch is for task='images' and length for task='tokens': leave the other one out")
    if dim % heads:
        raise UsageError(f"dim={dim} is not a multiple of heads={heads}: choose a dim that is")
    dim = heads * make.channels(dim // heads)
    causal = tokens if causal is None else causal
    if tokens:
        embed: nn.Module = nn.Embedding(shape.classes, dim)
        length = length or 128
    else:
        patch = patch or _patch(shape.image_size)
        if shape.image_size % patch:
            raise UsageError(f"patch={patch} does not divide image_size={shape.image_size}: choose a divisor")
        embed = nn.Conv2d(shape.in_channels, dim, patch, patch, bias=make.bias)
        length = (shape.image_size // patch) ** 2
    blocks = nn.Sequential(*(TransformerBlock(make, dim, heads, causal) for _ in range(depth)))
    return Transformer(embed, length, blocks, make.layer_norm(dim), make.linear(dim, shape.classes))


def _patch(size: int) -> int:
    """The smallest patch, of 2 or more, that leaves at most 8 a side."""
    return next(p for p in range(min(2, size), size + 1) if size % p == 0 and size <= 8 * p)


# by name

_CHOICES = {
    "norm": ("non-affine", "affine", "none"),
    "stem": ("imagenet", "small"),
    "task": ("images", "tokens"),
}
_SWITCHES = ("bias", "causal", "pretrained")


class Network(NamedTuple):
    """A row of the table; its own options are the keyword-only parameters of make(shape, layers, *, ...)."""

    make: Callable[..., nn.Module]
    text: str
    norm: str = "non-affine"  # the default; "none": it has none
    bias: bool = False  # the default

    def options(self) -> tuple[str, ...]:
        own = [p.name for p in inspect.signature(self.make).parameters.values() if p.kind is p.KEYWORD_ONLY]
        return (*(["norm"] if self.norm != "none" else []), "width", "bias", *own)


def _conv_row(n: int) -> Network:
    text = f"{n} convolutions and three linear layers (Frankle & Carbin 2019)"
    return Network(partial(_conv_n, n), text, norm="none")


def _resnet_row(depth: int) -> Network:
    text = f"CIFAR ResNet of {depth} layers, parameter-free shortcuts (He et al. 2016)"
    return Network(partial(_cifar_resnet, depth), text)


def _wide_row(depth: int, k: int) -> Network:
    text = f"pre-activation ResNet of depth {depth}, widened {k} times (Zagoruyko & Komodakis 2016)"
    return Network(partial(_wide_resnet, depth, k), text)


def _torchvision_row(block: type[BasicBlock] | type[Bottleneck], repeats: list[int], weights: str) -> Network:
    text = "torchvision's; stem='small' (3x3, no pooling) suits images up to 64x64 (He et al. 2016)"
    return Network(partial(_imagenet_resnet, block, repeats, weights), text, norm="affine", bias=True)


_NETWORKS = {
    "lenet-300-100": Network(_lenet_300_100, "three linear layers (LeCun et al. 1998)", norm="none"),
    "lenet-5": Network(_lenet_5, "two 5x5 convolutions and three linear layers (LeCun et al. 1998)", norm="none"),
    "conv-2": _conv_row(2),
    "conv-4": _conv_row(4),
    "conv-6": _conv_row(6),
    "resnet20": _resnet_row(20),
    "resnet32": _resnet_row(32),
    "resnet56": _resnet_row(56),
    "vgg16": Network(_vgg16, "13 convolutions and one linear layer, for CIFAR (Simonyan & Zisserman 2015)"),
    "mobilenet-v2": Network(_mobilenet_v2, "inverted residuals with strides for CIFAR (Sandler et al. 2018)"),
    "wideresnet-28-2": _wide_row(28, 2),
    # The versions are pinned: torchvision's DEFAULT moves.
    "resnet18": _torchvision_row(BasicBlock, [2, 2, 2, 2], "ResNet18_Weights.IMAGENET1K_V1"),
    "resnet50": _torchvision_row(Bottleneck, [3, 4, 6, 3], "ResNet50_Weights.IMAGENET1K_V2"),
    "transformer": Network(
        _transformer,
        "small, pre-norm: images by patches, or with task='tokens' a language model",
        norm="affine",
    ),
}


def names() -> tuple[str, ...]:
    """The networks' names; any `wideresnet-D-K` of depth D = 6n + 4 and widening factor K is known besides.

    >>> names()[:2]
    ('lenet-300-100', 'lenet-5')
    """
    return tuple(_NETWORKS)


def describe(name: str) -> str:
    """One line on a network: what it is, its source, its options; UsageError for an unknown name.

    >>> describe("conv-2")
    '2 convolutions and three linear layers (Frankle & Carbin 2019); options: width, bias'
    """
    network = _find(name)
    return f"{network.text}; options: {', '.join(network.options())}"


def build(
    name: str,
    *,
    in_channels: int = 3,
    classes: int = 10,
    image_size: int = 32,
    norm: str | None = None,
    width: float = 1.0,
    pretrained: bool = False,
    **options: Any,
) -> nn.Module:
    """A network by name: images (N, in_channels, image_size, image_size) -> logits (N, classes).

    norm        "non-affine" (normalise only), "affine" (learned scale and shift) or "none"; by default affine
                for resnet18, resnet50 and transformer, non-affine for the other networks with norm
    width       multiplies channel counts and hidden sizes
    bias        biases in linear layers, and in convolutions without norm; by default True for resnet18 and
                resnet50, elsewhere False as in the Rare Gems code
    pretrained  (resnet18, resnet50) torchvision's ImageNet weights; a layer of another shape, as the stem or
                the classifier may be, keeps its fresh draw
    stem        (resnet18, resnet50) "imagenet": 7x7, stride 2, pooling; "small": 3x3, stride 1
    task        (transformer) "images", or "tokens": ids (N, T) -> logits (N, T, classes) over the vocabulary
    dim, depth, heads, causal, patch, length    (transformer) causal by default for tokens only; patch is for
                images, and length, the most tokens it takes, for tokens

    None means the default. Equal arguments give equal weights, and the global random state is left as it was.
    Raises UsageError for an unknown name, an option the network does not have or a value it cannot take, and
    GemminerError when pretrained weights cannot be loaded.

    >>> net = build("resnet20", in_channels=1, image_size=8)
    >>> net(torch.zeros(5, 1, 8, 8)).shape
    torch.Size([5, 10])
    """
    network = _find(name)
    sizes = {"in_channels": in_channels, "classes": classes, "image_size": image_size}
    shape = Shape(**{key: _whole(key, value) for key, value in sizes.items()})
    asked = {"norm": norm, "width": width, "pretrained": pretrained or None, **options}
    if network.norm == norm == "none":
        del asked["norm"]
    given = {key: value for key, value in asked.items() if value is not None}
    known = network.options()
    if strange := [key for key in given if key not in known]:
        raise UsageError(f"{name} has no option {strange[0]!r}; it has: {', '.join(known)}")
    given = {key: _valid(key, value) for key, value in given.items()}
    make = Layers(given.pop("norm", network.norm), given.pop("width", 1.0), given.pop("bias", network.bias))
    home = torch.get_default_device()
    # Drawn on the CPU: the weights are the same everywhere and no accelerator's generator moves.
    with torch.random.fork_rng(devices=[]), torch.device("meta" if home.type == "meta" else "cpu"):
        torch.default_generator.manual_seed(0)
        return network.make(shape, make, **given).to(home)


def _find(name: str) -> Network:
    if wide := re.fullmatch(r"wideresnet-([1-9]\d*)-([1-9]\d*)", str(name)):
        depth, k = int(wide[1]), int(wide[2])
        if depth % 6 != 4 or depth < 10:
            raise UsageError(f"a wideresnet has depth 6n + 4 (10, 16, 22, 28, 34, 40, ...), not {depth}")
        return _wide_row(depth, k)
    if str(name) not in _NETWORKS:
        raise unknown("model", name, names())
    return _NETWORKS[str(name)]


def _valid(key: str, value: Any) -> Any:
    if key in _CHOICES:
        if value not in _CHOICES[key]:
            raise unknown(key, value, _CHOICES[key])
    elif key in _SWITCHES:
        if not isinstance(value, bool):
            raise UsageError(f"{key} must be True or False, not {value!r}")
    elif key == "width":
        if isinstance(value, bool) or not isinstance(value, Real) or not 0 < float(value) < math.inf:
            raise UsageError(f"width must be a number above 0, not {value!r}")
    else:
        return _whole(key, value)
    return value


def _whole(key: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, Integral) or int(value) < 1:
        raise UsageError(f"{key} must be a whole number of at least 1, not {value!r}")
    return int(value)
