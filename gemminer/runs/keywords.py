"""What the calls from Python take by keyword: a name that one does not take is refused before anything is computed."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ParamSpec, TypeVar

from gemminer import methods
from gemminer.core.errors import UsageError, unknown
from gemminer.training.settings import Settings

P = ParamSpec("P")
T = TypeVar("T")
METHOD = "gem-miner"  # where none is asked for
Options = Callable[[Mapping[str, Any]], tuple[str, Iterable[str]]]
_CALLS: dict[str, frozenset[str]] = {}  # the parameters that each call has of its own


def takes(name: str, options: Options) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Decorator of a call `name` that takes options by keyword beside its own parameters.

    The call then raises UsageError for a keyword that is neither, naming the one that was meant out of all that it
    takes, or of what other calls take: also where, of what it must have, it was given nothing by the right name. For
    what it must have and was not given, and for more by position than it takes, it raises one as well.

    Args:
        options: the keywords that are given -> (whose options they may be besides, in words, and their names).
    """

    def decorated(call: Callable[P, T]) -> Callable[P, T]:
        signature = inspect.signature(call)
        named = signature.parameters.values()
        needed = [p.name for p in named if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD]
        needed += [p.name for p in named if p.default is p.empty and p.kind is p.KEYWORD_ONLY]
        own = frozenset(p.name for p in named if p.kind is not p.VAR_KEYWORD) - {"self"}
        _CALLS[name] = own

        @functools.wraps(call)
        def checked(*args: P.args, **given: P.kwargs) -> T:
            require_taken(name, given, options)
            try:
                bound = signature.bind_partial(*args, **given).arguments
            except TypeError as error:  # too many, or one of them twice
                raise UsageError(f"{name}: {error}; give them by keyword") from None
            if missing := [parameter for parameter in needed if parameter not in bound]:
                own = ", ".join(parameter for parameter in needed if parameter != "self")
                raise UsageError(f"{name} was not given {' and '.join(missing)}: it needs {own}")
            return call(*args, **given)

        return checked

    return decorated


def require_taken(name: str, given: Mapping[str, Any], options: Options) -> None:
    """Raise UsageError for a keyword that is neither a parameter of the call `name` nor one of these options."""
    if not given.keys() <= _CALLS[name]:
        whose, also = options(given)
        known = {*_CALLS[name], *also}
        for keyword in given:
            if keyword not in known:
                within = inside(given.get("method")) if "train" in known else {}
                raise unknown(f"argument of {name}{whose}", keyword, known, _others(name) | within)


def _others(name: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for call, own in _CALLS.items():
        if call != name:
            for parameter in own:
                found.setdefault(parameter, f"{parameter!r} of {call}")
    return found


def inside(method: Any = None) -> dict[str, str]:
    """The names inside train and options, of a recipe or of `smallest` -> how they are said in a sentence."""
    row = methods.get(method if isinstance(method, str) and method in methods.names() else METHOD)
    found = {field.name: f"{field.name!r} of train" for field in dataclasses.fields(Settings)}
    for field in dataclasses.fields(row.options):
        own = f"{field.name!r} of options"
        found[field.name] = f"{found[field.name]}, or {own} for the search" if field.name in found else own
    return found


def of_method(given: Mapping[str, Any]) -> tuple[str, Iterable[str]]:
    """The options of the method that is asked for."""
    row = methods.get(given.get("method", METHOD))
    return f" with {row.name}", [field.name for field in dataclasses.fields(row.options)]


def of_training(given: Mapping[str, Any]) -> tuple[str, Iterable[str]]:
    """The settings of a training."""
    return "", [field.name for field in dataclasses.fields(Settings)]


def of_comparison(given: Mapping[str, Any]) -> tuple[str, Iterable[str]]:
    """How the cells of a comparison are run."""
    from gemminer.runs import compare  # here, for what runs cells takes a tenth of a second to import

    named = inspect.signature(compare.run_cells).parameters.values()
    where = [field.name for field in dataclasses.fields(compare.Where)]
    return "", [*(p.name for p in named if p.kind is p.KEYWORD_ONLY), *where]
