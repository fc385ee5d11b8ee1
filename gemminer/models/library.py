"""Networks by name: names(), describe(name), build(name, ...).

Every network takes square images of any size (pooling stops at a map of 1x1) and gives logits. Layers are
registered in forward order, so a table of layers reads from input to output. Weights are PyTorch's default
draw from a fixed seed; gemminer.core.draw draws those a search starts from.
"""

from __future__ import annotations

import contextlib
import inspect
import math
import re
from collections.abc import Callable, Mapping
from functools import partial
from numbers import Integral, Real
from typing import Any, NamedTuple

import torch
from torch import nn

from gemminer.core.errors import UsageError, unknown
from gemminer.core.randomness import private_randomness, seed_globals
from gemminer.models.choices import ModelOption
from gemminer.models.layers import Layers, Shape
from gemminer.models.plain import conv_n, lenet_5, lenet_300_100, vgg16
from gemminer.models.residual import BasicBlock, Bottleneck, cifar_resnet, imagenet_resnet, mobilenet_v2, wide_resnet
from gemminer.models.sources import OTHERS, PREFIXES, is_elsewhere, own_text, source_of
from gemminer.models.transformer import make_transformer

_CHOICES: dict[str, tuple[Any, ...]] = {
    "norm": ("non-affine", "affine", "none"),
    "stem": ("imagenet", "small"),
    "task": ("images", "tokens"),
}
_SWITCHES = ("bias", "causal", "pretrained")
_SENTENCES = {
    "norm": "non-affine normalises only, affine learns a scale and a shift too, none leaves norm out.",
    "width": "Multiplies channel counts and hidden sizes.",
    "bias": "Biases in linear layers, and in convolutions without norm.",
    "pretrained": "Begin with torchvision's ImageNet weights; a layer of another shape keeps its fresh draw.",
    "stem": "imagenet is 7x7 with stride 2 and pooling, small 3x3 with stride 1.",
    "task": "Classify images, or predict tokens: ids (N, T) -> logits (N, T, classes) over the vocabulary.",
    "dim": "Numbers of each token between the blocks.",
    "depth": "Blocks.",
    "heads": "Attention heads of a block.",
    "causal": "Attend to earlier tokens only; not set, for tokens and not for images.",
    "patch": "Side of the squares an image is cut into; not set, at most 8 of them fill a side.",
    "length": "The most tokens it takes at once, where its task is tokens; not set, 128.",
}


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
    return Network(partial(conv_n, n), text, norm="none")


def _resnet_row(depth: int) -> Network:
    text = f"CIFAR ResNet of {depth} layers, parameter-free shortcuts (He et al. 2016)"
    return Network(partial(cifar_resnet, depth), text)


def _wide_row(depth: int, k: int) -> Network:
    text = f"pre-activation ResNet of depth {depth}, widened {k} times (Zagoruyko & Komodakis 2016)"
    return Network(partial(wide_resnet, depth, k), text)


def _torchvision_row(block: type[BasicBlock] | type[Bottleneck], repeats: list[int], weights: str) -> Network:
    text = "torchvision's; stem='small' (3x3, no pooling) suits images up to 64x64 (He et al. 2016)"
    return Network(partial(imagenet_resnet, block, repeats, weights), text, norm="affine", bias=True)


_NETWORKS = {
    "lenet-300-100": Network(lenet_300_100, "three linear layers (LeCun et al. 1998)", norm="none"),
    "lenet-5": Network(lenet_5, "two 5x5 convolutions and three linear layers (LeCun et al. 1998)", norm="none"),
    "conv-2": _conv_row(2),
    "conv-4": _conv_row(4),
    "conv-6": _conv_row(6),
    "resnet20": _resnet_row(20),
    "resnet32": _resnet_row(32),
    "resnet56": _resnet_row(56),
    "vgg16": Network(vgg16, "13 convolutions and one linear layer, for CIFAR (Simonyan & Zisserman 2015)"),
    "mobilenet-v2": Network(mobilenet_v2, "inverted residuals with strides for CIFAR (Sandler et al. 2018)"),
    "wideresnet-28-2": _wide_row(28, 2),
    # The versions are pinned: torchvision's DEFAULT moves.
    "resnet18": _torchvision_row(BasicBlock, [2, 2, 2, 2], "ResNet18_Weights.IMAGENET1K_V1"),
    "resnet50": _torchvision_row(Bottleneck, [3, 4, 6, 3], "ResNet50_Weights.IMAGENET1K_V2"),
    "transformer": Network(
        make_transformer,
        "small, pre-norm: images by patches, or with task='tokens' a language model",
        norm="affine",
    ),
}


