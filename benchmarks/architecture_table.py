"""Architectures nobody tuned for, with the engine as it was and as it is: python benchmarks/architecture_table.py

    git worktree add /tmp/before 7a3455c
    OMP_NUM_THREADS=1 python benchmarks/architecture_table.py --before /tmp/before

Each architecture is loaded by a process with the package as it was (--before) and one with it as it is. They compare a
sparse copy with the masked dense model in float64 (outputs, gradients, running statistics: the largest difference,
relative to the largest number of its tensor) and time training steps in float32: masked dense in the faster of
PyTorch's two layouts, the engine `auto`, the engine `sparse`. The steps are timed in turns, and the two processes in
turns as well. Lines go to results/architectures.jsonl; docs/architectures.md, if it exists, gets the table. What is
measured already is not measured again (--fresh does); --draw only draws.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import random
import statistics
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from architectures import ARCHITECTURES, Architecture, cast, differences, scalar, state_of, ticket_of
from torch import nn

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "results" / "architectures.jsonl"
PAGE = ROOT / "docs" / "architectures.md"
BEGIN, END = "<!-- table -->", "<!-- end of the table -->"
Line = dict[str, Any]


# one architecture in one process


def said(error: BaseException) -> str:
    """An error in a few words: its kind, its first line, and where it came from."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {str(error).splitlines()[0][:200]} ({Path(frame.filename).name})"


def why_untraced(model: nn.Module) -> str:
    """What kept the engine before issue 11 from tracing a model."""
    graphs = []
    for mode in (True, False):
        try:
            graphs.append(str(torch.fx.Tracer().trace(model.train(mode))))
        except Exception as error:  # whatever a forward raises on a proxy
            return str(error).splitlines()[0][:120] if str(error) else type(error).__name__
    return "another path in evaluation mode" if graphs[0] != graphs[1] else ""


def compared(architecture: Architecture, engine: str, density: float) -> Line:
    try:
        net, gaps = differences(architecture, engine, small=False, dtype=torch.float64, density=density)
    except Exception as error:
        return {"state": "fails", "why": said(error)}
    line = {**state_of(net), "gaps": gaps}
    if line["state"] == "layer by layer" and not hasattr(net, "chains"):
        line["why"] = why_untraced(architecture.build(False))
    return line


def step_of(net: nn.Module, architecture: Architecture, channels_last: bool = False) -> Callable[[], None]:
    """A training step: outputs, loss, gradients, stochastic gradient descent with momentum."""
    batch = cast(architecture.batch(False, 0), torch.float32)
    args = batch.args
    if channels_last:
        net = net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        args = tuple(a.contiguous(memory_format=torch.channels_last) if a.dim() == 4 else a for a in args)
    optimiser = torch.optim.SGD(net.parameters(), lr=1e-4, momentum=0.9)

    def step() -> None:
        torch.manual_seed(0)
        random.seed(0)
        optimiser.zero_grad()
        scalar(net(*args, **(batch.kwargs or {}))).backward()
        optimiser.step()

    return step


def seconds(step: Callable[[], None]) -> float:
    """Of processor time: with one thread that is what a step takes when nothing else runs."""
    begun = time.process_time()
    step()
    return time.process_time() - begun


def steps_of(architecture: Architecture, density: float) -> dict[str, Callable[[], None]]:
    """The steps that are timed, warmed up; those of engines that fail are left out."""
    from gemminer import sparse

    torch.manual_seed(0)
    model = architecture.build(False)
    ticket = ticket_of(model, density)
    ticket.apply(model)
    steps = {"NCHW": step_of(copy.deepcopy(model), architecture)}
    tensors = cast(architecture.batch(False, 0), torch.float32).args
    if all(isinstance(a, torch.Tensor) for a in tensors) and any(isinstance(m, nn.Conv2d) for m in model.modules()):
        steps["channels-last"] = step_of(copy.deepcopy(model), architecture, channels_last=True)
    times = {name: [seconds(step) for _ in range(3)] for name, step in steps.items()}
    fastest = min(times, key=lambda name: min(times[name]))
    steps = {"dense": steps[fastest]}
    for engine in ("auto", "sparse"):
        try:
            step = step_of(sparse.sparsify(model, ticket, engine=engine), architecture)  # type: ignore[arg-type]
            for _ in range(3):
                step()
            steps[engine] = step
        except Exception:
            continue
    return steps


