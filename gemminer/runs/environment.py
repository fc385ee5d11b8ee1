"""The machine, the versions and the command a result was made with."""

from __future__ import annotations

import datetime
import os
import platform
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any


def versions() -> dict[str, str]:
    """Versions of the libraries a result depends on."""
    found = {"python": platform.python_version()}
    for package in ("gemminer", "torch", "torchvision", "numpy", "scikit-learn", "numba"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def hardware(device: str = "cpu", threads: int = 1) -> dict[str, Any]:
    """The processor, cores, memory and device, where the system reports them."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        named = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        cpu = named[0].split(":", 1)[1].strip() if named else cpu
    memory = None
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        memory = round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    return {"cpu": cpu, "cores": os.cpu_count(), "threads": threads, "device": device, "memory_gib": memory}


def git_revision() -> str | None:
    """The commit of the checkout this runs in, with '+' where it has changes; None outside one."""
    try:
        run = subprocess.run(
            ["git", "describe", "--always", "--dirty=+", "--abbrev=12"],
            capture_output=True,
            text=True,
            timeout=5,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return run.stdout.strip() if run.returncode == 0 else None


def now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def command() -> str:
    """The command line of this process: the program's name, and paths relative to the current folder.

    A record is shown to others; an absolute path would tell them about somebody's machine, not about the run.
    """
    program, *arguments = sys.argv
    name = Path(program).name
    name = Path(program).parent.name if name == "__main__.py" else name
    # A name that is no text in this system's encoding comes in as lone surrogates, which no file of text may hold.
    arguments = [os.fsencode(text).decode(errors="replace") for text in arguments]
    return " ".join([name, *(without_places(text) for text in arguments)])


# --flag=PATH, option=PATH, KIND:PATH@SIZE; a drive's letter is no kind.
_ARGUMENT = re.compile(r"((?:[\w.-]+=)?(?:[a-z][\w-]+:)?)(.*?)((?:@\d+)?)", re.DOTALL)


def without_places(argument: str, folder: Path | None = None) -> str:
    """An argument with its absolute paths, if any, relative to `folder`, by default the current one.

    A path in the folder above becomes ../NAME; of one further away only the name is left.

    >>> without_places("--data=folder:/home/jane/lottery/images@32", Path("/home/jane/lottery"))
    '--data=folder:images@32'
    >>> without_places("/scratch/jane/mnist", Path("/home/jane/lottery"))
    'mnist'
    """
    here = Path.cwd() if folder is None else folder

    def relative(part: str) -> str:
        head, text, size = _ARGUMENT.fullmatch(part).groups()  # type: ignore[union-attr]
        path = Path(text)
        if not path.is_absolute() or text.startswith("//"):  # "//": of an address
            return part
        if path.is_relative_to(here):
            place = path.relative_to(here).as_posix()
        elif len(here.parts) > 2 and path.is_relative_to(here.parent):
            place = f"../{path.relative_to(here.parent).as_posix()}".removesuffix("/.")
        else:
            place = path.name
        return f"{head}{place}{size}"

    return ",".join(map(relative, argument.split(",")))
