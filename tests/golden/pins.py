"""Golden pins: what every method, two recipes, a comparison and each command's help came to, and how it is compared.

    python tests/golden/pins.py --write      measure everything and write pins.json and help/*.txt anew
    python tests/golden/pins.py --digests    print exact digests of everything, to be compared on one machine

`pins.json` holds on any processor and is still a pin:

- Tickets of the conformance models are searched for in float64. Rounding differs there by 1e-16, so the masks are the
  same bit for bit unless two scores tie to ten digits (`tests/golden/test_tickets.py` disturbs the weights by 1e-9 and
  asks for the same masks).
- Recipes run in float32. Their masks may differ in 1% of the kept weights, their accuracies in a few test examples.
  What training adds to the weights is measured from the pinned masks, as the norm and three projections of each tensor:
  two processors differ there by 6e-5 of the norm, kernels compiled now and those of a cache by 6e-4, another order of
  batches by 4e-2 and more, and 5e-3 is let pass.
- Another stream of numbers, another step or another layer moves a pin by far more than that: `test_faults.py` plants
  such faults and sees each pin red.

`--digests` is for a change that must not change a bit: run it before and after on one machine, and diff.
"""

from __future__ import annotations

import base64
import contextlib
import csv
import dataclasses
import hashlib
import io
import json
import math
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import gemminer
from gemminer import methods
from gemminer.cli import main

HERE = Path(__file__).parent
if __name__ == "__main__":
    sys.path.insert(0, str(HERE.parents[1]))
from tests.conformance.models import MODELS, build, task_of  # noqa: E402
from tests.helpers import EXACT  # noqa: E402

PINS = HERE / "pins.json"
HELP = HERE / "help"
COMMANDS = ("", "mine", "smallest", "train", "check", "export", "inspect", "compare", "score")
COMMANDS += ("instability", "methods", "models", "data", "recipes", "checks", "bench")

DENSITY, EPOCHS, BATCH = 0.3, 4, 16
# Other roads through the methods that train, on the plain model.
VARIANTS: dict[str, dict[str, Any]] = {
    "gem-miner:lr=2:ridge=0.001:freeze_every=1": {"lr": 2.0, "ridge": 0.001, "freeze_every": 1},
    "gem-miner:lr=2:ridge=0.001": {"lr": 2.0, "ridge": 0.001},
    "gem-miner:optimiser=adam:floor=2": {"optimiser": "adam", "lr": 0.02, "floor": 2},
    "gem-miner:lr=2:slack=1": {"lr": 2.0, "slack": 1.0},
    "edge-popup:rung=global": {"rung": "global"},
    "edge-popup:rung=ridge:clip=0.1": {"rung": "ridge", "clip": 0.1},
    "imp:rewind=warm": {"rewind": "warm", "rewind_steps": 2},
    "imp:rewind=lr": {"rewind": "lr"},
    "snip:scope=layer": {"scope": "layer"},
}

_SHORT = ["--data", "digits", "--limit-train", "400", "--device", "cpu", "--threads", "1"]
_FIXED = [*_SHORT, "-t", "lr=0.1"]  # the first run finds its rates, the others need not
_LENET = ["mine", "--model", "lenet-300-100", "--density", "0.05", "--epochs", "4", "--train-epochs", "3"]
_RESNET = ["mine", "--model", "resnet20", "--density", "0.02", "--epochs", "2", "--train-epochs", "2"]
RUNS: dict[str, list[str]] = {
    "lenet-300-100, batch 16, engine dense": [
        *[*_LENET, *_SHORT, "--batch-size", "16", "--check-seeds", "2", "--engine", "dense"]
    ],
    "resnet20, batch 64, engine sparse": [
        *[*_RESNET, *_FIXED, "--batch-size", "64", "--no-checks", "--no-dense", "--engine", "sparse"]
    ],
}
COMPARISON = [
    *["compare", "-m", "gem-miner,snip", "-d", "0.1,0.02", "--model", "lenet-300-100", "--seed", "0", "--epochs", "2"],
    *[*_FIXED, "--batch-size", "64", "--checks", "shuffle", "--no-dense", "--engine", "dense", "--workers", "0"],
]
TABLES = ("table.csv", "table.md", "summary.csv")
# Of a record: what depends on the time, the machine or the call rather than on what was asked for.
PASSING = ("created", "command", "hardware", "versions", "git")
TIMED = ("cost", "rates")  # and of these, the seconds


# --- fingerprints ------------------------------------------------------------------------------------------------


