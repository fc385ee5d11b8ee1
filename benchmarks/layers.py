"""Networks without some of their layers against the whole ones, and how much faster they are.

    python benchmarks/layers.py list [--setting digits|cifar]
    python benchmarks/layers.py run --minutes 100 [--setting digits] [--cifar FOLDER]
    python benchmarks/layers.py times --setting digits        # four minutes on a machine that does nothing else
    python benchmarks/layers.py table

Fixed before anything was run. digits: ResNet-56, 40 epochs, batch 64, rate 0.03, seeds 0 to 4; it carries the
verdict: "all tickets win" holds where every criterion is within half a point of the dense network at 1, 3, 5 and 7
blocks removed (one-sided paired t-tests at 95% over the seeds; all of them must hold, so none is corrected). cifar:
ResNet-20 on the first 10,000 CIFAR-10 images, 12 epochs, batch 128, rate 0.1, crops and flips, seeds 0 to 2: means
and deviations alone. FOLDER has train/ and test/ with a folder of images for each class (`cifar10-jpeg.zip`,
unpacked). One learning rate for all arms: for digits chosen on seed 100 and a fifth of the training images, where the
dense network comes to 99.3% with 0.03, but to 95.1% with 0.1, which it finds by itself (40 epochs): any shallower
network would have won. `smoke` shows in a minute whether all of it runs: give it another file with --out.

Arms of a seed start from the same drawn weights and see the same batches. `invert` removes what snip would remove last;
`scratch` removes what snip removes, every value drawn anew as PyTorch's layers do. Any layer may go (least=0). A cell
is one training, ten minutes at most; where arms of a seed remove the same layers it is trained once (`shared`). A
killed cell goes on from its checkpoint. Lines go to results/layers.jsonl; what is there is not run again.

Times are medians of contestants in turns, one thread. Weights are untrained: no time depends on their values, only on
which are zero. `5%` has a random twentieth of the weights that are left.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

import gemminer
from gemminer import data, models, sparse
from gemminer.bench import contestants
from gemminer.bench.measure import alternate, versions
from gemminer.core.copies import duplicate
from gemminer.core.statistics import margin_test, mean_std
from gemminer.core.ticket import Ticket
from gemminer.runs import environment
from gemminer.runs.checks import scratch

ROOT = Path(__file__).resolve().parents[1]
OUT, WORK = ROOT / "results" / "layers.jsonl", ROOT / "runs" / "layers"  # by default
BLOCKS = (1, 3, 5, 7)
CRITERIA = ("snip", "grasp", "loss", "cka", "l1")  # those that the verdict is of
ARMS: dict[str, dict[str, Any]] = {
    **{name: {"criterion": name} for name in (*CRITERIA, "random")},
    "invert": {"criterion": "snip", "invert": True},
    "scratch": {"criterion": "snip"},
}
MARGIN, LEAST_SEEDS = 0.005, 5
SPARSE = 0.05
ROUNDS = 7


@dataclass(frozen=True)
class Setting:
    """A network and its data; `more` are block counts that are only timed."""

    name: str
    model: str
    epochs: int
    batch_size: int
    seeds: int
    lr: float
    more: tuple[int, ...] = ()

    def load(self, cifar: str) -> data.Data:
        if self.name == "cifar":
            how = {"limit_train": 10_000, "augment": "crop4+flip", "batch_size": self.batch_size}
            return data.load(f"folder:{cifar}@32", **how)
        return data.load("digits", batch_size=self.batch_size)

    def build(self, loaded: data.Data | None = None) -> nn.Module:
        channels, side = (3, 32) if self.name == "cifar" else (1, 8)
        classes = 10 if loaded is None else loaded.classes
        return models.build(self.model, in_channels=channels, classes=classes, image_size=side)


SETTINGS = {
    one.name: one
    for one in (
        Setting("digits", "resnet56", 40, 64, 5, 0.03, more=(12, 18, 25)),
        Setting("cifar", "resnet20", 12, 128, 3, 0.1),
        Setting("smoke", "resnet20", 1, 64, 1, 0.1),  # whether it runs, in a minute: not in tables
    )
}


@dataclass(frozen=True)
class Cell:
    setting: str
    seed: int
    arm: str
    blocks: int

    def is_of(self, row: dict[str, Any]) -> bool:
        own = (self.setting, self.seed, self.arm, self.blocks)
        return own == tuple(row.get(key) for key in ("setting", "seed", "arm", "blocks"))


def cells(setting: Setting) -> Iterator[Cell]:
    """Seed by seed, so that what is there at any time is paired."""
    for seed in range(setting.seeds):
        yield Cell(setting.name, seed, "dense", 0)
        for blocks in BLOCKS:
            for arm in ARMS:
                yield Cell(setting.name, seed, arm, blocks)


def read(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []


def write(out: Path, row: dict[str, Any]) -> None:
    about = {"commit": environment.git_revision(), "hardware": environment.hardware("cpu", torch.get_num_threads())}
    with out.open("a") as file:
        file.write(json.dumps({**row, **about, "versions": versions(), "at": environment.now()}) + "\n")


# --- accuracy ------------------------------------------------------------------------------------------------------


def ticket_of(cell: Cell, model: nn.Module, train: Any) -> Ticket:
    """The cell's ticket, from the weights that the seed draws."""
    if cell.arm == "dense":
        return gemminer.mine(model, train, 1.0, method="uniform", seed=cell.seed)
    how = {"method": "layers", "remove": cell.blocks, "least": 0, "seed": cell.seed, **ARMS[cell.arm]}
    ticket = gemminer.mine(model, train, 1.0, **how)
    return scratch(ticket, model, cell.seed) if cell.arm == "scratch" else ticket


