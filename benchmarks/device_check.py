"""Whether a GPU comes to what the CPU comes to: search, training, checks, bf16, torch.compile and several ranks.

    python benchmarks/device_check.py                        the GPU that is here (CUDA or MPS), at most ten minutes
    python benchmarks/device_check.py --device cpu --quick   the same script against the CPU itself

Each part runs on both and is compared: masks by the share of kept weights that differ, the losses of the first steps
relatively, accuracies as fractions. TF32 is switched off. Exit code 1 where a comparison is beyond its limit or a part
fails, 2 where there is no GPU.

Rounding grows: on a CPU a search in float32 keeps other weights than one in float64, 0.06 of them for LeNet-300-100 and
0.28 for ResNet-20 (0.8 would be chance), and their first losses are up to 1e-3 and 5e-3 apart; scores of a batch 0.005,
the first losses of a training 1e-6. The limits are two to four times that or more.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import Tensor, distributed, multiprocessing, nn

import gemminer
from gemminer import models
from gemminer.core.ticket import Ticket
from gemminer.runs.environment import hardware, versions

DENSITY, BATCH, LR, MINUTES = 0.2, 64, 0.02, 8.0
FIRST = 4  # losses: of a look at the first batch, and of three steps
CHECKS = ["shuffle", "reinit"]
SAME_DRAW, SAME_SCORES = 0.0, 0.02  # shares of kept weights: drawn, and chosen by the scores of a few batches
SAME_FOUND = {"lenet-300-100": 0.2, "resnet20": 0.6}  # found in a search
SAME_LOSS, SAME_SEARCH_LOSS, SAME_BF16_LOSS = 1e-4, 2e-2, 5e-2
SAME_ACCURACY, SAME_CHECK = 0.05, 0.05
SAME_OUTPUT = 1e-4


@dataclass(frozen=True)
class Side:
    """Where a part runs, and how much of it: the device in question, or the CPU that it is compared with."""

    device: str
    reference: bool
    quick: bool

    @property
    def how(self) -> dict[str, Any]:
        return {"engine": "dense", "batch_size": BATCH, "epochs": 2 if self.quick else 4}


@dataclass
class Row:
    """A part: seconds on both sides, and differences beside their limits; `left_out` says why it was not run."""

    part: str
    seconds: list[float] = field(default_factory=list)
    differences: dict[str, tuple[float, float]] = field(default_factory=dict)
    failed: str = ""
    left_out: str = ""

    @property
    def fine(self) -> bool:
        return not self.failed and all(found <= limit for found, limit in self.differences.values())  # NaN is not


class Recorded(nn.CrossEntropyLoss):
    """The losses of the first steps, before rounding grows: 1e-6 in the second of a training, 0.1 in the 15th."""

    def __init__(self) -> None:
        super().__init__()
        self.first: list[Tensor] = []

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        loss = super().forward(output, target)
        if len(self.first) < FIRST:
            self.first.append(loss.detach())
        return loss


# --- what runs ---------------------------------------------------------------------------------------------------


def network(side: Side, name: str | None = None) -> nn.Module:
    name = name or ("lenet-300-100" if side.quick else "resnet20")
    return models.build(name, in_channels=1, classes=10, image_size=8).to(side.device)


def data(side: Side, test: bool = False) -> tuple[Tensor, Tensor]:
    """Handwritten digits, on the side's device."""
    images, labels = load_digits(return_X_y=True)
    pixels = torch.tensor(images, dtype=torch.float32).view(-1, 1, 8, 8) / 16
    taken = slice(1400, None) if test else slice(0, 512 if side.quick else 1400)
    return pixels[taken].to(side.device), torch.tensor(labels)[taken].to(side.device)


def mined(side: Side, method: str, name: str | None = None, **more: Any) -> Ticket:
    return gemminer.mine(network(side, name), data(side), DENSITY, method=method, **more)


def searched(side: Side, method: str, **more: Any) -> tuple[Ticket, list[float]]:
    loss = Recorded()
    return mined(side, method, loss=loss, **{**side.how, **more}), list(map(float, loss.first))


def trained(side: Side, net: nn.Module | None = None, **more: Any) -> tuple[nn.Module, float, list[float]]:
    """A network after the training of a ticket that both sides draw alike, its accuracy and its losses."""
    net = network(side) if net is None else net
    ticket = mined(dataclasses.replace(side, device="cpu"), "erk")
    loss = Recorded()
    how = {**side.how, "lr": LR, "loss": loss, **more}
    accuracy = gemminer.train(net, ticket, data(side), data(side, test=True), **how).test
    return net, accuracy or 0.0, list(map(float, loss.first))


