"""What `gemminer.compact` makes of gems: python benchmarks/compact.py [--only resnet20,vgg16] [--densities 0.0144]

Each network gets a gem of Gem-Miner's at each density (handwritten digits of scikit-learn, enlarged to 32 x 32 pixels
and three equal channels), is trained for an epoch and made compact. Its outputs are compared with the ticketed
network's in both modes and in float32 and float64, on the digits and on noise; its parameters and multiply-adds are
counted; a batch is timed in eager PyTorch, torch.compile and ONNX Runtime, before and after in turns. Lines go to
results/compact.jsonl, the table into docs/compact.md. What is measured already is not measured again (--fresh does);
--draw only draws.
"""

from __future__ import annotations

import argparse
import copy
import json
import logging
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import sklearn.datasets
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import gemminer
from gemminer import models
from gemminer.bench import contestants
from gemminer.bench.computed import missed_units
from gemminer.bench.measure import alternate, versions
from gemminer.core.errors import GemminerError, UsageError
from gemminer.core.structure import Structure
from gemminer.runs import environment

ROOT = Path(__file__).resolve().parents[1]
GEMS = ROOT / "runs" / "compact"
OUT, PAGE = ROOT / "results" / "compact.jsonl", ROOT / "docs" / "compact.md"
BEGIN, END = "<!-- table -->", "<!-- end of the table -->"
DENSITIES = (0.0059, 0.0144, 0.05)
BATCH, IMAGES = 32, 768
# Of the search; a third as many follow to train the gem. Fewer for the networks that take minutes an epoch.
EPOCHS, LARGE = {False: 30, True: 6}, {"mobilenet-v2", "timm vit_tiny", "torchvision densenet121", "vgg16"}


def _ours(name: str) -> Callable[[], nn.Module]:
    return lambda: models.build(name, in_channels=3, classes=10, image_size=32)


def _torchvision(name: str) -> nn.Module:
    import torchvision

    return getattr(torchvision.models, name)(num_classes=10)


def _vit() -> nn.Module:
    import timm

    return timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=4, num_classes=10)


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "resnet20": _ours("resnet20"),
    "transformer": _ours("transformer"),
    "torchvision resnet18": lambda: _torchvision("resnet18"),
    "mobilenet-v2": _ours("mobilenet-v2"),
    "timm vit_tiny": _vit,
    "torchvision densenet121": lambda: _torchvision("densenet121"),
    "vgg16": _ours("vgg16"),
}


def digits() -> tuple[Tensor, Tensor]:
    """(N, 3, 32, 32) and labels."""
    images, labels = sklearn.datasets.load_digits(return_X_y=True)
    x = torch.tensor(images, dtype=torch.float32).view(-1, 1, 8, 8) / 8 - 1
    x = nn.functional.interpolate(x, size=32, mode="bilinear").expand(-1, 3, -1, -1)
    return x.contiguous(), torch.tensor(labels)


def far(a: nn.Module, b: nn.Module, x: Tensor, training: bool) -> float:
    """The largest difference of the outputs, of the largest output; the models are left as they were."""
    with torch.no_grad():
        old, new = (copy.deepcopy(m).train(training)(x) for m in (a, b))
    return float((old - new).abs().max() / old.abs().max().clamp(min=1e-30))


