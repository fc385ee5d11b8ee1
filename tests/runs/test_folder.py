"""A run's folder: one recipe's, and whole after a kill."""

from __future__ import annotations

import errno
import gc
import json
import multiprocessing
import subprocess
import sys
import threading
import time
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock, Timeout

from gemminer.core.errors import GemminerError, UsageError
from gemminer.core.files import atomic
from gemminer.core.ticket import Ticket
from gemminer.runs import folder as folders
from gemminer.runs.folder import Busy, Folder


def tiny_ticket() -> Ticket:
    return Ticket({"w": torch.tensor([[True, False]])}, {"w": torch.ones(1, 2)})


def contents(folder: Path) -> dict[str, object]:
    """Every file below a folder and every link, with what it holds."""
    found = [path for path in folder.rglob("*") if path.is_symlink() or path.is_file()]
    return {str(p.relative_to(folder)): p.readlink() if p.is_symlink() else p.read_bytes() for p in found}


FOREIGN = ("report.html", "ticket.safetensors", "trained.safetensors", "metrics.jsonl", "record.json", "notes.txt",
           ".record.json.swp", "state/.env", "state/.gitkeep", "state/recipe", "state/lock", "state/steps.jsonl",
           "state/search.pt", "state/important.csv", "error.json", "sub/file", ".report.html.download")  # fmt: skip
REPLACED = [name for name in FOREIGN if folders.INSIDE.fullmatch(name[6:]) or name in folders.FILES]


@pytest.mark.parametrize("again", [{}, {"resume": True}, {"overwrite": True}], ids=["", "resume", "overwrite"])
@pytest.mark.parametrize("name", FOREIGN)
def test_a_folder_with_somebodys_file_is_refused_and_left_as_it_was(
    tmp_path: Path, name: str, again: dict[str, bool]
) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text('{"epoch": 1, "loss": 2.5}\nno newline')
    before = contents(tmp_path)
    with pytest.raises(UsageError, match=r"not a run's folder|was not written by gemminer") as caught:
        Folder(tmp_path, "abc", **again)
    assert "\n" not in str(caught.value)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("link", [False, True], ids=["file", "link"])
@pytest.mark.parametrize("name", REPLACED)
def test_somebodys_file_in_a_runs_place_is_refused_also_with_overwrite(tmp_path: Path, name: str, link: bool) -> None:
    out = tmp_path / "run"
    Folder(out, "abc").finish("search", {"n": 1})
    theirs = tmp_path / "theirs" if link else out / name
    theirs.write_text("thesis")
    if link:
        (out / name).unlink(missing_ok=True)
        (out / name).symlink_to(theirs)
    before = contents(tmp_path)
    for again in ({"resume": True}, {"overwrite": True}):
        with pytest.raises(UsageError, match=r"was not written by gemminer: move it away, or give another place"):
            Folder(out, "abc", **again)
        assert contents(tmp_path) == before


def test_what_lies_beside_a_run_stays(tmp_path: Path) -> None:
    folder = Folder(tmp_path, "abc")
    folder.finish("search", {"n": 1})
    folder.log({"phase": "search", "epoch": 1})
    for name in ("thesis.txt", ".env", "state/.env", "state/notes.pt", "state/steps.jsonl.bak"):
        (tmp_path / name).write_text("theirs")
    assert Folder(tmp_path, "xyz", overwrite=True).steps == {}
    left = {name for name, text in contents(tmp_path).items() if text == b"theirs"}
    assert left == {"thesis.txt", ".env", "state/.env", "state/notes.pt", "state/steps.jsonl.bak"}
    assert not (tmp_path / "metrics.jsonl").exists()


def test_a_link_to_a_runs_folder_is_that_folder(tmp_path: Path) -> None:
    Folder(tmp_path / "run", "abc").finish("search", {"n": 1})
    (tmp_path / "link").symlink_to(tmp_path / "run")
    assert Folder(tmp_path / "link", "abc", resume=True).steps == {"search": {"n": 1}}
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "state").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UsageError, match="state was not written by gemminer"):
        Folder(tmp_path / "other", "abc")
    assert not list((tmp_path / "elsewhere").iterdir())


def test_a_folder_whose_run_was_killed_before_it_began_is_free(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "lock").touch()
    (tmp_path / "state" / ".recipe.gemminer-00000123").write_text("gemmi")
    assert Folder(tmp_path, "abc").steps == {}
    assert sorted(path.name for path in (tmp_path / "state").iterdir()) == ["lock", "recipe"]


def come_in(out: Path, recipe: str, again: dict[str, bool], barrier: Barrier, said: Queue[str]) -> None:
    """Begin a run when another process is about to as well: both have looked at the folder and found it free."""
    locked, waited = folders._locked, []

    def both_have_looked(*given: Any, **more: Any) -> Any:
        if not waited:
            waited.append(barrier.wait(60))
        return locked(*given, **more)

    folders._locked = both_have_looked
    try:
        held = Folder(out, recipe, **again)
    except UsageError as error:
        return said.put(f"refused: {error}")
    held.finish("search", {"recipe": recipe})
    return said.put(recipe)


@pytest.mark.parametrize("again", [{}, {"resume": True}], ids=["new", "resumed"])
def test_of_two_runs_that_reach_a_folder_in_one_instant_one_is_refused(tmp_path: Path, again: dict[str, bool]) -> None:
    context = multiprocessing.get_context("fork")
    barrier, said = context.Barrier(2), context.Queue()
    given = [(tmp_path / "run", recipe, again, barrier, said) for recipe in ("a", "b")]
    team = [context.Process(target=come_in, args=args) for args in given]
    for process in team:
        process.start()
    first, refusal = sorted(said.get(timeout=60) for _ in team)
    for process in team:
        process.join()
    assert refusal.startswith("refused: ")
    assert Folder(tmp_path / "run", first, resume=True).steps == {"search": {"recipe": first}}


def test_without_locks_too_one_of_two_runs_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Folder(tmp_path, "abc")
    monkeypatch.setattr(Folder, "_recipe", lambda folder: None)  # it looked before the other one came
    with pytest.raises(UsageError, match=r"another run has come to .*: give another folder"):
        folder._mark("xyz")
    assert (tmp_path / "state" / "recipe").read_text() == "gemminer.run/1 abc\n"
    assert sorted(path.name for path in folder.state.iterdir()) == ["lock", "recipe"]


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
    tiny_ticket().save(out / "ticket.safetensors")
    assert Folder(out, "xyz", overwrite=True).steps == {}
    assert (out / "mine.txt").exists()
    assert not (out / "ticket.safetensors").exists()
    assert Folder(out, "xyz", resume=True).steps == {}


def test_a_finished_run_without_state_is_a_run(tmp_path: Path) -> None:
    (tmp_path / "record.json").write_text('{"schema": "gemminer.record/1"}')
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
    names = ["ticket.safetensors", "report.html", "state/train-0.pt", "state/check-erk-0.pt", "state/recipe"]
    left = [atomic(tmp_path / name).__enter__() for name in names]
    kept = [
        tmp_path / ".gitignore",
        tmp_path / ".record.json.swp",
        folder.state / ".env",
        folder.state / ".search.pt.x",
    ]
    for path in kept:
        path.write_text("")
    kept += [folder.state / "recipe", folder.state / ".notes.gemminer-12345678"]
    kept[-1].symlink_to(kept[0])
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