def sha(*parts: bytes) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()[:16]


def masks_digest(masks: Mapping[str, Tensor]) -> str:
    """16 hexadecimal digits over names, shapes and bits."""
    parts = [(f"{n}{tuple(m.shape)}".encode(), np.packbits(m.numpy().reshape(-1)).tobytes()) for n, m in masks.items()]
    return sha(*(part for pair in parts for part in pair))


def bytes_digest(tensors: Mapping[str, Tensor]) -> str:
    return sha(*(part for n, t in tensors.items() for part in (n.encode(), t.contiguous().numpy().tobytes())))


def fingerprint(tensors: Mapping[str, Tensor]) -> dict[str, list[float]]:
    """Of each tensor its norm and three projections on fixed directions, as long as the tensor's own scale."""
    found = {}
    for name, tensor in tensors.items():
        x = tensor.double().reshape(-1)
        place = torch.arange(1, x.numel() + 1, dtype=torch.float64)
        directions = [torch.frac(place * f) - 0.5 for f in (0.6180339887498949, 0.4142135623730951, 0.7320508075688772)]
        found[name] = [float(x.norm()), *(float(x @ d / max(1.0, math.sqrt(x.numel() / 12))) for d in directions)]
    return {name: [float(f"{v:.6g}") for v in values] for name, values in found.items()}


def fingerprints_differ(own: Mapping[str, Any], pin: Mapping[str, Any], share: float) -> list[str]:
    """The tensors whose fingerprints are further apart than `share` of the pin's norm, or that only one side has."""
    if list(own) != list(pin):
        return [f"names {list(own)} instead of {list(pin)}"]
    far = []
    for name, values in pin.items():
        reach = share * max(values[0], 1e-3)
        if any(abs(a - b) > reach for a, b in zip(own[name], values, strict=True)):
            far.append(f"{name}: {own[name]} instead of {values}")
    return far


def packed(masks: Mapping[str, Tensor]) -> dict[str, str]:
    return {n: base64.b64encode(np.packbits(m.numpy().reshape(-1)).tobytes()).decode() for n, m in masks.items()}


def masks_differ(own: Mapping[str, str], pin: Mapping[str, str], kept: int, share: float) -> list[str]:
    """Says so where more bits differ than `share` of the kept weights."""
    if list(own) != list(pin):
        return [f"masks of {list(own)} instead of {list(pin)}"]
    bits = {n: [np.unpackbits(np.frombuffer(base64.b64decode(x[n]), np.uint8)) for x in (own, pin)] for n in pin}
    if any(a.shape != b.shape for a, b in bits.values()):
        return ["masks of other shapes"]
    apart = sum(int((a != b).sum()) for a, b in bits.values())
    return [f"{apart} mask bits differ, of {kept} kept weights"] if apart > max(2.0, share * kept) else []


# --- what is measured --------------------------------------------------------------------------------------------


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def search(label: str, name: str, disturbed: float = 0.0) -> gemminer.Ticket:
    """The ticket of a method (or variant) on a conformance model in float64, from the model's own weights."""
    method = label.split(":")[0]
    model = build(name).double()
    if disturbed:
        source = torch.Generator().manual_seed(11)
        with torch.no_grad():
            for p in dict.fromkeys(model.parameters()):
                p.mul_(1 + disturbed * torch.randn(p.shape, generator=source, dtype=torch.float64))
    batches = task_of(model).train
    inputs, targets = batches.inputs, batches.targets  # type: ignore[attr-defined]
    inputs = inputs.double() if inputs.is_floating_point() else inputs
    fields = {f.name for f in dataclasses.fields(methods.get(method).options)}
    options: dict[str, Any] = (
        {"lr": 0.1} if method == "imp" else {}
    )  # what the pins were made with, before it was found
    options |= {**VARIANTS.get(label, {}), **({"epochs": EPOCHS} if "epochs" in fields else {})}
    with one_thread():
        return gemminer.mine(
            model,
            (inputs, targets),
            DENSITY,
            method=method,
            initialiser="keep",
            batch_size=BATCH,
            engine="dense",
            seed=1,
            **options,
        )


def tickets() -> dict[str, dict[str, str]]:
    """Labels of methods and variants -> model -> the masks' digest."""
    found = {method: {name: masks_digest(search(method, name).masks) for name in MODELS} for method in EXACT}
    return found | {label: {"Plain": masks_digest(search(label, "Plain").masks)} for label in VARIANTS}


