"""Tickets after a short pre-training on some of the examples: the experiment of docs/data-diet.md, in cells.

    python benchmarks/data_diet.py settings [--cifar FOLDER]   how unstable the dense network is in each candidate
    python benchmarks/data_diet.py pilot                       all@0 and all@k by density, on a seed of its own
    (fill in [chosen] of benchmarks/data_diet.toml, and commit it)
    python benchmarks/data_diet.py scores                      of five networks, with true labels and with noise
    python benchmarks/data_diet.py arms [--only TEXT]          the arms
    python benchmarks/data_diet.py --table                     table, verdicts, and docs/data-diet.svg

Each finished cell is a line of results/data_diet.jsonl; what is there is not done again. A call ends of itself after
--minutes (95), in the middle of a cell if need be, and says so with exit code 3: the same call goes on. One thread.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import time
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from scipy.special import stdtr

from gemminer.core.progress import Monitor
from gemminer.runs import environment, execute
from gemminer.runs.recipe import Recipe, make
from gemminer.runs.scoring_runs import score_recipe
from gemminer.runs.stability_runs import instability_of

ROOT = Path(__file__).resolve().parents[1]
PLAN = tomllib.loads((ROOT / "benchmarks" / "data_diet.toml").read_text(encoding="utf-8"))
OUT, PICTURE, RUNS = ROOT / "results" / "data_diet.jsonl", ROOT / "docs" / "data-diet.svg", ROOT / "runs" / "data-diet"
NOISE, MARGIN, SEEDS, FEW = 0.5, 0.005, range(5), range(3)
Line = dict[str, Any]
# The family of verdicts, named before any arm has run: what is asked, (arm, noise) and (arm, noise), kind of test. One
# family: p-values by Holm. Only of Gem-Miner, whose arms have five seeds; IMP's have mean and deviation.
FAMILY = (
    ("k steps help at all", ("all@k", 0.0), ("all@0", 0.0), "better"),
    ("random examples are as good as all", ("random", 0.0), ("all@k", 0.0), "equal"),
    ("easy over random", ("easiest", 0.0), ("random", 0.0), "better"),
    ("random over hard", ("random", 0.0), ("hardest", 0.0), "better"),
    ("easy for k steps as good as all for 2k", ("easiest", 0.0), ("all@2k", 0.0), "equal"),
    ("with noise, easy over all", ("easiest", NOISE), ("all@k", NOISE), "better"),
)
ARMS = ("all@0", "all@k", "all@2k", "easiest", "random", "hardest")


class Over(Exception):
    """The time of a call is over."""


class Limit(Monitor):
    """Ends a call when its time is over; what was done is on the disk."""

    def __init__(self, minutes: float) -> None:
        self.until = time.monotonic() + 60 * minutes

    def step(self, phase: str, step: int, steps: int) -> None:
        if time.monotonic() > self.until:
            raise Over

    def note(self, text: str) -> None: ...


# --- cells -------------------------------------------------------------------------------------------------------


def recipe_of(setting: str, seed: int, cifar: str, **fields: Any) -> Recipe:
    """ResNet-20 in a candidate setting."""
    own = PLAN["candidates"][setting]
    data = own["data"] if own["data"] != "cifar10" else f"folder:{cifar}@32"
    more = {"augment": "crop4+flip"} if own["data"] == "cifar10" else {}
    common = {name: PLAN[name] for name in ("epochs", "limit_train", "batch_size")}
    plain = {"model": "resnet20", "data": data, "seed": seed, "checks": (), "dense": False, "train": {"lr": own["lr"]}}
    return make({**plain, **more, **common, "train_epochs": PLAN["epochs"], **fields})


def settings(cifar: str) -> Iterator[tuple[Line, Callable[[Limit], Line]]]:
    """The dense network's instability at each step, in each candidate setting whose data is there."""
    for name, own in PLAN["candidates"].items():
        for step in PLAN["steps"]:
            if own["data"] == "cifar10" and not cifar:
                continue

            def work(limit: Limit, name: str = name, step: int = step) -> Line:
                recipe = recipe_of(name, PLAN["pilot_seed"], cifar, method="gem-miner")
                folder = RUNS / f"instability-{name}-{step}"
                how = {"pairs": PLAN["pairs"], "points": 7, "device": "cpu", "monitor": limit}
                (found,) = instability_of(recipe, None, [step], folder, **how)
                return {**found.as_dict(), "facts": {}}

            yield {"stage": "settings", "setting": name, "step": step}, work


