"""Cells an hour of two workers against one: python benchmarks/workers.py [RUNS]

The same 24 cells on digits (three methods, eight seeds) with one worker and with two, in turns. A cell has one thread
either way; against the second baseline the one worker has both cores. The rate is that between the first finished cell
and the last: some ten seconds of starting up, once a comparison, are left out.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from gemminer.runs import environment

GRID = [
    *("--method", "gem-miner,snip,erk", "--data", "digits", "--density", "0.05", "--seed", "0-7", "--no-dense"),
    *("--batch-size", "64", "--checks", "shuffle"),
]
SIZES = {"resnet20": "10", "lenet-300-100": "150"}  # epochs: two to three minutes for one worker


def rate(model: str, workers: int, threads: int) -> float:
    """Cells a second."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "cells"
        flags = ["--model", model, "--epochs", SIZES[model], "--workers", str(workers), "--threads", str(threads)]
        command = [sys.executable, "-m", "gemminer.cli", "compare", *GRID, *flags, "--out", str(out)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        done = sorted(file.stat().st_mtime for file in out.glob("cells/*/record.json"))
        return (len(done) - 1) / (done[-1] - done[0])


def main() -> None:
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    for model in SIZES:
        for name, threads in (("one worker, one thread", 1), ("one worker, both cores", 2)):
            ratios = sorted(rate(model, 2, 1) / rate(model, 1, threads) for _ in range(runs))
            line = {"bench": "workers", "model": model, "baseline": name, "ratio": statistics.median(ratios)}
            print(
                json.dumps({**line, "low": ratios[0], "high": ratios[-1], "runs": runs, **environment.hardware()}),
                flush=True,
            )


if __name__ == "__main__":
    main()