def command(argv: list[str]) -> None:
    with one_thread(), contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        code = main(argv)
    if code:
        raise RuntimeError(f"{' '.join(argv)} ended with code {code}")


def run(label: str, out: Path, pinned: Mapping[str, str] | None = None) -> dict[str, Any]:
    """A recipe's ticket, trained weights and record; what training adds to the weights from the `pinned` masks."""
    from safetensors.torch import load_file

    command([*RUNS[label], "--out", str(out)])
    ticket = gemminer.Ticket.load(out / "ticket.safetensors")
    trained = load_file(out / "trained.safetensors")
    record = json.loads((out / "record.json").read_text())
    masks = {name: _unpacked(text, ticket.masks.shape(name)) for name, text in (pinned or packed(ticket.masks)).items()}
    fixed = gemminer.Ticket(masks, ticket.initial, ticket.provenance, ticket.draw)
    fixed.save(out / "pinned.safetensors")
    engine = RUNS[label][RUNS[label].index("--engine") + 1]
    place = ["--engine", engine, "--device", "cpu", "--threads", "1"]
    command(["train", str(out / "pinned.safetensors"), "--out", str(out / "again.safetensors"), *place])
    again = {n: t for n, t in load_file(out / "again.safetensors").items() if t.is_floating_point()}
    start = {n: ticket.initial[n] * masks[n] if n in masks else ticket.initial[n] for n in again}
    return {
        "masks": packed(ticket.masks),
        "kept": ticket.kept,
        "initial": fingerprint(ticket.initial),
        "learnt": fingerprint({n: again[n] - start[n] for n in again}),
        "record": without_times(record),
        "exact": {"ticket": ticket.digest, "trained": bytes_digest(trained)},
    }


def _unpacked(text: str, shape: tuple[int, ...]) -> Tensor:
    bits = np.unpackbits(np.frombuffer(base64.b64decode(text), np.uint8), count=math.prod(shape))
    return torch.from_numpy(bits.astype(bool)).reshape(shape)


def without_times(record: dict[str, Any]) -> dict[str, Any]:
    """A record less what passes: times, the machine, the command."""
    record = {key: value for key, value in record.items() if key not in PASSING}
    timed = {
        part: {k: {m: v for m, v in c.items() if m != "seconds"} for k, c in record[part].items()} for part in TIMED
    }
    return {**record, **timed}


def tables(out: Path) -> dict[str, str]:
    command([*COMPARISON, "--out", str(out)])
    return {name: (out / name).read_text() for name in TABLES}


def help_of(name: str) -> str:
    """What `gemminer NAME --help` prints at 80 columns."""
    before = {key: os.environ.get(key) for key in ("COLUMNS", "TERMINAL_WIDTH")}
    os.environ |= {"COLUMNS": "80", "TERMINAL_WIDTH": "80"}
    out = io.StringIO()
    try:
        with contextlib.redirect_stdout(out):
            main([*([name] if name else []), "--help"])
    finally:
        for key, value in before.items():
            os.environ.pop(key) if value is None else os.environ.__setitem__(key, value)
    return out.getvalue()


# --- what is compared --------------------------------------------------------------------------------------------


def run_differs(own: Mapping[str, Any], pin: Mapping[str, Any], far: bool = False) -> list[str]:
    """Where a run is further from its pin than rounding can take it; empty where it is not.

    In single precision that is `far` for a ResNet's search: on a processor with AVX-512, 1,090 mask bits of 5,361 kept
    weights differ after its twelve steps, and what is measured of the trained network is another's. Another search
    would differ in 10,500 bits.
    """
    found = masks_differ(own["masks"], pin["masks"], pin["kept"], 0.3 if far else 0.01)
    found += [f"initial {text}" for text in fingerprints_differ(own["initial"], pin["initial"], 1e-5)]
    found += [f"learnt {text}" for text in fingerprints_differ(own["learnt"], pin["learnt"], 5e-3)]
    return found + list(values_differ(own["record"], pin["record"], "record", reach=1e9 if far else 0.05))


# Whole numbers of a record that follow from the masks, which may differ in a few bits.
_NEARLY = ("layers", "live", "tried", "after", "before", "dense", "validation", "checks", "flops_sparse", "per_class")