def names() -> tuple[str, ...]:
    """The networks' names; any `wideresnet-D-K` of depth D = 6n + 4 and widening factor K is known besides.

    So are `timm:NAME`, `torchvision:NAME`, `hf:NAME` and `package.module:Net`: see `build`.

    >>> names()[:2]
    ('lenet-300-100', 'lenet-5')
    """
    return tuple(_NETWORKS)


def describe(name: str) -> str:
    """One line on a network: what it is, its source, its options; UsageError for an unknown name.

    >>> describe("conv-2")
    '2 convolutions and three linear layers (Frankle & Carbin 2019); options: width, bias'
    """
    if is_elsewhere(name):
        source, _ = source_of(name)
        return source.text or own_text(name)
    network = _find(name)
    return f"{network.text}; options: {', '.join(network.options())}"


def options(name: str) -> tuple[ModelOption, ...]:
    """The options that `build` takes for a network, with their defaults; UsageError for an unknown name.

    >>> [(option.name, option.default) for option in options("conv-2")]
    [('width', 1.0), ('bias', False)]
    """
    if is_elsewhere(name):
        source, own_name = source_of(name)
        return source.options(own_name)
    network = _find(name)
    own = {p.name: p.default for p in inspect.signature(network.make).parameters.values() if p.kind is p.KEYWORD_ONLY}
    defaults = {"norm": network.norm, "width": 1.0, "bias": network.bias, **own}
    choices = _CHOICES | dict.fromkeys(_SWITCHES, (True, False))
    ranges = dict.fromkeys(choices, "") | {"width": "above 0"}
    return tuple(
        ModelOption(key, defaults[key], _SENTENCES[key], choices.get(key, ()), ranges.get(key, "1 or more"))
        for key in network.options()
    )


def build(
    name: str,
    *,
    in_channels: int = 3,
    classes: int = 10,
    image_size: int = 32,
    norm: str | None = None,
    width: float | None = None,
    pretrained: bool | str | None = None,
    **options: Any,
) -> nn.Module:
    """A network by name: images (N, in_channels, image_size, image_size) -> logits (N, classes).

    Equal arguments give equal weights, and the global random state is left as it was. None means the default.

    Networks from elsewhere take the same three sizes, as far as they have parameters for them, and `options` of their
    own: `timm:NAME`, `torchvision:NAME`, `hf:NAME` (a classifier of transformers: of a kind's configuration as
    `hf:vit`, or with the weights of a folder or an id) and `package.module:Net`, a class or function of yours that
    makes a torch.nn.Module. It is imported as `python -m` does, so modules of the current folder are found. Of one's
    own, sizes may be called in_channels, in_chans or num_channels; classes, num_classes or num_labels; image_size or
    img_size.

    Args:
        name: one of `names()`, or a network from elsewhere.
        in_channels: channels of the images.
        classes: outputs.
        image_size: height and width of the images.
        norm: "non-affine" (normalise only), "affine" (learned scale and shift) or "none"; by default affine
            for resnet18, resnet50 and transformer, non-affine for the other networks with norm.
        width: multiplies channel counts and hidden sizes; by default 1.
        pretrained: (resnet18, resnet50) torchvision's ImageNet weights; a layer of another shape, as the stem or
            the classifier may be, keeps its fresh draw. Networks from elsewhere: their library's weights; of
            torchvision by name too, as "IMAGENET1K_V1".
        options: of one network or some: `bias` (in linear layers, and in convolutions without norm; by default
            True for resnet18 and resnet50, elsewhere False as in the Rare Gems code); `stem` (resnet18, resnet50:
            "imagenet" is 7x7, stride 2, pooling, "small" 3x3, stride 1); for the transformer `task` ("images", or
            "tokens": ids (N, T) -> logits (N, T, classes) over the vocabulary), `dim`, `depth`, `heads`, `causal`
            (by default for tokens only), `patch` (images) and `length` (the most tokens it takes).

    Raises:
        UsageError: an unknown name, an option the network does not have, or a value it cannot take.
        GemminerError: pretrained weights cannot be loaded.

    >>> net = build("resnet20", in_channels=1, image_size=8)
    >>> net(torch.zeros(5, 1, 8, 8)).shape
    torch.Size([5, 10])
    """
    sizes = {"in_channels": in_channels, "classes": classes, "image_size": image_size}
    return from_options(name, sizes, {"norm": norm, "width": width, "pretrained": pretrained, **options})


