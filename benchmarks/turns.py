"""Contestants in processes of their own, in turns: other versions of gemminer, other engines in other environments.

    python benchmarks/turns.py train resnet20 dense dense:bf16 before=ours@OLD ours ours:bf16
    python benchmarks/turns.py infer vgg16 deepsparse@OTHER/bin/python onnxruntime ours --batch 1
    python benchmarks/turns.py all --contestant before=OLD --contestant deepsparse=OTHER/bin/python
    python benchmarks/turns.py --draw

A contestant is [LABEL=]KIND[:PRECISION][@WHERE]. KIND is ours, dense (PyTorch eager), compile (torch.compile), for
`infer` onnxruntime and deepsparse (installed by hand for evaluation; its licence allows no more), for `train`
sparseprop and sparselab. WHERE is the Python that runs it, or a folder that holds another version's package
`gemminer`. `all` measures every cell of CELLS that is not there yet, with those contestants whose WHERE was given and
those that need none. Network, weights and ticket are those of `gemminer.bench.networks`, the same for
all. In each round every contestant makes as many calls as fill a quarter of a second, after one that is not counted;
the ratio is the first contestant's time divided by each one's, the median over the rounds with its 10th and 90th
percentile. A training says its loss after --steps equal steps too: a speed-up by another accuracy is none. Lines go to
results/turns.jsonl, the table of --draw into docs/performance.md.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
OUT, PAGE = ROOT / "results" / "turns.jsonl", ROOT / "docs" / "performance.md"
BEGIN, END = "<!-- turns -->", "<!-- end of turns -->"
SECONDS = 0.25

Call = Callable[[], Any]
# What `all` measures: (what, network, density, batch, steps), and who takes part, if its WHERE is known.
CELLS = [
    *(("infer", model, 0.0144, batch, 0) for model in ("resnet20", "vgg16", "mobilenet-v2") for batch in (1, 128)),
    ("train", "resnet20", 0.0372, 128, 200),
    ("train", "lenet-300-100", 0.0144, 128, 200),
    *(("train", "mlp-2048", density, 128, 200) for density in (0.0144, 0.1)),
    *(("train", "resnet20", density, 128, 50) for density in (0.0144, 0.0059)),
    ("train", "vgg16", 0.0144, 128, 5),
    ("train", "mobilenet-v2", 0.0144, 128, 5),
]
WHO = {
    "infer": ("deepsparse", "onnxruntime", "dense", "before", "ours"),
    "train": ("dense", "dense:bf16", "sparseprop", "sparselab", "before", "ours", "ours:bf16"),
}
# Those that need a WHERE, and how a contestant says it.
ELSEWHERE = {"deepsparse": "deepsparse", "sparseprop": "sparseprop", "sparselab": "sparselab", "before": "before=ours"}
# SparseProp's layers of groups are wrong (NaN), sparselab has linear layers only.
NOT = {"sparseprop": ("mobilenet-v2",), "sparselab": ("resnet20", "vgg16", "mobilenet-v2")}


@dataclasses.dataclass(frozen=True)
class Contestant:
    """A row of the table: who runs what, where and in which precision."""

    label: str
    kind: str
    precision: str
    where: str

    @classmethod
    def read(cls, text: str) -> Contestant:
        named, _, rest = text.rpartition("=")
        asked, _, where = rest.partition("@")
        kind, _, precision = asked.partition(":")
        return cls(named or asked, kind, precision or "fp32", where)

    def start(self, what: str, args: argparse.Namespace, onnx: str) -> subprocess.Popen[str]:
        place, python, path = Path(self.where), sys.executable, str(ROOT)
        if self.where and place.is_dir():
            path = str(place.resolve())
        elif self.where:
            python = str(place.absolute())
        own = [self.kind, self.precision, onnx, what, args.model, str(args.density), str(args.batch), str(args.steps)]
        env = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": str(args.threads), "NM_DISABLE_ANALYTICS": "1"}
        command = [python, str(Path(__file__).resolve()), "--worker", *own]
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env)


# --- in the contestant's own Python ---------------------------------------------------------------------------------


def worker(kind: str, precision: str, onnx: str, what: str, model: str, density: str, batch: str, steps: str) -> None:
    """Say what there is to say, then the seconds of as many calls as each line of standard input asks for."""
    threads = int(os.environ["OMP_NUM_THREADS"])
    if kind in ("onnxruntime", "deepsparse"):
        call, facts = _engine(kind, onnx, int(batch), threads)
    elif what == "train":
        call, facts = _training(kind, precision, model, float(density), int(batch), int(steps), threads)
    else:
        call, facts = _inference(kind, precision, model, float(density), int(batch), threads)
    for _ in range(3):
        call()
    print(json.dumps(facts), flush=True)
    for line in sys.stdin:
        begun = time.perf_counter()
        for _ in range(int(line)):
            call()
        print((time.perf_counter() - begun) / int(line), flush=True)


def _networks(kind: str, name: str, density: float, batch: int, threads: int) -> tuple[Any, Any, Any]:
    """A network of `gemminer.bench`, as it is for dense training and holding kept weights for ours, and a batch."""
    import torch

    from gemminer.bench import networks
    from gemminer.bench.steps import sparse_net

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    net = networks.build(name)
    images, labels = networks.images_of(name, batch)
    if kind == "ours":
        return sparse_net(name, net, density), images, labels
    if kind in ("sparseprop", "sparselab"):
        net = networks.ticket_of(name, net, density).apply(net)
        with contextlib.redirect_stdout(sys.stderr):  # standard output is for the times
            net = _sparseprop(net, images, threads) if kind == "sparseprop" else _sparselab(net)
        return net, images, labels
    if images.dim() == 4:
        net, images = net.to(memory_format=torch.channels_last), images.to(memory_format=torch.channels_last)
    return net, images, labels


def _sparseprop(net: Any, images: Any, threads: int) -> Any:
    """The network with those layers of SparseProp's that it finds faster than PyTorch's."""
    import sparseprop  # type: ignore[import-not-found]
    from sparseprop.utils import swap_modules_with_sparse  # type: ignore[import-not-found]

    sparseprop.set_num_threads(threads)
    return swap_modules_with_sparse(net, tuple(images.shape))  # says which on standard output


def _sparselab(net: Any) -> Any:
    """The network with sparselab's layers in place of its linear ones, of the same weights."""
    import numpy as np
    import sparselab  # type: ignore[import-not-found]
    import torch

    for name, layer in list(net.named_modules()):
        if isinstance(layer, torch.nn.Linear):
            own = sparselab.SparseLinear(layer.in_features, layer.out_features, bias=layer.bias is not None)
            own._csr = sparselab.layout.from_dense(layer.weight.detach(), padding_ratio=own.padding_ratio)
            own._values = torch.nn.Parameter(torch.from_numpy(np.asarray(own._csr.values)))
            own.bias = layer.bias
            net.set_submodule(name, own)
    return net


