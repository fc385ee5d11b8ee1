"""All benchmarks over networks and densities, their table and their picture: python benchmarks/performance.py

Each (benchmark, network, density) is a process of its own; its lines go to results/performance.jsonl, with one of the
machine and those of its limits. What is there already is not measured again (--fresh does). Then
docs/performance-data.md has a row for each line and docs/performance.svg shows the time of a training step against
density, between what the machine's arithmetic and its memory allow:

    FLOP limit       3 * forward FLOPs of the kept weights / FLOP/s of a large matrix product
    bandwidth limit  5 passes over each layer's outputs / bytes/s of a = b + s * c on arrays no cache holds

Five passes: an output is written, read by the next layer, read again for the weights' gradient; its own gradient is
written and read. Run it on a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from gemminer.bench import BENCHES, networks
from gemminer.core.files import save_text
from gemminer.core.prunable import prunable_weights
from gemminer.runs import environment
from gemminer.training import cost

Line = dict[str, Any]

DENSITIES = (0.30, 0.10, 0.05, 0.0372, 0.0144, 0.0059)
PASSES, FLOAT = 5, 4
LEFT, WIDTH, HEIGHT, TOP, GAP = 70, 300, 260, 70, 84
# What is drawn of a panel: baseline of `bench train` -> label, colour.
DENSE = {"dense NCHW": ("dense, NCHW", "#8a8a8a"), "dense channels-last": ("dense, channels-last", "#333333")}
OURS = ("kept weights only", "#0b5cad")
LIMITS = {"flop_ms": ("FLOP limit", "#b35900"), "bandwidth_ms": ("bandwidth limit", "#2e7d32")}


# measuring


def measured(args: argparse.Namespace, what: str, model: str, density: float) -> None:
    """Run one benchmark in a process of its own; its lines are kept when it has ended well."""
    lines = lines_of(args.out)
    own = [line for line in lines if (line["bench"], line.get("model"), line.get("density")) == (what, model, density)]
    if own and not args.fresh:
        return
    command = [sys.executable, "-c", "from gemminer.cli import entry; entry()", "bench", what]
    command += ["--model", model, "--density", str(density), "--threads", str(torch.get_num_threads()), "--json"]
    command += [part for size in args.batch_size or () for part in ("--batch-size", str(size))]
    command += ["--runs", str(args.runs)] if args.runs else []
    command += [] if args.compile is None else ["--compile" if args.compile else "--no-compile"]
    command += ["--epochs", str(args.epochs), "--examples", str(args.examples)]
    print(f"{what} {model} {density:g}", flush=True)
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        print(f"{what} {model} {density:g} failed with exit code {done.returncode}", file=sys.stderr)
        return
    keep(args.out, [*(line for line in lines if line not in own), *map(json.loads, done.stdout.splitlines())])


def lines_of(path: Path, *benches: str) -> list[Line]:
    """What the file holds of these benchmarks, in their order; without any, everything."""
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []
    return [line for bench in benches for line in lines if line["bench"] == bench] if benches else lines


def keep(path: Path, lines: Sequence[Line]) -> None:
    save_text(path, "".join(json.dumps(line) + "\n" for line in lines))


def best(call: Callable[[], object], repeats: int) -> float:
    """Seconds of the fastest call."""
    times = []
    for _ in range(repeats):
        begun = time.perf_counter()
        call()
        times.append(time.perf_counter() - begun)
    return min(times)


def machine(side: int, floats: int) -> Line:
    """What these threads can do: FLOP/s of a side x side matrix product, bytes/s of a triad of arrays of `floats`."""
    a, b = torch.randn(2, side, side)
    x, y = torch.rand(2, floats)
    product, triad = torch.empty(side, side), torch.empty(floats)
    flops = 2 * side**3 / best(lambda: torch.mm(a, b, out=product), 7)
    bandwidth = 3 * FLOAT * floats / best(lambda: torch.add(x, y, alpha=0.5, out=triad), 7)
    facts = environment.hardware("cpu", torch.get_num_threads())
    return {"flops_per_s": flops, "bytes_per_s": bandwidth, **facts, "versions": environment.versions()}


def outputs_of(model: nn.Module, name: str) -> int:
    """Floats that a forward pass of one image writes: the outputs of layers with prunable weights."""
    sizes: list[int] = []
    hooks = [
        module.register_forward_hook(lambda module, inputs, output: sizes.append(output[0].numel()))
        for module in model.modules()
        if isinstance(module, (nn.Conv2d, nn.Linear))
    ]
    with torch.no_grad():
        model(networks.images_of(name, 2)[0])
    for hook in hooks:
        hook.remove()
    return sum(sizes)


def limits(name: str, densities: Sequence[float], batch: int, able: Line) -> Iterator[Line]:
    """The least milliseconds of a training step that the machine's arithmetic and memory allow."""
    model = networks.build(name)
    images, labels = networks.images_of(name, 2)
    task = networks.task_of(model, images, labels, batch=2, channels_last=False)
    flops = cost.count(task, prunable_weights(model))
    moved = PASSES * FLOAT * batch * outputs_of(model, name)
    for density in densities:
        kept = {layer.name: layer.density for layer in networks.ticket_of(name, model, density).per_layer()}
        work = cost.TRAINING_PASSES * batch * flops.sparse(kept)
        yield {
            "model": name,
            "density": density,
            "batch": batch,
            "flops": work,
            "bytes": moved,
            "flop_ms": 1e3 * work / able["flops_per_s"],
            "bandwidth_ms": 1e3 * moved / able["bytes_per_s"],
        }


