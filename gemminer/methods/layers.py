"""Layers that play the lottery: remove whole blocks of a network before it is trained.

Source: Jordao et al., "Layers Play the Lottery Ticket Hypothesis", 2023, which has no code. Where we differ on purpose:
blocks are found by trying (`core.layers`) in any network and not by their place in a ResNet; GraSP is -w * (H g), the
paper's words for it, SNIP with the sign kept, are the criterion `signed`; a block's score is the mean over its weights,
of which the paper says nothing; all removable blocks are candidates, also the first, and a stage keeps one.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from gemminer.core.errors import GemminerError, UsageError, unknown
from gemminer.core.layers import Block, Blocks, Shortened, find_blocks, owned
from gemminer.core.model_state import borrowed, has_statistics, named_state
from gemminer.core.names import named_modules
from gemminer.core.prunable import Prunable
from gemminer.core.randomness import drawing, generator
from gemminer.core.selection import target
from gemminer.core.tracing import tensors
from gemminer.methods import grasp, registry
from gemminer.methods.parts.one_shot import Seen, first_batches, gradient, scoring, shares
from gemminer.methods.registry import Found, register
from gemminer.training.shards import Joined
from gemminer.training.task import Inside, Task

CRITERIA = ("snip", "grasp", "signed", "loss", "cka", "hrank", "l1", "random")
REDUCTIONS = ("mean", "sum")
NONE = "none"  # then
_MAPS = 32  # examples whose maps' ranks are taken
_ROUNDING = 1e-3  # of the sum of magnitudes


@dataclass(frozen=True)
class Options:
    """The settings of removing layers.

    Args:
        criterion: what a layer's score is; the lowest goes first. Of its weights w, with the gradient g of the loss:
            snip |w g|, signed w g, grasp w (H g), l1 |w|. Of the network without it: loss (by how much that rises), cka
            (how unlike the last features are). Of what it gives: hrank (the ranks of its maps). random sees nothing.
        reduce: the score of a layer is the mean or the sum of its weights' scores.
        remove: the least number of layers to remove; further ones go until the density is reached.
        least: the number of layers that stay in each stage (layers whose results have one shape).
        batches: training batches over which scores are taken; grasp takes ten examples of each class where it can.
        then: a method that is run in the network that is left, to the exact density; "none" for no further pruning.
        epochs: of that method, if it trains.
        invert: remove the highest scores first, the sanity check.
    """

    criterion: Literal["snip", "grasp", "signed", "loss", "cka", "hrank", "l1", "random"] = "grasp"
    reduce: Literal["mean", "sum"] = "mean"
    remove: int = 0
    least: int = 1
    batches: int = 1
    then: str = NONE
    epochs: int = 20
    invert: bool = False

    def __post_init__(self) -> None:
        for name, value, known in (("criterion", self.criterion, CRITERIA), ("reduce", self.reduce, REDUCTIONS)):
            if value not in known:
                raise unknown(name, value, known)
        for name, number, low in (("remove", self.remove, 0), ("least", self.least, 0), ("batches", self.batches, 1)):
            if number < low:
                raise UsageError(f"{name} must be {low} or more, not {number}")
        if self.epochs < 1:
            raise UsageError(f"epochs must be 1 or more, not {self.epochs}")
        if self.then != NONE:
            exact = [name for name in registry.names() if registry.get(name).exact]
            if self.then not in exact:
                raise unknown("method for then", self.then, (NONE, *exact))
            if self.remove < 1:
                raise UsageError(
                    f"then={self.then!r} reaches the density by itself, so say how many layers go before: remove=3"
                )

    def inner(self) -> Any:
        """The options of the method that `then` names."""
        row = registry.get(self.then)
        return row.options(**({"epochs": self.epochs} if row.trains else {}))


def _epochs(options: Options, density: float, total: int) -> float:
    """What a search takes in all: that of `then`; a few batches count as no epochs."""
    return 0.0 if options.then == NONE else registry.get(options.then).cost(options.inner(), density, total)


@register(
    "layers",
    Options,
    summary="remove whole layers that the network computes on without",
    source="Jordao et al. 2023",
    trains=True,
    cost=_epochs,
    exact=False,
)
def find(task: Task, density: float, options: Options, seed: int) -> Found:
    """Remove layers, the lowest score first, until at most round(density * d) weights and enough layers are left.

    With `then` so many layers as asked for, and what is left is pruned to exactly round(density * d).

    Raises UsageError where no layer can go, or not as many as the density asks for.
    """
    if isinstance(task.model, Inside):
        raise UsageError(
            "layers removes whole layers, and cannot stay inside a mask or the zeros of a pruned model: leave within "
            "out and initialiser at its default"
        )
    table, looking = task.table(), task
    if task.ranks is not None:  # each scores the global batches, so that all come to the same layers
        looking = dataclasses.replace(task, train=Joined(cast(Any, task.train), task.ranks), ranks=None)
    blocks = _blocks(looking, table)
    scores, steps = _scored(looking, blocks, options, seed)
    removed = _chosen(blocks, scores, table, density, options)
    if not removed:
        task.note("density 1 without remove= removes no layer: give remove=1 or a lower density")
    facts = {"layers": _facts(blocks, scores, removed)}
    masks = {n: torch.full(p.shape, not owned(n, removed), dtype=torch.bool) for n, p in table.weights.items()}
    epochs = steps / len(task.train)
    if options.then != NONE:
        return _then(task, table, density, options, seed, Found(masks, epochs=epochs, facts=facts, removed=removed))
    live = sum(int(m.sum()) for m in masks.values()) / sum(m.numel() for m in masks.values())
    return Found(masks, live=live, epochs=epochs, facts=facts, removed=removed)


def _blocks(task: Task, table: Prunable) -> Blocks:
    """The layers of the task's model that can go; raises UsageError where there is none."""
    inputs, _ = task.first_batch()
    plain = dataclasses.replace(task, precision="fp32")
    blocks = find_blocks(task.model, lambda: plain.forward(inputs), table)
    if not blocks.removable:
        raise UsageError(blocks.none())
    return blocks