def result(cell: Cell, rows: list[dict[str, Any]], cifar: str) -> dict[str, Any]:
    """The cell's row: trained now, or by an arm of the same seed that removes the same layers."""
    setting = SETTINGS[cell.setting]
    loaded = setting.load(cifar)
    model = setting.build(loaded)
    ticket = ticket_of(cell, model, loaded.train)
    what = [cell.setting, cell.seed, "scratch" if cell.arm == "scratch" else "drawn", sorted(ticket.removed)]
    key = hashlib.sha256(json.dumps(what).encode()).hexdigest()[:16]
    row = {"kind": "accuracy", **vars(cell), "training": key, "removed": list(ticket.removed), "kept": ticket.kept}
    known = next((r for r in rows if r.get("training") == key), None)
    if known is not None:
        return {**row, **{name: known[name] for name in ("test", "seconds", "flops", "lr")}, "shared": True}
    WORK.mkdir(parents=True, exist_ok=True)
    how = {"epochs": setting.epochs, "lr": setting.lr, "seed": cell.seed, "checkpoint": WORK / f"{key}.checkpoint"}
    found = gemminer.train(model, ticket, loaded.train, loaded.test, **how)
    cost = found.cost
    return {
        **row,
        "test": found.test,
        "seconds": cost["seconds"],
        "flops": cost["flops_sparse"],
        "lr": found.rate["lr"],
    }


def run(settings: list[Setting], out: Path, minutes: float, cifar: str) -> None:
    """The cells that are missing, as many as fit into the time by what the longest took."""
    end, longest = time.monotonic() + 60 * minutes, 0.0
    for setting in settings:
        if setting.name == "cifar" and not cifar:
            print("cifar needs --cifar FOLDER: left out")
            continue
        for cell in cells(setting):
            rows = read(out)
            if any(cell.is_of(row) for row in rows):
                continue
            if time.monotonic() + longest > end:
                print(f"no time for another cell: {int(longest)} s")
                return
            begun = time.monotonic()
            row = result(cell, rows, cifar)
            write(out, row)
            longest = max(longest, time.monotonic() - begun)
            said = "shared" if row.get("shared") else f"{row['seconds']:.0f} s"
            print(f"{cell.setting} seed {cell.seed} {cell.arm} {cell.blocks}: {row['test']:.4f} ({said})", flush=True)


# --- time ----------------------------------------------------------------------------------------------------------


