"""What a network lets one choose: its options as rows, from a table or from a signature."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from gemminer.core.errors import UsageError, in_words

# The names under which a constructor may take the sizes of the data. The first that is there is given.
SIZES = {
    "in_channels": ("in_channels", "in_chans", "num_channels"),
    "classes": ("classes", "num_classes", "num_labels"),
    "image_size": ("image_size", "img_size"),
}


class ModelOption(NamedTuple):
    """An option of a network: its default, a sentence about it, and its choices or range."""

    name: str
    default: Any
    sentence: str
    choices: tuple[Any, ...] = ()
    range: str = ""


def parameters(made: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """What a class or function may be called with by name; `**others` is in it under its name."""
    try:
        found = inspect.signature(made).parameters
    except (TypeError, ValueError):  # a builtin without one
        return {}
    hidden = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.VAR_POSITIONAL)
    return {name: p for name, p in found.items() if p.kind not in hidden}


def taken(made: Callable[..., Any], sizes: Mapping[str, int]) -> dict[str, int]:
    """The sizes of the data that a class or function takes, under its own names for them.

    >>> taken(lambda in_channels, num_classes=1000: None, {"in_channels": 1, "classes": 10, "image_size": 8})
    {'in_channels': 1, 'num_classes': 10}
    """
    known = parameters(made)
    names = {size: next((alias for alias in SIZES[size] if alias in known), None) for size in sizes}
    return {name: sizes[size] for size, name in names.items() if name is not None}


def rows(made: Callable[..., Any], sentence: str) -> tuple[ModelOption, ...]:
    """The options in a signature: what is no size of the data and has a plain default, or none."""
    sizes = {alias for aliases in SIZES.values() for alias in aliases}
    found = []
    for name, p in parameters(made).items():
        needed = p.default is inspect.Parameter.empty
        plain = needed or p.default is None or isinstance(p.default, (bool, int, float, str))
        if name not in sizes and plain and p.kind is not inspect.Parameter.VAR_KEYWORD:
            default = None if needed else p.default
            choices = (True, False) if isinstance(default, bool) else ()
            found.append(ModelOption(name, default, sentence, choices, "needed" if needed else ""))
    return tuple(found)


def bound(made: Callable[..., Any], name: str, given: Mapping[str, Any]) -> None:
    """Raise UsageError, naming the option at fault, where a class or function cannot be called with what is given."""
    known = parameters(made)
    if not known or any(p.kind is inspect.Parameter.VAR_KEYWORD for p in known.values()):
        return
    if strange := [key for key in given if key not in known]:
        raise UsageError(f"{name} has no option {strange[0]!r}; it has: {', '.join(known) or 'none'}")
    lacking = [key for key, p in known.items() if p.default is inspect.Parameter.empty and key not in given]
    if lacking:
        raise UsageError(f"{name} needs {lacking[0]!r}: give --model-option {lacking[0]}=VALUE")


def refused(name: str, error: BaseException) -> UsageError:
    """The sentence about a network of a library that raised as it was made."""
    return UsageError(f"{name} cannot be made: {in_words(error)}")