def _training(
    kind: str, precision: str, name: str, density: float, batch: int, steps: int, threads: int
) -> tuple[Call, dict[str, Any]]:
    import torch

    net, images, labels = _networks(kind, name, density, batch, threads)
    run = torch.compile(net) if kind == "compile" else net
    optimiser = torch.optim.SGD(net.parameters(), lr=0.02, momentum=0.9, fused=True)

    def call() -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            output = run(images)
        loss = torch.nn.functional.cross_entropy(output.float(), labels)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        return loss

    losses = [float(call().detach()) for _ in range(steps)]
    return call, {"torch": torch.__version__, "loss": losses[-1] if losses else None}


def _inference(
    kind: str, precision: str, name: str, density: float, batch: int, threads: int
) -> tuple[Call, dict[str, Any]]:
    import torch

    from gemminer import sparse
    from gemminer.bench import networks

    torch.set_num_threads(threads)
    net = networks.build(name).eval()
    net = networks.ticket_of(name, net, density).apply(net)
    images, _ = networks.images_of(name, batch)
    if kind == "ours":
        program, numbers = sparse.compile(net, images[:1]), images.numpy()
        return lambda: program(numbers), {"torch": torch.__version__}
    if images.dim() == 4:
        net, images = net.to(memory_format=torch.channels_last), images.to(memory_format=torch.channels_last)

    run = torch.compile(net) if kind == "compile" else net

    @torch.no_grad()
    def call() -> Any:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            return run(images)

    return call, {"torch": torch.__version__}