def _facts(blocks: Blocks, scores: Mapping[str, float], removed: Sequence[str]) -> list[dict[str, Any]]:
    """A row for each layer that could go."""
    return [
        {"name": b.name, "score": scores[b.name], "stage": list(b.stage), "removed": b.name in removed}
        for b in blocks.removable
    ]


def _chosen(
    blocks: Blocks, scores: Mapping[str, float], table: Prunable, density: float, options: Options
) -> tuple[str, ...]:
    """The layers to remove, in the model's order; raises UsageError where as many cannot go."""
    sizes = {name: p.numel() for name, p in table.weights.items()}
    total = sum(sizes.values())
    budget = total if options.then != NONE else target(density, total)
    left = dict(blocks.fixed)
    for block in blocks.removable:
        left[block.stage] += 1
    kept, removed = total, list[Block]()
    for block in sorted(blocks.removable, key=lambda b: -scores[b.name] if options.invert else scores[b.name]):
        if kept <= budget and len(removed) >= options.remove:
            break
        if left[block.stage] > options.least:
            left[block.stage] -= 1
            kept -= sum(sizes[name] for name in block.weights)
            removed.append(block)
    if kept > budget or len(removed) < options.remove:
        asked = f"remove={options.remove}" if len(removed) < options.remove else f"density {density:g}"
        raise UsageError(
            f"{asked} asks for more than layers can remove here: at most {len(removed)} of {len(blocks.removable)} "
            f"removable layers go (least={options.least} stays in each stage), and density {kept / total:.4g} is left"
        )
    if options.then != NONE and kept < (count := target(density, total)):
        raise UsageError(
            f"density {density:g} keeps {count} of {total} weights, and {kept} are left without the layers: lower the "
            "density or remove fewer layers"
        )
    gone = {block.name for block in removed}
    return tuple(block.name for block in blocks.removable if block.name in gone)


