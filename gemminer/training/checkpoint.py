"""Checkpoints, from which a killed training loop is resumed."""

from __future__ import annotations

import contextlib
import math
import os
import time
import zipfile
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from gemminer.core.errors import GemminerError, UsageError, in_words
from gemminer.core.files import atomic
from gemminer.core.ownership import is_there
from gemminer.training.ranks import Ranks

FORMAT = "gemminer.checkpoint/1"
LATER = {f"rows of the {part}data" for part in ("", "validation ", "test ")}  # files of earlier versions say none


def checkpoint_seconds() -> float:
    """GEMMINER_CHECKPOINT_SECONDS, the least time between two checkpoints: 2 by default, 0 for one every epoch."""
    text = os.environ.get("GEMMINER_CHECKPOINT_SECONDS", "2")
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not seconds >= 0:
        raise UsageError(f"the environment variable GEMMINER_CHECKPOINT_SECONDS must be 0 or more, not {text!r}")
    return seconds


@dataclass
class Checkpoint:
    """A loop's checkpoint file, written at most every `every` seconds.

    Args:
        of: what it is a checkpoint of, texts by name; where it is set, a file that says something else is refused.
        free: names in which the file may say something else.
        early: write what it is of before there is anything else to keep.
        also: further facts to keep in every state.
        ranks: of several processes the first reads and writes; all of them must ask.
    """

    path: Path
    every: float = field(default_factory=checkpoint_seconds)
    last: float = 0.0
    of: Mapping[str, str] | None = None
    free: frozenset[str] = frozenset()
    early: bool = True
    also: dict[str, Any] = field(default_factory=dict)
    ranks: Ranks | None = None
    begun: bool = True  # False while the file says only what it is of

    @property
    def _mine(self) -> bool:
        return self.ranks is None or self.ranks.first

    def due(self) -> bool:
        return self._mine and time.monotonic() - self.last >= self.every

    def save(self, state: dict[str, Any]) -> None:
        state = {"format": FORMAT, "of": None if self.of is None else dict(self.of), **self.also, **state}
        if not self._mine:
            return
        # To an open file: torch keeps the system's error then; with a name it says of a full disk "unexpected pos".
        with atomic(self.path) as temporary, temporary.open("wb") as file:
            torch.save(state, file)
        self.last, self.begun = time.monotonic(), True

    def load(self) -> dict[str, Any] | None:
        """The saved state, or None where there is none; raises an error of one sentence for a file that is no such."""
        return self._load() if self.ranks is None else self.ranks.firsts(self._load)

    def _load(self) -> dict[str, Any] | None:
        if not is_there(self.path):
            return None
        if not self.path.is_file():
            what = "a folder" if self.path.is_dir() else "no ordinary file"
            raise UsageError(f"{self.path} is {what}, so it cannot hold a checkpoint: give the name of a file")
        try:
            with zipfile.ZipFile(self.path) as archive:
                _check_archive(archive, self.path.stat().st_size)
            state = torch.load(self.path, weights_only=True)
        except Exception as error:
            raise self._damaged(error) from None
        if not isinstance(state, dict) or not (state.get("format") == FORMAT or {"phase", "rule"} <= state.keys()):
            raise UsageError(f"{self.path} is not a checkpoint of gemminer: give another file")
        if self.of is not None:
            self._check(state.get("of"))
        return state

    def _check(self, theirs: Mapping[str, str] | None) -> None:
        """Raise UsageError unless the file says that it is of the same."""
        assert self.of is not None
        other = "delete it to begin anew, or give another file"
        if not theirs:
            raise UsageError(
                f"the checkpoint {self.path} is of an older version and does not say what it is of: {other}"
            )
        if differs := difference(self.of, theirs, self.free):
            raise UsageError(f"the checkpoint {self.path} is of another call ({differs}): repeat that call, {other}")

    def _damaged(self, error: Exception) -> GemminerError:
        return GemminerError(
            f"the checkpoint {self.path} is damaged ({in_words(error)}) or no checkpoint at all: give another file, or "
            "delete it to begin anew"
        )

    @contextlib.contextmanager
    def restoring(self) -> Iterator[None]:
        """Where something is restored from a loaded state: what fails there is the file's fault, in one sentence."""
        try:
            yield
        except Exception as error:
            raise self._damaged(error) from None

    @contextlib.contextmanager
    def claimed(self, of: Mapping[str, str]) -> Iterator[None]:
        """Say what the file is a checkpoint of, before anything is computed.

        Raises UsageError, and leaves the file as it is, where it is another's. A file that in the end holds nothing but
        this is removed.
        """
        self.of = dict(of)
        if self.load() is None and self.early:
            self.save({"phase": ""})
            self.last, self.begun = 0.0, False
        try:
            yield
        finally:
            if not self.begun:
                self.clear()

    def clear(self) -> None:
        if self._mine:
            self.path.unlink(missing_ok=True)


def difference(ours: Mapping[str, str], theirs: Mapping[str, str], free: Collection[str] = ()) -> str:
    """The first name in which two calls differ, with both texts; "" if there is none but those that are `free`.

    What an earlier version did not say of its call is not compared.

    >>> difference({"lr": "0.1"}, {"lr": "0.2"}), difference({"lr": "0.1"}, {"lr": "0.2"}, {"lr"})
    ('lr: 0.2 there, 0.1 here', '')
    """
    for name in [*ours, *(name for name in theirs if name not in ours)]:
        unsaid = name in LATER and not (name in ours and name in theirs)
        if name not in free and not unsaid and ours.get(name) != theirs.get(name):
            return f"{name}: {theirs.get(name, 'not set')} there, {ours.get(name, 'not set')} here"
    return ""


def _check_archive(archive: zipfile.ZipFile, size: int) -> None:
    """Raise ValueError unless its parts fit into a file of this size and have their checksums, which torch ignores."""
    if sum(part.file_size for part in archive.infolist()) > size:
        raise ValueError("it unpacks to more than it is long")
    if (part := archive.testzip()) is not None:
        raise ValueError(f"the checksum of {part} differs")
