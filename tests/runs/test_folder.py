"""A run's folder: one recipe's, and whole after a kill."""

from __future__ import annotations

import errno
import gc
import json
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock, Timeout

from gemminer.core.errors import GemminerError, UsageError
from gemminer.runs.folder import Busy, Folder


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


HOLD = """
import sys
from pathlib import Path
from gemminer.runs.folder import Busy, Folder
held = Folder(Path(sys.argv[1]), "abc", resume=True)
print("held", flush=True)
sys.stdin.readline()
"""


def other_process(out: Path) -> subprocess.Popen[str]:
    """A process that holds the folder until it is killed."""
    command = [sys.executable, "-c", HOLD, str(out)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    assert process.stdout.readline() == "held\n"
    return process


def test_a_folder_is_one_processs_however_that_ends(tmp_path: Path) -> None:
    other = other_process(tmp_path)
    begun = time.monotonic()
    with pytest.raises(Busy, match=r"another process is running in .*: wait for it, or give another folder") as caught:
        Folder(tmp_path, "abc", resume=True)
    assert time.monotonic() - begun >= 3
    assert isinstance(caught.value, UsageError)
    other.kill()
    other.communicate()
    first = Folder(tmp_path, "abc", resume=True)
    second = Folder(tmp_path, "abc", resume=True)  # no process locks itself out
    del first
    gc.collect()
    assert second.path == tmp_path
    with pytest.raises(Timeout):
        FileLock(tmp_path / "state" / "lock", timeout=0).acquire()
    del second
    gc.collect()
    other_process(tmp_path).communicate("")


def test_a_process_may_use_another_threads_folder(tmp_path: Path) -> None:
    held = Folder(tmp_path, "abc")
    found: list[Folder] = []
    thread = threading.Thread(target=lambda: found.append(Folder(tmp_path, "abc", resume=True)))
    thread.start()
    thread.join()
    assert [folder.path for folder in found] == [held.path]


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_will_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    fcntl = pytest.importorskip("fcntl")

    def none(*_: Any) -> None:
        raise OSError(number, "no locks here")

    monkeypatch.setattr(fcntl, "flock", none)
    folder = Folder(tmp_path, "abc")
    assert folder.finish("search", {"n": 1}) == {"n": 1}
    assert [path.name for path in folder.state.glob("lock*")] == ["lock"], "a lock file would outlive a kill"


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
