"""The search for the smallest ticket as Python has it, `gemminer.smallest`: its progress shown, its page written.

In a file of its own, for what an answer is made of takes a tenth of a second to import.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ParamSpec

from gemminer.reporting import smallest_page
from gemminer.reporting.calls import shown
from gemminer.runs import seeking
from gemminer.runs.answer import Smallest

P = ParamSpec("P")


def _answered(call: Callable[P, Smallest]) -> Callable[P, Smallest]:
    """The same call, with `progress` shown and a page in the folder `out`."""
    running = shown(call)

    @functools.wraps(call)
    def seen(*args: P.args, **given: P.kwargs) -> Smallest:
        found = running(*args, **given)
        out: Any = given["out"]
        smallest_page.write(out)
        return found

    return seen


smallest = _answered(seeking.smallest)
