"""Signals of the program: one line and a fitting exit code at any moment, and nothing of it in a library."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gemminer.core import interrupts

# A program of the same name, without the package and its imports.
PROGRAM = """
import importlib.util, os, signal, sys, time
spec = importlib.util.spec_from_file_location("interrupts", {path!r})
interrupts = importlib.util.module_from_spec(spec)
spec.loader.exec_module(interrupts)
interrupts.install()
def ready():
    print("ready", flush=True)
{body}
"""
STOPPED, EARLY = (
    "gemminer: stopped; a run goes on with --resume, a comparison with the same command\n",
    "gemminer: stopped before anything was done\n",
)
BODIES = {
    "importing the package": ("ready(); time.sleep(60)", EARLY),
    "importing a module": ("interrupts.begin(); import slow", STOPPED),
    "working": (
        "interrupts.begin()\ntry:\n    ready(); time.sleep(60)\nexcept KeyboardInterrupt:\n"
        "    assert interrupts.stopped()\n    sys.stderr.write('gemminer: ' + interrupts.AGAIN + chr(10))\n"
        "    sys.exit(interrupts.code())",
        STOPPED,
    ),
    "where it is swallowed": (
        "interrupts.PATIENCE = 0.2; interrupts.begin()\ntry:\n    ready(); time.sleep(60)\n"
        "except BaseException:\n    time.sleep(60)",
        STOPPED,
    ),
    "where nobody can catch it": (
        "interrupts.begin()\nclass Last:\n    def __del__(self):\n        ready(); time.sleep(60)\n"
        "last = Last()\ndel last\ntime.sleep(60)",
        STOPPED,
    ),
}


def started(tmp_path: Path, body: str, name: str = "gemminer", ignored: bool = False) -> subprocess.Popen[str]:
    (tmp_path / "slow.py").write_text("import time\nprint('ready', flush=True)\ntime.sleep(60)")
    (tmp_path / name).write_text(PROGRAM.format(path=interrupts.__file__, body=body))
    process = subprocess.Popen(
        [sys.executable, str(tmp_path / name), "mine"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN) and None if ignored else None,
    )
    assert process.stdout
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["ctrl-c", "term"])
@pytest.mark.parametrize("moment", BODIES)
def test_a_signal_at_any_moment_is_one_line(tmp_path: Path, moment: str, number: int, code: int) -> None:
    body, line = BODIES[moment]
    process = started(tmp_path, body)
    process.send_signal(number)
    error = process.communicate(timeout=30)[1]
    assert (process.returncode, error) == (code, line)


def test_a_second_signal_ends_the_program_at_once(tmp_path: Path) -> None:
    body = (
        "interrupts.begin()\ntry:\n    ready(); time.sleep(60)\nexcept KeyboardInterrupt:\n    ready(); time.sleep(60)"
    )
    process = started(tmp_path, body)
    process.send_signal(signal.SIGINT)
    assert process.stdout
    assert process.stdout.readline() == "ready\n"
    begun = time.monotonic()
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=30)[1] == STOPPED
    assert process.returncode == 130
    assert time.monotonic() - begun < 8


def test_a_library_and_a_forked_child_keep_pythons_own_behaviour(tmp_path: Path) -> None:
    process = started(tmp_path, "ready(); time.sleep(60)", name="train.py")
    process.send_signal(signal.SIGINT)
    assert "KeyboardInterrupt" in process.communicate(timeout=30)[1]
    body = (
        "child = os.fork()\nif not child:\n    try:\n        ready(); time.sleep(60)\n"
        "    except KeyboardInterrupt:\n        os._exit(7)\n"
        "time.sleep(0.3); os.kill(child, 2); print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))"
    )
    assert started(tmp_path, body).communicate(timeout=30) == ("7\n", "")


def test_an_ignored_signal_stays_ignored_and_none_matters_at_the_end(tmp_path: Path) -> None:
    process = started(tmp_path, "ready(); time.sleep(0.5); print('whole')", ignored=True)
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=30) == ("whole\n", "")
    process = started(tmp_path, "interrupts.end(); ready(); time.sleep(0.5); print('whole')")
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=30) == ("whole\n", "")


@pytest.mark.parametrize("module", ["torch.version", "pydantic", "typer"])
def test_ctrl_c_while_imports_run_is_one_line(module: str) -> None:
    command = [sys.executable, "-X", "importtime", "-m", "gemminer", "mine", "--bogus"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr
    while not process.stderr.readline().strip().endswith(f" {module}"):
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    lines = [line for line in process.communicate(timeout=60)[1].splitlines() if not line.startswith("import time:")]
    assert (process.returncode, lines) == (130, ["gemminer: stopped before anything was done"])


def test_a_current_folder_that_is_gone_is_one_sentence(tmp_path: Path) -> None:
    """PyTorch's libraries would end the process with a sentence about themselves."""
    body = "import os, runpy, sys; os.rmdir(os.getcwd()); sys.orig_argv = ['gemminer']; import gemminer"
    ended = subprocess.run([sys.executable, "-c", body], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr.count("\n")) == (2, 1)
    assert ended.stderr.startswith("gemminer: the current folder cannot be used (")
