"""Ctrl-C and SIGTERM of the program `gemminer`: one line and 130 (143) at any moment, also while imports run.

The package installs this first, before PyTorch is imported, and only where it is the program and not a library. A run
may be killed anywhere without harm (its folder is whole), so the second signal ends the process at once, and so does
one that comes while a module is imported, where a KeyboardInterrupt may be swallowed or turned into another error.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from types import FrameType
from typing import Any, NoReturn

PATIENCE = 10.0  # seconds for an orderly end after the first signal
AGAIN = "stopped; a run goes on with --resume, a comparison with the same command"
_LINES = {False: "stopped before anything was done", True: AGAIN}


class _State:
    owner = 0  # the process that installed it; forked children have Python's own behaviour
    running = False
    got = 0


def is_program(argv: list[str] | None = None) -> bool:
    """Whether this process is the console script or `python -m gemminer`, and no worker of one.

    >>> is_program(["/usr/bin/python3", "/usr/bin/gemminer", "mine"]), is_program(["python3", "-m", "gemminer"])
    (True, True)
    >>> is_program(["python3", "train.py"]), is_program(["python3", "-c", "import gemminer"])
    (False, False)
    """
    given = sys.orig_argv if argv is None else argv
    if "--multiprocessing-fork" in given:
        return False
    if "-m" in given and given[given.index("-m") + 1 :][:1] in (["gemminer"], ["gemminer.cli"]):
        return True
    scripts = ("gemminer", "gemminer.exe", "gemminer-script.py")
    return any(os.path.basename(text) in scripts for text in given[:4])  # noqa: PTH119 - nothing is imported before


def install() -> None:
    """Take the signals, where this is the program; one that is ignored (nohup) stays so."""
    if not is_program() or threading.current_thread() is not threading.main_thread():
        return
    try:
        os.getcwd()  # noqa: PTH109
    except OSError as error:  # PyTorch's libraries would end the process with words about themselves
        sys.stderr.write(f"gemminer: the current folder cannot be used ({error.strerror}): change to another\n")
        sys.exit(2)
    _State.owner = os.getpid()
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _stop)
    sys.unraisablehook = _unraisable


def begin() -> None:
    """What is needed is imported: from now on a signal raises KeyboardInterrupt."""
    _State.running = True


def end() -> None:
    """The work is done: a signal while the interpreter ends changes nothing any more."""
    if _State.owner == os.getpid():
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)


def stopped() -> bool:
    """Whether a signal has come."""
    return bool(_State.got)


def code() -> int:
    """The exit code: 130 for Ctrl-C, 143 for SIGTERM."""
    return 128 + (_State.got or signal.SIGINT)


def _stop(number: int, frame: FrameType | None) -> None:
    if os.getpid() != _State.owner:
        raise KeyboardInterrupt
    again, _State.got = bool(_State.got), number
    if again or not _State.running or _importing(frame):
        _now()
    watch = threading.Timer(PATIENCE, _now)
    watch.daemon = True
    watch.start()
    raise KeyboardInterrupt


def _importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


def _now() -> NoReturn:
    """End the process with its line; a live display had hidden the cursor."""
    show = "\x1b[?25h\r\x1b[K" if sys.stderr is not None and sys.stderr.isatty() else ""
    try:
        os.write(2, f"{show}gemminer: {_LINES[_State.running]}\n".encode())
    finally:
        os._exit(code())


def _unraisable(error: Any) -> None:
    """A Ctrl-C that nobody can catch, in a finaliser or a callback, would print a traceback and be forgotten."""
    if isinstance(error.exc_value, KeyboardInterrupt) and os.getpid() == _State.owner:
        _now()
    sys.__unraisablehook__(error)
