"""Whose a file is: known by what stands in it, never by its name.

What gemminer writes says so: `gemminer` in the metadata of tensors and ONNX files, a schema in JSON and archives, a
file in an exported program, a page's title, the head of a table. Everything else, links included, is somebody's, and no
command replaces or deletes it.
"""

from __future__ import annotations

import re
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path

from gemminer.core.errors import UsageError
from gemminer.core.files import read_json

_HEAD = 2**16  # bytes that are looked at
_SCHEMA = re.compile(rb'"schema": ?"gemminer\.[a-z]+/\d+"')
_TABLES = (b"cell,data,model,", b"data,model,density,method,", b"model,data,metric,method,", b"## Over seeds\n")
NOTE = "gemminer.json"  # the file in the archive of an exported program that says what it is of
VERSION = "gemminer_version"  # the first of the metadata that end an ONNX file
_WORDS = b"Density is the fraction of weights kept."  # how the Markdown beside a page ends


def ours(path: Path) -> bool:
    """Whether gemminer wrote a file; False for a link, a folder, a device and what cannot be read.

    >>> ours(Path("/dev/null"))
    False
    """
    try:
        if path.is_symlink() or not path.is_file():
            return False
        with path.open("rb") as file:
            head = file.read(_HEAD)
            size = file.seek(0, 2)
            file.seek(max(0, size - 512))
            end = file.read()
    except OSError:
        return False
    if head in (b"", b"\n"):  # a table, or a list of epochs, without rows
        return path.suffix == (".csv" if head else ".jsonl")
    if head.startswith((b"{", b"[")):
        return bool(_SCHEMA.search(head)) or _rows(head)
    if head.startswith(b"\x1f\x8b"):
        return bool(_SCHEMA.search(_inflated(head)))
    if head[:15].lower() == b"<!doctype html>":
        return b"gemminer</title>" in head
    if head.startswith(b"\x08") and VERSION.encode() in end:  # the first field of an ONNX file, and the last
        return True
    return head.startswith(_TABLES) or _WORDS in end or _tensors(path, head)


def _rows(head: bytes) -> bool:
    """Whether the head is of epochs or finished steps, an object a line; a kill may have cut the last one short."""
    lines = head.split(b"\n")
    try:
        first = read_json(lines[0])
    except ValueError:
        begun = (b'{"phase": "', b'{"step": "')
        return len(lines) == 1 and any(head.startswith(text) or text.startswith(head) for text in begun)
    return isinstance(first, dict) and (
        (isinstance(first.get("phase"), str) and type(first.get("epoch")) is int)
        or (isinstance(first.get("step"), str) and isinstance(first.get("result"), dict))
    )


def _inflated(head: bytes) -> bytes:
    try:
        return zlib.decompressobj(wbits=31).decompress(head, _HEAD)
    except zlib.error:
        return b""


def _tensors(path: Path, head: bytes) -> bool:
    """Whether the file holds tensors with gemminer's facts in their metadata, a checkpoint or a noted program."""
    if head.startswith(b"PK\x03\x04"):
        return b"/data.pkl" in head or _noted(path)
    size = int.from_bytes(head[:8], "little")
    try:
        if size > _HEAD:
            if size > path.stat().st_size:
                return False
            with path.open("rb") as file:
                head = file.read(8 + size)
        facts = read_json(head[8 : 8 + size])["__metadata__"]
    except (OSError, ValueError, TypeError, KeyError):
        return False
    return isinstance(facts, dict) and "gemminer" in facts


def _noted(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith(f"/{NOTE}") for name in archive.namelist())
    except (OSError, ValueError, NotImplementedError, zipfile.BadZipFile):
        return False


def refuse_foreign(paths: Iterable[Path], option: str = "--out") -> None:
    """Raise UsageError, before anything is written, for a path where something stands that gemminer did not write."""
    for path in paths:
        if is_there(path) and not ours(path):
            raise UsageError(f"{path} was not written by gemminer: move it away, or give another place with {option}")


def is_there(path: Path) -> bool:
    """Whether anything has this name, a link that leads nowhere included."""
    try:
        return path.is_symlink() or path.exists()
    except OSError:  # too long a name, a folder that may not be read: writing there says so
        return False
