"""The errors raised when the caller, a file or the data is at fault: one sentence each, saying what to do."""

from __future__ import annotations

import sysconfig
import traceback
from collections.abc import Iterable, Mapping
from pathlib import Path

from gemminer.core.spelling import nearest, relation


class GemminerError(Exception):
    """Something outside the code is wrong (data, a file, the disk). Its text is one sentence for a person."""


class UsageError(GemminerError, ValueError):
    """The caller asked for something that cannot be: a density out of range, an unknown name.

    The command line prints the sentence and exits with code 2.
    """


class Diverged(GemminerError):
    """The loss is not finite: the same training would only fail in the same way."""


class Stopped(GemminerError):
    """The person stopped the work (Ctrl-C). Its text says what was done and how to go on."""


MANY = 20  # names that a sentence lists beside a suggestion; more would hide it


def unknown(kind: str, name: object, known: Iterable[str], elsewhere: Mapping[str, str] | None = None) -> UsageError:
    """The error for a name that is not in a list, naming the one that was meant if that can be told.

    Args:
        elsewhere: names that stand in another place -> how they are written there; suggested, not listed.

    >>> str(unknown("method", "snp", ["snip", "grasp"]))
    "unknown method 'snp'; did you mean 'snip'? Known: grasp, snip"
    >>> str(unknown("argument", "sparsity", ["density"]))
    "unknown argument 'sparsity'; did you mean 'density' (density = 1 - sparsity)? Known: density"
    """
    given, known, elsewhere = str(name), sorted(known), dict(elsewhere or {})
    text = f"unknown {kind} {given!r}"
    near = nearest(given, [*known, *(other for other in elsewhere if other not in known)])
    if near is None:
        return UsageError(f"{text}; known: {', '.join(known)}")
    how = repr(near) if near in known else elsewhere[near]
    how += f" ({of})" if (of := relation(given, near)) else ""
    listed = f" Known: {', '.join(known)}" if len(known) <= MANY else ""
    return UsageError(f"{text}; did you mean {how}?{listed}")


def in_words(error: BaseException) -> str:
    """An error of another library in part of a sentence: its kind and the first line of its text.

    >>> in_words(KeyError("shape")), in_words(ValueError())
    ("KeyError: 'shape'", 'ValueError')
    """
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0].rstrip('.')}" if lines else type(error).__name__


# Where no code of the caller's own is: this package, Python's library, and what is installed beside it.
_INSTALLED = (str(Path(__file__).parents[1]), *map(sysconfig.get_path, ("stdlib", "purelib", "platlib")), "<frozen")


def cause(error: BaseException) -> BaseException | None:
    """The error where the caller's own code raised it or is on its way, else None: `raise ... from cause(error)`.

    What PyTorch raised inside its own layers adds forty lines before our sentence, which says it already.
    """
    frames = traceback.walk_tb(error.__traceback__)
    own = any(not frame.f_code.co_filename.startswith(_INSTALLED) for frame, _ in frames)
    return error if own else None
