"""The networks of the benchmarks, with inputs of their usual size and tickets as a search would leave them.

What a mask costs depends on where its weights are: a ticket keeps 34% of ResNet-20's first layer and 0.3% of its
late ones, where maps are small. Layer densities are therefore those of published gems; inside a layer, weights are
drawn evenly, which leaves fewer filters dead than a search does.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from gemminer import data, models
from gemminer.core.draw import Draw
from gemminer.core.errors import UsageError
from gemminer.core.model_state import named_state
from gemminer.core.prunable import prunable_weights
from gemminer.core.randomness import generator
from gemminer.core.selection import target
from gemminer.core.ticket import Ticket
from gemminer.methods.parts.allocation import allocate, random_masks
from gemminer.methods.random_tickets import erk_ratio
from gemminer.training.task import Task

# The networks of the documentation with the inputs they are measured on: (channels, side).
INPUTS = {
    "resnet20": (3, 32), "lenet-300-100": (1, 28), "vgg16": (3, 32), "mobilenet-v2": (3, 32), "mlp-2048": (1, 32)
}  # fmt: skip
CLASSES = 10
# Weights kept in each of ResNet-20's layers, in forward order, by four of the authors' own Gem-Miner runs: at 50%,
# 3.72%, 1.44% and 0.59% of 268,336 (published with the Rare Gems code).
# fmt: off
RESNET20_KEPT = (
    (247, 1156, 1163, 1183, 1136, 1159, 1137, 2293, 4488, 4617, 4614, 4639, 4654, 9080, 18290, 18506, 18404, 18258,
     18725, 412),
    (179, 391, 395, 410, 358, 349, 329, 487, 718, 674, 627, 658, 495, 614, 681, 633, 630, 347, 651, 350),
    (149, 165, 190, 200, 165, 160, 147, 189, 296, 290, 250, 209, 169, 125, 232, 136, 244, 120, 258, 166),
    (111, 78, 103, 106, 80, 86, 60, 71, 113, 162, 103, 103, 39, 40, 40, 44, 29, 26, 33, 153),
)
# fmt: on


def build(name: str) -> nn.Module:
    """The network at its initial weights, in training mode."""
    if name not in INPUTS:
        raise UsageError(f"no benchmark of {name!r}; there are: {', '.join(INPUTS)}")
    channels, side = INPUTS[name]
    model = (
        _mlp(side**2)
        if name == "mlp-2048"
        else models.build(name, in_channels=channels, classes=CLASSES, image_size=side)
    )
    parameters = prunable_weights(model)
    with torch.no_grad():
        for key, weight in Draw().weights({n: p.shape for n, p in parameters.items()}).items():
            parameters[key].copy_(weight)
    return model.train()


def _mlp(inputs: int) -> nn.Module:
    """Three linear layers, as other engines for sparse linear layers are measured on."""
    layers = [nn.Linear(inputs, 2048), nn.ReLU(), nn.Linear(2048, 2048), nn.ReLU(), nn.Linear(2048, CLASSES)]
    return nn.Sequential(nn.Flatten(), *layers)


def images_of(name: str, count: int) -> tuple[Tensor, Tensor]:
    """Random images of the network's usual size with random labels, the same ones each time."""
    source = generator("bench", name)
    channels, side = INPUTS[name]
    images = torch.randn(count, channels, side, side, generator=source)
    return images, torch.randint(CLASSES, (count,), generator=source)


def convolutional(model: nn.Module) -> bool:
    return any(isinstance(module, nn.Conv2d) for module in model.modules())


def task_of(model: nn.Module, images: Tensor, labels: Tensor, *, batch: int, channels_last: bool) -> Task:
    """The task of training the model on these images; with channels last, its weights are laid out so too."""
    if channels_last:
        model.to(memory_format=torch.channels_last)
    return Task(model, data.TensorBatches(images, labels, batch_size=batch), channels_last=channels_last)


def ticket_of(name: str, model: nn.Module, density: float) -> Ticket:
    """A ticket of round(density * d) weights at realistic layer densities, its weights drawn with a fixed seed."""
    shapes = {key: p.shape for key, p in prunable_weights(model).items()}
    sizes = {key: shape.numel() for key, shape in shapes.items()}
    total = target(density, sum(sizes.values()))
    counts = allocate(sizes, _ratios(name, shapes, density), total)
    return Ticket(random_masks(shapes, counts, seed=0), named_state(model))


def _ratios(name: str, shapes: Mapping[str, torch.Size], density: float) -> dict[str, float]:
    """Relative layer densities: a published gem's where there is one, ERK's elsewhere."""
    if name == "resnet20":
        sizes = [shape.numel() for shape in shapes.values()]
        return dict(zip(shapes, between_gems(sizes, density), strict=True))
    return {key: erk_ratio(shape) for key, shape in shapes.items()}


def between_gems(sizes: Sequence[int], density: float) -> list[float]:
    """ResNet-20's layer densities at an overall one: log d_l linear in log d between the published gems.

    Above them the line goes to the dense network; below, the sparsest gem is scaled down.
    """
    table = [tuple(sizes), *RESNET20_KEPT]
    known = [(sum(kept) / sum(sizes), [k / n for k, n in zip(kept, sizes, strict=True)]) for kept in table]
    for (upper, above), (lower, below) in pairwise(known):
        if density >= lower:
            share = math.log(density / lower) / math.log(upper / lower)
            return [b * (a / b) ** share for a, b in zip(above, below, strict=True)]
    return [d * density / known[-1][0] for d in known[-1][1]]