def measure(args: argparse.Namespace) -> None:
    able = machine(args.side, args.floats)
    batch = max(args.batch_size or [128])
    rows = [row for model in args.models for row in limits(model, args.densities, batch, able)]
    facts = [{"bench": "machine", **able}, *({"bench": "limits", **row} for row in rows)]
    keep(args.out, facts + lines_of(args.out, *BENCHES))
    for what in args.benches:
        for model in args.models:
            for density in args.densities:
                measured(args, what, model, density)


# showing


def table(found: Sequence[Line]) -> str:
    """A Markdown row for each line, densest first within its benchmark and network."""
    rows = [
        "| benchmark | network | density | batch | against | ratio (10% to 90%) | baseline | ours |",
        "|---" * 8 + "|",
    ]
    order = {name: i for i, name in enumerate(BENCHES)}
    for line in sorted(found, key=lambda r: (order[r["bench"]], r["model"], r["batch"], -r["density"])):
        if "memory_ratio" in line:
            ratio = f"{line['memory_ratio']:.2f} of the memory"
            pair = f"{line['baseline_mib']:.1f} MiB | {line['ours_mib']:.1f} MiB"
        else:
            ratio = f"{line['ratio']:.2f} ({line['low']:.2f} to {line['high']:.2f})"
            pair = f"{line['baseline_ms']:.3g} ms | {line['ours_ms']:.3g} ms"
        against = line["baseline"] + (f": {line['fastest']}" if line.get("fastest") else "")
        where = f"{line['bench']} | {line['model']} | {line['density']:g} | {line['batch']}"
        rows.append(f"| {where} | {against} | {ratio} | {pair} |")
    return "\n".join(rows)


def page(found: Sequence[Line], able: Line) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in found[0]["versions"].items())
    return (
        "# Performance: every line measured\n\n"
        "Ratio: the baseline's time / ours, median of alternating rounds in one process; above 1 is faster. Written by "
        "`python benchmarks/performance.py`.\n\n"
        f"{able['cpu']}, {able['threads']} of {able['cores']} cores: {able['flops_per_s'] / 1e9:.0f} GFLOP/s in a "
        f"large matrix product, {able['bytes_per_s'] / 1e9:.1f} GB/s in a triad. {versions}.\n\n{table(found)}\n"
    )


