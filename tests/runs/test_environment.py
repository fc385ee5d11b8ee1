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
