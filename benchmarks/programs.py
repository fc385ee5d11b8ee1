"""Compiled programs of timm's networks against ONNX Runtime and PyTorch, in turns: python benchmarks/programs.py

Weights are random and masks random with ERK's densities by layer, which a speed does not depend on; images are 224x224.
Each round every contestant makes calls for a tenth of a second, after one that is not counted; figures are medians.
The largest difference from PyTorch, a part of its largest output, is kept beside. Lines go to results/programs.jsonl,
the table into docs/performance.md. What is measured already is not measured again (--fresh does); --draw only draws.
"""

from __future__ import annotations

import argparse
import itertools
import json
import logging
import statistics
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

import gemminer
from gemminer import sparse
from gemminer.bench import contestants
from gemminer.bench.measure import alternate, versions
from gemminer.runs import environment

ROOT = Path(__file__).resolve().parents[1]
OUT, PAGE = ROOT / "results" / "programs.jsonl", ROOT / "docs" / "performance.md"
BEGIN, END = "<!-- programs -->", "<!-- end of programs -->"
NETWORKS = ("mobilenetv3_small_100", "vit_tiny_patch16_224")
DENSITIES, BATCHES, ROUNDS = (0.05, 0.0144), (1, 32), 7


def network(name: str, density: float) -> nn.Module:
    """A random ticket of a network with random weights, in eval mode; seeded."""
    torch.manual_seed(0)
    model = timm.create_model(name, pretrained=False)
    few = torch.randn(4, 3, 224, 224), torch.arange(4)
    ticket = gemminer.mine(model, few, density=density, method="erk")
    return ticket.apply(model).eval()


def measure(name: str, density: float, batch: int) -> dict[str, Any]:
    """A cell of the table."""
    model = network(name, density)
    program = sparse.compile(model, input_shape=(3, 224, 224))
    images = torch.randn(batch, 3, 224, 224)
    with torch.no_grad():
        calls = {
            "eager": contestants.eager(model, images, channels_last="vit" not in name),
            "onnxruntime": contestants.onnxruntime(model, images),
            "program": lambda: program(images),
        }
        outputs = {kind: call() for kind, call in calls.items()}
        times = alternate(calls, runs=ROUNDS, seconds=0.1)
    largest = float(outputs["eager"].abs().max())
    far = {k: float((y - outputs["eager"]).abs().max()) / largest for k, y in outputs.items() if k != "eager"}
    threads = torch.get_num_threads()
    machine = {"machine": environment.hardware(threads=threads), "versions": versions()}
    asked = {"network": name, "density": density, "batch": batch, "threads": threads, "rounds": ROUNDS}
    print(asked, {k: round(1e3 * statistics.median(ts), 2) for k, ts in times.items()}, far, flush=True)
    ms = {kind: [1e3 * t for t in ts] for kind, ts in times.items()}
    return {**asked, "ms": ms, "entries": program.entries, "dense": program.dense, "far": far, **machine}


def table(lines: list[dict[str, Any]]) -> str:
    rows = [
        ["network", "density", "batch", "program, ms", "ONNX Runtime, ms", "PyTorch, ms", "faster than ONNX Runtime"]
    ]
    rows.append(["---"] * len(rows[0]))
    for line in lines:
        ms = {kind: statistics.median(times) for kind, times in line["ms"].items()}
        ratios = sorted(b / a for a, b in zip(line["ms"]["program"], line["ms"]["onnxruntime"], strict=True))
        spread = f"{statistics.median(ratios):.2f}x ({ratios[0]:.2f} to {ratios[-1]:.2f})"
        shown = [f"{ms[kind]:.1f}" for kind in ("program", "onnxruntime", "eager")]
        rows.append([f"`{line['network']}`", f"{line['density']:.2%}", str(line["batch"]), *shown, spread])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--only", default=",".join(NETWORKS), help="networks, with commas")
    parser.add_argument("--fresh", action="store_true")
    parser.add_argument("--draw", action="store_true")
    asked = parser.parse_args()
    logging.disable(logging.WARNING)
    lines = [json.loads(text) for text in OUT.read_text().splitlines()] if OUT.exists() else []
    cells = itertools.product(BATCHES, asked.only.split(","), DENSITIES)
    for batch, name, density in () if asked.draw else cells:
        done = [x for x in lines if (x["network"], x["density"], x["batch"]) == (name, density, batch)]
        if not done or asked.fresh:
            lines = [x for x in lines if x not in done] + [measure(name, density, batch)]
            OUT.write_text("".join(json.dumps(line) + "\n" for line in lines))
    lines.sort(key=lambda x: (x["network"], -x["density"], x["batch"]))
    page = PAGE.read_text()
    before, after = page.split(BEGIN)[0], page.split(END)[1]
    PAGE.write_text(f"{before}{BEGIN}\n\n{table(lines)}\n\n{END}{after}")


if __name__ == "__main__":
    main()
