"""Files that are whole or not there."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from gemminer.core.errors import GemminerError
from gemminer.core.files import atomic
from gemminer.core.ticket import Ticket


def test_a_failing_write_leaves_the_old_file(ticket: Ticket, tmp_path: Path, full_disk: None) -> None:
    path = tmp_path / "t.safetensors"
    path.write_text("old")
    big = Ticket({"w": torch.ones(64, 64).bool()}, {"w": torch.ones(64, 64)})
    with pytest.raises(GemminerError, match=r"cannot write .*t\.safetensors") as caught:
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
