"""Many jobs on several processes, or on the machines of a Ray cluster. No other module starts processes.

A worker takes one job after another and dies with its parent, whatever kills the parent; a job that fails, or kills
its worker, is an outcome like any other, and the other jobs go on.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import multiprocessing
import os
import signal
import socket
import sys
import threading
import traceback
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any, Literal, TextIO, cast

from gemminer.core.errors import GemminerError, UsageError, unknown
from gemminer.core.numbers import whole

BACKENDS = ("local", "ray")
CONNECT_SECONDS = 5.0  # in which a cluster's head must answer
RETRIES = 3  # times that Ray begins a job anew whose process or machine is gone

Tell = Callable[[Any], None]
# work(job, tell): does a job; `tell` passes a value on to the parent meanwhile.
Work = Callable[[Any, Tell], Any]


@dataclass(frozen=True)
class Event:
    """An event of job number `index`: it was started, told something, is done (with its value) or failed."""

    index: int
    kind: Literal["started", "told", "done", "failed"]
    value: Any = None


@dataclass(frozen=True)
class Failure:
    """Why a job failed: a sentence, the kind of error, and the traceback of an error that is no GemminerError."""

    sentence: str
    kind: str
    trace: str | None = None


def cores() -> int:
    """The cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def share(workers: int) -> int:
    """Threads of each of `workers`: an even share of the cores, at least one."""
    return max(1, cores() // max(1, workers))


def run_all(
    jobs: Sequence[Any], work: Work, workers: int, *, backend: str = "local", threads: int = 1, gpus: int = 0
) -> Generator[Event, None, None]:
    """Call work(job, tell) for every job, `workers` at a time, and yield what happens as it happens.

    Jobs, `work` (a function of a module) and what it returns or tells are pickled. Closing the iterator, or an
    exception such as KeyboardInterrupt in whoever reads it, kills the workers.

    Args:
        workers: processes; 0 runs the jobs in this one.
        backend: "local", or "ray" for a Ray cluster (values told in between are lost): that of RAY_ADDRESS, else one of
            this machine alone; "ray:ADDRESS" is that of an address, "ray:auto" the one that runs here.
        threads: cores that Ray sets aside for a job; with other backends a job sets its own threads.
        gpus: GPUs that Ray sets aside for a job.

    Raises:
        UsageError: an unknown backend, fewer than 0 workers, no Ray, no cluster at the address.

    >>> [e.value for e in run_all([1, 2], lambda job, tell: 10 * job, 0) if e.kind == "done"]
    [10, 20]
    """
    kind, _, address = backend.partition(":")
    if kind not in BACKENDS or (address and kind != "ray"):
        raise unknown("backend", backend, BACKENDS)
    workers = whole("workers", workers, least=0)
    if kind == "ray":
        return _ray_events(address or None, jobs, work, workers, {"num_cpus": threads, "num_gpus": gpus})
    return _here(jobs, work) if workers == 0 else _local(jobs, work, min(workers, len(jobs)))


def _outcome(work: Work, job: Any, tell: Tell) -> tuple[Literal["done", "failed"], Any]:
    """Do a job; an exception is an outcome, KeyboardInterrupt is not."""
    try:
        return "done", work(job, tell)
    except GemminerError as error:
        return "failed", Failure(str(error), type(error).__name__)
    except Exception as error:
        text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        return "failed", Failure(text.splitlines()[0], type(error).__name__, traceback.format_exc())


def _here(jobs: Sequence[Any], work: Work) -> Generator[Event, None, None]:
    for index, job in enumerate(jobs):
        yield Event(index, "started")
        told: list[Any] = []
        kind, value = _outcome(work, job, told.append)
        yield from (Event(index, "told", t) for t in told)
        yield Event(index, kind, value)


# --- processes of this machine -----------------------------------------------------------------------------------


def die_with_parent(parent: int) -> None:
    """End this process when its parent `parent` ends, even by SIGKILL: by the kernel on Linux, else by a thread."""
    if not _kernel_ends_us():
        _thread_ends_us()
    elif os.getppid() != parent:  # it ended before we asked
        os._exit(1)


def _kernel_ends_us(signal_number: int = 9) -> bool:
    """Ask for a signal, SIGKILL, at the parent's death; False where the kernel is not Linux."""
    if sys.platform != "linux":
        return False
    set_parent_death_signal = 1  # PR_SET_PDEATHSIG, <sys/prctl.h>
    try:
        return bool(ctypes.CDLL(None).prctl(set_parent_death_signal, signal_number, 0, 0, 0) == 0)
    except (OSError, AttributeError):
        return False


def _thread_ends_us() -> None:
    process = multiprocessing.parent_process()
    if process is not None:

        def watch() -> None:
            wait([process.sentinel])
            os._exit(1)

        threading.Thread(target=watch, daemon=True).start()


def _serve(pipe: Connection, parent: int, work: Work) -> None:
    """A worker: jobs in, outcomes out, until there are no more. Ctrl-C is for the parent to act on."""
    die_with_parent(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    while (job := pipe.recv()) is not None:
        outcome = _outcome(work, job[0], lambda value: pipe.send(("told", value)))
        try:
            pipe.send(outcome)
        except (TypeError, AttributeError, ValueError) as error:  # raised by pickle for a value it cannot take
            pipe.send(("failed", Failure(f"the result cannot be sent: {error}", type(error).__name__)))


@contextlib.contextmanager
def _interrupts_held() -> Iterator[None]:
    """Hold Ctrl-C back; a process started inside never receives it, from its first instruction on."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _Worker:
    """A process and its current job. It is spawned, not forked: a fork of a process with threads may hang."""

    def __init__(self, work: Work) -> None:
        if getattr(multiprocessing.current_process(), "_inheriting", False):  # a worker that reads the user's script
            raise UsageError("every worker reads your script: put the call under if __name__ == '__main__'")
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.index: int | None = None
        self.process = context.Process(target=_serve, args=(theirs, os.getpid(), work), daemon=False)
        with _interrupts_held():
            self.process.start()
        theirs.close()

    def give(self, index: int, job: Any) -> None:
        self.index = index
        with contextlib.suppress(BrokenPipeError):  # it died: the next receive says so
            self.pipe.send((job,))

    def receive(self) -> tuple[Any, Any]:
        """The worker's next message, or a failure if it has died."""
        try:
            kind, value = self.pipe.recv()
        except (EOFError, OSError):
            self.process.join()
            code = self.process.exitcode or 0
            how = f"was killed by signal {-code} ({_signal(-code)})" if code < 0 else f"ended with code {code}"
            kind, value = "failed", Failure(f"the process {how}", "ProcessDied")
        return kind, value

    def stop(self) -> None:
        self.process.kill()
        self.process.join()
        self.pipe.close()
        self.process.close()


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return "unknown"


def _local(jobs: Sequence[Any], work: Work, workers: int) -> Generator[Event, None, None]:
    waiting = deque(enumerate(jobs))
    team: list[_Worker] = []
    try:
        for _ in range(workers):
            team.append(_Worker(work))
            yield _next(team[-1], waiting)
        while busy := {worker.pipe: worker for worker in team if worker.index is not None}:
            for pipe in wait(list(busy)):
                worker = busy[pipe]  # type: ignore[index]
                kind, value = worker.receive()
                index, dead = worker.index, isinstance(value, Failure) and value.kind == "ProcessDied"
                assert index is not None
                yield Event(index, kind, value)
                if kind == "told":
                    continue
                worker.index = None
                if dead:
                    team.remove(worker)
                    worker.stop()
                if waiting:
                    if dead:
                        team.append(worker := _Worker(work))
                    yield _next(worker, waiting)
    finally:
        for worker in team:
            worker.stop()


def _next(worker: _Worker, waiting: deque[tuple[int, Any]]) -> Event:
    index, job = waiting.popleft()
    worker.give(index, job)
    return Event(index, "started")


# --- Ray ---------------------------------------------------------------------------------------------------------


def _silent(value: Any) -> None:
    """Ignore what a job tells."""


class _OursAlone:
    """A stdout for the thread that makes it; what others print, as Ray's do of lost machines, goes to stderr."""

    def __init__(self) -> None:
        self._stdout, self._thread = sys.stdout, threading.get_ident()

    def write(self, text: str) -> Any:
        return (self._stdout if threading.get_ident() == self._thread else sys.stderr).write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stdout, name)


def _answers(address: str | None) -> None:
    """Raise UsageError where nobody listens at HOST:PORT or ray://HOST:PORT: Ray itself waits for minutes."""
    host, colon, port = (address or "").removeprefix("ray://").rpartition(":")
    if not colon or not port.isdecimal():  # auto, local, and what only Ray knows
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        why = str(error) or type(error).__name__
        raise UsageError(f"nobody answers at {address} ({why}): give the address of a Ray cluster's head") from None


def _ray(address: str | None) -> tuple[Any, bool]:
    """Ray, connected to a cluster, and whether it was not before; what it prints stays off stdout, for results."""
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # what a future version does, and warns of
    try:
        ray: Any = importlib.import_module("ray")
    except ImportError:
        raise UsageError(
            "the backend ray needs Ray, which is not installed: pip install 'gemminer[ray]', or use --backend local"
        ) from None
    ours = not ray.is_initialized()
    if ours:
        _answers(address or os.environ.get("RAY_ADDRESS"))
        try:
            with contextlib.redirect_stdout(sys.stderr):
                ray.init(address=address, log_to_driver=False, logging_level="ERROR")
        except (ConnectionError, ValueError, RuntimeError, TimeoutError) as error:
            said = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise UsageError(f"there is no Ray cluster at {address or 'RAY_ADDRESS'}: {said}") from None
    return ray, ours


def _ray_events(
    address: str | None, jobs: Sequence[Any], work: Work, workers: int, needs: Mapping[str, int]
) -> Generator[Event, None, None]:
    """At most `workers` tasks at a time (0: as many as the cluster takes); where a machine is lost, another begins."""
    ray, ours = _ray(address)
    remote = ray.remote(**needs, max_retries=RETRIES)(_outcome)
    waiting = deque(enumerate(jobs))
    running: dict[Any, int] = {}
    stdout, sys.stdout = sys.stdout, cast(TextIO, _OursAlone())
    try:
        while waiting or running:
            while waiting and (workers == 0 or len(running) < workers):
                index, job = waiting.popleft()
                running[remote.remote(work, job, _silent)] = index
                yield Event(index, "started")
            for task in ray.wait(list(running), num_returns=1)[0]:
                index = running.pop(task)
                try:
                    kind, value = ray.get(task)
                except Exception as error:  # Ray's own: a worker or a machine is gone
                    text = str(error).splitlines()[0] if str(error) else type(error).__name__
                    kind, value = "failed", Failure(text, "ProcessDied")
                yield Event(index, kind, value)
    finally:
        with contextlib.redirect_stdout(sys.stderr):
            for task in running:
                ray.cancel(task, force=True)
            if ours:  # before stdout is anybody's again: what Ray still has to say of lost machines ends here
                ray.shutdown()
        sys.stdout = stdout
