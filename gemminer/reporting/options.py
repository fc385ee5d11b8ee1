"""Options for a person: the name, default, values and one sentence of each, from where they are defined.

The sentence is the option's line under "Args:" in the docstring of its dataclass, or of the class it is inherited from.
The bounds of a number are found by trying: an option that refuses -1 and takes 0 is "0 or more".
"""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin, get_type_hints

from gemminer.core.errors import UsageError

# Numbers that tell bounds apart: below 0, 0, just above it, inside, just below 1, 1, above it.
PROBES: dict[type, tuple[float, ...]] = {int: (-1, 0, 1, 2), float: (-1.0, 0.0, 1e-6, 0.5, 1 - 1e-6, 1.0, 2.0)}


@dataclass(frozen=True)
class Option:
    """An option in words; `choices` where it is one of several names."""

    name: str
    default: Any
    values: str
    sentence: str
    choices: tuple[Any, ...] = ()
    unset: str = "not set"  # the default in words, if it is None

    @property
    def said(self) -> str:
        """The default as it is written on the command line."""
        if isinstance(self.default, bool):
            return str(self.default).lower()
        if isinstance(self.default, (list, tuple)):
            return f"[{', '.join(map(str, self.default))}]" if self.default else "none"
        if isinstance(self.default, float):
            return f"{self.default:g}"
        return self.unset if self.default is None else str(self.default)


def of_dataclass(kind: type[Any]) -> list[Option]:
    """The options that a dataclass of settings holds, a method's or the training's."""
    sentences, hints = _inherited(kind), get_type_hints(kind)
    found = []
    for f in dataclasses.fields(kind):
        choices = get_args(hints[f.name]) if get_origin(hints[f.name]) is Literal else ()
        values = one_of(choices) or _values(kind, f.name, hints[f.name])
        found.append(Option(f.name, _default(f), values, sentences.get(f.name, ""), choices))
    return found


def of_model(name: str) -> list[Option]:
    """The options of a network."""
    from gemminer import models

    return [
        Option(o.name, o.default, one_of(o.choices) or o.range, o.sentence, o.choices) for o in models.options(name)
    ]


# --- sentences ---------------------------------------------------------------------------------------------------


def _inherited(kind: type[Any]) -> dict[str, str]:
    found: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        if dataclasses.is_dataclass(base):
            found |= arguments(base)
    return found


def arguments(documented: type[Any] | Callable[..., Any]) -> dict[str, str]:
    """The first sentence of each name under "Args:" in the object's docstring, without names of Python."""
    lines = inspect.cleandoc(documented.__doc__ or "").splitlines()
    if "Args:" not in lines:
        return {}
    found: dict[str, str] = {}
    names: list[str] = []
    for line in lines[lines.index("Args:") + 1 :]:
        if line and not line.startswith(" "):
            break
        if match := re.match(r" {4}(\w+(?:, \w+)*): (.*)", line):
            names = match[1].split(", ")
            found |= dict.fromkeys(names, match[2])
        elif line.strip():
            found |= {name: f"{found[name]} {line.strip()}" for name in names}
    return {name: first_sentence(plain(text)) for name, text in found.items()}


def plain(text: str) -> str:
    """A sentence for a user of the command line: names in backticks are dropped if in brackets, else unquoted.

    >>> plain("scaled to one size (`rule.RATE`), so that `lr` need not be tuned")
    'scaled to one size, so that lr need not be tuned'
    """
    return re.sub(r"\s*\(`[^`]*`\)", "", text).replace("`", "")


def first_sentence(text: str) -> str:
    """The first sentence of a text, with a capital and a full stop.

    >>> first_sentence("0 freezes nothing. Not given, 5 is meant.")
    '0 freezes nothing.'
    """
    first = re.split(r"(?<=[.])\s+(?=[A-Z])", text, maxsplit=1)[0].strip()
    return first[:1].upper() + first[1:] + ("" if first.endswith(".") else ".")


# --- values ------------------------------------------------------------------------------------------------------


def _default(field: dataclasses.Field[Any]) -> Any:
    made = field.default_factory
    return field.default if made is dataclasses.MISSING else made()


def _values(kind: type[Any], name: str, hint: Any) -> str:
    kinds = [t for t in get_args(hint) or (hint,) if t is not type(None)]
    if bool in kinds:
        return one_of((True, False))
    if get_origin(hint) is tuple:
        return "a list, as [80, 120]"
    found = next((t for t in kinds if t in PROBES), None)
    return "text" if found is None else interval(found, _taken(kind, name, found))


def one_of(values: Iterable[Any]) -> str:
    """
    >>> one_of(["sgd", "adam"]), one_of((True, False))
    ('sgd | adam', 'true | false')
    """
    return " | ".join(str(v).lower() if isinstance(v, bool) else str(v) for v in values)


def _taken(kind: type[Any], name: str, number: type) -> Iterator[float]:
    """The probes that the option accepts with every choice of the other options: some matter with one choice only."""
    names = {n: get_args(h) for n, h in get_type_hints(kind).items() if get_origin(h) is Literal}
    choices = [{}, *({n: c} for n, values in names.items() for c in values)]
    possible = [choice for choice in choices if _can_be(kind, choice)]
    yield from (value for value in PROBES[number] if all(_can_be(kind, {**c, name: value}) for c in possible))


def _can_be(kind: type[Any], fields: dict[str, Any]) -> bool:
    try:
        kind(**fields)
    except UsageError:
        return False
    return True


def interval(number: type, taken: Iterable[float]) -> str:
    """The bounds of a number in words, from the probes that were accepted.

    >>> interval(float, (0.0, 1e-6, 0.5, 1 - 1e-6)), interval(int, (1, 2)), interval(float, (1e-6, 0.5, 1 - 1e-6, 1.0))
    ('0 to below 1', '1 or more', 'above 0, at most 1')
    """
    found = set(taken)
    noun = "a whole number" if number is int else "a number"
    if not found or -1 in found:
        return noun
    low = min(found)
    below = "" if 2 in found else "below 1" if 1 not in found else "at most 1"
    if low in (0, 1):
        if not below:
            return f"{low:g} or more"
        return f"{low:g} to {below.removeprefix('at most ')}" if low == 0 else f"{low:g}"
    if low == 2:
        return noun
    return f"above 0, {below}" if below else "above 0"