def values_differ(own: Any, pin: Any, where: str, nearly: bool = False, reach: float = 0.05) -> Iterator[str]:
    """Every place where two JSON values are apart: numbers that follow from rounding by `reach`, others at all."""
    nearly = nearly or where.rsplit(".", 1)[-1].removesuffix("_std").removesuffix("_values") in _NEARLY
    if isinstance(pin, dict) and isinstance(own, dict) and list(own) == list(pin):
        for key in pin:
            yield from values_differ(own[key], pin[key], f"{where}.{key}", nearly, reach)
    elif isinstance(pin, list) and isinstance(own, list) and len(own) == len(pin):
        for i, (a, b) in enumerate(zip(own, pin, strict=True)):
            yield from values_differ(a, b, f"{where}.{i}", nearly, reach)
    elif isinstance(pin, float) and isinstance(own, float):
        if not abs(own - pin) <= (reach * max(abs(pin), 0.6) if nearly else 1e-6 * abs(pin)):
            yield f"{where}: {own} instead of {pin}"
    elif nearly and type(pin) is int and type(own) is int:
        if abs(own - pin) > max(2, reach * abs(pin)):
            yield f"{where}: {own} instead of {pin}"
    elif where.endswith("verdict") and isinstance(pin, str) and isinstance(own, str):
        return  # of two seeds: on the edge
    elif own != pin:
        yield f"{where}: {own!r} instead of {pin!r}"


def tables_differ(own: Mapping[str, str], pin: Mapping[str, str]) -> list[str]:
    """Cells of tables that are apart: words at all, decimal fractions by 0.03, whole numbers by 2 or 5%."""
    found = []
    for name, text in pin.items():
        mine, theirs = (_rows(t, "|" if name.endswith(".md") else ",") for t in (own[name], text))
        if [len(r) for r in mine] != [len(r) for r in theirs] or mine[0] != theirs[0]:
            found.append(f"{name} has another shape or head")
            continue
        for number, (a, b) in enumerate(zip(mine, theirs, strict=True)):
            pairs = [(x, y) for x, y in zip(a, b, strict=True) if not _near(x, y)]
            found += [f"{name}, line {number + 1}: {x!r} instead of {y!r}" for x, y in pairs]
    return found


def _rows(text: str, delimiter: str) -> list[list[str]]:
    return list(csv.reader(text.splitlines(), delimiter=delimiter))


def _near(own: str, pin: str) -> bool:
    """Whether two cells say nearly the same: their words alike, their numbers near; verdicts are on the edge."""
    if own == pin or (own.strip() in _VERDICTS and pin.strip() in _VERDICTS):
        return True
    mine, theirs = (text.replace("±", " ").replace("+-", " ").replace("%", " ").split() for text in (own, pin))
    if len(mine) != len(theirs):
        return False
    for a, b in zip(mine, theirs, strict=True):
        try:
            x, y = float(a), float(b)
        except ValueError:
            if a != b:
                return False
            continue
        if abs(x - y) > max(0.05 * abs(y), 0.03 if abs(y) <= 1 else 2.0):
            return False
    return True


_VERDICTS = ("pass", "fail", "not decided")


# --- the command -------------------------------------------------------------------------------------------------


def load() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(PINS.read_text(encoding="utf-8"))
    return found


def measured() -> dict[str, Any]:
    """Everything but the help."""
    with tempfile.TemporaryDirectory() as folder:
        return {
            "tickets": tickets(),
            "runs": {label: run(label, Path(folder) / str(i)) for i, label in enumerate(RUNS)},
            "tables": tables(Path(folder) / "comparison"),
        }


def digests(found: Mapping[str, Any]) -> Iterator[str]:
    """A line for each thing that is pinned, with its exact digest."""
    for label, by_model in found["tickets"].items():
        for name, digest in by_model.items():
            yield f"ticket {label} {name} {digest}"
    for label, result in found["runs"].items():
        yield f"run {label}: ticket {result['exact']['ticket']} trained {result['exact']['trained']}"
        yield f"run {label}: record {sha(json.dumps(result['record']).encode())}"
    for name, text in found["tables"].items():
        yield f"table {name} {sha(text.encode())}"
    for name in COMMANDS:
        yield f"help {name or 'gemminer'} {sha(help_of(name).encode())}"


def _main(argv: list[str]) -> None:
    if argv not in (["--write"], ["--digests"]):
        sys.exit(__doc__)
    found = measured()
    if argv == ["--digests"]:
        print("\n".join(digests(found)))
        return
    for result in found["runs"].values():
        del result["exact"]
    PINS.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    HELP.mkdir(exist_ok=True)
    for name in COMMANDS:
        (HELP / f"{name or 'gemminer'}.txt").write_text(help_of(name), encoding="utf-8")


if __name__ == "__main__":
    _main(sys.argv[1:])