class Axes:
    """Two log axes of a panel."""

    def __init__(self, x0: float, xs: Sequence[float], ys: Sequence[float]) -> None:
        self.x0, self.x_low, self.x_high = x0, min(xs) / 1.15, max(xs) * 1.15
        self.y_low, self.y_high = min(ys) / 1.3, max(ys) * 1.3

    def x(self, value: float) -> float:
        return self.x0 + WIDTH * math.log(value / self.x_low) / math.log(self.x_high / self.x_low)

    def y(self, value: float) -> float:
        return TOP + HEIGHT * math.log(self.y_high / value) / math.log(self.y_high / self.y_low)

    def grid(self, densities: Sequence[float]) -> Iterator[str]:
        bottom, text = TOP + HEIGHT, 'fill="#555555" font-size="11"'
        free = 0.0
        for density in densities:
            x = self.x(density)
            yield f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{bottom}" stroke="#e8e8e8"/>'
            if x >= free:  # no label on another
                yield f'<text x="{x:.1f}" y="{bottom + 16}" text-anchor="middle" {text}>{100 * density:g}%</text>'
                free = x + 36
        first = math.floor(math.log10(self.y_low))
        for value in (m * 10.0**e for e in range(first, first + 8) for m in (1, 2, 5)):
            if self.y_low <= value <= self.y_high:
                y = self.y(value)
                yield f'<line x1="{self.x0}" x2="{self.x0 + WIDTH}" y1="{y:.1f}" y2="{y:.1f}" stroke="#e8e8e8"/>'
                yield f'<text x="{self.x0 - 8}" y="{y + 4:.1f}" text-anchor="end" {text}>{value:g}</text>'

    def curve(self, points: Sequence[tuple[float, float]], colour: str, *, dashed: bool, dots: bool) -> Iterator[str]:
        at = [(self.x(x), self.y(y)) for x, y in sorted(points)]
        if len(at) == 1 and not dots:  # a limit at one density is a short line
            at = [(at[0][0] + dx, at[0][1]) for dx in (-30, 30)]
        path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in at)
        dash = ' stroke-dasharray="5 4"' if dashed else ""
        yield f'<path d="{path}" fill="none" stroke="{colour}" stroke-width="1.8"{dash}/>'
        if dots:
            yield from (f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.2" fill="{colour}"/>' for x, y in at)


def curves(steps: Sequence[Line], bounds: Sequence[Line]) -> list[tuple[str, str, list[tuple[float, float]], bool]]:
    """(label, colour, points, whether a limit) of one network."""
    found = []
    for name, (label, colour) in DENSE.items():
        points = [(r["density"], r["baseline_ms"]) for r in steps if r["baseline"] == name]
        found += [(label, colour, points, False)] if points else []
    ours = {r["density"]: r["ours_ms"] for r in steps if "ours_ms" in r}
    found.append((*OURS, list(ours.items()), False))
    found += [(*LIMITS[key], [(r["density"], r[key]) for r in bounds], True) for key in LIMITS]
    return found


def picture(found: Sequence[Line], bounds: Sequence[Line]) -> str:
    """As SVG, a panel for each network: no plotting library draws static pictures without a browser."""
    steps = [r for r in found if r["bench"] == "train" and "ratio" in r]
    batch = bounds[0]["batch"]
    models = [m for m in dict.fromkeys(r["model"] for r in bounds) if any(r["model"] == m for r in steps)]
    width, height = LEFT + (WIDTH + GAP) * len(models), TOP + HEIGHT + 88
    title = f"Time of a training step, batch {batch}, by density"
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="system-ui, sans-serif" '
        f'font-size="13" role="img" aria-label="{title}"><rect width="100%" height="100%" fill="#ffffff"/>',
        f'<text x="16" y="26" font-size="16" font-weight="600">{title}</text>',
    ]
    for i, model in enumerate(models):
        own = [r for r in steps if (r["model"], r["batch"]) == (model, batch)]
        drawn = curves(own, [r for r in bounds if r["model"] == model])
        points = [point for _, _, some, _ in drawn for point in some]
        axes = Axes(LEFT + (WIDTH + GAP) * i, [x for x, _ in points], [y for _, y in points])
        parts.append(f'<text x="{axes.x0}" y="{TOP - 14}" font-weight="600">{model}, milliseconds</text>')
        parts += axes.grid(sorted({x for x, _ in points}))
        for _, colour, some, limit in drawn:
            parts += axes.curve(some, colour, dashed=limit, dots=not limit)
    parts += legend(height - 40, [*DENSE.values(), OURS], [*LIMITS.values()])
    return "\n".join([*parts, "</svg>", ""])


def legend(y: float, solid: Sequence[tuple[str, str]], dashed: Sequence[tuple[str, str]]) -> Iterator[str]:
    """Labels beside their strokes, two rows: what was measured, what the machine allows."""
    for row, (labels, dash) in enumerate(((solid, ""), (dashed, ' stroke-dasharray="5 4"'))):
        x, at = 16.0, y + 20 * row
        for label, colour in labels:
            yield f'<line x1="{x}" x2="{x + 22}" y1="{at - 4}" y2="{at - 4}" stroke="{colour}" stroke-width="2"{dash}/>'
            yield f'<text x="{x + 28}" y="{at}" fill="{colour}" font-size="12">{label}</text>'
            x += 44 + 7 * len(label)


def show(args: argparse.Namespace) -> None:
    able, bounds = lines_of(args.out, "machine")[0], lines_of(args.out, "limits")
    found = lines_of(args.out, *BENCHES)
    args.docs.mkdir(parents=True, exist_ok=True)
    (args.docs / "performance-data.md").write_text(page(found, able), encoding="utf-8")
    if any(line["bench"] == "train" for line in found):
        (args.docs / "performance.svg").write_text(picture(found, bounds), encoding="utf-8")


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("results/performance.jsonl"))
    parser.add_argument("--docs", type=Path, default=Path("docs"))
    parser.add_argument("--benches", nargs="+", choices=list(BENCHES), default=list(BENCHES))
    parser.add_argument("--models", nargs="+", default=list(networks.INPUTS))
    parser.add_argument("--densities", nargs="+", type=float, default=list(DENSITIES))
    parser.add_argument("--batch-size", nargs="+", type=int, help="of every benchmark; by default its own")
    parser.add_argument("--runs", type=int, help="rounds of each; by default its own")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--examples", type=int, default=2048)
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, help="torch.compile; by default infer only")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--fresh", action="store_true", help="measure again what is there")
    parser.add_argument("--show", action="store_true", help="measure nothing: only write table and picture")
    parser.add_argument("--side", type=int, default=3072, help="of the large matrices")
    parser.add_argument("--floats", type=int, default=2**25, help="of each of the triad's arrays")
    return parser.parse_args()


def main() -> None:
    args = parsed()
    torch.set_num_threads(args.threads)
    if not args.show:
        measure(args)
    show(args)


if __name__ == "__main__":
    main()
