"""What `gemminer.export.onnx` makes of tickets: python benchmarks/export.py [--only resnet20,vgg16] [--density 0.0144]

Each network of benchmarks/compact.py gets a ticket (--method erk, which needs no search, or gem-miner: five short
epochs on the digits) and five epochs of training, and is exported with and without `compact`, then to int8. The outputs
of every file are compared with PyTorch's, and a batch of 32 is timed in ONNX Runtime, all files in turns. Lines go to
results/export.jsonl, the table into docs/onnx.md. What is measured already is not measured again (--fresh does);
--draw only draws.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import onnxruntime
import torch
from onnxruntime import quantization
from torch import Tensor

import gemminer
from gemminer.bench.measure import alternate, versions
from gemminer.core.errors import GemminerError
from gemminer.runs import environment

sys.path.insert(0, str(Path(__file__).resolve().parent))
from compact import BATCH, BEGIN, END, EPOCHS, IMAGES, NETWORKS, ROOT, digits

OUT, PAGE = ROOT / "results" / "export.jsonl", ROOT / "docs" / "onnx.md"
FILES = ("every layer as it was", "compact", "compact, int8")


def session(path: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = torch.get_num_threads(), 3
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


class Calibration(quantization.CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, name: str, images: Tensor) -> None:
        self.left = iter([{name: part.numpy()} for part in images.split(BATCH)])

    def get_next(self) -> Any:
        return next(self.left, None)


def measured(name: str, method: str, density: float) -> dict[str, Any]:
    torch.manual_seed(0)
    model, (images, labels) = NETWORKS[name](), digits()
    data, tested = (images[:IMAGES], labels[:IMAGES]), (images[IMAGES:], labels[IMAGES:])
    search = {"epochs": EPOCHS, "batch_size": 64} if method == "gem-miner" else {}
    ticket = gemminer.mine(model, data, density, method=method, **search)
    gemminer.train(model, ticket, data, epochs=EPOCHS, batch_size=64)
    model.eval()
    batch, line = images[-BATCH:], {"network": name, "method": method, "density": ticket.density, "files": {}}
    with torch.no_grad():
        masked = copy.deepcopy(model)
        for key, mask in ticket.masks.items():
            masked.get_parameter(key).mul_(mask)
        want = masked(batch)
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{number}.onnx" for number in range(len(FILES))]
        for path, compact in zip(paths, (False, True), strict=False):
            started = time.perf_counter()
            gemminer.export.onnx(model, path, batch[:2], ticket, compact=compact)
            line["files"][FILES[paths.index(path)]] = {"export_seconds": time.perf_counter() - started}
        reader = Calibration(session(paths[1]).get_inputs()[0].name, images[:128])
        quantization.quantize_static(paths[1], paths[2], reader, per_channel=True)
        sessions = {kind: session(path) for kind, path in zip(FILES, paths, strict=True)}
        calls = {
            kind: (lambda s=s: torch.from_numpy(s.run(None, {s.get_inputs()[0].name: batch.numpy()})[0]))
            for kind, s in sessions.items()
        }
        times = alternate(calls, runs=5)
        for kind, path in zip(FILES, paths, strict=True):
            right = [
                torch.from_numpy(sessions[kind].run(None, {sessions[kind].get_inputs()[0].name: x.numpy()})[0])
                for x in tested[0].split(BATCH)
            ]
            line["files"].setdefault(kind, {}).update(
                bytes=path.stat().st_size,
                ms=1e3 * statistics.median(times[kind]),
                far=float((calls[kind]() - want).abs().max() / want.abs().max()),
                accuracy=float((torch.cat(right).argmax(1) == tested[1]).double().mean()),
            )
    return line


def table(lines: list[dict[str, Any]]) -> str:
    head = ["network", "ticket", *(f"{kind}: KB" for kind in FILES), *(f"{kind}: ms" for kind in FILES)]
    rows = [[*head, "differs by (float32)", "accuracy (float32, int8)"], ["---"] * (len(head) + 2)]
    for line in sorted(lines, key=lambda x: (list(NETWORKS).index(x["network"]), x["method"], x["density"])):
        files = [line["files"][kind] for kind in FILES]
        row = [line["network"], f"{line['method']}, {line['density']:.2%}"]
        row += [f"{f['bytes'] / 1e3:,.0f}" for f in files] + [f"{f['ms']:.1f}" for f in files]
        far = max(f["far"] for f in files[:2])
        rows.append([*row, f"{far:.0e}", f"{files[1]['accuracy']:.1%}, {files[2]['accuracy']:.1%}"])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default=",".join(NETWORKS), help="networks, with commas")
    parser.add_argument("--method", default="erk", choices=["erk", "gem-miner"])
    parser.add_argument("--density", type=float, default=0.0144)
    parser.add_argument("--fresh", action="store_true")
    parser.add_argument("--draw", action="store_true")
    asked = parser.parse_args()
    lines = [json.loads(text) for text in OUT.read_text().splitlines()] if OUT.exists() else []
    for name in asked.only.split(",") * (not asked.draw):
        done = [
            x for x in lines
            if (x["network"], x["method"]) == (name, asked.method) and abs(x["density"] / asked.density - 1) < 0.02
        ]  # fmt: skip
        if done and not asked.fresh:
            continue
        try:
            line = measured(name, asked.method, asked.density)
        except GemminerError as error:
            print(name, error, flush=True)
            continue
        threads = torch.get_num_threads()
        line |= {"threads": threads, "machine": environment.hardware(threads=threads), "versions": versions()}
        lines = [x for x in lines if x not in done] + [line]
        OUT.write_text("".join(json.dumps(x) + "\n" for x in lines))
        print(json.dumps({k: v for k, v in line.items() if k not in ("machine", "versions")}), flush=True)
    if lines:
        before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
        after = rest.partition(END)[2]
        PAGE.write_text(f"{before}{BEGIN}\n\n{table(lines)}\n\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
