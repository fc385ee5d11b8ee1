"""Whose a file is: by what stands in it."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from gemminer.core.errors import UsageError
from gemminer.core.ownership import is_there, ours, refuse_foreign
from gemminer.core.ticket import Ticket

OURS: dict[str, bytes] = {
    "record": b'{\n "schema": "gemminer.record/1",\n "created": "2026"}\n',
    "comparison": b'{\n "schema": "gemminer.compare/1", "grid": {}}',
    "archive": gzip.compress(b'{"schema":"gemminer.results/1","command":"gemminer compare"}\n{"cell'),
    "epochs": b'{"phase": "search", "epoch": 1, "step": 3}\n{"phase": "sea',
    "steps": b'{"step": "search", "result": {}}\n',
    "page": b"<!doctype html>\n<html><head><title>A run \xe2\x80\x93 gemminer</title>",
    "table": b"cell,data,model,density,method,seed,status\n",
    "weights": save({"w": torch.ones(2)}, metadata={"gemminer": "{}"}),
}
THEIRS: dict[str, bytes] = {
    "nothing": b"",
    "text": b"thesis",
    "record": b'{"my": "record"}',
    "other schema": b'{"schema": "other/1", "note": "gemminer"}',
    "archive": gzip.compress(b'{"step": 1}\n'),
    "no archive": b"\x1f\x8bx",
    "epochs": b'{"epoch": 1, "loss": 2.5}\n',
    "lines": b"step 1 loss 2.5\nno newline",
    "list": b"[1, 2]",
    "page": b"<!doctype html>\n<html><head><title>gemminer, a review</title>",
    "table": b"method,after\nours,0.9\n",
    "weights": save({"w": torch.ones(2)}),
    "weights of others": save({"w": torch.ones(2)}, metadata={"format": "pt"}),
    "short": b"\x08",
    "long": b"\xff" * 100,
    "zip": b"PK\x03\x04 of a spreadsheet",
}


@pytest.mark.parametrize("kind", OURS)
def test_what_gemminer_writes_is_known_by_its_content(tmp_path: Path, kind: str) -> None:
    (tmp_path / "any name").write_bytes(OURS[kind])
    assert ours(tmp_path / "any name")
    (tmp_path / "link").symlink_to(tmp_path / "any name")
    assert not ours(tmp_path / "link")
    refuse_foreign([tmp_path / "any name", tmp_path / "none"])


@pytest.mark.parametrize("kind", THEIRS)
def test_everything_else_is_somebodys(tmp_path: Path, kind: str) -> None:
    for name in ("record.json", "report.html", "ticket.safetensors", "metrics.jsonl")[: 4 if THEIRS[kind] else 3]:
        (tmp_path / name).write_bytes(THEIRS[kind])
        assert not ours(tmp_path / name)
        with pytest.raises(UsageError, match=f"{name} was not written by gemminer: move it away, or .* with --out"):
            refuse_foreign([tmp_path / name])


def test_what_a_kill_leaves_of_the_first_line_is_ours(tmp_path: Path) -> None:
    for text in (b"", b"{", b'{"pha', b'{"phase": "sea', b'{"step": "search", "res'):
        (tmp_path / "metrics.jsonl").write_bytes(text)
        assert ours(tmp_path / "metrics.jsonl")
    (tmp_path / "record.json").write_bytes(b"")
    assert not ours(tmp_path / "record.json")


def test_a_ticket_a_folder_and_a_link_to_nowhere(ticket: Ticket, tmp_path: Path) -> None:
    assert ours(ticket.save(tmp_path / "t"))
    assert not ours(tmp_path)
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    assert is_there(tmp_path / "link")
    assert not is_there(tmp_path / "nowhere")
    assert not is_there(tmp_path / ("x" * 300))
    with pytest.raises(UsageError, match="link was not written"):
        refuse_foreign([tmp_path / "link"])
