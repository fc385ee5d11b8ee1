"""Many runs, without having run: whole grids, and small records with numbers for hand counts."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

from gemminer.reporting import aggregate
from tests.reporting.fakes import NAMES, SHAPES, fake_record

# method: accuracy after training at 5%, 1.44%, 0.59%; before at the same; spread; search epochs; layer skew
METHODS: dict[str, tuple[tuple[float, ...], tuple[float, ...], float, float, float]] = {
    "gem-miner": ((0.985, 0.981, 0.972), (0.95, 0.92, 0.87), 0.004, 40, 0.6),
    "edge-popup": ((0.961, 0.902, 0.61), (0.93, 0.71, 0.21), 0.012, 40, 0.3),
    "imp": ((0.987, 0.979, 0.968), (0.11, 0.10, 0.10), 0.005, 600, 0.75),
    "imp:rewind=warm": ((0.988, 0.982, 0.969), (0.32, 0.24, 0.18), 0.004, 610, 0.75),
    "snip": ((0.979, 0.951, 0.883), (0.10, 0.10, 0.10), 0.009, 0.06, 1.1),
    "grasp": ((0.973, 0.947, 0.871), (0.10, 0.11, 0.09), 0.011, 1, 0.95),
    "synflow": ((0.977, 0.964, 0.918), (0.10, 0.10, 0.10), 0.007, 0, 0.8),
    "prospr": ((0.981, 0.962, 0.905), (0.14, 0.12, 0.10), 0.008, 0.3, 0.9),
    "magnitude": ((0.968, 0.892, 0.63), (0.10, 0.10, 0.10), 0.02, 0, 0.2),
    "random": ((0.962, 0.861, 0.52), (0.10, 0.10, 0.10), 0.025, 0, 0.0),
    "uniform": ((0.961, 0.859, 0.53), (0.10, 0.10, 0.10), 0.022, 0, 0.0),
    "erk": ((0.974, 0.938, 0.862), (0.10, 0.10, 0.10), 0.01, 0, 0.7),
    "smart-ratio": ((0.971, 0.931, 0.844), (0.10, 0.10, 0.10), 0.012, 0, 0.65),
    "gradual": ((0.969, 0.941, 0.902), (0.94, 0.83, 0.55), 0.012, 40, 0.45),
}
DENSITIES = (0.05, 0.0144, 0.0059)
LOSSES = {"shuffle": 0.045, "reinit": 0.03, "invert": 0.6, "uniform": 0.2, "erk": 0.07}
UNMOVED = {"snip": ("shuffle",), "grasp": ("shuffle", "reinit"), "random": tuple(LOSSES), "uniform": tuple(LOSSES)}


def skewed_layers(density: float, skew: float, noise: random.Random, collapse: bool = False) -> list[dict[str, Any]]:
    """Layers of which small ones keep more, the more so the larger `skew`; the sum is exact to a few weights."""
    sizes = [math.prod(shape) for shape in SHAPES]
    wanted = [size ** (1 - skew) * noise.uniform(0.85, 1.15) for size in sizes]
    scale = density * sum(sizes) / sum(wanted)
    rows = []
    for i, (name, shape, size, part) in enumerate(zip(NAMES, SHAPES, sizes, wanted, strict=True)):
        kept = 0 if collapse and i in (16, 17) else min(size, max(1, round(scale * part)))
        dead = round(shape[0] * math.exp(-1.2 * kept / shape[0]))
        row = {"name": name, "shape": shape, "prunable": size, "kept": kept, "density": kept / size}
        rows.append(row | {"filters": shape[0], "dead_filters": dead})
    return rows


def clip(x: float) -> float:
    return min(0.995, max(0.05, x))


def cell(method: str, at: int, seed: int, data: str = "digits", worse: float = 0.0) -> dict[str, Any]:
    """A record as `compare` writes it: one training and one pair a check."""
    noise = random.Random(f"{method}{at}{seed}{data}")
    name, *options = method.split(":")
    after, before, spread, epochs, skew = METHODS[method]
    density = DENSITIES[at]
    own = clip(noise.gauss(after[at] - worse, spread))
    layers = skewed_layers(density, skew, noise, collapse=method == "snip" and at == 2 and seed < 2)
    kept = sum(layer["kept"] for layer in layers)
    checks = {}
    for check, loss in LOSSES.items():
        there = check in UNMOVED.get(name, ())
        value = clip(own - (0 if there else loss * (0.3 + at / 2)) + noise.gauss(0, 0.003 if there else spread))
        row = {"mean": value, "std": 0.0, "n": 1, "values": [value], "ticket_values": [own]}
        checks[check] = row | {"difference": own - value, "difference_std": 0.0, "verdict": "not decided"}
    flops = 2.2e11 * epochs
    cost = {"epochs": epochs, "seconds": 0.8 * epochs + 0.2, "flops_dense": flops, "flops_sparse": flops * 0.2}
    return fake_record(
        method=name,
        options=dict(option.split("=") for option in options),
        recipe={"method": name, "options": dict(option.split("=") for option in options)},
        data=data,
        seed=seed,
        density={"asked": density, "realised": kept / 268_048, "kept": kept, "prunable": 268_048, "live": None},
        layers=layers,
        accuracy={
            "before": clip(noise.gauss(before[at], 0.01)),
            "after": own,
            "dense": None,
            "after_std": 0.0,
            "n": 1,
            "after_values": [own],
        },
        checks=checks,
        verdict="not decided",
        cost={"search": cost, "train": cost | {"epochs": 40, "seconds": 31.0, "flops_dense": 8.8e12}},
        per_class={"after": [clip(own - abs(noise.gauss(0, 0.02))) for _ in range(10)]},
    )


def dense(seed: int, data: str = "digits", after: float = 0.988) -> dict[str, Any]:
    layers = [layer | {"kept": layer["prunable"], "density": 1.0} for layer in skewed_layers(1, 0, random.Random(0))]
    accuracy = {"before": 0.1, "after": after + 0.001 * seed, "n": 1, "after_values": [after + 0.001 * seed]}
    density = {"asked": 1.0, "realised": 1.0, "kept": 268_048, "prunable": 268_048}
    return fake_record(
        method="uniform", data=data, seed=seed, options={}, density=density, layers=layers, checks={}, accuracy=accuracy
    )


def put(folder: Path, record: dict[str, Any]) -> Path:
    folder.mkdir(parents=True)
    (folder / "record.json").write_text(json.dumps(record))
    return folder


def make_grid(root: Path, data: tuple[str, ...] = ("digits",)) -> list[Path]:
    """14 methods, three densities, three seeds (five at the smallest), a dense run a seed; one failed, one absent."""
    runs = []
    for name in data:
        worse = 0.0 if name == "digits" else 0.07
        for at in range(3):
            for seed in range(5 if at == 2 and name == "digits" else 3):
                for method in METHODS:
                    folder = root / f"{name}-{method.replace(':', '-')}-{at}-{seed}"
                    if (method, at, seed) != ("prospr", 2, 4):
                        runs.append(put(folder, cell(method, at, seed, name, worse)))
        runs += [put(root / f"{name}-dense-{seed}", dense(seed, name, 0.988 - worse)) for seed in range(3)]
    broken, lost = root / "broken", root / "0123456789ab"
    broken.mkdir()
    (broken / "record.json").write_text("{")
    lost.mkdir()
    error = {"cell": "prospr, resnet20, digits, density 0.0059, seed 4", "error": "the process was killed (SIGKILL)"}
    (lost / "error.json").write_text(json.dumps({"schema": "gemminer.error/1", **error}))
    return [*runs, broken, lost, root / "absent"]


def small(method: str, seed: int, after: list[float], density: float = 0.01, **changes: Any) -> aggregate.Run:
    """A run with these trainings of its ticket, no checks and two layers."""
    mean = sum(after) / len(after) if after else None
    layers = [{"name": "a", "kept": 5, "density": 0.5, "filters": 4, "dead_filters": 1}]
    layers += [{"name": "b", "kept": 0, "density": 0.0, "filters": 4, "dead_filters": 4}]
    fields = {
        "method": method,
        "seed": seed,
        "layers": layers,
        "density": {"asked": density, "realised": density},
        "accuracy": {"before": 0.1 * seed, "after": mean, "after_values": after, "dense": 0.9 + 0.01 * seed},
        "checks": {},
        "options": {},
        "recipe": {},
    }
    return aggregate.read(f"{method}-{seed}", fake_record(**fields | changes))


def only(runs: list[aggregate.Run]) -> aggregate.Field:
    (field,) = aggregate.fields(runs)
    return field
