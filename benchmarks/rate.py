"""The rate that a training finds for itself against the former default of 0.1, in cells that a killed run goes on with.

    python benchmarks/rate.py [--only TEXT] [--rate RATE] [--cifar FOLDER] [--out results/rate.jsonl]    what is missing
    python benchmarks/rate.py --table                                                                    the tables

A cell is a setting, a ticket's seed and a rate (0.1 or auto): the ticket trained with three orders of the data and,
with the first of them, its shuffled mask and the dense network. Each finished cell is a line of the file.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gemminer import data, methods, models
from gemminer.core.ticket import Ticket
from gemminer.runs.building import build
from gemminer.runs.checks import altered_ticket
from gemminer.runs.experiment import Experiment
from gemminer.runs.settings import draw_of, resolve
from gemminer.training.settings import Settings

RATES: tuple[Any, ...] = (0.1, "auto")
SEEDS, ORDERS = range(3), range(3)


class Mixer(nn.Module):
    """A small MLP-Mixer on 16 patches (Tolstikhin et al. 2021), which nobody tuned anything for."""

    def __init__(self, channels: int, classes: int, size: int, dim: int = 64, depth: int = 4) -> None:
        super().__init__()
        self.patch = nn.Conv2d(channels, dim, size // 4, stride=size // 4)
        self.tokens = nn.ModuleList(self._mlp(16, 32) for _ in range(depth))
        self.features = nn.ModuleList(self._mlp(dim, 2 * dim) for _ in range(depth))
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(2 * depth))
        self.head = nn.Linear(dim, classes)

    @staticmethod
    def _mlp(width: int, hidden: int) -> nn.Sequential:
        return nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))

    def forward(self, images: Tensor) -> Tensor:
        x = self.patch(images).flatten(2).transpose(1, 2)
        for tokens, features, one, two in zip(
            self.tokens, self.features, self.norms[::2], self.norms[1::2], strict=True
        ):
            x = x + tokens(one(x).transpose(1, 2)).transpose(1, 2)
            x = x + features(two(x))
        y: Tensor = self.head(x.mean(1))
        return y


class Plain(nn.Sequential):
    """Eight 3x3 convolutions without any norm, as a VGG's, which nobody tuned anything for."""

    def __init__(self, channels: int, classes: int, size: int) -> None:
        layers: list[nn.Module] = []
        for i, width in enumerate((16, 16, 32, 32, 64, 64, 64, 64)):
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
            channels = width
            if i in (1, 3):
                layers.append(nn.MaxPool2d(2))
        super().__init__(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes))


@dataclass(frozen=True)
class Setting:
    model: str
    data: str
    density: float
    epochs: int = 10
    train_epochs: int = 10
    batch_size: int = 64
    limit: int | None = None
    width: float = 1.0
    validation: float = 0.1

    @property
    def name(self) -> str:
        images = f"-{self.limit}" if self.limit else ""
        wide = f"-width-{self.width:g}" if self.width != 1 else ""
        return f"{self.model}{wide}, {self.data}{images}, {self.density}, {self.epochs}+{self.train_epochs}"


LENETS = ("lenet-300-100", "lenet-5")
SETTINGS = [
    Setting("lenet-5", "digits", 0.05, 30, 30, 128, validation=0.0),  # all defaults of the Python functions
    *(Setting(m, "digits", d) for m in LENETS for d in (0.05, 0.0144)),
    *(Setting(m, "fashion-mnist", d, limit=4000) for m in LENETS for d in (0.05, 0.0144)),
    Setting("mixer", "digits", 0.05, 30, 30, 128, validation=0.0),
    Setting("plain", "digits", 0.05, 30, 30, 128, validation=0.0),
    Setting("transformer", "digits", 0.05, 30, 30, 128, validation=0.0),
    *(Setting("resnet20", "digits", d, 20) for d in (0.0144, 0.0059)),
    *(Setting(m, "fashion-mnist", 0.05, 10, 10, 128, limit=10_000) for m in LENETS),
    *(Setting("resnet20", "fashion-mnist", d, limit=1200, width=0.5) for d in (0.05, 0.0144)),
    Setting("resnet20", "cifar10", 0.0372, 12, 12, 128, limit=10_000),
]


def experiment_of(setting: Setting, seed: int, cifar: str, held_out: bool = False) -> Experiment:
    name = f"folder:{cifar}@32" if setting.data == "cifar10" else setting.data
    more: dict[str, Any] = {"augment": "crop4+flip"} if setting.data == "cifar10" else {}
    part = {"validation": setting.validation, "limit_train": setting.limit, "batch_size": setting.batch_size}
    loaded = data.load(name, **part, **more)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if setting.model in ("mixer", "plain"):
            kind = Mixer if setting.model == "mixer" else Plain
            model: nn.Module = kind(loaded.in_channels, loaded.classes, loaded.image_size)
        else:
            sizes = {"in_channels": loaded.in_channels, "classes": loaded.classes, "image_size": loaded.image_size}
            options = {"width": setting.width} if setting.width != 1 else {}
            model = models.build(setting.model, **sizes, **options)
    measured = {"validation": loaded.validation} if held_out else {"test": loaded.test}
    return build(model, loaded.train, **measured, seed=seed, engine="dense")


