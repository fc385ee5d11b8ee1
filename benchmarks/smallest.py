"""What `gemminer smallest` returns, against a sweep of eight densities with three training seeds each.

    python benchmarks/smallest.py [resnet20] [lenet-300-100] [own] --out FOLDER [--threads N]

All on digits: a fifth of the training data held out, within 0.5 points. `own` is a small convolutional network written
here, with data as tensors, as a user has them. The sweep goes through `gemminer.mine` and `gemminer.train` alone, with
training seeds of its own; its validation data are given as test data. FOLDER/NAME.json has the figures.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

import gemminer
from gemminer import data, models
from gemminer.core.statistics import margin_test, mean_std

DENSITIES = (0.5, 0.25, 0.125, 0.0625, 0.0313, 0.0156, 0.00781, 0.00391)
SEEDS = (1, 2, 3)  # 0 is that of the search for the smallest
WITHIN = 0.5


class Own(nn.Module):
    """Somebody's network: three convolutions with a shortcut, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 32, 3, padding=1)
        self.first, self.second = nn.Conv2d(32, 32, 3, padding=1), nn.Conv2d(32, 64, 3, stride=2, padding=1)
        self.norms = nn.ModuleList([nn.BatchNorm2d(32), nn.BatchNorm2d(32), nn.BatchNorm2d(64)])
        self.head = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norms[0](self.stem(x)).relu()
        x = x + self.norms[1](self.first(x)).relu()
        return self.head(self.norms[2](self.second(x)).relu().mean((2, 3)))


def setting(name: str) -> tuple[nn.Module, Any, Any, Any]:
    """A network with its training, validation and test data."""
    digits = data.load("digits", validation=0.2)
    if name != "own":
        size = {"in_channels": digits.in_channels, "classes": digits.classes, "image_size": digits.image_size}
        return models.build(name, **size), digits.train, digits.validation, digits.test
    parts = []
    for part in (digits.train, digits.validation, digits.test):
        assert part is not None
        inputs, targets = zip(*part.epoch(0), strict=True)
        parts.append((torch.cat(inputs), torch.cat(targets)))
    torch.manual_seed(0)
    return Own(), *parts


def spent(begun: tuple[float, float]) -> dict[str, float]:
    return {"seconds": round(time.monotonic() - begun[0], 1), "cpu_seconds": round(time.process_time() - begun[1], 1)}


def now() -> tuple[float, float]:
    return time.monotonic(), time.process_time()


def sweep(name: str) -> dict[str, Any]:
    """Validation and test accuracy of each density, and of the dense network, over the seeds."""
    model, train, validation, test = setting(name)
    begun, rows = now(), []
    dense: list[float] = []
    for density in (1.0, *DENSITIES):
        how = {"method": "uniform", "initialiser": "keep"} if density == 1.0 else {}
        ticket = gemminer.mine(model, train, density, **how)
        measured = []
        for seed in SEEDS:
            gemminer.train(model, ticket, train, seed=seed)
            measured.append([accuracy(model, part) for part in (validation, test)])
        chosen, shown = map(list, zip(*measured, strict=True))
        dense = dense or chosen
        far = margin_test(chosen, dense, WITHIN / 100)
        row = {"density": density, "kept": ticket.kept, "validation": chosen, "test": shown, "far": vars(far)}
        rows.append(row)
        print(name, f"{density:.3%}", mean_std(chosen), mean_std(shown), far, flush=True)
    return {"rows": rows, **spent(begun)}


@torch.no_grad()
def accuracy(model: nn.Module, part: Any) -> float:
    model.eval()
    batches = [part] if isinstance(part, tuple) else part.epoch(0)
    right = [(model(inputs).argmax(1) == targets).double() for inputs, targets in batches]
    model.train()
    return float(torch.cat(right).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=["resnet20", "lenet-300-100", "own"])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    for name in given.names:
        model, train, validation, test = setting(name)
        begun = now()
        found = gemminer.smallest(
            model,
            train,
            validation_data=validation,
            test_data=test,
            within=WITHIN,
            out=given.out / name,
            progress=True,
        )
        print(found, f"\ntest {found.test}, dense {found.dense_test}\n{spent(begun)}", flush=True)
        answer = {**json.loads(found.model_dump_json()), **spent(begun)}
        (given.out / f"{name}.json").write_text(json.dumps({"answer": answer, "sweep": sweep(name)}, indent=1))


if __name__ == "__main__":
    main()
