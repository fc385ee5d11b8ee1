"""Workers: failures are outcomes, and nobody outlives the parent."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
import types
from pathlib import Path
from typing import Any

import pytest

from gemminer.core.errors import UsageError
from gemminer.runs.folder import Busy, Folder
from gemminer.runs.workers import Failure, Tell, _kernel_ends_us, _OursAlone, _thread_ends_us, run_all


def work(job: str, tell: Tell) -> str:
    """What the tests ask of a worker."""
    if job == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if job == "usage":
        raise UsageError("ask for less")
    if job == "bug":
        raise ZeroDivisionError("a bug")
    if job == "unsendable":
        return lambda: None  # type: ignore[return-value]
    tell(f"doing {job}")
    return job.upper()


@pytest.mark.parametrize("workers", [0, 2])
def test_jobs_that_fail_are_outcomes_and_the_rest_goes_on(workers: int) -> None:
    jobs = ["a", "usage", "bug", "b"] + (["die", "unsendable", "c"] if workers else ["c"])
    events = list(run_all(jobs, work, workers))
    ends = {jobs[e.index]: e.value for e in events if e.kind in ("done", "failed")}
    assert {job: ends[job] for job in "abc"} == {"a": "A", "b": "B", "c": "C"}
    assert [jobs[e.index] for e in events if e.kind == "started"] == jobs
    assert sorted(e.value for e in events if e.kind == "told") == ["doing a", "doing b", "doing c"]
    assert ends["usage"] == Failure("ask for less", "UsageError")
    assert ends["bug"].sentence == "ZeroDivisionError: a bug"
    assert "test_workers.py" in ends["bug"].trace
    if workers:
        assert "killed by signal 9 (SIGKILL)" in ends["die"].sentence
        assert "cannot be sent" in ends["unsendable"].sentence


class _Ray(types.ModuleType):
    """As much of Ray as is asked of it: tasks are done when waited for, the last first."""

    def __init__(self) -> None:
        super().__init__("ray")
        self.most, self.cancelled, self.tasks = 0, 0, dict[int, Any]()
        self.options: dict[str, Any] = {}

    def is_initialized(self) -> bool:
        return True

    def remote(self, **options: Any) -> Any:
        self.options = options

        def decorate(function: Any) -> Any:
            def start(*args: Any) -> int:
                self.tasks[len(self.tasks)] = (function, args)
                return len(self.tasks) - 1

            return types.SimpleNamespace(remote=start)

        return decorate

    def wait(self, running: list[int], num_returns: int) -> tuple[list[int], list[int]]:
        self.most = max(self.most, len(running))
        return running[-1:], running[:-1]

    def get(self, task: int) -> Any:
        function, args = self.tasks[task]
        if args[1] == "lost":
            raise RuntimeError("the node died\nof something")
        return function(*args)

    def cancel(self, task: int, force: bool) -> None:
        self.cancelled += 1


def test_ray_runs_the_same_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = _Ray()
    monkeypatch.setitem(sys.modules, "ray", fake)
    jobs = ["a", "usage", "lost", "b", "c"]
    events = list(run_all(jobs, work, 2, backend="ray", threads=3))
    ends = {jobs[e.index]: e.value for e in events if e.kind in ("done", "failed")}
    assert {job: ends[job] for job in "abc"} == {"a": "A", "b": "B", "c": "C"}
    assert (ends["usage"].sentence, ends["lost"].sentence) == ("ask for less", "the node died")
    assert (fake.most, fake.options["num_cpus"], fake.options["max_retries"]) == (2, 3, 3)
    events_left = run_all(jobs, work, 2, backend="ray")
    next(events_left)
    events_left.close()
    assert fake.cancelled == 1


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str | None]:
    """The addresses of which Ray is asked, which has no cluster anywhere."""
    fake, asked = _Ray(), list[str | None]()

    def init(address: str | None, **more: Any) -> None:
        asked.append(address)
        raise ConnectionError(f"nobody at {address}\nafter a while")

    monkeypatch.setattr(fake, "is_initialized", lambda: False)
    monkeypatch.setattr(fake, "init", init, raising=False)
    monkeypatch.setitem(sys.modules, "ray", fake)
    return asked


def test_no_cluster_at_an_address(asked: list[str | None]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        for address in (f"127.0.0.1:{server.getsockname()[1]}", f"ray://127.0.0.1:{server.getsockname()[1]}"):
            with pytest.raises(UsageError, match=f"there is no Ray cluster at {address}: nobody at {address}$"):
                next(run_all([1], work, 1, backend=f"ray:{address}"))
            assert asked.pop() == address
    with pytest.raises(UsageError, match="there is no Ray cluster at auto"):
        next(run_all([1], work, 1, backend="ray:auto"))


def test_ray_does_not_wait_where_nobody_answers(asked: list[str | None], monkeypatch: pytest.MonkeyPatch) -> None:
    """At an address where nothing listens Ray 2.60 waited 300 seconds."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        closed = f"127.0.0.1:{server.getsockname()[1]}"
    for address in (closed, f"ray://{closed}", "nowhere.invalid:6379", "127.0.0.1:99999999"):
        with pytest.raises(UsageError, match=r"nobody answers at .* \(.+\): give the address of a Ray cluster's head"):
            next(run_all([1], work, 1, backend=f"ray:{address}"))
    monkeypatch.setenv("RAY_ADDRESS", closed)
    with pytest.raises(UsageError, match=f"nobody answers at {closed}"):
        next(run_all([1], work, 1, backend="ray"))
    assert asked == []


