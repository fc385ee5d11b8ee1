"""A run as it lies on the disk, without having run."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

# ResNet-20 with one input channel: 268,048 prunable weights; kept per layer as a search at 0.59% leaves them.
SHAPES = [[16, 1, 3, 3], *[[16, 16, 3, 3]] * 6, [32, 16, 3, 3], *[[32, 32, 3, 3]] * 5]
SHAPES += [[64, 32, 3, 3], *[[64, 64, 3, 3]] * 5, [10, 64]]
BLOCKS = [f"layers.{stage}.{block}.conv{conv}" for stage in range(3) for block in range(3) for conv in (1, 2)]
NAMES = [f"{name}.weight" for name in ("conv1", *BLOCKS, "classifier")]
KEPT = [37, 78, 103, 106, 80, 86, 60, 71, 113, 162, 103, 103, 39, 40, 40, 44, 29, 26, 33, 228]
CHECKS = {
    "shuffle": [0.921, 0.933, 0.914],
    "reinit": [0.938, 0.947, 0.931],
    "invert": [0.102, 0.097, 0.104],
    "uniform": [0.742, 0.781, 0.764],
    "erk": [0.874, 0.893, 0.881],
}
TICKET = [0.972, 0.975, 0.967]


def spread(values: list[float]) -> tuple[float, float]:
    mean = sum(values) / len(values)
    return mean, math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1))


def fake_layers() -> list[dict[str, Any]]:
    layers = []
    for name, shape, kept in zip(NAMES, SHAPES, KEPT, strict=True):
        size = math.prod(shape)
        dead = max(0, round(shape[0] * (1 - kept / shape[0]) / 1.4)) if kept < shape[0] else shape[0] // 16
        layer = {"name": name, "shape": shape, "prunable": size, "kept": kept, "density": kept / size}
        layers.append(layer | {"filters": shape[0], "dead_filters": dead})
    return layers


def fake_checks() -> dict[str, Any]:
    checks = {}
    for name, values in CHECKS.items():
        mean, std = spread(values)
        difference, difference_std = spread([t - v for t, v in zip(TICKET, values, strict=True)])
        row = {"mean": mean, "std": std, "n": 3, "values": values, "ticket_values": TICKET, "verdict": "pass"}
        checks[name] = row | {"difference": difference, "difference_std": difference_std}
    return checks


def fake_record(**changes: Any) -> dict[str, Any]:
    cost = {"epochs": 40, "seconds": 63.4, "flops_dense": 1.2e13, "flops_sparse": 2.0e12}
    layers = fake_layers()
    prunable, kept = sum(layer["prunable"] for layer in layers), sum(layer["kept"] for layer in layers)
    record = {
        "schema": "gemminer.record/1",
        "created": "2026-11-22T17:00:00+00:00",
        "command": "gemminer mine --model resnet20 --data digits --density 0.0059 --seed 0 --out runs/gem",
        "method": "gem-miner",
        "options": {"lambda": 1e-4, "freeze_every": None, "optimiser": "sgd", "lr": 0.1, "mask": "q"},
        "model": "resnet20",
        "model_options": {"in_channels": 1, "batch_norm": "non-affine"},
        "data": "digits",
        "data_options": {},
        "seed": 0,
        "recipe": {"method": "gem-miner", "model": "resnet20", "data": "digits", "density": 0.0059},
        "recipe_hash": "ab12cd34ef56",
        "epochs": {"search": 40, "train": 40},
        "density": {
            "asked": 0.0059,
            "realised": kept / prunable,
            "kept": kept,
            "prunable": prunable,
            "live": 0.0051,
        },
        "layers": layers,
        "accuracy": {
            "before": 0.872,
            "after": 0.9713,
            "dense": 0.985,
            "after_std": 0.004,
            "n": 3,
            "after_values": TICKET,
        },
        "verdict": "pass",
        "checks": fake_checks(),
        "notes": [],
        "cost": {"search": cost, "train": cost | {"seconds": 41.2, "flops_sparse": 9.1e10}},
        "metric": "accuracy",
        "hardware": {"cpu": "AMD EPYC 7B13", "cores": 2, "threads": 2, "device": "cpu", "memory_gib": 24},
        "versions": {"gemminer": "0.1.0", "torch": "2.14.1", "numpy": "2.4.0", "python": "3.11.7"},
        "git": "abc1234",
        "frozen": {"search": list(range(2, 660, 2))},
    }
    return record | changes


def fake_metrics(record: dict[str, Any], every: int | None = None) -> list[dict[str, Any]]:
    """A search that freezes all the time (or every so many epochs, and falls each time), and trainings."""
    noise, rows, kept = random.Random(0), [], 1.0
    for epoch in range(1, 41):
        freezes = (11 if epoch <= 30 else 0) if every is None else int(epoch % every == 0 and epoch < 38)
        kept = kept if not freezes else record["density"]["asked"] ** min(1.0, epoch / (30 if every is None else 36))
        live = min(kept * noise.uniform(0.82, 0.95), 0.5 * math.exp(-epoch / 9) + 0.005)
        validation = 0.93 - 0.7 * math.exp(-epoch / 6) + noise.gauss(0, 0.01)
        validation -= 0.5 * noise.random() if freezes and every else 0
        row = {"phase": "search", "epoch": epoch, "step": 22 * epoch, "loss": 2.3 * math.exp(-epoch / 9)}
        row |= {
            "validation": validation,
            "kept": kept,
            "live": live,
            "lambda": 1e-4,
            "lr": 0.1,
            "seconds": 0.2,
        }
        rows.append(row | {"freezes": freezes})
    trained = {"train": record["accuracy"].get("after"), "dense": record["accuracy"].get("dense")}
    for name, check in (record.get("checks") or {}).items():
        trained |= {f"check:{name}:{seed}": value for seed, value in enumerate(check["values"])}
    for phase, end in trained.items():
        for epoch in range(1, 41 if end is not None else 1):
            start = 0.85 if phase == "train" else 0.1
            value = end + (start - end) * math.exp(-epoch / 5) + noise.gauss(0, 0.004)
            row = {"phase": phase, "epoch": epoch, "step": 22 * epoch, "loss": 1 - value, "validation": value}
            rows.append(row | {"kept": 0.0059, "live": 0.0059, "lr": 0.1, "seconds": 0.1, "freezes": 0})
    return rows


def make_run(folder: Path, every: int | None = None, metrics: bool = True, **changes: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    record = fake_record(**changes)
    (folder / "record.json").write_text(json.dumps(record))
    if metrics:
        lines = (json.dumps(row) for row in fake_metrics(record, every))
        (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    return folder
