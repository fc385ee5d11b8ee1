"""What a call from Python shows: its progress while it runs, and its page. Imports what that needs when it is asked."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any, ParamSpec, TypeVar

from gemminer.core.progress import Monitor
from gemminer.runs.called import Call

P = ParamSpec("P")
T = TypeVar("T")


@contextlib.contextmanager
def told_of(monitor: Monitor | None, progress: bool) -> Iterator[Monitor]:
    """Who is told of the progress: the monitor, what shows it, or both; the user's monitor is the user's to close."""
    if not progress:
        yield monitor or Monitor()
        return
    from gemminer.reporting.terminal import beside

    with beside(monitor) as told:
        yield told


def shown(call: Callable[P, T]) -> Callable[P, T]:
    """The same call, with its `progress` shown."""

    @functools.wraps(call)
    def seen(*args: P.args, **given: P.kwargs) -> T:
        monitor: Any = given.get("monitor")
        with told_of(monitor, bool(given.get("progress"))) as given["monitor"]:
            return call(*args, **given)

    return seen


def draw_page(call: Call) -> None:
    """Draw the page of the run in a call's folder, if there is one, and this process is to write it."""
    if call.folder is not None and call.experiment.writes:
        from gemminer.reporting.page import report

        report(call.folder.path)