def _then(task: Task, table: Prunable, density: float, options: Options, seed: int, cut: Found) -> Found:
    """What the method `then` finds in the network that is left, as masks and state of the whole one."""
    total = sum(mask.numel() for mask in cut.masks.values())
    kept = sum(int(mask.sum()) for mask in cut.masks.values())
    names = [name for name in cut.masks if not owned(name, cut.removed)]
    state = {n: t.detach().clone() for n, t in named_state(task.model).items() if owned(n, cut.removed)}
    order = list(named_state(task.model))
    below = None if task.below is None else {n: least for n, least in task.below.items() if n in names}
    with Shortened(task.model, cut.removed):
        own = dataclasses.replace(task, below=below)
        found = registry.get(options.then).find(own, target(density, total) / kept, options.inner(), seed)
    rows = []
    for row in found.rows:
        counts = dict(zip(names, row["layers_kept"], strict=True))
        rows.append({**row, "layers_kept": [counts.get(name, 0) for name in cut.masks]})
    start = None
    if found.start is not None:
        values = {**state, **found.start}
        start = {name: values[name] for name in order}
    return dataclasses.replace(
        found,
        masks={name: found.masks.get(name, mask) for name, mask in cut.masks.items()},
        start=start,
        rows=rows,
        live=None if found.live is None else found.live * kept / total,
        epochs=None if found.epochs is None else found.epochs + (cut.epochs or 0.0),
        facts={**found.facts, **cut.facts},
        removed=cut.removed,
    )


# --- scores --------------------------------------------------------------------------------------------------------


def _scored(task: Task, blocks: Blocks, options: Options, seed: int) -> tuple[dict[str, float], float]:
    """The score of each layer, and what they cost in training steps."""
    if options.criterion == "random":
        return {b.name: _even(seed, b.name) for b in blocks.removable}, 1.0
    of_weights = {"snip": _snip, "signed": _signed, "grasp": _grasp, "l1": _l1}
    of_network = {"loss": _losses, "cka": _features, "hrank": _ranks}
    with borrowed(task.model), scoring(task, seed) as weights:
        if options.criterion in of_weights:
            found, steps = of_weights[options.criterion](task, weights, options)
            scores = {b.name: _reduced([found[n] for n in b.weights], options.reduce) for b in blocks.removable}
            if options.criterion == "signed" and _cancels(found, blocks):
                task.note("signed scores are rounding here: behind a batch norm w g sums to zero in each layer")
        else:
            seen = first_batches(task, options.batches)
            with torch.no_grad(), _batch_statistics(task):
                scores = of_network[options.criterion](task, seen, blocks)
            passes = 1 if options.criterion == "hrank" else 1 + len(blocks.removable)
            steps = len(seen) * passes / 3  # a forward pass is a third of a step
    if odd := [name for name, score in scores.items() if not math.isfinite(score)]:
        raise GemminerError(f"the {options.criterion} score of {odd[0]!r} is not finite: take another criterion")
    return scores, steps + 1.0  # the probe is three passes


@drawing()
def _even(seed: int, name: str) -> float:
    return float(torch.rand((), generator=generator(seed, "random layer", name)))


def _reduced(scores: Sequence[Tensor], reduce: str) -> float:
    total = math.fsum(float(s.detach().double().sum()) for s in scores)
    return total / sum(s.numel() for s in scores) if reduce == "mean" else total


Scores = tuple[Mapping[str, Tensor], float]


def _snip(task: Task, weights: Mapping[str, nn.Parameter], options: Options) -> Scores:
    found, steps = _signed(task, weights, options)
    return {name: s.abs() for name, s in found.items()}, steps


def _signed(task: Task, weights: Mapping[str, nn.Parameter], options: Options) -> Scores:
    grads = gradient(task, first_batches(task, options.batches), list(weights.values()))
    return {name: w * g for (name, w), g in zip(weights.items(), grads, strict=True)}, float(options.batches)


def _cancels(found: Mapping[str, Tensor], blocks: Blocks) -> bool:
    """Whether the scores of each layer sum to nothing, as where its output does not depend on its weights' scale."""
    own = [[found[n] for n in b.weights] for b in blocks.removable]
    return all(abs(_reduced(s, "sum")) < _ROUNDING * _reduced([x.abs() for x in s], "sum") for s in own)


def _grasp(task: Task, weights: Mapping[str, nn.Parameter], options: Options) -> Scores:
    own = grasp.Options(batches=options.batches)
    seen = grasp.examples_of(task, own)
    return grasp.flow(task, own, seen, dict(weights)), float(grasp.STEPS * len(seen))