def apart(one: Ticket, other: Ticket) -> float:
    """The share of kept weights that the other ticket does not keep."""
    both = sum(int((one.masks[name].cpu() & other.masks[name].cpu()).sum()) for name in one.masks)
    return 1 - both / max(1, one.kept)


def relative(some: list[float], others: list[float]) -> float:
    """The largest difference of losses, of the other loss."""
    return max(abs(a - b) / abs(b) for a, b in zip(some, others, strict=True))


# --- the parts: what a side comes to, and how two are compared ----------------------------------------------------

Compared = dict[str, tuple[float, float]]


def draws(side: Side) -> list[Ticket]:
    return [mined(side, method) for method in ("random", "erk")]


def drawn_alike(here: list[Ticket], there: list[Ticket]) -> Compared:
    other = sum(one.digest != another.digest for one, another in zip(here, there, strict=True))
    return {"digests that differ": (float(other), SAME_DRAW)}


def scores(side: Side) -> dict[str, Ticket]:
    return {method: mined(side, method) for method in ("snip", "grasp", "synflow")}


def scored_alike(here: dict[str, Ticket], there: dict[str, Ticket]) -> Compared:
    return {f"masks of {method}": (apart(here[method], there[method]), SAME_SCORES) for method in here}


def searches(side: Side) -> dict[str, tuple[Ticket, list[float]]]:
    names = ["lenet-300-100"] if side.quick else ["lenet-300-100", "resnet20"]
    methods = ("gem-miner", "edge-popup")
    return {f"{method}, {name}": searched(side, method, name=name) for name in names for method in methods}


def searched_alike(here: dict[str, Any], there: dict[str, Any]) -> Compared:
    masks = {f"masks of {of}": (apart(here[of][0], there[of][0]), SAME_FOUND[of.split(", ")[1]]) for of in here}
    losses = {f"first losses of {of}": (relative(here[of][1], there[of][1]), SAME_SEARCH_LOSS) for of in here}
    return {**masks, **losses}


def trained_alike(here: Any, there: Any, loss: float = SAME_LOSS) -> Compared:
    zeros = sum(int((p == 0).sum()) for p in here[0].parameters())
    others = sum(int((p == 0).sum()) for p in there[0].parameters())
    return {
        "first losses": (relative(here[2], there[2]), loss),
        "accuracy": (abs(here[1] - there[1]), SAME_ACCURACY),
        "zeros": (float(abs(zeros - others)), 0.0),
    }


def checks(side: Side) -> dict[str, float]:
    ticket = mined(dataclasses.replace(side, device="cpu"), "erk")
    how = {**side.how, "lr": LR, "seeds": 2, "names": CHECKS}
    found = gemminer.check(network(side), ticket, data(side), data(side, test=True), **how).checks
    return {name: check.mean for name, check in found.items()}


def checked_alike(here: dict[str, float], there: dict[str, float]) -> Compared:
    return {f"accuracy of {name}": (abs(here[name] - there[name]), SAME_CHECK) for name in there}


def in_bf16(side: Side) -> Any:
    """bfloat16 on the device, float32 on the CPU."""
    return trained(side) if side.reference else trained(side, precision="bf16")


def compiled(side: Side) -> tuple[Any, Tensor]:
    """A training of the compiled network on the device, and its outputs; the reference is not compiled."""
    net = network(side)
    made = net if side.reference else torch.compile(net)
    result = trained(side, made)
    fresh = network(side).eval()
    run = fresh if side.reference else torch.compile(fresh)
    with torch.no_grad():
        return (net, *result[1:]), run(data(side, test=True)[0]).cpu()


def compiled_alike(here: Any, there: Any) -> Compared:
    gap = float((here[1] - there[1]).abs().max() / there[1].abs().max())
    return {"outputs": (gap, SAME_OUTPUT), **trained_alike(here[0], there[0])}