def from_options(name: str, sizes: Mapping[str, int], options: Mapping[str, Any]) -> nn.Module:
    """A network as `build` makes it, of the sizes in_channels, classes and image_size and of options that are not None.

    Options may have any name here, also one of the sizes, which they replace.
    """
    sizes = {key: _whole(key, options.get(key, value)) for key, value in sizes.items()}
    asked = {key: value for key, value in options.items() if value is not None and key not in sizes}
    if is_elsewhere(name):
        source, own_name = source_of(name)
        make: Callable[[], nn.Module] = partial(source.build, own_name, sizes, asked)
    else:
        make = _make(name, Shape(**sizes), asked)
    home = torch.get_default_device()
    # Drawn on the CPU: the weights are the same everywhere and no accelerator's generator moves.
    with private_randomness(), torch.device("meta" if home.type == "meta" else "cpu"):
        seed_globals(0)
        try:
            return make().to(home)
        except (RuntimeError, MemoryError, OverflowError) as error:
            if isinstance(error, RuntimeError) and not re.search("memory|overflow", str(error)):
                raise
            raise UsageError(f"a {name} of this size does not fit into memory: choose smaller sizes") from None


def has_weights(name: str, options: Mapping[str, Any]) -> bool:
    """Whether a network begins with weights that are worth keeping, and not with a fresh draw."""
    if is_elsewhere(name):
        source, own_name = source_of(name)
        return source.has_weights(own_name, options)
    return bool(options.get("pretrained", False))


def completed(incomplete: str) -> list[str]:
    """What a shell completes a network's name to; behind a prefix, the names of its library if that is installed."""
    prefix, colon, _ = incomplete.partition(":")
    known: tuple[str, ...] = (*names(), *PREFIXES)
    if colon and f"{prefix}:" in PREFIXES:
        with contextlib.suppress(UsageError):
            known = tuple(f"{prefix}:{name}" for name in source_of(f"{prefix}:x")[0].names())
    return [name for name in known if name.startswith(incomplete)]


def _make(name: str, shape: Shape, asked: Mapping[str, Any]) -> Callable[[], nn.Module]:
    """A network of the table, to be made; raises UsageError for an option that it does not have or take."""
    network, given = _find(name), dict(asked)
    if network.norm == given.get("norm") == "none":
        del given["norm"]
    if given.get("pretrained") is False:
        del given["pretrained"]
    known = network.options()
    if strange := [key for key in given if key not in known]:
        raise UsageError(f"{name} has no option {strange[0]!r}; it has: {', '.join(known)}")
    given = {key: _valid(key, value) for key, value in given.items()}
    layers = Layers(given.pop("norm", network.norm), given.pop("width", 1.0), given.pop("bias", network.bias))
    return partial(network.make, shape, layers, **given)


def _find(name: str) -> Network:
    if wide := re.fullmatch(r"wideresnet-([1-9]\d{0,2})-([1-9]\d{0,2})", str(name)):
        depth, k = int(wide[1]), int(wide[2])
        if depth % 6 != 4 or depth < 10:
            raise UsageError(f"a wideresnet has depth 6n + 4 (10, 16, 22, 28, 34, 40, ...), not {depth}")
        return _wide_row(depth, k)
    if str(name) not in _NETWORKS:
        raise unknown("model", name, [*names(), *OTHERS])
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