def step(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> Any:
    """A call that is one step of SGD with momentum."""
    optimiser = torch.optim.SGD(model.train().parameters(), lr=1e-3, momentum=0.9)

    def call() -> None:
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()
        optimiser.step()

    return call


def calls_of(setting: Setting, blocks: int) -> dict[str, Any]:
    """The contestants with so many blocks removed, at random, by what is timed."""
    model = setting.build()
    images = torch.randn(setting.batch_size, *((3, 32, 32) if setting.name == "cifar" else (1, 8, 8)))
    labels = torch.arange(setting.batch_size) % 10
    pair = (images, labels)
    how = {"method": "layers", "criterion": "random", "remove": blocks, "least": 0}
    ticket = gemminer.mine(model, pair, 1.0, **how) if blocks else gemminer.mine(model, pair, 1.0, method="uniform")
    short = ticket.shallow(ticket.apply(model))
    few = gemminer.mine(short, pair, SPARSE, method="uniform", initialiser="keep")
    thin = few.apply(duplicate(short))
    eager, program, sparse_program = short.eval(), sparse.compile(short, images), sparse.compile(thin, images)
    calls = {
        "step, eager": step(duplicate(short), images, labels),
        "step, our engine, 5%": step(sparse.sparsify(thin, few, engine="sparse"), images, labels),
        "inference, eager": contestants.eager(eager, images, channels_last=False),
        "inference, ONNX Runtime": contestants.onnxruntime(eager, images),
        "inference, our engine": lambda: program(images),
        "inference, our engine, 5%": lambda: sparse_program(images),
    }
    return {f"{what}|{blocks}": call for what, call in calls.items()}


def times(setting: Setting, out: Path) -> None:
    """One row of the file for each contestant and number of blocks."""
    calls: dict[str, Any] = {}
    for blocks in (0, *BLOCKS, *setting.more):
        calls |= calls_of(setting, blocks)
    calls = dict(sorted(calls.items(), key=lambda item: item[0].partition("|")[0]))  # what is compared is neighbours
    found = alternate(calls, runs=ROUNDS, seconds=0.2)
    for key, seconds in found.items():
        what, blocks = key.split("|")
        about = {"kind": "time", "setting": setting.name, "what": what, "blocks": int(blocks)}
        spread = {"median": statistics.median(seconds), "low": min(seconds), "high": max(seconds), "n": len(seconds)}
        write(out, {**about, **spread, "batch_size": setting.batch_size})
        print(f"{what}, {blocks} blocks removed: {1000 * spread['median']:.2f} ms", flush=True)


# --- tables --------------------------------------------------------------------------------------------------------


def table(setting: Setting, rows: list[dict[str, Any]]) -> Iterator[str]:
    """Accuracy minus dense, in points, by arm and blocks removed; times by what and blocks removed."""
    tests = {(r["arm"], r["blocks"], r["seed"]): r["test"] for r in rows if r["kind"] == "accuracy"}
    dense = {seed: test for (arm, _, seed), test in tests.items() if arm == "dense"}
    if dense:
        mean, std = mean_std([100 * x for x in dense.values()])
        yield f"{setting.model}, {setting.name}: dense {mean:.2f} ± {std:.2f}% (n = {len(dense)}). Points against it:\n"
        yield f"| removed | {' | '.join(map(str, BLOCKS))} |"
        yield f"|---|{'---|' * len(BLOCKS)}"
        verdicts: list[str] = []
        for arm in ARMS:
            texts = []
            for blocks in BLOCKS:
                seeds = sorted(s for s in dense if (arm, blocks, s) in tests)
                if not seeds:
                    texts.append("")
                    continue
                own, whole = [tests[arm, blocks, s] for s in seeds], [dense[s] for s in seeds]
                mean, std = mean_std([100 * (a - b) for a, b in zip(own, whole, strict=True)])
                said = ""
                if len(seeds) >= LEAST_SEEDS:
                    said = f", {margin_test(own, whole, MARGIN).verdict}"
                    verdicts += [said.removeprefix(", ")] if arm in CRITERIA else []
                texts.append(f"{mean:+.2f} ± {std:.2f} (n = {len(seeds)}){said}")
            yield f"| {arm} | {' | '.join(texts)} |"
        if len(verdicts) == len(CRITERIA) * len(BLOCKS):
            holds = "holds" if set(verdicts) == {"within"} else "does not hold"
            counts = ", ".join(f"{verdicts.count(v)} {v}" for v in dict.fromkeys(verdicts))
            yield f"\n'All tickets win', within {100 * MARGIN:g} points: {holds} ({counts})."
    timed = {(r["what"], r["blocks"]): r for r in rows if r["kind"] == "time"}  # the last counts
    if timed:
        counts = sorted({blocks for _, blocks in timed})
        yield f"\n{setting.model}, {setting.name}: milliseconds, and times as fast as the whole network:\n"
        yield f"| removed | {' | '.join(map(str, counts))} |"
        yield f"|---|{'---|' * len(counts)}"
        for what in dict.fromkeys(w for w, _ in timed):
            own_times = [timed[what, blocks]["median"] for blocks in counts]
            yield f"| {what} | {' | '.join(f'{1000 * t:.2f} ({own_times[0] / t:.2f})' for t in own_times)} |"
    yield ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("list", "run", "times", "table"))
    parser.add_argument("--setting", choices=tuple(SETTINGS))
    parser.add_argument("--minutes", type=float, default=100)
    parser.add_argument("--cifar", default="")
    parser.add_argument("--out", type=Path, default=OUT)
    asked = parser.parse_args()
    chosen = [SETTINGS[asked.setting]] if asked.setting else [s for s in SETTINGS.values() if s.name != "smoke"]
    torch.set_num_threads(1)
    if asked.what == "run":
        run(chosen, asked.out, asked.minutes, asked.cifar)
        return
    for setting in chosen:
        rows = [row for row in read(asked.out) if row["setting"] == setting.name]
        if asked.what == "times":
            times(setting, asked.out)
        elif asked.what == "table":
            print("\n".join(table(setting, rows)))
        else:
            own = list(cells(setting))
            missing = [cell for cell in own if not any(cell.is_of(row) for row in rows)]
            timed = "" if any(row["kind"] == "time" for row in rows) else "; no times"
            print(f"{setting.name}: {len(own) - len(missing)} of {len(own)} cells are done{timed}")
            print("\n".join(f"  missing: seed {c.seed} {c.arm} {c.blocks}" for c in missing))


if __name__ == "__main__":
    main()