def flops(model: nn.Module, x: Tensor) -> int:
    """Multiply-adds of an example."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(x)
    return counter.get_total_flops() // 2 // len(x)


def gem(name: str, density: float) -> tuple[nn.Module, gemminer.Ticket, dict[str, Any]]:
    """The network with a gem of its own, trained, and what is known of it; kept in runs/compact: searches are long."""
    torch.manual_seed(0)
    model, (images, labels) = NETWORKS[name](), digits()
    path = GEMS / f"{name.replace(' ', '-')}-{density}"
    if (path / "facts.json").exists():
        model.load_state_dict(torch.load(path / "weights.pt", weights_only=True))
        return model, gemminer.Ticket.load(path / "ticket.safetensors"), json.loads((path / "facts.json").read_text())
    data = (images[:IMAGES], labels[:IMAGES])
    epochs, test = EPOCHS[name in LARGE], (images[IMAGES:], labels[IMAGES:])
    started = time.perf_counter()
    ticket = gemminer.mine(model, data, density, epochs=epochs, batch_size=32)
    trained = gemminer.train(model, ticket, data, test, epochs=epochs // 3, batch_size=32)
    facts = {"epochs": epochs, "test": trained["test"], "search_seconds": time.perf_counter() - started}
    path.mkdir(parents=True, exist_ok=True)
    torch.save(model.state_dict(), path / "weights.pt")
    ticket.save(path / "ticket.safetensors")
    (path / "facts.json").write_text(json.dumps(facts))
    return model, ticket, facts


def measured(name: str, density: float, compiles: bool) -> dict[str, Any]:
    model, ticket, facts = gem(name, density)
    images, _ = digits()
    line: dict[str, Any] = {"network": name, "density": density, **facts}
    started = time.perf_counter()
    model.eval()
    small = gemminer.compact(model, ticket, images[:2]).eval()
    line["compact_seconds"] = time.perf_counter() - started
    smallest = gemminer.compact(model, ticket, images[:2], every=True)
    line["units"] = [sum(c.units for c in small.removed.layers)]
    line["units"] += [sum(c.kept for c in m.removed.layers) for m in (small, smallest)]
    line["left"] = len([why for why in smallest.removed.left.values() if "one stays" in why])
    line["parameters"] = [*small.removed.parameters, smallest.removed.parameters[1]]
    line["missed"] = _missed(model, ticket, images[:2])
    batch = images[-BATCH:]
    noise = torch.randn(batch.shape, generator=torch.Generator().manual_seed(1))
    for kind in (torch.float32, torch.float64):
        old, new = (copy.deepcopy(m).to(kind) for m in (model, small))
        news = [new, copy.deepcopy(smallest).to(kind)]
        if kind == torch.float64:  # the constants of float64 weights, not those rounded to float32
            news = [gemminer.compact(old, ticket, batch[:2].to(kind), every=every) for every in (False, True)]
        for mode in (False, True):
            line[f"far {str(kind)[6:]} {'training' if mode else 'eval'}"] = max(
                far(old, new, x.to(kind), mode) for x in (batch, noise) for new in news
            )
    line["flops"] = [flops(m, batch) for m in (model, small, smallest)]
    line["ms"] = {kind: _times(kind, model, small, batch) for kind in ("eager", "onnxruntime")}
    if compiles:
        line["ms"]["torch.compile"] = _times("torch.compile", model, small, batch)
    return line


def _missed(model: nn.Module, ticket: gemminer.Ticket, example: Tensor) -> int | None:
    """How many units `sparse.compile` drops that are not dead for `compact`; None where it does not know a layer."""
    plain = copy.deepcopy(model).eval()
    gemminer.hold(plain, ticket)
    try:
        return sum(map(len, missed_units(plain, Structure(plain, (example,), {}).layers, example).values()))
    except UsageError:
        return None


def _times(kind: str, model: nn.Module, small: nn.Module, batch: Tensor) -> Any:
    """[before, after] in milliseconds a batch and the ratio, medians of rounds in turns; or why there are none."""
    make = {
        "eager": lambda m: contestants.eager(m, batch, channels_last=False),
        "onnxruntime": lambda m: contestants.onnxruntime(m, batch),
        "torch.compile": lambda m: contestants.torch_compile(m, batch),
    }[kind]
    try:
        with torch.no_grad():
            calls = {"before": make(model), "after": make(small)}
            want, got = (calls[x]() for x in ("before", "after"))
            if not float((want - got).abs().max()) <= 1e-4 * float(want.abs().max()):
                return "outputs differ"
            times = alternate(calls, runs=5)
    except Exception as error:
        return f"{type(error).__name__}: {str(error).splitlines()[0][:120]}"
    ratios = [b / a for b, a in zip(times["before"], times["after"], strict=True)]
    return [*(1e3 * statistics.median(times[x]) for x in ("before", "after")), statistics.median(ratios)]


def table(lines: list[dict[str, Any]]) -> str:
    head = ["network", "density", "test", "units", "compile's", "parameters", "multiply-adds"]
    kinds = ["eager", "torch.compile", "onnxruntime"]
    rows = [[*head, *(f"{kind}, ms" for kind in kinds), "largest difference (float32, float64)"]]
    rows.append(["---"] * len(rows[0]))
    for line in sorted(lines, key=lambda x: (list(NETWORKS).index(x["network"]), x["density"])):
        units, *others = (
            f"{before:,} → {after:,} ({least:,})"
            for before, after, least in (line["units"], line["parameters"], line["flops"])
        )
        missed = "-" if line["missed"] is None else f"all but {line['missed']}" if line["missed"] else "all"
        row = [line["network"], f"{line['density']:.2%}", f"{line['test']:.1%}", units, missed, *others]
        for kind in kinds:
            ms = line["ms"].get(kind, "-")
            row.append(ms if isinstance(ms, str) else f"{ms[0]:.1f} → {ms[1]:.1f} ({ms[2]:.2f}x)")
        far32, far64 = (max(line[f"far {t} {m}"] for m in ("eval", "training")) for t in ("float32", "float64"))
        rows.append([*row, f"{far32:.0e}, {far64:.0e}"])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default=",".join(NETWORKS), help="networks, with commas")
    parser.add_argument("--densities", default=",".join(map(str, DENSITIES)))
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out, which takes minutes")
    parser.add_argument("--fresh", action="store_true")
    parser.add_argument("--gems", action="store_true", help="only search for the gems that are not kept yet")
    parser.add_argument("--draw", action="store_true")
    asked = parser.parse_args()
    logging.disable(logging.WARNING)
    lines = [json.loads(text) for text in OUT.read_text().splitlines()] if OUT.exists() else []
    for name in asked.only.split(",") * (not asked.draw):
        for density in map(float, asked.densities.split(",")):
            done = [x for x in lines if (x["network"], x["density"]) == (name, density)]
            if asked.gems:
                print(name, density, gem(name, density)[2], flush=True)
                continue
            if done and not asked.fresh:
                continue
            try:
                line = measured(name, density, not asked.no_compile)
            except (GemminerError, UsageError) as error:
                print(name, density, error, flush=True)
                continue
            line |= {
                "threads": torch.get_num_threads(),
                "machine": environment.hardware(threads=torch.get_num_threads()),
                "versions": versions(),
            }
            lines = [x for x in lines if x not in done] + [line]
            OUT.write_text("".join(json.dumps(x) + "\n" for x in lines))
            print(json.dumps({k: v for k, v in line.items() if k not in ("machine", "versions")}), flush=True)
    if PAGE.exists() and lines:
        before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
        after = rest.partition(END)[2]
        PAGE.write_text(f"{before}{BEGIN}\n\n{table(lines)}\n\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
