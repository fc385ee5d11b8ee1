"""Plain Python values of what users give: seed 1 is seed 1, be it a Python, NumPy or PyTorch number.

Neither is imported: recipes are light.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from gemminer.core.errors import UsageError


def plain(value: Any) -> Any:
    """The value with NumPy's and PyTorch's numbers as Python's, also inside dictionaries, lists and tuples.

    An array or tensor without dimensions is its number, one with dimensions a list. Anything else is left as it is.

    >>> import numpy as np
    >>> plain({"seed": np.int64(1), "milestones": (np.array(2), 3)})
    {'seed': 1, 'milestones': (2, 3)}
    """
    if callable(getattr(value, "tolist", None)) and hasattr(value, "ndim") and hasattr(value, "dtype"):
        return value.tolist()  # of what has no dimension: the number
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(plain(item) for item in value)
    return value


def whole(what: str, value: Any, least: int | None = None, below: int | None = None) -> int:
    """A whole number as an int; raises UsageError for anything else, booleans too.

    >>> whole("seed", 3)
    3
    """
    number = plain(value)
    fits = isinstance(number, int) and not isinstance(number, bool)
    if not fits or (least is not None and number < least) or (below is not None and number >= below):
        bound = "" if least is None else f" of at least {least}"
        bound += "" if below is None or not fits or number < below else f" and below {below}"
        raise UsageError(f"{what} must be a whole number{bound}, not {shown(number)}")
    return int(number)


def fraction(what: str, value: Any) -> float:
    """A number above 0 and at most 1 as a float; raises UsageError for anything else, booleans too."""
    number = plain(value)
    if isinstance(number, bool) or not isinstance(number, (int, float)) or not 0 < number <= 1:
        raise UsageError(f"{what}, above 0 and at most 1; {shown(number)} is not")
    return float(number) if isinstance(number, float) else number


def seed_of(value: Any) -> int:
    """A seed as an int, 0 or more and below 2^63."""
    return whole("seed", value, least=0, below=2**63)


def strings(what: str, value: Any) -> tuple[str, ...]:
    """A sequence of strings as a tuple, one string as a tuple of it; raises UsageError for anything else.

    >>> strings("exclude", "head.*")
    ('head.*',)
    """
    if isinstance(value, str):
        return (value,)
    if isinstance(value, Mapping) or not hasattr(value, "__iter__"):
        raise UsageError(f"{what} must be a string or a list of strings, not {shown(value)}")
    found = tuple(plain(list(value)))
    if odd := [one for one in found if not isinstance(one, str)]:
        raise UsageError(f"{what} must be a string or a list of strings; {shown(odd[0])} is none")
    return found


def options(where: str, fields: Mapping[str, Any], types: Mapping[str, str]) -> dict[str, Any]:
    """Plain values of options; raises UsageError for a boolean where a number is wanted.

    Args:
        types: the annotation of each option, as text.
    """
    found = {name: plain(value) for name, value in fields.items()}
    for name, value in found.items():
        wanted = types.get(name, "")
        if isinstance(value, bool) and "bool" not in wanted and ("int" in wanted or "float" in wanted):
            raise UsageError(f"{name} of {where} must be a number, not {value}")
        if isinstance(value, float) and math.isnan(value):
            raise UsageError(f"{name} of {where} must be a number, not nan")
    return found


def shown(value: Any) -> str:
    """A value in a sentence: short, and never a whole array."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else f"a {type(value).__name__}"


Strings = str | Sequence[str]