def compare(names: list[str], density: float) -> None:
    """Answer the parent: for each architecture how it runs, and how far the sparse copies are off."""
    for architecture in ARCHITECTURES:
        if architecture.name in names:
            facts: Line = {engine: compared(architecture, engine, density) for engine in ("sparse", "auto")}
            print(json.dumps({"architecture": architecture.name, **gflop(architecture), **facts}), flush=True)


def time_steps(name: str, density: float) -> None:
    """Answer the parent with the seconds of each step whenever it asks."""
    steps = steps_of(next(a for a in ARCHITECTURES if a.name == name), density)
    print(json.dumps(sorted(steps)), flush=True)
    for _ in sys.stdin:
        print(json.dumps({what: seconds(step) for what, step in steps.items()}), flush=True)


# all of them


def started(what: str, names: list[str], density: float, tree: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-W", "ignore", __file__, "--work", what, "--density", str(density), "--only", *names]
    environment = {**os.environ, "PYTHONPATH": str(tree), "HF_HUB_OFFLINE": "1"}
    pipe = subprocess.PIPE
    return subprocess.Popen(
        command, env=environment, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True, cwd=tree
    )


def answer(process: subprocess.Popen[str]) -> Any:
    assert process.stdout is not None
    while line := process.stdout.readline():
        if line.startswith(("{", "[")):
            return json.loads(line)
    raise RuntimeError(f"a measuring process ended with exit code {process.wait()}")


def timed(name: str, density: float, trees: dict[str, Path], rounds: int) -> dict[str, Line]:
    """Median, least and largest ratio of times by tree and engine, and the dense step's median time."""
    workers = {when: started("time", [name], density, tree) for when, tree in trees.items()}
    try:
        for worker in workers.values():
            answer(worker)
        times: dict[str, list[dict[str, float]]] = {when: [] for when in workers}
        for _ in range(rounds):
            for when, worker in workers.items():
                assert worker.stdin is not None
                worker.stdin.write("again\n")
                worker.stdin.flush()
                times[when].append(answer(worker))
    finally:
        for worker in workers.values():
            worker.kill()
            worker.wait()
    found: dict[str, Line] = {}
    for when, rows in times.items():
        ratios = {e: sorted(row["dense"] / row[e] for row in rows) for e in ("auto", "sparse") if e in rows[0]}
        faster = {e: [statistics.median(r), r[0], r[-1]] for e, r in ratios.items()}
        dense = 1e3 * statistics.median(row["dense"] for row in rows)
        found[when] = {"faster": faster, "dense_ms": dense, "rounds": rounds}
    return found


def gflop(architecture: Architecture) -> Line:
    """Of a training step: three times the forward pass's; and the model's parameters."""
    from torch.utils.flop_counter import FlopCounterMode

    model, batch = architecture.build(False), cast(architecture.batch(False, 0), torch.float32)
    with FlopCounterMode(display=False) as counter:
        model(*batch.args, **(batch.kwargs or {}))
    return {"gflop": 3 * counter.get_total_flops() / 1e9, "parameters": sum(p.numel() for p in model.parameters())}


def lines_of(path: Path) -> list[Line]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def keep(path: Path, known: dict[tuple[str, str], Line]) -> None:
    import timm
    import torchvision
    import transformers

    from gemminer.core.files import save_text
    from gemminer.runs import environment

    versions = environment.versions() | {m.__name__: m.__version__ for m in (torchvision, timm, transformers)}
    machine = {"machine": environment.hardware("cpu", torch.get_num_threads()), "versions": versions}
    save_text(path, "".join(json.dumps(line) + "\n" for line in [machine, *known.values()]))


def measure(args: argparse.Namespace) -> None:
    trees = ({"before": args.before.resolve()} if args.before else {}) | ({} if args.no_after else {"after": ROOT})
    names = [a.name for a in ARCHITECTURES if not args.only or any(part in a.name for part in args.only)]
    known = {(line["architecture"], line["when"]): line for line in lines_of(args.out) if "architecture" in line}
    for when, tree in trees.items():
        wanted = [name for name in names if when in args.fresh or (name, when) not in known]
        worker = started("compare", wanted, args.density, tree)
        for _ in wanted:
            line = {"when": when, "density": args.density, **answer(worker)}
            print(line["architecture"], when, flush=True)
            known[line["architecture"], when] = line
            keep(args.out, known)
        worker.wait()
    for name in names if args.rounds else ():
        if any("faster" not in known[name, when] for when in trees):
            print(name, "times", flush=True)
            for when, line in timed(name, args.density, trees, args.rounds).items():
                known[name, when].update(line)
            keep(args.out, known)


# the table


WRONG = 1e-3


def cell(line: Line | None) -> str:
    """How the engine `sparse` runs it and why; what `auto` does if that is worse."""
    if line is None:
        return ""
    found = []
    for engine in ("sparse", "auto"):
        facts = line[engine]
        text, why = facts["state"], facts.get("why", "").split(": ", 1)[-1][:66]
        if text == "fused":
            text += f", {facts['fused']} of {facts['layers']} layers"
        elif text == "layer by layer" and not why:
            why = "no norm, addition or ReLU right behind a layer"
        elif text == "dense" and engine == "sparse":
            why = "no layer that the kernels know"
        gaps = facts.get("gaps", {})
        if gaps and max(gaps.values()) > WRONG:
            why += f"; **wrong {max(gaps, key=gaps.__getitem__)}**"
        found.append((text, f"{text}: {why.removeprefix('; ')}" if why else text))
    (state, shown), (auto, more) = found
    worse = (auto == "fails" and state != "fails") or ("wrong" in more and "wrong" not in shown)
    return (
        (f"{shown}; `auto`: {more}" if worse else shown)
        .replace("|", "\\|")
        .replace("_ChainFunction", "`_ChainFunction`")
    )


def gap(line: Line | None) -> str:
    gaps = [g for e in ("sparse", "auto") for g in ((line or {}).get(e, {}).get("gaps") or {}).values()]
    return f"{max(gaps):.0e}" if gaps else ""


def ratio(line: Line | None, engine: str) -> str:
    found = (line or {}).get("faster", {}).get(engine)
    if line is not None and line[engine]["state"] == "dense":
        return "dense"
    return f"{found[0]:.2f} ({found[1]:.2f} to {found[2]:.2f})" if found else ""


def table(lines: list[Line]) -> str:
    by_name = {(line["architecture"], line["when"]): line for line in lines if "architecture" in line}
    head = ["architecture", "what is awkward", "GFLOP a step", "before", "after", "largest difference, before", "after"]
    head += ["faster with `sparse`, before", "after", "faster with `auto`, before", "after"]
    rows = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for a in ARCHITECTURES:
        before, after = by_name.get((a.name, "before")), by_name.get((a.name, "after"))
        if after is None:
            continue
        row = [a.name, a.what, f"{after['gflop']:.1f}", cell(before), cell(after), gap(before), gap(after)]
        row += [ratio(x, e) for e in ("sparse", "auto") for x in (before, after)]
        rows.append("| " + " | ".join(row) + " |")
    return "\n".join(rows)


def draw(path: Path) -> None:
    if not PAGE.exists():
        print(table(lines_of(path)))
        return
    page = PAGE.read_text(encoding="utf-8")
    start, end = page.index(BEGIN) + len(BEGIN), page.index(END)
    PAGE.write_text(page[:start] + "\n\n" + table(lines_of(path)) + "\n\n" + page[end:], encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, help="a checkout of an older gemminer to compare with")
    parser.add_argument("--only", nargs="*", help="parts of names")
    parser.add_argument("--density", type=float, default=0.05)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--fresh", nargs="*", default=[], choices=["before", "after"], help="measure these anew")
    parser.add_argument("--draw", action="store_true")
    parser.add_argument("--no-after", action="store_true", help="measure the older one alone")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--work", choices=["compare", "time"], help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.work:
        compare(args.only, args.density) if args.work == "compare" else time_steps(args.only[0], args.density)
        return
    if not args.draw:
        measure(args)
    draw(args.out)


if __name__ == "__main__":
    main()