def ticket_of(setting: Setting, seed: int, experiment: Experiment, folder: Path) -> Ticket:
    """The setting's ticket of this seed: searched for once, for both rates."""
    path = folder / f"{setting.name.replace(', ', '_')}-{seed}.safetensors"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        chosen = resolve("gem-miner", experiment.task.train.examples, epochs=setting.epochs).options
        draw = draw_of("default", methods.get("gem-miner"), setting.density, seed)
        experiment.search("gem-miner", setting.density, chosen, draw, lambda found: found.save(path))
    return Ticket.load(path)


def cell(setting: Setting, seed: int, lr: Any, cifar: str, folder: Path) -> dict[str, Any]:
    experiment = experiment_of(setting, seed, cifar)
    ticket = ticket_of(setting, seed, experiment, folder)
    experiment = dataclasses.replace(experiment, settings=Settings(setting.train_epochs, lr=lr))
    orders = [experiment.train(ticket, i, f"train:{i}") for i in ORDERS]
    shuffled = experiment.train(altered_ticket(experiment, "shuffle", ticket, 0), 0, "check:shuffle:0")
    dense = experiment.train(None, 0, "dense")
    trained = [*orders, shuffled, dense]
    return {
        "setting": setting.name,
        "seed": seed,
        "lr": lr,
        "before": experiment.before(ticket),
        "after": [r["test"] for r in orders],
        "shuffle": shuffled["test"],
        "dense": dense["test"],
        "rates": [[r["rate"]["lr"], r["rate"]["max_norm"]] for r in trained],
        "search": [round(r["rate"]["seconds"], 3) for r in trained],
        "seconds": [round(r["cost"]["seconds"], 3) for r in trained],
    }


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def rows(cells: list[dict[str, Any]]) -> Iterator[str]:
    """A row a setting and rate: percent, means over the tickets and orders."""
    yield "| setting | lr | before | after | lowest | least gain | spread | shuffle | dense | rates | search | n |"
    yield "|---|---|---|---|---|---|---|---|---|---|---|---|"
    for setting in SETTINGS:
        for lr in RATES:
            own = [c for c in cells if c["setting"] == setting.name and c["lr"] == lr]
            if not own:
                continue
            after = [100 * a for c in own for a in c["after"]]
            gain = min(100 * (a - c["before"]) for c in own for a in c["after"])
            spread = statistics.fmean(statistics.stdev([100 * a for a in c["after"]]) for c in own)
            means = [f"{100 * statistics.fmean(c[key] for c in own):.1f}" for key in ("before", "shuffle", "dense")]
            found = sorted({r[0] for c in own for r in c["rates"]})
            part = sum(map(sum, (c["search"] for c in own))) / sum(map(sum, (c["seconds"] for c in own)))
            texts = [
                setting.name,
                str(lr),
                means[0],
                f"{statistics.fmean(after):.1f}",
                f"{min(after):.1f}",
                f"{gain:+.1f}",
            ]
            texts += [f"{spread:.2f}", *means[1:], ", ".join(f"{x:g}" for x in found), f"{part:.0%}", str(len(own))]
            yield f"| {' | '.join(texts)} |"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", default="", help="a part of the setting's name")
    parser.add_argument("--rate", choices=[str(lr) for lr in RATES], help="this rate alone")
    parser.add_argument("--out", type=Path, default=Path("results/rate.jsonl"))
    parser.add_argument("--tickets", type=Path, default=Path("runs/rate-tickets"))
    parser.add_argument("--cifar", default="")
    parser.add_argument("--table", action="store_true")
    asked = parser.parse_args()
    if asked.table:
        print("\n".join(rows(read(asked.out))))
        return
    torch.set_num_threads(1)
    done = {(c["setting"], c["seed"], c["lr"]) for c in read(asked.out)}
    for setting in SETTINGS:
        for seed in SEEDS:
            for lr in RATES:
                wanted = asked.only in setting.name and asked.rate in (None, str(lr))
                wanted = wanted and (setting.data != "cifar10" or bool(asked.cifar))
                if wanted and (setting.name, seed, lr) not in done:
                    found = cell(setting, seed, lr, asked.cifar, asked.tickets)
                    with asked.out.open("a") as file:
                        file.write(json.dumps(found) + "\n")
                    print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
