"""The longest step that `lr="auto"` allows, chosen by validation accuracy: no test data is read.

    python benchmarks/rate_step.py [--only NAME] [--out results/rate-step.jsonl]    run what is missing
    python benchmarks/rate_step.py --table                                          print the table

A row is a setting, a ticket's seed, an order of the data and a factor, or a rate with gradients as long as they are.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from rate import Setting, experiment_of, ticket_of

from gemminer.training import rate
from gemminer.training.settings import Settings

STEPS: tuple[Any, ...] = (0.01, 0.02, 0.04, 0.08, 0.16, math.inf, "lr 0.1", "lr 0.05", "lr 0.025")
# Name -> setting, tickets, orders.
SETTINGS: dict[str, tuple[Setting, int, int]] = {
    "LeNet-5, digits, 5%": (Setting("lenet-5", "digits", 0.05, 30, 30, 128, validation=0.1), 4, 3),
    "the same, a fifth held out": (Setting("lenet-5", "digits", 0.05, 30, 30, 128, validation=0.2), 2, 3),
    "the same, half held out": (Setting("lenet-5", "digits", 0.05, 30, 30, 128, validation=0.5), 2, 3),
    "LeNet-5, digits, 1.44%, short": (Setting("lenet-5", "digits", 0.0144, validation=0.2), 3, 3),
    "LeNet-5, Fashion-MNIST, 5%": (Setting("lenet-5", "fashion-mnist", 0.05, limit=4000, validation=0.2), 1, 2),
    "LeNet-300-100, Fashion-MNIST, 5%": (
        Setting("lenet-300-100", "fashion-mnist", 0.05, limit=4000, validation=0.2),
        1,
        2,
    ),
    "ResNet-20 of half width, digits, 1.44%": (
        Setting("resnet20", "digits", 0.0144, 10, 10, width=0.5, validation=0.2),
        1,
        1,
    ),
    "eight convolutions without norm, digits, 5%": (
        Setting("plain", "digits", 0.05, 30, 30, 128, validation=0.2),
        2,
        2,
    ),
}


def rows(name: str, done: set[tuple[Any, ...]]) -> Iterator[dict[str, Any]]:
    """What is missing of a setting."""
    setting, seeds, orders = SETTINGS[name]
    for seed in range(seeds):
        experiment = experiment_of(setting, seed, "", held_out=True)
        for order in range(orders):
            for step in STEPS:
                if (name, seed, order, str(step)) in done:
                    continue
                ticket = ticket_of(setting, seed, experiment, Path("runs/rate-step-tickets") / name)
                own = Settings(setting.train_epochs)
                if isinstance(step, str):
                    own = dataclasses.replace(own, lr=float(step.removeprefix("lr ")))
                else:
                    rate.STEP = step
                found = dataclasses.replace(experiment, settings=own).train(ticket, order, f"train:{order}")
                facts = {"validation": found["validation"], "rate": [found["rate"]["lr"], found["rate"]["max_norm"]]}
                yield {"setting": name, "seed": seed, "order": order, "step": str(step), **facts}


def table(found: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Percent: the mean over tickets and orders, the lowest, and the mean of the tickets' spreads over orders."""
    yield f"| setting | {' | '.join(map(str, STEPS))} |"
    yield "|---" * (len(STEPS) + 1) + "|"
    for name in SETTINGS:
        cells = []
        for step in map(str, STEPS):
            own = [r for r in found if (r["setting"], r["step"]) == (name, step)]
            if not own:
                cells.append("")
                continue
            by_seed = [[100 * r["validation"] for r in own if r["seed"] == s] for s in {r["seed"] for r in own}]
            every = [x for values in by_seed for x in values]
            text = f"{statistics.fmean(every):.1f}"
            if len(by_seed[0]) > 1:
                spread = statistics.fmean(map(statistics.stdev, by_seed))
                text += f" ({min(every):.1f}, {spread:.1f})"
            cells.append(text)
        yield f"| {name} | {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", default="")
    parser.add_argument("--out", type=Path, default=Path("results/rate-step.jsonl"))
    parser.add_argument("--table", action="store_true")
    asked = parser.parse_args()
    found = [json.loads(line) for line in asked.out.read_text().splitlines()] if asked.out.exists() else []
    if asked.table:
        print("\n".join(table(found)))
        return
    torch.set_num_threads(1)
    done = {(r["setting"], r["seed"], r["order"], r["step"]) for r in found}
    for name in SETTINGS:
        if asked.only in name:
            for row in rows(name, done):
                with asked.out.open("a") as file:
                    file.write(json.dumps(row) + "\n")
                print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