def _l1(task: Task, weights: Mapping[str, nn.Parameter], options: Options) -> Scores:
    return {name: w.abs() for name, w in weights.items()}, 0.0


def _losses(task: Task, seen: Seen, blocks: Blocks) -> dict[str, float]:
    """L(without b) - L(with it), L the mean loss over the batches."""
    parts = shares(seen)

    def loss() -> float:
        return math.fsum(float(task.loss_of(x, y)) * share for (x, y), share in zip(seen, parts, strict=True))

    whole = loss()
    return {name: value - whole for name, value in _without_each(task, blocks, loss).items()}


def _features(task: Task, seen: Seen, blocks: Blocks) -> dict[str, float]:
    """1 - |Fc' Gc|^2 / (|Fc' Fc| |Gc' Gc|): F the features that the last layer reads, G those without b, centred."""
    read = _last_features(task, seen[0][0], blocks)

    def features() -> list[Tensor]:
        return [_gram(read(x)) for x, _ in seen]

    whole = features()

    def unlike() -> float:
        return math.fsum(_unlike(f, g) for f, g in zip(whole, features(), strict=True)) / len(seen)

    return _without_each(task, blocks, unlike)


def _ranks(task: Task, seen: Seen, blocks: Blocks) -> dict[str, float]:
    """The mean rank of a layer's maps, of the largest that it could be."""
    found: dict[str, list[float]] = {b.name: [] for b in blocks.removable}
    modules = dict(reversed(list(named_modules(task.model))))

    def ranked(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Tensor) -> None:
            maps = output[:_MAPS].float()
            ranks = torch.linalg.matrix_rank(maps if maps.dim() > 2 else maps[None]).double()
            found[name].append(float(ranks.mean()) / max(maps.shape[-2:]))

        return hook

    with contextlib.ExitStack() as stack:
        for name in found:
            stack.callback(modules[name].register_forward_hook(ranked(name)).remove)
        for x, _ in seen:
            task.forward(x)
    return {name: math.fsum(values) / len(values) for name, values in found.items()}


def _without_each(task: Task, blocks: Blocks, measured: Callable[[], float]) -> dict[str, float]:
    """What is measured of the network without each of its layers."""
    found = {}
    for block in blocks.removable:
        with Shortened(task.model, [block.name]):
            found[block.name] = measured()
    return found


def _last_features(task: Task, inputs: Any, blocks: Blocks) -> Callable[[Any], Tensor]:
    """A function of inputs: what the last layer reads, or the output where that layer is one of those that may go."""
    own = {id(p) for p in task.prunable().values()}
    layers = {n: m for n, m in named_modules(task.model) if any(id(p) in own for p in m.parameters(recurse=False))}
    order: list[str] = []
    read: list[Tensor] = []
    with contextlib.ExitStack() as stack:
        for name, module in layers.items():
            hook = module.register_forward_pre_hook(lambda m, x, name=name: order.append(name))
            stack.callback(hook.remove)
        task.forward(inputs)
    last = order[-1] if order else ""
    inside = not last or owned(last, [b.name for b in blocks.removable])

    def features(x: Any) -> Tensor:
        if inside:
            return next(tensors(task.output(x)))
        read.clear()
        hook = layers[last].register_forward_pre_hook(lambda m, *given: read.extend(tensors(given)), with_kwargs=True)
        try:
            task.forward(x)
        finally:
            hook.remove()
        return read[0]

    return features


def _gram(features: Tensor) -> Tensor:
    """The inner products of examples' features, centred."""
    flat = features.detach().double().flatten(1)
    flat = flat - flat.mean(0)
    return flat @ flat.T


def _unlike(first: Tensor, second: Tensor) -> float:
    """1 - CKA of two matrices of inner products; 1 where either is all zero."""
    scale = float(first.norm() * second.norm())
    return 1.0 - float((first * second).sum()) / scale if scale > 0 else 1.0


@contextlib.contextmanager
def _batch_statistics(task: Task) -> Iterator[None]:
    """Evaluation mode, but norms use the batch's statistics: those that they keep say nothing before a training."""
    task.model.eval()
    for name, module in named_modules(task.model):
        if has_statistics(module) and name not in (task.held or ()):
            module.training = True
    yield