def arm(
    cell: Line, setting: str, cifar: str, density: float, pretrain: str | None, noise: float
) -> Callable[..., Line]:
    """A run of one arm."""

    def work(limit: Limit) -> Line:
        options = {"lr": PLAN["candidates"][setting]["lr"]} if cell["method"] == "imp" else {}
        fields = {"method": cell["method"], "density": density, "options": options, "pretrain": pretrain}
        if cell["method"] == "uniform":
            fields |= {"epochs": None}
        if pretrain and pretrain.startswith(("easiest", "hardest")):
            fields["scores"] = str(scores_file(setting, noise))
        name = "-".join(str(value).replace("@", "") for value in cell.values())
        found = execute.run_recipe(
            recipe_of(setting, cell["seed"], cifar, **fields), RUNS / name, resume=True, device="cpu", monitor=limit
        )
        facts = {"after": found.accuracy.after, "before": found.accuracy.before, "density": found.density.realised}
        start = {} if found.start is None else {n: v for n, v in found.start.pretrain.items() if n != "histogram"}
        return {**facts, "start": start, "cost": {name: cost.model_dump() for name, cost in found.cost.items()}}

    return work


def pilot(cifar: str) -> Iterator[tuple[Line, Callable[[Limit], Line]]]:
    """Gem-Miner after no step and after k steps on all examples, on the pilot's seed."""
    for setting, own in PLAN["candidates"].items():
        if own["data"] == "cifar10" and not cifar:
            continue
        for density in PLAN["pilot"]["density"]:
            for k in (0, *PLAN["pilot"]["k"]):
                cell = {"stage": "pilot", "setting": setting, "density": density, "k": k, "method": "gem-miner"}
                cell["seed"] = PLAN["pilot_seed"]
                yield cell, arm(cell, setting, cifar, density, f"all@{k}" if k else None, 0.0)


def chosen() -> dict[str, Any]:
    """What was fixed before the arms."""
    own: dict[str, Any] = PLAN["chosen"]
    if own["setting"] not in PLAN["candidates"] or not (0 < own["density"] < 1 and own["k"] > 0 and own["count"] > 0):
        sys.exit(
            "fill in [chosen] of benchmarks/data_diet.toml from the stages settings and pilot, and commit it, first"
        )
    return own


def scores_file(setting: str, noise: float) -> Path:
    return RUNS / f"scores-{setting}-{noise:g}.safetensors"


def scores(cifar: str) -> Iterator[tuple[Line, Callable[[Limit], Line]]]:
    """The scores of five networks, of true labels and of noisy ones."""
    setting, own = chosen()["setting"], PLAN["scoring"]
    for noise in (0.0, NOISE):

        def work(limit: Limit, noise: float = noise) -> Line:
            recipe = recipe_of(setting, PLAN["pilot_seed"], cifar)
            file = scores_file(setting, noise)
            found = score_recipe(recipe, file, "el2n", own["runs"], own["epochs"], noise, device="cpu", monitor=limit)
            return {"cost": dict(found.cost), "checksum": found.checksum}

        yield {"stage": "scores", "setting": setting, "noise": noise}, work


