"""Networks from elsewhere by name: timm:NAME, torchvision:NAME, hf:NAME, and package.module:Net of one's own.

A name of one's own is code that runs: it is imported where a network is built or described, and nowhere else. Reading a
record, a ticket or a page never imports it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from torch import nn

from gemminer.core.errors import GemminerError, UsageError, cause
from gemminer.core.imports import failure, imported, others_code
from gemminer.core.randomness import seed_globals
from gemminer.models import collections, huggingface
from gemminer.models.choices import ModelOption, bound, rows, taken

Build = Callable[[str, Mapping[str, int], Mapping[str, Any]], nn.Module]


class Source(NamedTuple):
    """A row of the table of prefixes.

    Args:
        text: about its networks, a line.
        build: (name, sizes of the data, options) -> network.
        options: name -> the rows of its options.
        names: the names that it knows, of which a shell completes one.
        has_weights: (name, options) -> whether the network begins with weights that are to be kept.
    """

    text: str
    build: Build
    options: Callable[[str], tuple[ModelOption, ...]]
    names: Callable[[], Iterable[str]]
    has_weights: Callable[[str, Mapping[str, Any]], bool]


def _if_asked(_: str, options: Mapping[str, Any]) -> bool:
    return bool(options.get("pretrained"))


_SOURCES = {
    "timm": Source(
        "timm's; options are those of timm.create_model",
        collections.timm_network,
        collections.timm_options,
        collections.timm_names,
        _if_asked,
    ),
    "torchvision": Source(
        "torchvision's; its first convolution takes as many channels as the images have",
        collections.torchvision_network,
        collections.torchvision_options,
        collections.torchvision_names,
        _if_asked,
    ),
    "hf": Source(
        "a classifier of transformers: hf:vit from its configuration, hf:./FOLDER or hf:ID with its weights",
        huggingface.transformers_network,
        huggingface.transformers_options,
        huggingface.kinds,
        huggingface.has_weights,
    ),
}
PREFIXES = tuple(f"{prefix}:" for prefix in _SOURCES)
OTHERS = (*(f"{prefix}NAME" for prefix in PREFIXES), "package.module:Net")  # in words


def is_elsewhere(name: object) -> bool:
    """Whether a name is of one of these kinds."""
    return isinstance(name, str) and ":" in name


def source_of(name: str) -> tuple[Source, str]:
    """The row of a name, and the name without its prefix; UsageError for nothing behind the prefix.

    >>> source_of("timm:resnet18")[1], source_of("package.module:Net")[1]
    ('resnet18', 'package.module:Net')
    """
    prefix, _, own = name.partition(":")
    if prefix not in _SOURCES:
        return _OWN, name
    if not own:
        raise UsageError(f"{name} names no network: write {prefix}:NAME")
    return _SOURCES[prefix], own


# --- one's own ---------------------------------------------------------------------------------------------------


def _constructor(name: str) -> Callable[..., Any]:
    found = imported(name, "model")
    if isinstance(found, nn.Module):
        raise UsageError(f"{name} is a network that is made already: name its class, or a function that makes one")
    if not callable(found):
        raise UsageError(f"{name} is a {type(found).__name__}, not a class or function that makes a torch.nn.Module")
    made: Callable[..., Any] = found
    return made


def _own_network(name: str, sizes: Mapping[str, int], options: Mapping[str, Any]) -> nn.Module:
    with others_code():
        made = _constructor(name)
        given = {**taken(made, sizes), **options}
        bound(made, name, given)
        seed_globals(0)  # once more: a module may draw as it is imported, which it is once
        try:
            net = made(**given)
        except GemminerError:
            raise
        except (Exception, SystemExit) as error:  # whatever it raises
            raise UsageError(f"{name} cannot be made: {failure(error)}") from cause(error)
    if not isinstance(net, nn.Module):
        raise UsageError(f"{name} made a {type(net).__name__}, which is no torch.nn.Module")
    return net


def _own_options(name: str) -> tuple[ModelOption, ...]:
    with others_code():
        return rows(_constructor(name), "A parameter of its own.")


def own_text(name: str) -> str:
    """The first line of its documentation; it is imported."""
    with others_code():
        made = _constructor(name)
    own = inspect.cleandoc(made.__doc__ or "")  # not getdoc, which finds torch.nn.Module's
    return own.splitlines()[0].rstrip(".") if own else "your own network"


_OWN = Source("", _own_network, _own_options, tuple, lambda *_: False)
