"""The records of a comparison in one file, enough to draw its tables and page without its folder.

NAME.jsonl.gz is JSON lines in gzip: a head, then a line for each cell.

    {"schema": "gemminer.results/1", "command": ..., "grid": ..., "threads": ...}
    {"cell": digest, "label": method as asked for, "record": a record's fields, "curves": rows of metrics.jsonl}
    {"cell": digest, "label": ..., "error": why there is no record}

A cell that is finished later is appended as a gzip member of its own; of several records of one cell the last counts,
and a record counts before an error. A member that a kill cut short ends the file: readers skip it, and the next writer
drops it.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from gemminer.core.errors import GemminerError, UsageError
from gemminer.core.files import append_bytes, atomic, read_json, read_rows, regular
from gemminer.runs import grid, record
from gemminer.runs import recipe as recipes
from gemminer.runs.grid import Cell
from gemminer.runs.record import Record

SCHEMA = "gemminer.results/1"
NAME = "records.jsonl.gz"
_ROOM = 2**26  # bytes that a file may hold whatever its length; records are some ten times as long as packed


class Damaged(GemminerError):
    """A file of records that is damaged."""


@dataclass(frozen=True)
class Entry:
    """A cell's record, or the reason why it has none; `curves` are rows of its metrics.jsonl, if they were kept."""

    cell: str
    label: str
    record: Record | None = None
    error: str = ""
    curves: tuple[Mapping[str, Any], ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """The entry's line of the file, as JSON values."""
        if self.record is None:
            return {"cell": self.cell, "label": self.label, "error": self.error}
        found = json.loads(self.record.to_json())
        line = {"cell": self.cell, "label": self.label, "record": found}
        return {**line, "curves": list(self.curves)} if self.curves else line


@dataclass(frozen=True)
class Archive:
    """The contents of a file of records.

    Args:
        command: the command that made it.
        grid: the comparison's grid, as `gemminer.runs.grid.make` takes it; None for single runs.
        threads: CPU threads of each cell.
        entries: entries by the cell's digest.
        torn: whether the end of the file was cut short.
    """

    command: str
    grid: Mapping[str, Any] | None = None
    threads: int | None = None
    entries: Mapping[str, Entry] = field(default_factory=dict)
    torn: bool = False

    @property
    def head(self) -> dict[str, Any]:
        return {"schema": SCHEMA, "command": self.command, "grid": self.grid, "threads": self.threads}

    @property
    def records(self) -> dict[str, Record]:
        """Records by the cell's digest."""
        return {digest: entry.record for digest, entry in self.entries.items() if entry.record is not None}

    @property
    def failures(self) -> dict[str, str]:
        """A sentence for each cell that has no record, by digest."""
        return {digest: entry.error for digest, entry in self.entries.items() if entry.record is None}

    def cells(self) -> list[Cell]:
        """The cells of the comparison's grid, in the order of its table; without a grid, those of the file.

        In a file of a version with other defaults, whose cells have other digests, they are known by their recipes.
        """
        if self.grid is not None:
            found = grid.make(self.grid).cells()
            if not self.entries or any(cell.digest in self.entries for cell in found):
                return found
            kept = {recipes.make(r.recipe).digest: digest for digest, r in self.records.items()}
            if any(cell.digest in kept for cell in found):
                return [_Kept(cell.label, cell.recipe, kept.get(cell.digest, cell.digest)) for cell in found]
        return [
            _Kept(e.label, recipes.make(e.record.recipe), e.cell) for e in self.entries.values() if e.record is not None
        ]


@dataclass(frozen=True)
class _Kept(Cell):
    """A cell that keeps its digest in the file, even if this version computes another."""

    kept: str = ""

    @cached_property
    def digest(self) -> str:
        return self.kept


# ---- reading ----


def read(path: str | Path) -> Archive:
    """Read a file of records; raises GemminerError with one sentence where it cannot be read or is another file."""
    try:
        packed = regular(Path(path)).read_bytes()
    except OSError as error:
        raise GemminerError(f"cannot read {path}: {error.strerror}; pass a comparison's {NAME}") from None
    text, end = _members(path, packed)
    lines = text.decode("utf-8", errors="replace").splitlines()
    head = _parsed(path, lines[0]) if lines else {}
    if head.get("schema") != SCHEMA:
        said = f"it has schema {head.get('schema')!r}; this version reads {SCHEMA!r}"
        raise GemminerError(f"{path} is not a file of gemminer's records: {said}")
    entries: dict[str, Entry] = {}
    for number, line in enumerate(lines[1:], 2):
        entry = _entry(f"line {number} of {path}", _parsed(path, line))
        if entry.record is not None or entry.cell not in entries or entries[entry.cell].record is None:
            entries[entry.cell] = entry
    torn = end < len(packed)
    found = Archive(str(head.get("command") or ""), head.get("grid"), head.get("threads"), entries, torn)
    try:
        found.cells()
    except UsageError as error:
        raise Damaged(f"{path} is damaged ({error}): run its command again") from None
    return found


def _members(path: str | Path, packed: bytes) -> tuple[bytes, int]:
    """The text of all complete gzip members, and the offset where they end."""
    found: list[bytes] = []
    end = 0
    while end < len(packed):
        member = zlib.decompressobj(wbits=31)
        room = max(_ROOM, 200 * len(packed)) - sum(map(len, found))
        try:
            text = member.decompress(memoryview(packed)[end:], room + 1)
        except zlib.error:
            if found:  # a crashed system leaves zeros in place of the last member
                break
            raise GemminerError(f"{path} is not a file of gemminer's records: it is not compressed by gzip") from None
        if len(text) > room:
            raise GemminerError(f"{path} is not a file of gemminer's records: it holds far more than it is long")
        if not member.eof:
            break
        found.append(text)
        end = len(packed) - len(member.unused_data)
    return b"".join(found), end


def _parsed(path: str | Path, line: str) -> dict[str, Any]:
    try:
        fields = read_json(line)
    except ValueError as error:
        raise Damaged(f"{path} is damaged ({error}): run its command again") from None
    return fields if isinstance(fields, dict) else {}


def _entry(where: str, line: Mapping[str, Any]) -> Entry:
    cell, label, curves = line.get("cell"), line.get("label"), line.get("curves") or []
    if not isinstance(cell, str) or not isinstance(label, str) or not isinstance(curves, list):
        raise Damaged(f"{where} is damaged (no cell, label or curves): run its command again")
    if "record" in line:
        return Entry(cell, label, record.parsed(line["record"], where), curves=tuple(curves))
    return Entry(cell, label, error=str(line.get("error") or "no record"))


# ---- writing ----


def write(path: Path, found: Archive) -> Path:
    """Write the whole file anew, atomically and compressed as one member."""
    with atomic(path) as temporary:
        temporary.write_bytes(_packed([found.head, *(entry.as_dict() for entry in found.entries.values())]))
    return path


def _packed(lines: Iterable[Mapping[str, Any]]) -> bytes:
    text = "".join(json.dumps(line, separators=(",", ":")) + "\n" for line in lines)
    return gzip.compress(text.encode(), mtime=0)  # the same lines are the same bytes


class Keeper:
    """Keeps a comparison's file up to date as its cells finish.

    Existing entries stay. The file is written anew if it has another grid or was cut short; a damaged one is replaced
    by `wanted`, since the cells are in their folders too. Raises GemminerError for a file that is not gemminer's.

    Args:
        wanted: the file's contents, with the entries of the cells that are finished.
    """

    def __init__(self, path: Path, wanted: Archive) -> None:
        self.path, self._there = path, wanted
        try:
            there = read(path) if path.exists() else None
        except Damaged:
            there = None
        if there is None:
            write(path, wanted)
            return
        grid = json.loads(json.dumps(wanted.grid))
        self._there = replace(there, grid=grid, threads=wanted.threads, torn=False)
        if self._there != there:
            write(path, self._there)
        for entry in wanted.entries.values():
            self.keep(entry)

    def keep(self, entry: Entry) -> None:
        """Append a cell's entry unless the file has it; a kill meanwhile leaves the other entries whole."""
        known = self._there.entries.get(entry.cell)
        if known is not None and replace(known, curves=()).as_dict() == entry.as_dict():
            return
        append_bytes(self.path, _packed([entry.as_dict()]), sync=True)
        self._there = replace(self._there, entries={**self._there.entries, entry.cell: entry})


def from_folders(runs: Iterable[tuple[str, Path]], command: str, curves: Collection[str] = ()) -> Archive:
    """The records of runs, given by (label, folder), with the rows of their metrics.jsonl in the phases `curves`.

    Phases are "search", "train", "dense" and "check".
    """
    entries = {}
    for label, folder in runs:
        found = record.read(folder / "record.json")
        digest = found.recipe_hash or folder.name
        entries[digest] = Entry(digest, label, found, curves=tuple(_rows(folder / "metrics.jsonl", curves)))
    return Archive(command, entries=entries)


def _rows(file: Path, phases: Collection[str]) -> list[dict[str, Any]]:
    rows = read_rows(file) if phases else []
    return [row for row in rows if str(row.get("phase")).partition(":")[0] in phases]