def arms(cifar: str) -> Iterator[tuple[Line, Callable[[Limit], Line]]]:
    """The dense network, Gem-Miner's arms with and without noise, three of IMP with it: seed by seed."""
    own = chosen()
    k, count = own["k"], own["count"]
    texts: dict[str, str | None] = {"all@0": None, "all@k": f"all@{k}", "all@2k": f"all@{2 * k}"}
    texts |= {which: f"{which}:{count}@{k}" for which in ("easiest", "random", "hardest")}
    for seed in SEEDS:
        wanted = [("uniform", "dense", 0.0), *(("gem-miner", name, 0.0) for name in ARMS)]
        wanted += [("gem-miner", name, NOISE) for name in ARMS[1:]]
        wanted += [("imp", name, NOISE if name != "all@0" else 0.0) for name in ("all@0", "all@k", "easiest")][
            : 3 * (seed in FEW)
        ]
        for method, name, noise in wanted:
            cell = {"stage": "arms", "method": method, "arm": name, "noise": noise, "seed": seed}
            text = texts.get(name)
            text = f"{text}:noise={noise:g}" if text and noise else text
            yield cell, arm(cell, own["setting"], cifar, 1.0 if name == "dense" else own["density"], text, noise)


# --- the table ---------------------------------------------------------------------------------------------------


def read() -> list[Line]:
    return [json.loads(text) for text in OUT.read_text().splitlines()] if OUT.exists() else []


def values(lines: list[Line], method: str, name: str, noise: float) -> dict[int, float]:
    """The accuracy after training by seed; all@0 has no noise, and is the same with and without."""
    noise = 0.0 if name == "all@0" else noise
    own = [x for x in lines if x["stage"] == "arms" and (x["method"], x["arm"], x["noise"]) == (method, name, noise)]
    return {x["seed"]: x["after"] for x in own}


def p_value(ours: dict[int, float], theirs: dict[int, float], kind: str) -> tuple[float, float, float, int]:
    """(p, mean difference, its deviation, n) of a one-sided paired t-test, or of two against the margin."""
    both = [ours[seed] - theirs[seed] for seed in ours if seed in theirs]
    n, mean, std = len(both), statistics.fmean(both), statistics.stdev(both) if len(both) > 1 else 0.0
    error = max(std / math.sqrt(n), 1e-12)
    if kind == "better":
        return 1 - float(stdtr(n - 1, mean / error)), mean, std, n
    p = max(1 - float(stdtr(n - 1, (MARGIN + sign * mean) / error)) for sign in (1, -1))
    return p, mean, std, n


def verdicts(lines: list[Line]) -> list[str]:
    """The family's rows, p-values by Holm at 5%; a question whose arms have not five common seeds has no verdict."""
    found = []
    for said, ours, theirs, kind in FAMILY:
        a, b = values(lines, "gem-miner", *ours), values(lines, "gem-miner", *theirs)
        if len(a.keys() & b.keys()) >= len(SEEDS):
            found.append((said, kind, *p_value(a, b, kind)))
    rows, passing = {}, True
    for rank, row in enumerate(sorted(found, key=lambda row: row[2])):
        adjusted = min(1.0, row[2] * (len(FAMILY) - rank))
        passing = passing and adjusted <= 0.05
        holds, apart = "yes" if passing else "not shown", f"{100 * row[3]:+.2f} ± {100 * row[4]:.2f}"
        rows[row[0]] = f"| {row[0]} | {apart} | {row[5]} | {adjusted:.3f} | {holds} |"
    head = ["| question | difference, points | n | p (Holm) | holds |", "|---|---:|---:|---:|---|"]
    return head + [rows.get(said, f"| {said} | | | | too few runs |") for said, *_ in FAMILY]


def table(lines: list[Line]) -> str:
    """Instability, arms and verdicts in Markdown."""
    text = ["| setting | step | barrier of the test error, points | verdict |", "|---|---:|---:|---|"]
    for x in (x for x in lines if x["stage"] == "settings"):
        own = [100 * value for value in x["barriers"]["test_error"]]
        spread = f" ± {statistics.stdev(own):.2f}" if len(own) > 1 else ""
        text.append(f"| {x['setting']} | {x['step']} | {statistics.fmean(own):.2f}{spread} | {x['verdict']} |")
    text += ["", "| method | arm | true labels | n | 50% label noise | n |", "|---|---|---:|---:|---:|---:|"]
    for method, name in [("uniform", "dense"), *((m, a) for m in ("gem-miner", "imp") for a in ARMS)]:
        cells = []
        for noise in (0.0, NOISE):
            own = [100 * value for value in values(lines, method, name, noise).values()]
            std = f" ± {statistics.stdev(own):.2f}" if len(own) > 1 else ""
            cells += [f"{statistics.fmean(own):.2f}{std}" if own else "–", str(len(own))]
        if any(cell not in ("–", "0") for cell in cells):
            text.append(f"| {method if method != 'uniform' else ''} | {name} | {' | '.join(cells)} |")
    return "\n".join([*text, "", *verdicts(lines)])


