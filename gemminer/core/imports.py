"""Objects that a user names as package.module:name: imported, or one sentence why not."""

from __future__ import annotations

import contextlib
import importlib
import operator
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gemminer.core.errors import GemminerError, UsageError, cause, in_words


@contextlib.contextmanager
def others_code() -> Iterator[None]:
    """Where a user's code runs: the current folder's modules are found, as by `python -m`; what it prints is no result.

    It prints to stderr, since stdout belongs to --json.
    """
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        if here in sys.path:
            sys.path.remove(here)


def imported(name: str, what: str) -> Any:
    """The object of the name package.module:name; inside `others_code`.

    Args:
        what: what it is to be, for the sentence: "data function".

    Raises:
        UsageError: there is no such module or name, or the module raises as it is imported.

    >>> imported("math:pi", "number")
    3.141592653589793
    """
    module, _, attribute = name.partition(":")
    if not all(part.isidentifier() for part in [*module.split("."), *attribute.split(".")]):
        raise UsageError(f"the {what} {name!r} cannot be imported: it is no package.module:name")
    try:
        return operator.attrgetter(attribute)(importlib.import_module(module))
    except GemminerError:
        raise
    except (Exception, SystemExit) as error:
        said = str(error) if isinstance(error, (ImportError, AttributeError)) and str(error) else failure(error)
        raise UsageError(f"the {what} {name!r} cannot be imported: {said.splitlines()[0]}") from cause(error)


def failure(error: BaseException) -> str:
    """What a user's code raised, and where: "NameError: name 'x' is not defined (nets.py, line 3)"."""
    said = in_words(error)
    frames = traceback.extract_tb(error.__traceback__)
    theirs = [f for f in frames if not f.filename.startswith(("<frozen", __file__))]
    if isinstance(error, SyntaxError) or not theirs:
        return said
    return f"{said} ({Path(theirs[-1].filename).name}, line {theirs[-1].lineno})"
