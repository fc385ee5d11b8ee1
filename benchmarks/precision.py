"""bf16 against fp32: what a search and a training of its ticket come to, and what they cost.

    python benchmarks/precision.py [--out results/precision.jsonl]    run what is missing
    python benchmarks/precision.py --table                            print the table

A row is a network, a seed and a way to compute: Gem-Miner and the training of its ticket on digits, on one thread. The
ways of a seed are run one after the other; seconds are those of the process on the processor, so that other jobs count
little.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from gemminer.core.ticket import Ticket
from gemminer.runs import environment, execute
from gemminer.runs.recipe import Recipe

DENSITY, SEEDS = 0.05, (0, 1, 2, 3, 4)
# Name -> network, epochs of the search and of the training.
NETWORKS = {"LeNet-5": ("lenet-5", 40, 40), "ResNet-20": ("resnet20", 20, 20)}
WAYS = {f"{p}, {engine}": (p, engine) for p in ("fp32", "bf16") for engine in ("dense", "auto")}


def row(name: str, way: str, seed: int) -> dict[str, Any]:
    """One search and one training."""
    (model, search, training), (precision, engine) = NETWORKS[name], WAYS[way]
    recipe = Recipe(model=model, density=DENSITY, seed=seed, epochs=search, train_epochs=training, precision=precision)
    ready = execute.prepare(recipe, device="cpu", engine=engine)
    experiment = ready.experiment.with_engine()  # timing kernels is no part of the search
    found: list[Ticket] = []
    begun = time.process_time()
    experiment.search(recipe.method, DENSITY, ready.resolved.options, ready.draw, found.append)
    searched = time.process_time()
    before = experiment.before(found[0])
    between = time.process_time()
    result = experiment.train(found[0], 0, "train:0")
    ended = time.process_time()
    seconds = {"search": searched - begun, "train": ended - between}
    known = {"network": name, "way": way, "seed": seed, "before": before, "after": result["test"]}
    machine = {"hardware": environment.hardware("cpu", 1), "torch": torch.__version__}
    return {**known, "lr": result["rate"]["lr"], "seconds": seconds, **machine}


def spread(values: list[float]) -> str:
    return f"{100 * statistics.fmean(values):.1f} +- {100 * statistics.stdev(values):.1f}"


def table(rows: list[dict[str, Any]]) -> str:
    """Means over seeds, and seconds as multiples of fp32's, dense, of the same seed."""
    lines = ["| network | computed in | before training | after training | search | training | n |"]
    lines.append("|---|---|---|---|---|---|---|")
    for name in NETWORKS:
        by_way = {way: {r["seed"]: r for r in rows if (r["network"], r["way"]) == (name, way)} for way in WAYS}
        base = by_way["fp32, dense"]
        for way, own in by_way.items():
            if len(own) < 2:
                continue
            cells = [spread([r[what] for r in own.values()]) for what in ("before", "after")]
            for what in ("search", "train"):
                times = statistics.fmean(r["seconds"][what] for r in own.values())
                logs = [math.log(r["seconds"][what] / base[seed]["seconds"][what]) for seed, r in own.items()]
                ratio = math.exp(statistics.fmean(logs))
                cells.append(f"{times:.0f} s, {ratio:.2f}")
            lines.append(f"| {name} | {way} | {' | '.join(cells)} | {len(own)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("results/precision.jsonl"))
    parser.add_argument("--table", action="store_true")
    asked = parser.parse_args()
    rows = [json.loads(line) for line in asked.out.read_text().splitlines()] if asked.out.exists() else []
    done = {(r["network"], r["way"], r["seed"]) for r in rows}
    torch.set_num_threads(1)
    for name in () if asked.table else NETWORKS:
        for seed in SEEDS:
            for way in WAYS:
                if (name, way, seed) not in done:
                    rows.append(row(name, way, seed))
                    with asked.out.open("a") as file:
                        file.write(json.dumps(rows[-1]) + "\n")
                    print(json.dumps({k: v for k, v in rows[-1].items() if k not in ("hardware", "torch")}), flush=True)
    print(table(rows))


if __name__ == "__main__":
    main()
