"""What `gemminer.hold` adds to a training step: the same network with and without it, in turns in one process.

    OMP_NUM_THREADS=1 python benchmarks/hold_cost.py [--runs 31] [--only NAME]

A line is a network and an optimiser: the step without hold in milliseconds, and the ratio of the two, with its mean,
standard deviation and median over the rounds. Times are the processor's, of one thread: other jobs on the machine
stretch the clock's.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import nn

import gemminer
from gemminer import models
from gemminer.core.prunable import prunable_weights

DENSITY = 0.05
BLOCK = 0.2  # seconds of a turn
Step = Callable[[], None]
NETWORKS: dict[str, tuple[Callable[[], nn.Module], Callable[[], torch.Tensor], tuple[int, ...]]] = {
    "LeNet-300-100, 8 x 8 images": (
        lambda: models.build("lenet-300-100", in_channels=1, image_size=8),
        lambda: torch.randn(128, 1, 8, 8),
        (128,),
    ),
    "LeNet-300-100, 28 x 28 images": (
        lambda: models.build("lenet-300-100", in_channels=1, image_size=28),
        lambda: torch.randn(128, 1, 28, 28),
        (128,),
    ),
    "transformer, 4 blocks of 64, 64 tokens": (
        lambda: models.build("transformer", task="tokens", classes=10),
        lambda: torch.randint(10, (32, 64)),
        (32, 64),
    ),
    "ResNet-20, 32 x 32 images": (
        lambda: models.build("resnet20").to(memory_format=torch.channels_last),  # type: ignore[call-overload]
        lambda: torch.randn(128, 3, 32, 32).to(memory_format=torch.channels_last),
        (128,),
    ),
}
OPTIMISERS: dict[str, Callable[[nn.Module], torch.optim.Optimizer]] = {
    "SGD": lambda net: torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9),
    "AdamW": lambda net: torch.optim.AdamW(net.parameters(), lr=1e-4),
    "AdamW, fused": lambda net: torch.optim.AdamW(net.parameters(), lr=1e-4, fused=True),
}


def step_of(name: str, optimiser: str, held: bool) -> Step:
    """One training step of a network that is held or not; the weights that would be pruned are zero in both."""
    torch.manual_seed(0)
    make, draw, labels = NETWORKS[name]
    net, inputs, targets = make(), draw(), torch.randint(10, labels)
    masks = {weight: torch.rand(p.shape) < DENSITY for weight, p in prunable_weights(net).items()}
    own = OPTIMISERS[optimiser](net)
    hold = gemminer.hold(net, masks, own)
    if not held:
        hold.remove()

    def step() -> None:
        own.zero_grad()
        output = net(inputs)
        nn.functional.cross_entropy(output.flatten(0, -2), targets.flatten()).backward()
        own.step()

    return step


def in_turns(calls: list[Step], runs: int) -> list[list[float]]:
    """Seconds of the processor per step of each, by round; every other round begins with the other."""
    for call in calls:
        call()
    count = max(1, round(BLOCK / seconds(calls[0], 3)))
    rounds = []
    for run in range(runs):
        order = range(len(calls)) if run % 2 else reversed(range(len(calls)))
        found = {i: seconds(calls[i], count) for i in order}
        rounds.append([found[i] for i in range(len(calls))])
    return rounds


def seconds(call: Step, count: int) -> float:
    begun = time.process_time()
    for _ in range(count):
        call()
    return (time.process_time() - begun) / count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=31)
    parser.add_argument("--only", default="")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    print("| network | optimiser | step, ms | ratio, mean | sd | median | n |\n|---|---|---|---|---|---|---|")
    for name in (name for name in NETWORKS if asked.only in name):
        for optimiser in OPTIMISERS:
            calls = [step_of(name, optimiser, held) for held in (False, True)]
            pairs = in_turns(calls, asked.runs)
            ratios = [held / free for free, held in pairs]
            mean, sd, median = statistics.mean(ratios), statistics.stdev(ratios), statistics.median(ratios)
            line = (
                f"| {1000 * statistics.median(free for free, _ in pairs):.2f} | {mean:.3f} | {sd:.3f} | {median:.3f} |"
            )
            print(f"| {name} | {optimiser} {line} {len(ratios)} |", flush=True)


if __name__ == "__main__":
    main()
