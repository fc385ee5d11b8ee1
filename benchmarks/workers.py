"""Cells an hour of two workers against one: python benchmarks/workers.py [RUNS]

The same twelve cells on digits (three methods, four seeds) with one worker and with two, in turns. A cell has one
thread either way; against the second baseline the one worker has both cores. Timed is the command as it is typed, with
the seconds it takes to start: a comparison of many cells comes closer to two.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from gemminer import record

GRID = [
    *("--method", "gem-miner,snip,erk", "--data", "digits", "--density", "0.05", "--seed", "0-3", "--no-dense"),
    *("--batch-size", "64", "--checks", "shuffle"),
]
SIZES = {"resnet20": "10", "lenet-300-100": "150"}  # epochs: a minute and a half for one worker


def seconds(model: str, workers: int, threads: int) -> float:
    with tempfile.TemporaryDirectory() as out:
        flags = ["--model", model, "--epochs", SIZES[model], "--workers", str(workers), "--threads", str(threads)]
        begun = time.monotonic()
        command = [sys.executable, "-m", "gemminer.cli", "compare", *GRID, *flags, "--out", str(Path(out) / "cells")]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        return time.monotonic() - begun


def main() -> None:
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    for model in SIZES:
        for name, threads in (("one worker, one thread", 1), ("one worker, both cores", 2)):
            ratios = sorted(seconds(model, 1, threads) / seconds(model, 2, 1) for _ in range(runs))
            line = {"bench": "workers", "model": model, "baseline": name, "ratio": statistics.median(ratios)}
            print(
                json.dumps({**line, "low": ratios[0], "high": ratios[-1], "runs": runs, **record.hardware()}),
                flush=True,
            )


if __name__ == "__main__":
    main()
