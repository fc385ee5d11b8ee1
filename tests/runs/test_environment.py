"""What a record says of the machine, the versions and the commit; and odd environments of the program."""

from __future__ import annotations

import json
import os
import subprocess
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


ENVIRONMENTS: dict[str, tuple[list[str], dict[str, str]]] = {
    "one": ([], {"PYTHONHASHSEED": "1", "TMPDIR": "/nowhere/at/all", "HOME": "/dev/null", "XDG_CACHE_HOME": ""}),
    "other": (
        ["-O", "-W", "error"],
        {"PYTHONHASHSEED": "2", "TERM": "dumb", "NO_COLOR": "1", "COLUMNS": "1", "NUMBA_CACHE_DIR": "/dev/null/x"},
    ),
}


def test_two_odd_environments_give_the_same_files(tmp_path: Path) -> None:
    arguments = "mine --model lenet-300-100 --density 0.05 --epochs 1 --train-epochs 1 --no-checks"
    arguments += " --no-dense --limit-train 200 --threads 1 --engine sparse"
    started = {}
    for name, (flags, variables) in ENVIRONMENTS.items():
        command = [sys.executable, *flags, "-m", "gemminer", *arguments.split(), "--out", str(tmp_path / name)]
        pipe = subprocess.PIPE
        started[name] = subprocess.Popen(command, env={**os.environ, **variables}, stdout=pipe, stderr=pipe, text=True)
    for process in started.values():
        out, error = process.communicate(timeout=240)
        assert (process.returncode, "Traceback" in error, "\x1b" in out + error) == (0, False, False), error
    runs = [tmp_path / name for name in ENVIRONMENTS]
    for file in ("ticket.safetensors", "trained.safetensors"):
        assert (runs[0] / file).read_bytes() == (runs[1] / file).read_bytes(), file
    records = [json.loads((run / "record.json").read_text()) for run in runs]
    for part in ("accuracy", "layers", "density", "options", "recipe_hash", "notes"):
        assert records[0][part] == records[1][part], part


def test_a_reader_that_stops_and_streams_that_take_nothing() -> None:
    """`| head` is 141 without a word; a full stderr changes no exit code."""
    command = [sys.executable, "-m", "gemminer", "methods", "--json"]
    reading, writing = os.pipe()
    os.close(reading)
    with open("/dev/full", "w") as full:  # noqa: PTH123
        stopped = subprocess.Popen(command, stdout=writing, stderr=subprocess.PIPE)
        mute = subprocess.Popen([*command[:-2], "inspect", "/nowhere"], stderr=full)
        os.close(writing)
        assert (stopped.communicate(timeout=120)[1], stopped.returncode) == (b"", 141)
        assert mute.wait(timeout=120) == 2