def _engine(kind: str, onnx: str, batch: int, threads: int) -> tuple[Call, dict[str, Any]]:
    import numpy as np

    images = np.load(Path(onnx).with_suffix(".npy"))
    if kind == "deepsparse":
        import deepsparse  # type: ignore[import-not-found]

        engine = deepsparse.compile_model(onnx, batch_size=batch, num_cores=threads)
        supported = getattr(engine, "fraction_of_supported_ops", None)
        return lambda: engine.run([images]), {"deepsparse": deepsparse.__version__, "supported": supported}
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(onnx, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda: session.run(None, {name: images}), {"onnxruntime": onnxruntime.__version__}


# --- the turns ------------------------------------------------------------------------------------------------------


def onnx_of(args: argparse.Namespace, folder: str) -> str:
    """The masked network as an old graph, which DeepSparse runs itself, and its batch beside it."""
    import numpy as np
    import torch

    from gemminer.bench import networks

    net = networks.build(args.model).eval()
    net = networks.ticket_of(args.model, net, args.density).apply(net)
    images, _ = networks.images_of(args.model, args.batch)
    path = Path(folder) / "network.onnx"
    torch.onnx.export(net, (images,), str(path), dynamo=False, opset_version=11)
    np.save(path.with_suffix(".npy"), images.numpy())
    return str(path)


def measure(args: argparse.Namespace) -> list[dict[str, Any]]:
    """A line for each contestant."""
    from gemminer.runs import environment

    contestants = [Contestant.read(text) for text in args.contestants]
    with tempfile.TemporaryDirectory() as folder:
        engines = any(c.kind in ("onnxruntime", "deepsparse") for c in contestants)
        onnx = onnx_of(args, folder) if engines else ""
        running, facts = {}, {}
        for c in contestants:  # one after the other: compiling beside others takes minutes
            try:
                process = c.start(args.what, args, onnx)
            except OSError as error:
                print(f"{c.label} was left out: {error}", file=sys.stderr)
                continue
            assert process.stdout is not None
            said = process.stdout.readline()
            if not said:
                print(f"{c.label} was left out: it ended with what is said above", file=sys.stderr)
                continue
            running[c], facts[c] = process, json.loads(said)
        times = _turns(running, args.rounds)
        for process in running.values():
            assert process.stdin is not None
            process.stdin.close()
            process.wait()
    first = next(iter(times.values()))
    hardware = environment.hardware("cpu", args.threads)
    where = {"what": args.what, "model": args.model, "density": args.density, "batch": args.batch}
    rows = []
    for c, own in times.items():
        ratios = sorted(a / b for a, b in zip(first, own, strict=True))
        low, high = ratios[round(0.1 * (len(ratios) - 1))], ratios[round(0.9 * (len(ratios) - 1))]
        row = {**where, "threads": args.threads, "contestant": c.label, "kind": c.kind, "precision": c.precision}
        row |= {"ms": 1e3 * statistics.median(own), "against": next(iter(times)).label}
        row |= {"ratio": statistics.median(ratios), "low": low, "high": high, "rounds": len(own)}
        rows.append({**row, "steps": args.steps, **facts[c], "hardware": hardware, "date": time.strftime("%Y-%m-%d")})
    return rows


def _turns(running: dict[Contestant, subprocess.Popen[str]], rounds: int) -> dict[Contestant, list[float]]:
    def ask(contestant: Contestant, calls: int) -> float:
        process = running[contestant]
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(f"{calls}\n")
        process.stdin.flush()
        return float(process.stdout.readline())

    calls = {c: max(1, round(SECONDS / ask(c, 1))) for c in running}
    times: dict[Contestant, list[float]] = {c: [] for c in running}
    order = list(running)
    for i in range(rounds):
        first = i % len(order)
        for c in order[first:] + order[:first]:
            ask(c, 1)  # fills the caches
            times[c].append(ask(c, calls[c]))
    return times


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown, a row for each contestant of each measurement."""
    lines = ["| what | network | density | batch, threads | contestant | ms | times as fast as the first | loss |"]
    lines.append("|---" * 8 + "|")
    for r in rows:
        loss = "" if r.get("loss") is None else f"{r['loss']:.4f} after {r['steps']}"
        ratio = f"{r['ratio']:.2f} ({r['low']:.2f} to {r['high']:.2f}, n={r['rounds']})"
        where = f"{r['what']} | {r['model']} | {100 * r['density']:g}% | {r['batch']}, {r['threads']}"
        lines.append(f"| {where} | {r['contestant']} | {r['ms']:.3g} | {ratio} | {loss} |")
    return "\n".join(lines)


def read() -> list[dict[str, Any]]:
    return [json.loads(line) for line in OUT.read_text(encoding="utf-8").splitlines()] if OUT.exists() else []


def draw() -> None:
    from gemminer.core.files import save_text

    text = PAGE.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    save_text(PAGE, f"{before}{BEGIN}\n\n{table(read())}\n\n{END}{rest.partition(END)[2]}")


def keep(rows: Sequence[dict[str, Any]]) -> None:
    """Put a measurement in place of the one before of the same setting."""
    from gemminer.core.files import save_text

    def setting(r: dict[str, Any]) -> tuple[Any, ...]:
        return r["what"], r["model"], r["density"], r["batch"], r["threads"]

    others = [r for r in read() if setting(r) != setting(rows[0])]
    save_text(OUT, "".join(json.dumps(r) + "\n" for r in sorted([*others, *rows], key=setting)))


def everything(where: dict[str, str], fresh: bool = False) -> None:
    """Measure each of CELLS that is not there yet; who is not installed has no row."""
    for what, model, density, batch, steps in CELLS:
        setting = {"what": what, "model": model, "density": density, "batch": batch}
        if not fresh and any(setting.items() <= row.items() for row in read()):
            continue
        texts = [k for k in WHO[what] if k not in ELSEWHERE or (k in where and model not in NOT.get(k, ()))]
        texts = [f"{ELSEWHERE[k]}@{where[k]}" if k in ELSEWHERE else k for k in texts]
        asked = argparse.Namespace(**setting, contestants=texts, steps=steps, rounds=9, threads=os.cpu_count())
        rows = measure(asked)
        keep(rows)
        print(table(rows), flush=True)


def main() -> None:
    if sys.argv[1:2] == ["--worker"]:
        worker(*sys.argv[2:])
        return
    if sys.argv[1:] == ["--draw"]:
        draw()
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["train", "infer", "all"])
    parser.add_argument("model", nargs="?", default="")
    parser.add_argument("contestants", nargs="*", metavar="contestant")
    parser.add_argument("--contestant", action="append", default=[], metavar="KIND=WHERE", help="all: where it is")
    parser.add_argument("--fresh", action="store_true", help="all: measure what is there again, too")
    parser.add_argument("--density", type=float, default=0.0144)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=0, help="train: say the loss after so many steps")
    parser.add_argument("--dry", action="store_true", help="print only")
    args = parser.parse_args()
    if args.what == "all":
        everything(dict(text.split("=", 1) for text in args.contestant), args.fresh)
        draw()
        return
    rows = measure(args)
    if not args.dry:
        keep(rows)
    print(table(rows))


if __name__ == "__main__":
    main()
