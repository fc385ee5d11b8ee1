"""Two processes in one folder: one is killed, the other says so and ends, and the same call goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import gemminer
from gemminer.core.ticket import Ticket
from tests.helpers import tiny_data, tiny_net

WORK = """
import sys, warnings
import gemminer
from tests.helpers import tiny_data, tiny_net
out, net = sys.argv[1], tiny_net(norm=False)
how = {"out": out, "distributed": True, "batch_size": 16}
try:
    ticket = gemminer.mine(net, tiny_data(), 0.2, epochs=40, **how)
    gemminer.train(net, ticket, tiny_data(), tiny_data(seed=1), epochs=40, **how)
except gemminer.GemminerError as error:
    sys.exit(f"said: {error}")
"""


def started(folder: Path, port: int) -> list[subprocess.Popen[str]]:
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    common |= {"GEMMINER_CHECKPOINT_SECONDS": "0", "PYTHONPATH": str(Path(__file__).parents[2])}
    return [
        subprocess.Popen(
            [sys.executable, "-c", WORK, str(folder)],
            env={**os.environ, **common, "RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]


def epochs(folder: Path) -> int:
    file = folder / "metrics.jsonl"
    return len(file.read_text().splitlines()) if file.exists() else 0


def free_port() -> int:
    import socket

    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@pytest.mark.slow
def test_a_killed_rank_ends_the_others_and_the_same_call_goes_on(tmp_path: Path) -> None:
    out = tmp_path / "run"
    for victim, after in ((1, 10), (0, 50)):  # in the search, and in the training
        ranks = started(out, free_port())
        until = time.monotonic() + 120
        while epochs(out) < after and time.monotonic() < until:
            time.sleep(0.01)
        ranks[victim].send_signal(signal.SIGKILL)
        _, said = ranks[1 - victim].communicate(timeout=60)
        ranks[victim].communicate()
        assert ranks[1 - victim].returncode == 1
        assert "said: another rank has ended or cannot be reached" in said
        assert after <= epochs(out) < 80
    ranks = started(out, free_port())
    for rank in ranks:
        _, said = rank.communicate(timeout=120)
        assert rank.returncode == 0, said
    assert epochs(out) == 80
    one = gemminer.mine(tiny_net(norm=False), tiny_data(), 0.2, epochs=40, batch_size=32)
    assert Ticket.load(out / "ticket.safetensors").digest == one.digest
    assert {f.name for f in (out / "state").iterdir()} == {"lock", "recipe", "steps.jsonl"}
