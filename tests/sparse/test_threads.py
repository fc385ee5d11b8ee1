"""Threads: PyTorch's make way for ours, errors come back, a forked child has its own."""

from __future__ import annotations

import ctypes
import os
import threading

import pytest

from gemminer.sparse import threads


def test_pytorchs_waiting_threads_are_ended_before_ours_start(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    monkeypatch.setattr(threads, "_pause", lambda: calls.append)
    found: dict[int, int] = {}
    threads.run_on_threads(lambda t: found.update({t: threading.get_ident()}), 3)
    assert sorted(found) == [0, 1, 2]
    assert len(set(found.values())) == 3
    assert found[0] == threading.get_ident()
    assert calls == [1]
    threads.run_on_threads(lambda t: None, 1)
    assert calls == [1], "one thread has nobody to make way for"
    monkeypatch.undo()

    def no_library(path: str) -> None:
        raise OSError

    monkeypatch.setattr(ctypes, "CDLL", no_library)
    threads._pause.cache_clear()
    assert threads._pause()(1) == 0
    threads._pause.cache_clear()


def test_a_threads_error_is_raised_and_the_next_launch_runs() -> None:
    def fail(t: int) -> None:
        if t == 1:
            raise ZeroDivisionError("thread 1")

    with pytest.raises(ZeroDivisionError, match="thread 1"):
        threads.run_on_threads(fail, 2)
    done: list[int] = []
    threads.run_on_threads(done.append, 2)
    assert sorted(done) == [0, 1]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Python 3.12 on: threads and fork
def test_a_forked_child_has_threads_of_its_own() -> None:
    threads.run_on_threads(lambda t: None, 2)
    if (child := os.fork()) == 0:
        done: list[int] = []
        threads.run_on_threads(done.append, 2)
        os._exit(0 if sorted(done) == [0, 1] else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
