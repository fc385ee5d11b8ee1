"""A run's folder: one recipe's, and whole after a kill."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gemminer.core.errors import GemminerError, UsageError
from gemminer.runs.folder import Folder


def test_a_folder_holds_one_recipes_run(tmp_path: Path) -> None:
    out = tmp_path / "a" / "run"
    first = Folder(out, "abc")
    first.finish("search", {"test": 0.5})
    with pytest.raises(UsageError, match=r"holds a run already: add --resume .* --overwrite .* --out"):
        Folder(out, "abc")
    with pytest.raises(UsageError, match=r"another recipe \(abc, not xyz\)"):
        Folder(out, "xyz", resume=True)
    assert Folder(out, "abc", resume=True).steps == {"search": {"test": 0.5}}
    (out / "mine.txt").write_text("the user's own")
    (out / "ticket.safetensors").write_text("old")
    assert Folder(out, "xyz", overwrite=True).steps == {}
    assert (out / "mine.txt").exists()
    assert not (out / "ticket.safetensors").exists()
    assert Folder(out, "xyz", resume=True).steps == {}


def test_a_finished_run_without_state_is_a_run(tmp_path: Path) -> None:
    (tmp_path / "record.json").write_text("{}")
    with pytest.raises(UsageError, match="holds a run already"):
        Folder(tmp_path, "abc")
    with pytest.raises(UsageError, match=r"another recipe \(unknown, not abc\)"):
        Folder(tmp_path, "abc", resume=True)
    assert (tmp_path / "record.json").exists()


def test_a_folder_that_cannot_be_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="is a file: give another folder with --out"):
        Folder(tmp_path / "file", "abc")
    with pytest.raises(GemminerError, match="cannot use the folder"):
        Folder(tmp_path / "file" / "run", "abc")
    with pytest.raises(GemminerError, match="cannot use the folder"):
        Folder(Path("/proc/run"), "abc")


def test_lines_that_a_kill_cut_short(tmp_path: Path) -> None:
    folder = Folder(tmp_path, "abc")
    folder.finish("search", {"n": 1})
    folder.log({"phase": "search", "epoch": 1})
    for file in (tmp_path / "state" / "steps.jsonl", tmp_path / "metrics.jsonl"):
        with file.open("a") as stream:
            stream.write('{"phase": "sea')
    again = Folder(tmp_path, "abc", resume=True)
    assert again.steps == {"search": {"n": 1}}
    again.finish("train:0", {"n": 2})
    assert Folder(tmp_path, "abc", resume=True).steps == {"search": {"n": 1}, "train:0": {"n": 2}}
    again.forget_after("search", 1)  # what a resumed phase begins with
    again.log({"phase": "search", "epoch": 2})
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [1, 2]


def test_rows_behind_the_last_checkpoint_are_written_anew(tmp_path: Path) -> None:
    folder = Folder(tmp_path, "abc")
    for phase, epoch in (("search", 1), ("search", 2), ("train:0", 1), ("train:0", 2), ("train:0", 3)):
        folder.log({"phase": phase, "epoch": epoch})
    folder.forget_after("train:0", 1)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(r["phase"], r["epoch"]) for r in rows] == [("search", 1), ("search", 2), ("train:0", 1)]
    before = (tmp_path / "metrics.jsonl").stat().st_mtime_ns
    folder.forget_after("train:0", 1)
    assert (tmp_path / "metrics.jsonl").stat().st_mtime_ns == before


def test_what_a_kill_left_of_atomic_writes_is_swept_away(tmp_path: Path) -> None:
    folder = Folder(tmp_path, "abc")
    left = [tmp_path / ".ticket.safetensors.x7", tmp_path / "state" / ".train-0.pt.q", tmp_path / ".report.html.1.tmp"]
    kept = [tmp_path / ".gitignore", folder.state / "recipe", tmp_path / "ticket.safetensors"]
    for path in left + kept[::2]:
        path.write_text("")
    Folder(tmp_path, "abc", resume=True)
    assert not any(path.exists() for path in left)
    assert all(path.exists() for path in kept)


def test_a_step_has_a_checkpoint_of_its_own(tmp_path: Path) -> None:
    folder = Folder(tmp_path, "abc")
    paths = {folder.checkpoint(s).path for s in ("search", "train:0", "train:1", "check:invert:search")}
    assert len(paths) == 4
    assert all(path.parent == folder.state for path in paths)


def test_a_log_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    folder = Folder(tmp_path, "abc")
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(GemminerError, match=r"cannot write .*metrics\.jsonl: Is a directory"):
        folder.log({})
