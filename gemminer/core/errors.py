"""The errors raised when the caller, a file or the data is at fault: one sentence each, saying what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


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


def unknown(kind: str, name: object, known: Iterable[str]) -> UsageError:
    """The error for a name that is not in a list, naming the nearest known one.

    >>> str(unknown("method", "snp", ["snip", "grasp"]))
    "unknown method 'snp'; did you mean 'snip'? Known: grasp, snip"
    """
    known = sorted(known)
    near = difflib.get_close_matches(str(name), known, n=1)
    hint = f"; did you mean {near[0]!r}? Known: " if near else "; known: "
    return UsageError(f"unknown {kind} {str(name)!r}{hint}{', '.join(known)}")


def in_words(error: BaseException) -> str:
    """An error of another library in part of a sentence: its kind and the first line of its text.

    >>> in_words(KeyError("shape")), in_words(ValueError())
    ("KeyError: 'shape'", 'ValueError')
    """
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0].rstrip('.')}" if lines else type(error).__name__
