"""A step's time and bytes on one process and on two, and a run whose ranks are killed again and again.

python benchmarks/ranks.py            the table of docs/processes.md
python benchmarks/ranks.py --kill 10  ten kills of either rank, anywhere; the ticket must be that of a whole run
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import distributed, multiprocessing

import gemminer
from gemminer import models
from gemminer.core.ticket import Ticket
from gemminer.runs.environment import hardware, versions

BATCH = 128  # of all ranks together
NETS = {"lenet-300-100": (1, 8), "resnet20": (1, 8)}
WORK = """
import sys, gemminer, torch
from benchmarks.ranks import data, network
how = {"out": sys.argv[1], "distributed": True, "batch_size": 64}
net = network("lenet-300-100")
try:
    ticket = gemminer.mine(net, data(512), 0.05, epochs=60, validation_data=data(256, 1), engine=sys.argv[2], **how)
    gemminer.train(net, ticket, data(512), data(256, 2), epochs=60, engine=sys.argv[2], **how)
except gemminer.GemminerError as error:
    sys.exit(str(error))
"""


def data(count: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    source = torch.Generator().manual_seed(seed)
    images = torch.rand(count, 1, 8, 8, generator=source)
    return images, (images.mean((1, 2, 3)) * 1e4).long() % 10


def network(name: str) -> torch.nn.Module:
    channels, size = NETS[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return models.build(name, in_channels=channels, classes=10, image_size=size)


class Times(gemminer.Monitor):
    def __init__(self) -> None:
        self.at: list[float] = []

    def step(self, phase: str, step: int, steps: int) -> None:
        self.at.append(time.perf_counter())


def steps(rank: int, world: int, folder: str, name: str, what: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=world)
    sent = [0]
    whole = distributed.all_reduce

    def counted(tensor: torch.Tensor, *args: Any, **more: Any) -> Any:
        sent[0] += tensor.numel() * tensor.element_size()
        return whole(tensor, *args, **more)

    distributed.all_reduce = counted
    times, net, found = Times(), network(name), data(BATCH * 12)
    how: dict[str, Any] = {"distributed": True, "batch_size": BATCH // world}
    if what == "search":
        gemminer.mine(net, found, 0.0144, epochs=2, monitor=times if rank == 0 else None, **how)
    else:
        ticket = gemminer.mine(net, found, 0.0144, method="erk", **how)
        sent[0] = 0
        told = times if rank == 0 else None
        gemminer.train(net, ticket, found, epochs=2, lr=0.01, monitor=told, **how)
    if rank == 0:
        gaps = [b - a for a, b in zip(times.at, times.at[1:], strict=False)]
        torch.save((statistics.median(gaps), sent[0] / len(times.at)), Path(folder) / "found.pt")
    distributed.destroy_process_group()


def measured(rounds: int) -> None:
    print("| network, phase | one process, ms a step | two processes | ratio | bytes a step and rank |\n|" + "---|" * 5)
    for name in NETS:
        for what in ("search", "training at 1.44%"):
            found: dict[int, list[tuple[float, float]]] = {1: [], 2: []}
            for _ in range(rounds):
                for world in (1, 2):  # in turns
                    with tempfile.TemporaryDirectory() as folder:
                        multiprocessing.spawn(steps, (world, folder, name, what.split()[0]), nprocs=world)
                        found[world].append(torch.load(Path(folder) / "found.pt"))
            ms = {world: [1e3 * t for t, _ in found[world]] for world in found}
            ratios = [b / a for a, b in zip(ms[1], ms[2], strict=True)]
            spread = f"{statistics.mean(ratios):.2f} ± {statistics.stdev(ratios) if rounds > 1 else 0:.2f}"
            print(
                f"| {name}, {what} | {statistics.mean(ms[1]):.2f} | {statistics.mean(ms[2]):.2f} | {spread} | "
                f"{found[2][0][1]:,.0f} |"
            )
    print(f"\nn = {rounds} in turns, {BATCH} examples a step, gloo; {hardware()}, torch {versions()['torch']}")


def started(folder: Path, port: int, engine: str) -> list[subprocess.Popen[bytes]]:
    common = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    common |= {"GEMMINER_CHECKPOINT_SECONDS": "0", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])}
    command = [sys.executable, "-c", WORK, str(folder), engine]
    return [subprocess.Popen(command, env={**common, "RANK": str(rank)}, stderr=subprocess.PIPE) for rank in range(2)]


def killed(times: int) -> None:
    torch.set_num_threads(1)
    source = random.Random(0)
    with tempfile.TemporaryDirectory() as place:
        out, whole = Path(place) / "run", Path(place) / "whole"
        for rank in started(whole, 29700, "auto"):
            rank.communicate()
        kills = 0
        while kills < times:
            ranks = started(out, 29701 + kills, "auto")
            begun, rows = time.monotonic(), out / "metrics.jsonl"
            before = rows.read_bytes().count(b"\n") if rows.exists() else 0
            while not rows.exists() or rows.read_bytes().count(b"\n") <= before:  # until it goes on
                time.sleep(0.005)
                if any(rank.poll() is not None for rank in ranks) or time.monotonic() - begun > 120:
                    break
            time.sleep(source.random() * 0.25)
            victim = source.randrange(2)
            ranks[victim].send_signal(signal.SIGKILL)
            at = time.monotonic()
            said = ranks[1 - victim].communicate()[1].decode().strip().splitlines()
            ranks[victim].communicate()
            rows_now = rows.read_bytes().count(b"\n") if rows.exists() else 0
            took = time.monotonic() - at
            print(f"rank {victim} killed after {rows_now} epochs; the other ended in {took:.1f} s: {said[-1:]}")
            kills += 1
        for rank in started(out, 29799, "auto"):
            rank.communicate()
        same = [Ticket.load(f / "ticket.safetensors").digest for f in (out, whole)]
        weights = [(f / "trained.safetensors").read_bytes() for f in (out, whole)]
        print(f"the same ticket: {same[0] == same[1]}; the same weights: {weights[0] == weights[1]}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--kill", type=int, default=0)
    asked = parser.parse_args()
    killed(asked.kill) if asked.kill else measured(asked.rounds)