def picture(lines: list[Line]) -> str:
    """Each arm's accuracy: seeds as points, means as bars, true labels left and noise right. An SVG."""
    panels = [(noise, {a: list(values(lines, "gem-miner", a, noise).values()) for a in ARMS}) for noise in (0.0, NOISE)]
    every = [value for _, own in panels for some in own.values() for value in some]
    if not every:
        return ""
    low, high = min(every) - 0.005, max(every) + 0.005
    parts = ['<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 760 300" font-family="sans-serif" font-size="12">']
    parts.append('<rect width="760" height="300" fill="#fff"/>')
    for place, (noise, own) in enumerate(panels):
        left = 50 + 370 * place
        title = "50% label noise in the pre-training" if noise else "true labels"
        parts.append(f'<text x="{left}" y="20">Gem-Miner, {title}</text>')
        for tick in (low, (low + high) / 2, high):
            y = 260 - 220 * (tick - low) / (high - low)
            parts.append(f'<line x1="{left}" x2="{left + 320}" y1="{y:.1f}" y2="{y:.1f}" stroke="#ddd"/>')
            parts.append(f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{100 * tick:.1f}%</text>')
        for i, (name, some) in enumerate(own.items()):
            x = left + 30 + 52 * i
            parts.append(f'<text x="{x}" y="282" text-anchor="middle">{name}</text>')
            ys = [260 - 220 * (value - low) / (high - low) for value in some]
            parts += [f'<circle cx="{x}" cy="{y:.1f}" r="4" fill="#4477aa" fill-opacity="0.45"/>' for y in ys]
            if ys:
                mean = statistics.fmean(ys)
                at = f'x1="{x - 16}" x2="{x + 16}" y1="{mean:.1f}" y2="{mean:.1f}"'
                parts.append(f'<line {at} stroke="#4477aa" stroke-width="3"/>')
    return "\n".join([*parts, "</svg>"]) + "\n"


# --- a call ------------------------------------------------------------------------------------------------------

STAGES = {"settings": settings, "pilot": pilot, "scores": scores, "arms": arms}


def run(stage: str, cifar: str, only: str, minutes: float) -> int:
    """Run what is missing of a stage; 3 where time was over before it was done."""
    torch.set_num_threads(1)
    limit = Limit(minutes)
    for cell, work in STAGES[stage](cifar):
        if only not in " ".join(map(str, cell.values())) or any(cell.items() <= line.items() for line in read()):
            continue
        begun = time.monotonic()
        try:
            found = work(limit)
        except Over:
            print(f"the {minutes:g} minutes are over in {cell}: the same call goes on", file=sys.stderr)
            return 3
        about = {"seconds": time.monotonic() - begun, "created": environment.now(), "git": environment.git_revision()}
        about |= {"hardware": environment.hardware("cpu", 1), "versions": environment.versions()}
        with OUT.open("a", encoding="utf-8") as file:
            file.write(json.dumps({**found, **cell, **about}) + "\n")
        print(json.dumps(cell), flush=True)
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", nargs="?", choices=STAGES)
    parser.add_argument("--cifar", default="", help="folder of the unpacked images, train/ and test/")
    parser.add_argument("--only", default="", help="cells whose words hold this text")
    parser.add_argument("--minutes", type=float, default=95)
    parser.add_argument("--table", action="store_true")
    asked = parser.parse_args()
    if asked.table:
        print(table(read()))
        if drawn := picture(read()):
            PICTURE.write_text(drawn, encoding="utf-8")
        return 0
    if asked.stage is None:
        parser.error("say which stage: settings, pilot, scores or arms; or --table")
    return run(asked.stage, asked.cifar, asked.only, asked.minutes)


if __name__ == "__main__":
    sys.exit(main())
