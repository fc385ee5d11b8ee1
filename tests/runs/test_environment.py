"""What a record says of the machine, the versions and the commit."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from gemminer.runs import environment


def test_the_machine_and_its_versions() -> None:
    machine = environment.hardware("cpu", 2)
    assert machine["threads"] == 2
    assert machine["cores"] >= 1
    assert machine["cpu"]
    assert {"python", "torch", "numpy"} <= set(environment.versions())
    assert "T" in environment.now()


def test_the_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert environment.git_revision() is None
    monkeypatch.setenv("PATH", "")
    assert environment.git_revision() is None


def test_the_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/usr/bin/gemminer", "mine", "--seed", "3"])
    assert environment.command() == "gemminer mine --seed 3"


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("/home/jane/lottery/runs/gem", "runs/gem"),
        ("/home/jane/lottery", "."),
        ("/home/jane/data/mnist", "../data/mnist"),
        ("/home/jane", ".."),
        ("/scratch/jane/mnist", "mnist"),
        ("--out=/home/jane/lottery/runs/gem", "--out=runs/gem"),
        ("folder:/home/jane/lottery/images@32", "folder:images@32"),
        ("--data=folder:/srv/jane/images@32", "--data=folder:images@32"),
        ("digits,folder:/srv/jane/images,mnist", "digits,folder:images,mnist"),
        ("checkpoint=/srv/jane/a.pt", "checkpoint=a.pt"),
        ("runs/gem", "runs/gem"),
        ("--density", "--density"),
        ("imp:rewind=warm:rate=0.3", "imp:rewind=warm:rate=0.3"),
        ("https://example.org/a/b", "https://example.org/a/b"),
        ("1/2", "1/2"),
        ("", ""),
    ],
)
def test_a_record_says_nothing_about_somebodys_folders(argument: str, said: str) -> None:
    assert environment.without_places(argument, Path("/home/jane/lottery")) == said


def test_the_command_line_of_a_module_in_this_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    argv = ["/x/gemminer/__main__.py", "mine", "--out", str(tmp_path / "runs" / "a"), "--recipe", "/y/z/r.toml"]
    monkeypatch.setattr(sys, "argv", argv)
    assert environment.command() == "gemminer mine --out runs/a --recipe r.toml"