def ranks(side: Side) -> Ticket:
    """A search on all GPUs (on two processes elsewhere), or in one process with the same global batch."""
    several = side.device == "cuda"
    world = torch.cuda.device_count() if several else 2
    how = {**side.how, "batch_size": BATCH // world}
    if side.reference:
        return mined(side, "gem-miner", "lenet-300-100", **{**how, "batch_size": world * how["batch_size"]})
    with tempfile.TemporaryDirectory() as folder:
        multiprocessing.spawn(_rank, (world, folder, side, how), nprocs=world)
        return Ticket.load(Path(folder) / "ticket.safetensors")


def _rank(rank: int, world: int, folder: str, side: Side, how: dict[str, Any]) -> None:
    if side.device == "cuda":
        torch.cuda.set_device(rank)
    backend = "nccl" if side.device == "cuda" else "gloo"
    distributed.init_process_group(backend, init_method=f"file://{folder}/meeting", rank=rank, world_size=world)
    net = network(side, "lenet-300-100")
    wrapped = nn.parallel.DistributedDataParallel(net)
    ticket = gemminer.mine(wrapped, data(side), DENSITY, distributed=True, **how)
    if rank == 0:
        ticket.save(Path(folder) / "ticket.safetensors")
    distributed.destroy_process_group()


def ranks_alike(here: Ticket, there: Ticket) -> Compared:
    return {"masks": (apart(here, there), SAME_FOUND["lenet-300-100"])}


def waits(side: Side) -> list[int]:
    """How often the host waited for the GPU in a search, as CUDA says: with so many steps, and with twice as many."""
    if side.reference:
        return [0, 0]
    counts = []
    for batch in (BATCH, BATCH // 2):
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                mined(side, "gem-miner", **{**side.how, "batch_size": batch})
            finally:
                torch.cuda.set_sync_debug_mode("default")
        counts.append(sum("synchroniz" in str(one.message) for one in said))
    return counts


def waited(here: list[int], there: list[int]) -> Compared:
    return {"more in twice the steps": (float(here[1] - here[0]), 0.0)}


PARTS: dict[str, tuple[Callable[[Side], Any], Callable[[Any, Any], Compared]]] = {
    "drawn tickets": (draws, drawn_alike),
    "scores of a batch": (scores, scored_alike),
    "search": (searches, searched_alike),
    "training": (trained, trained_alike),
    "checks": (checks, checked_alike),
    "bf16": (in_bf16, lambda here, there: trained_alike(here, there, SAME_BF16_LOSS)),
    "torch.compile": (compiled, compiled_alike),
    "several ranks": (ranks, ranks_alike),
    "waits of the host": (waits, waited),
}


def checked(device: str, quick: bool, until: float) -> Iterator[Row]:
    """Each part on both sides."""
    sides = [Side(device, False, quick), Side("cpu", True, quick)]
    mined(sides[0], "snip")  # a device begins slowly
    for part, (run, compare) in PARTS.items():
        row = Row(part)
        if part == "waits of the host" and device != "cuda":
            row.left_out = "only CUDA tells"
        elif time.monotonic() > until:
            row.left_out = "the time is over"
        else:
            try:
                found = [_timed(row, run, side) for side in sides]
                row.differences = compare(*found)
            except gemminer.UsageError as error:  # as of a device without bfloat16
                row.left_out = str(error)
            except Exception as error:
                row.failed = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"
        yield row


def _timed(row: Row, run: Callable[[Side], Any], side: Side) -> Any:
    begun = time.monotonic()
    found = run(side)
    if side.device == "cuda":
        torch.cuda.synchronize()
    row.seconds.append(time.monotonic() - begun)
    return found


def lines(row: Row) -> Iterator[str]:
    """Its lines of the table."""
    times = " | ".join(f"{s:.1f}" for s in row.seconds) if len(row.seconds) == 2 else " | "
    if row.failed or row.left_out:
        yield f"| {row.part} | {times} | {'failed' if row.failed else 'left out'}: {row.failed or row.left_out} | | |"
    for what, (found, limit) in row.differences.items():
        yield f"| {row.part} | {times} | {what} | {found:.2g} | {limit:g}{'' if found <= limit else ': BEYOND IT'} |"


def the_gpu() -> str | None:
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else None


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cuda", "mps", "cpu"], help="by default the GPU that is here")
    parser.add_argument("--quick", action="store_true", help="a smaller network, fewer examples and epochs")
    parser.add_argument("--json", action="store_true", help="an object a part, and one of the machine, a line each")
    parser.add_argument("--minutes", type=float, default=MINUTES, help="no part begins later")
    asked = parser.parse_args(argv)
    device = asked.device or the_gpu()
    if device is None:
        print("there is no GPU here (CUDA or MPS): --device cpu runs it against the CPU itself", file=sys.stderr)
        return 2
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    begun, fine = time.monotonic(), True
    kind = torch.cuda.get_device_name() if device == "cuda" else device
    if not asked.json:
        print(f"| part | {kind}, s | CPU, s | compared | difference | limit |\n|" + "---|" * 6, flush=True)
    for row in checked(device, asked.quick, begun + 60 * asked.minutes):
        fine = fine and row.fine
        said = json.dumps({**dataclasses.asdict(row), "fine": row.fine}) if asked.json else "\n".join(lines(row))
        print(said, flush=True)
    machine = {**hardware(kind, torch.get_num_threads()), **versions(), "seconds": round(time.monotonic() - begun)}
    print(json.dumps(machine) if asked.json else f"\n{machine}")
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())