def test_what_other_threads_print_is_not_on_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    ours, before = _OursAlone(), sys.stdout
    sys.stdout = ours  # type: ignore[assignment]
    try:
        print("a result")
        thread = threading.Thread(target=print, args=("a machine is lost",))
        thread.start()
        thread.join()
        assert sys.stdout.encoding == before.encoding
    finally:
        sys.stdout = before
    assert capsys.readouterr() == ("a result\n", "a machine is lost\n")


def test_no_ray_and_no_such_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UsageError, match=r"pip install 'gemminer\[ray\]'"):
        list(run_all(["a"], work, 1, backend="ray"))
    with pytest.raises(UsageError, match="unknown backend"):
        run_all(["a"], work, 1, backend="slurm")
    with pytest.raises(UsageError, match="workers"):
        run_all(["a"], work, -1)


def hold(job: tuple[Path, str], tell: Tell) -> None:
    """A worker that runs in a folder for longer than the test."""
    folder, how = job
    if how == "thread":
        assert _kernel_ends_us(0)  # no signal: as on other systems
        _thread_ends_us()
    held = Folder(folder, "abc", resume=True)
    tell(str(held.path))
    time.sleep(60)


HOLD = """
import sys
from pathlib import Path
from gemminer.runs.workers import run_all
from tests.runs.test_workers import hold

if __name__ == "__main__":
    jobs = [(Path(sys.argv[1]) / how, how) for how in ("kernel", "thread")]
    for event in run_all(jobs, hold, 2):
        if event.kind == "told":
            print("held", flush=True)
"""


def test_a_folder_is_one_process_s_and_workers_die_with_their_parent(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(HOLD)
    command = [sys.executable, str(tmp_path / "program.py"), str(tmp_path)]
    paths = [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    other = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    assert other.stdout is not None
    try:
        assert [other.stdout.readline() for _ in range(2)] == ["held\n"] * 2
        for ask in ({"resume": True}, {"overwrite": True}):
            with pytest.raises(Busy, match="another process is running in"):
                Folder(tmp_path / "kernel", "abc", **ask)
        other.kill()  # and with it the workers, and with them their locks
        for how in ("kernel", "thread"):
            mine = Folder(tmp_path / how, "abc", resume=True)
            assert Folder(tmp_path / how, "abc", resume=True).steps == mine.steps == {}  # not against itself
            assert Folder(tmp_path / how, "other", overwrite=True).steps == {}
    finally:
        other.kill()
        other.wait()
        other.stdout.close()
