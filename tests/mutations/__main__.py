"""python -m tests.mutations programs 30000     # or another kind; --seed N for one of them alone.

A file that cannot be is a GemminerError; one that can be gives what it says, and reads its own memory only.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from tests.mutations.kinds import KINDS, mutate

parser = argparse.ArgumentParser(description="Try damaged files of a kind, and print what came of them.")
parser.add_argument("kind", choices=KINDS)
parser.add_argument("count", type=int, nargs="?", default=30_000)
parser.add_argument("--seed", type=int, default=0, help="the first")
given = parser.parse_args()
with tempfile.TemporaryDirectory() as folder:
    found, faults = mutate(given.kind, range(given.seed, given.seed + given.count), Path(folder))
for sentence, count in found.most_common(60):
    print(f"{count:7d}  {sentence}")
for seed, error in list(faults.items())[:20]:
    print(f"FAULT {seed}: {type(error).__name__}: {str(error)[:200]}")
    if given.count == 1:
        raise error
print(f"{given.count} files of {given.kind}, {len(faults)} faults")
sys.exit(bool(faults))
