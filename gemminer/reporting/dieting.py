"""A data diet as Python has it, `gemminer.scores` and `gemminer.instability`: their progress shown.

In a file of its own, for a progress bar takes a tenth of a second to import.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from gemminer.reporting.calls import told_of
from gemminer.runs import connectivity, dieting

P = ParamSpec("P")
T = TypeVar("T")


def _shown(call: Callable[P, T]) -> Callable[P, T]:
    """The same call, with `progress` shown."""

    @functools.wraps(call)
    def seen(*args: P.args, **given: P.kwargs) -> T:
        monitor: Any = given.get("monitor")
        with told_of(monitor, bool(given.get("progress"))) as given["monitor"]:
            return call(*args, **given)

    return seen


scores = _shown(dieting.scores)
instability = _shown(connectivity.instability)
