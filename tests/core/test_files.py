"""Files that are whole or not there."""

from __future__ import annotations

import errno
import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from gemminer.core.errors import GemminerError
from gemminer.core.files import append_text, atomic, save_text
from gemminer.core.ticket import Ticket
from gemminer.runs import archive
from gemminer.training.checkpoint import Checkpoint


def test_a_failing_write_leaves_the_old_file(ticket: Ticket, tmp_path: Path, full_disk: None) -> None:
    path = tmp_path / "t.safetensors"
    path.write_text("old")
    big = Ticket({"w": torch.ones(64, 64).bool()}, {"w": torch.ones(64, 64)})
    with pytest.raises(GemminerError, match=r"cannot write .*t\.safetensors: no file may be so large") as caught:
        big.save(path)
    assert "\n" not in str(caught.value)
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["t.safetensors"]


@pytest.mark.parametrize("error", [RuntimeError("bug"), KeyboardInterrupt()])
def test_other_errors_pass_and_leave_the_old_file(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(type(error)), atomic(path) as temporary:  # noqa: PT012
        temporary.write_text("half of the n")
        raise error
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


SYSTEM = {
    errno.ENOSPC: "the disk is full .No space left on device.: make room, or choose another place",
    errno.EDQUOT: "the disk quota is used up",
    errno.EROFS: "Read-only file system",
    errno.EACCES: "Permission denied",
    errno.EIO: "Input/output error",
}
WRITERS: dict[str, Callable[[Path], object]] = {
    "text": lambda path: save_text(path, "text"),
    "archive": lambda path: archive.write(path, archive.Archive("gemminer")),
    "ticket": lambda path: Ticket({"w": torch.ones(2, 2).bool()}, {"w": torch.ones(2, 2)}).save(path),
    "checkpoint": lambda path: Checkpoint(path).save({"a": torch.ones(5000)}),
    "line": lambda path: append_text(path, "line\n", sync=True),
}


@pytest.mark.parametrize("number", SYSTEM)
@pytest.mark.parametrize("writer", WRITERS)
def test_a_disk_that_refuses_is_one_sentence_of_where_and_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writer: str, number: int
) -> None:
    """Each way to open a file gives one whose writes fail, as Linux's /dev/full does."""

    class Full(io.FileIO):
        def write(self, data: object) -> int:
            raise OSError(number, os.strerror(number))

    def opened(path: Path, mode: str = "r", buffering: int = -1, *given: Any, **more: Any) -> Any:
        raw = Full(path, mode.replace("b", ""))
        return raw if buffering == 0 else io.BufferedWriter(raw, 16)

    def write_text(path: Path, text: str, **more: Any) -> None:
        with opened(path, "w") as file:
            file.write(text.encode())

    path = tmp_path / "file"
    monkeypatch.setattr(Path, "open", opened)
    monkeypatch.setattr(Path, "write_text", write_text)
    monkeypatch.setattr(Path, "write_bytes", lambda path, data: write_text(path, "x" * len(data)))
    with pytest.raises(GemminerError, match=f"cannot write {path}: {SYSTEM[number]}") as caught:
        WRITERS[writer](path)
    assert len(str(caught.value).splitlines()) == 1
    left = [p for p in tmp_path.iterdir() if p.stat().st_size or p.name != "file"]
    assert not left


def test_a_checkpoint_on_a_full_disk_says_so(tmp_path: Path, full_disk: None) -> None:
    checkpoint = Checkpoint(tmp_path / "search.pt")
    with pytest.raises(
        GemminerError, match=r"cannot write .*search\.pt: no file may be so large .File too large.: make"
    ):
        checkpoint.save({"a": torch.ones(50_000)})
    assert not list(tmp_path.iterdir())


def test_a_line_that_does_not_fit_leaves_the_file_whole(tmp_path: Path, full_disk: None) -> None:
    path = tmp_path / "rows"
    append_text(path, "first\n")
    with pytest.raises(GemminerError, match="no file may be so large"):
        append_text(path, "x" * 9000)
    assert path.read_text() == "first\n"


def test_devices_and_too_long_names_are_one_sentence(ticket: Ticket, tmp_path: Path) -> None:
    for path, why in ((Path("/dev/null"), "a device is there"), (tmp_path / ("x" * 300), "File name too long")):
        with pytest.raises(GemminerError, match=f"cannot write {path}: {why}"):
            ticket.save(path)
    assert Path("/dev/null").is_char_device()


def test_bytes_of_another_encoding_are_spelled_out(tmp_path: Path) -> None:
    assert save_text(tmp_path / "t", "caf\udcc3\n").read_bytes() == b"caf\\udcc3\n"


def test_a_place_that_cannot_be_written_to_is_one_sentence(ticket: Ticket, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "file" / "t", tmp_path / "folder", Path("/proc/t")):
        with pytest.raises(GemminerError, match=f"cannot write {path}: "):
            ticket.save(path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder"]


def test_a_written_file_has_the_modes_of_any_other(tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("")
    with atomic(tmp_path / "file") as temporary:
        temporary.write_text("")
    assert (tmp_path / "file").stat().st_mode == (tmp_path / "plain").stat().st_mode
