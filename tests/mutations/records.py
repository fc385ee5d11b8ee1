"""Damaged files of a run and of a comparison: refused in one sentence, or drawn."""

from __future__ import annotations

import gzip
import random
from pathlib import Path

import gemminer
from gemminer.core.errors import GemminerError
from gemminer.reporting import page
from gemminer.runs import archive, asked
from tests.mutations.damage import damage_bytes, damaged_json, one_line
from tests.reporting.fakes import fake_layers, make_run


def files(folder: Path) -> dict[str, bytes]:
    run = make_run(folder / "run", every=8, layers=fake_layers()[:3])
    found = archive.from_folders([("gem-miner", run)], "gemminer compare", ["search"])
    archive.write(folder / archive.NAME, found)
    sound = (run / "record.json", run / "metrics.jsonl", folder / archive.NAME)
    return {file.name: file.read_bytes() for file in sound}


def damaged(file: bytes, source: random.Random) -> bytes:
    if not file.startswith(b"\x1f\x8b"):
        return damaged_json(file, source)
    if source.random() < 0.1:
        return damage_bytes(file, source)
    return gzip.compress(damaged_json(gzip.decompress(file), source))


def try_run(path: Path) -> str:
    """Draw what can be drawn of a file, and take its recipe; the sentence of a refusal, or what was done."""
    folder = path.parent
    try:
        if path.name == archive.NAME:
            gemminer.draw(path, folder / "drawn")
        else:
            page.report([folder], folder / "page.html")
            page.report([folder, folder / "run"], folder / "both.html")
            asked.of_ticket(folder, {})
    except GemminerError as error:
        return one_line(error)
    return "drawn"
