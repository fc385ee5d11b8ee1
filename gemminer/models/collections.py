"""Networks of timm and torchvision by name."""

from __future__ import annotations

import contextlib
import difflib
import importlib
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import nn

from gemminer.core.errors import GemminerError, UsageError, in_words
from gemminer.models.choices import ModelOption, refused, rows
from gemminer.models.hub import cached_unless_answered
from gemminer.models.pretrained import load_pretrained

_SMALL = {"in_channels": 3, "classes": 10, "image_size": 224}
_OWN = "Of the network's own constructor."


def installed(package: str) -> Any:
    """A package that is no dependency; raises UsageError where it is not installed."""
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError:
        raise UsageError(f"{package} is not installed: pip install {package}") from None


def known(kind: str, name: str, names: Iterable[str]) -> None:
    """Raise UsageError for a name that is not among these, with the nearest; there may be a thousand."""
    every = list(names)
    if name not in every:
        near = difflib.get_close_matches(name, every, n=3)
        hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else f": it has {len(every)}"
        raise UsageError(f"{kind} has no network {name!r}{hint}")


def options_of(network: Callable[[], nn.Module], pretrained: str) -> tuple[ModelOption, ...]:
    """The option pretrained, and what the network's class takes; defaults are those of the network by name."""
    with torch.device("meta"), warnings.catch_warnings(action="ignore"):
        own = rows(type(network()), _OWN)
    first = ModelOption("pretrained", False, pretrained, (True, False))
    return (first, *(row._replace(default=None, choices=()) for row in own if not row.range))


# --- timm --------------------------------------------------------------------------------------------------------


def timm_names() -> list[str]:
    return list(installed("timm").list_models())


def timm_network(name: str, sizes: Mapping[str, int], options: Mapping[str, Any]) -> nn.Module:
    timm = installed("timm")
    architecture = name.partition(".")[0]
    known("timm", architecture, timm.list_models())
    given = {"num_classes": sizes["classes"], "in_chans": sizes["in_channels"]}
    about = timm.models.get_pretrained_cfg(architecture)
    if about is not None and about.fixed_input_size:
        given["img_size"] = sizes["image_size"]
    with cached_unless_answered() if options.get("pretrained") else contextlib.nullcontext() as silent:
        try:
            net: nn.Module = timm.create_model(name, **{**given, **options})
        except Exception as error:  # what a constructor, the network or a file raises
            if options.get("pretrained"):
                raise _no_weights(f"timm:{name}", error, silent) from None
            raise refused(f"timm:{name}", error) from None
    return net


def timm_options(name: str) -> tuple[ModelOption, ...]:
    return options_of(lambda: timm_network(name, _SMALL, {}), "Begin with timm's weights, of the name's tag.")


def _no_weights(name: str, error: Exception, silent: str | None) -> GemminerError:
    why = in_words(error) + ("" if silent is None else f"; the hub of Hugging Face does not answer: {silent}")
    return GemminerError(f"cannot load the pretrained weights of {name} ({why}): leave pretrained out")


# --- torchvision -------------------------------------------------------------------------------------------------


def torchvision_names() -> list[str]:
    library = installed("torchvision.models")
    return list(library.list_models(module=library))


def torchvision_network(name: str, sizes: Mapping[str, int], options: Mapping[str, Any]) -> nn.Module:
    library, full = installed("torchvision.models"), f"torchvision:{name}"
    known("torchvision", name, torchvision_names())
    asked = dict(options)
    pretrained = asked.pop("pretrained", False)
    if not isinstance(pretrained, (bool, str)):
        raise UsageError(f"pretrained is true, false or the name of weights, as IMAGENET1K_V1, not {pretrained!r}")
    # Only some take the size of the images, and their functions' signatures do not say which.
    tries = [{"image_size": sizes["image_size"]}, {}] if "image_size" not in asked else [{}]
    for size in tries:
        try:
            with warnings.catch_warnings(action="ignore"):  # of the default of an initialisation that will change
                net: nn.Module = library.get_model(
                    name, weights=None, **{"num_classes": sizes["classes"], **size, **asked}
                )
            break
        except Exception as error:  # what a constructor raises
            if not (size and "unexpected keyword argument 'image_size'" in str(error)):
                raise refused(full, error) from None
    stem = _widen(net, sizes["in_channels"])
    if pretrained:
        _load(net, library.get_model_weights(name), pretrained, stem, sizes["classes"])
    return net


def _widen(net: nn.Module, channels: int) -> str:
    """Give the first convolution, torchvision's of three channels, as many as the images have; returns its name."""
    path, stem = next(((n, m) for n, m in net.named_modules() if isinstance(m, nn.Conv2d)), ("", None))
    if stem is not None and stem.in_channels != channels:
        parent, _, own = path.rpartition(".")
        same = ("out_channels", "kernel_size", "stride", "padding", "dilation", "padding_mode")
        made = nn.Conv2d(channels, bias=stem.bias is not None, **{key: getattr(stem, key) for key in same})
        setattr(net.get_submodule(parent), own, made)
    return path


def _load(net: nn.Module, every: Any, pretrained: bool | str, stem: str, classes: int) -> None:
    """torchvision's weights; a stem or a classifier of another shape keeps its fresh draw."""
    if pretrained is not True and pretrained not in every.__members__:
        raise UsageError(f"there are no weights {pretrained!r}; there are: {', '.join(every.__members__)}")
    weights = every.DEFAULT if pretrained is True else every[pretrained]
    ours = {key: w.shape for key, w in net.state_dict().items()}
    fresh = {key for key, shape in ours.items() if shape[:1] == (classes,)}
    load_pretrained(net, weights, fresh | {f"{stem}.weight"})


def torchvision_options(name: str) -> tuple[ModelOption, ...]:
    said = "Begin with torchvision's weights, the newest, or those of a name, as IMAGENET1K_V1."
    return options_of(lambda: torchvision_network(name, _SMALL, {}), said)
