"""A comparison killed again and again against one that never was: python benchmarks/kill_compare.py [KILLS] [OUT]

Forty cells on digits, two workers. SIGKILL goes to the parent at random moments, each after at least one more finished
cell; its workers end with it. In the end table.csv, table.md and summary.csv must be equal, byte for byte.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

GRID = [
    *("--method", "gem-miner,imp,snip,synflow,edge-popup", "--model", "lenet-300-100", "--data", "digits"),
    *("--density", "0.1,0.05", "--seed", "0-3", "--epochs", "6", "--checks", "shuffle", "--threads", "1", "--no-dense"),
]


def start(out: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "gemminer.cli", "compare", *GRID, "--workers", "2", "--out", str(out)]
    environment = {**os.environ, "GEMMINER_CHECKPOINT_SECONDS": "0"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)


def finished(out: Path) -> int:
    return len(list(out.glob("cells/*/record.json")))


def main() -> int:
    kills = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    folder = Path(sys.argv[2]) if len(sys.argv) > 2 else Path(tempfile.mkdtemp())
    whole, killed, delay = folder / "whole", folder / "killed", random.Random(0)
    if start(whole).communicate() and not (whole / "table.csv").exists():
        raise SystemExit("the comparison that nobody killed did not finish")
    cells = len(json.loads((whole / "compare.json").read_text())["cells"])
    moments = []
    for kill in range(kills):
        process, goal = start(killed), cells * (kill + 1) // (kills + 2)
        while finished(killed) < goal and process.poll() is None:
            time.sleep(0.01)
        time.sleep(delay.uniform(0, 0.5))
        process.kill()
        process.communicate()
        half = sum(not (cell / "record.json").exists() for cell in killed.glob("cells/*"))
        moments.append(f"{finished(killed)} finished, {half} half done")
        time.sleep(1)
    start(killed).communicate()
    same = all(
        (whole / name).read_bytes() == (killed / name).read_bytes() for name in ("table.csv", "table.md", "summary.csv")
    )
    print(json.dumps({"cells": cells, "kills": kills, "moments": moments, "equal": same}))
    return 0 if same else 1


if __name__ == "__main__":
    raise SystemExit(main())
