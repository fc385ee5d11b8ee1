"""Gem-Miner's rule: scores in place of the weights, frozen out until the ticket is left.

The scores of all layers are one flat vector. Where frozen weights make it faster, the network is exchanged for one
that computes kept weights only (`training.engine`), and the vectors shrink to what is not frozen yet.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from gemminer.core.errors import UsageError
from gemminer.core.randomness import drawing, generator
from gemminer.core.selection import kth_highest, lowest
from gemminer.methods.gem_miner.options import Options
from gemminer.training import engine
from gemminer.training.task import Task

# Root mean square of the gradient all scores get when steps are scaled: at lr 0.2 a step moves a score by 0.003.
RATE = 0.015
# A layer's mean gradient is capped at this many times the median of all layers. Batch norm divides the outputs of a
# filter without live weights by sqrt(eps), so that its scores would rise some 300 times too fast.
CAP = 3.0
# The layers that compute kept weights only are chosen anew once a step's work has fallen to this part of what it was.
COMPACT = 0.85
# Batches from which batch-norm statistics are estimated before a validation.
SETTLE = 8


class GemMinerRule:
    """The search's rule: scores p and the unfrozen set q in place of the weights.

        w_eff = w * q * r(p),  r(p) = 1[p > threshold];   dL/dp := dL/dw_eff * w * q (straight-through)

    With a fixed ridge its gradient, 2 * lambda * p, is the optimiser's L2 term. Without one, lambda is solved for after
    each step, so that `live_at(step)` weights are live. The scores are multiplied by f, which stands for this lambda:

        f = min(1, 1/2 / p_(n)),  p_(n) the n-th highest score;   lambda = (1 - f) / (2 lr)

    Args:
        parameters: the prunable weights of `task.model`, at their initial values; their data are replaced.
        schedule: step -> weights unfrozen after it.
        live_at: step -> weights live after it; None with a fixed ridge.
        task: `task.model` is exchanged for a network of kept weights only, where that is faster.
    """

    settle = SETTLE

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        options: Options,
        schedule: Mapping[int, int],
        seed: int,
        live_at: Callable[[int], int] | None = None,
        task: Task | None = None,
    ) -> None:
        self.options, self.schedule, self.live_at, self.task = options, schedule, live_at, task
        self.names, self.weights = list(parameters), list(parameters.values())
        self.shapes = [p.shape for p in self.weights]
        self.full_sizes = self.sizes = [p.numel() for p in self.weights]
        self.total = self.remaining = sum(self.sizes)
        dtype = torch.float64 if any(p.dtype == torch.float64 for p in self.weights) else torch.float32
        device = self.weights[0].device
        if any(p.device != device for p in self.weights):
            raise UsageError("the model is spread over several devices; Gem-Miner needs its weights on one")
        # Index among all prunable weights of each entry of the vectors; None: the vectors hold all of them.
        self.index: Tensor | None = None
        self.initial = torch.cat([p.detach().reshape(-1).to(dtype) for p in self.weights])  # w
        scores = [_first_scores(options.scores, p, generator(seed, "scores", n)) for n, p in parameters.items()]
        self.p = torch.cat(scores).to(device=device, dtype=dtype)
        self.q = torch.ones(self.total, dtype=torch.bool, device=device)
        # Just below one half, so that the n-th highest, which is shrunk to it, is live.
        self.threshold = options.threshold if live_at is None else math.nextafter(0.5, 0.0) - 1e-6
        self._optimiser: torch.optim.Optimizer | None = None
        self._plain = None if task is None else task.model
        self._below = {} if task is None else engine.chosen(task)  # by layer, the density at which sparse pays
        self._vectors: set[str] = set()  # weights the network holds as vectors of what is not frozen
        self._work = 3 * self.total  # weights computed in a step, when layers were last chosen
        self.scheduled = not options.freeze_every
        self._ends = sorted(schedule)
        self._last = max(schedule, default=0)  # the step that leaves the ticket
        self._shrunk: list[tuple[Tensor, float]] = []  # of each step p_(n), and lr
        self.frozen_in_epoch = 0
        self._lay_out()
        if live_at is not None:
            self._shrink(live_at(-1))
        self._write()

    # --- what the loop calls ---------------------------------------------------------------------------------

    def parameters(self) -> list[Tensor]:
        return [self.p]

    def begin(self, optimiser: torch.optim.Optimizer) -> None:
        self._optimiser = optimiser

    def after_backward(self) -> None:
        for p, kept, gradient in self._products:
            if p.grad is None:  # a parameter the loss does not use
                gradient.zero_()
            else:
                torch.mul(p.grad, kept, out=gradient)
                p.grad = None
        self.p.grad = self.gradient  # a loop of somebody else's may have cleared it
        if self.options.scales:
            self._scale()

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        self.p.clamp_(0.0, 1.0)
        if self.live_at is not None:
            self._shrink(self.live_at(step))
        self._freeze(self.remaining - self._due(step))
        if self._below and step < self._last and self.remaining <= COMPACT * self._work:
            # Two passes of three compute live weights only; the third, the weight gradients, all unfrozen ones.
            work = 2 * int(self._on().sum()) + self.remaining
            if work <= COMPACT * self._work:
                self._work = work
                self._compact()
        self._write()

    @torch.no_grad()
    def after_epoch(self, step: int, last: bool) -> None:
        if (last or self.options.freeze_every) and self._due(step) < self.remaining:
            if self.live_at is not None:
                self._shrink(self.live_at(step))
            self._freeze(self.remaining - self._due(step))
            self._write()

    def _due(self, step: int) -> int:
        """How many weights may be unfrozen after `step`: fewer steps may come than the schedule has."""
        passed = bisect.bisect_right(self._ends, step)
        return self.schedule[self._ends[passed - 1]] if passed else self.total

    def numbers(self) -> dict[str, Any]:
        kept = [int(part.sum()) for part in self.q.split(self.sizes)]
        solved = sum(lambdas) / len(lambdas) if (lambdas := self._lambdas()) else 0.0
        row = {
            "kept": self.remaining / self.total,
            "live": int(self._on().sum()) / self.total,
            "lambda": solved if self.options.ridge is None else self.options.ridge,
            "freezes": self.frozen_in_epoch,
            "layers_kept": kept,
        }
        self.frozen_in_epoch, self._shrunk = 0, []
        return row

    def _lambdas(self) -> list[float]:
        """Lambda of each step since the last log."""
        bounds = torch.stack([bound for bound, _ in self._shrunk]).tolist() if self._shrunk else []
        rates = [lr for _, lr in self._shrunk]
        return [(1 - 0.5 / p) / (2 * lr) if lr > 0 else 0.0 for p, lr in zip(bounds, rates, strict=True)]

    def state_dict(self) -> dict[str, Any]:
        own = {"vectors": sorted(self._vectors), "work": self._work}
        return {"p": self.p.detach(), "q": self.q, "index": self.index, **own}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state["index"] is not None:
            self._keep_only(state["index"], set(state["vectors"]))
        self._work, self._shrunk = state["work"], []
        with torch.no_grad():
            self.p.copy_(state["p"])
            self.q.copy_(state["q"])
        self.remaining = int(self.q.sum())
        self._lay_out()
        self._write()

    # --- the result ------------------------------------------------------------------------------------------

    def live(self) -> Tensor:
        """q * r(p) as booleans over all prunable weights: the weights the network computes with."""
        return self._spread(self._on())

    def masks(self) -> dict[str, Tensor]:
        """The masks the options ask for, by parameter name."""
        flat = self.live() if self.options.mask == "live" else self._spread(self.q)
        parts = zip(self.names, flat.split(self.full_sizes), self.shapes, strict=True)
        return {name: part.view(shape) for name, part, shape in parts}

    def _on(self) -> Tensor:
        return self.q & (self.p > self.threshold)

    def _spread(self, own: Tensor) -> Tensor:
        """The vectors' booleans `own` over all prunable weights, False elsewhere."""
        if self.index is None:
            return own
        flat = torch.zeros(self.total, dtype=torch.bool, device=own.device)
        flat[self.index] = own
        return flat

    # --- the vectors -----------------------------------------------------------------------------------------

    def _lay_out(self) -> None:
        """Make the vectors that go with p and q, and the model's parameters views of one of them."""
        self.effective, self.gradient = torch.zeros_like(self.initial), torch.zeros_like(self.initial)
        self.p.grad = self.gradient
        self.kept_initial = self.initial * self.q  # w * q
        # Infinity where q = 0: added to a ranking, it excludes frozen weights.
        self.closed = torch.zeros_like(self.initial).masked_fill_(~self.q, math.inf)
        self._gradients = list(self.gradient.split(self.sizes))
        self._unfrozen = torch.stack([part.sum() for part in self.q.split(self.sizes)])
        self._products, self._copies = [], []
        views = (v.split(self.sizes) for v in (self.effective, self.kept_initial, self.gradient))
        for p, own, kept, gradient in zip(self.weights, *views, strict=True):
            p.grad = None
            if p.dtype == own.dtype:
                p.data = own.view(p.shape)
            else:  # other types get a copy each step
                self._copies.append((p, own.view(p.shape)))
            self._products.append((p, kept.view(p.shape), gradient.view(p.shape)))

    def _write(self) -> None:
        """Write w_eff into the model."""
        # Ones and zeros in the weights' own type: six times faster than a product with booleans.
        torch.gt(self.p, self.threshold, out=self.effective)
        self.effective.mul_(self.kept_initial)
        for p, weight in self._copies:
            p.data.copy_(weight)

    def _scale(self) -> None:
        """Scale the gradients of unfrozen scores to root mean square `RATE`, so that lr suits every network.

        Before that r_l, the root mean square of layer l, is capped to min(r_l, CAP * median of r).
        """
        count = self._unfrozen.clamp(min=1).to(self.gradient.dtype)
        own = torch.stack(torch._foreach_norm(self._gradients)) / count.sqrt()
        capped = torch.minimum(own, CAP * own.sort().values[len(self.sizes) // 2])
        mean = ((capped.square() * count).sum() / count.sum()).sqrt()
        tiny = torch.finfo(own.dtype).tiny
        factors = RATE * capped / own.clamp(min=tiny) / mean.clamp(min=tiny)
        torch._foreach_mul_(self._gradients, factors.unbind())

    def _shrink(self, count: int) -> None:
        """Multiply scores by the largest factor up to 1 that leaves `count` unfrozen weights live (more if tied)."""
        bound = kth_highest(self.p, self.q if self.remaining < self.p.numel() else None, count, 0.5)
        self.p.mul_(0.5 / bound)
        self._shrunk.append((bound, self._optimiser.param_groups[0]["lr"] if self._optimiser else self.options.lr))

    def _freeze(self, count: int) -> None:
        """Remove the `count` lowest scores among the unfrozen from q for good, ties by index."""
        if count <= 0:
            return
        ranking = self.closed - self.p if self.options.invert else self.closed + self.p
        if self.options.floor:
            ranking.index_fill_(0, self._protected(ranking), math.inf)
        frozen = lowest(ranking, count)
        self.q.index_fill_(0, frozen, False)
        self.kept_initial.index_fill_(0, frozen, 0.0)
        self.closed.index_fill_(0, frozen, math.inf)
        self.remaining -= count
        self._unfrozen = torch.stack([part.sum() for part in self.q.split(self.sizes)])
        self.frozen_in_epoch += 1

    def _protected(self, ranking: Tensor) -> Tensor:
        """Indices of each layer's `floor` best among the unfrozen."""
        best, start = [], 0
        for part in ranking.split(self.sizes):
            unfrozen = part.masked_fill(part == math.inf, -math.inf)
            best.append(start + unfrozen.topk(min(self.options.floor, part.numel())).indices)
            start += part.numel()
        return torch.cat(best)

    # --- kept weights only -----------------------------------------------------------------------------------

    def _compact(self) -> None:
        """Drop the frozen weights of layers that now run faster on kept weights."""
        own, live = self._spread(self.q), dict(self._by_layer(self.live()))
        assert self.task is not None
        assert self._plain is not None
        masks = {n: m.view(s) for n, m, s in zip(self.names, own.split(self.full_sizes), self.shapes, strict=True)}
        # A layer that runs on kept weights stays so: its frozen weights are gone, though more may be live by now.
        worth = self._vectors | engine.layers_worth_sparse(self._plain, masks, self.task.engine, self._below, live)
        if worth:
            keep = [own_l if name in worth else torch.ones_like(own_l) for name, own_l in self._by_layer(own)]
            self._keep_only(torch.cat(keep).nonzero().flatten(), worth)
            self._lay_out()

    def _by_layer(self, flat: Tensor) -> list[tuple[str, Tensor]]:
        return list(zip(self.names, flat.split(self.full_sizes), strict=True))

    def _keep_only(self, index: Tensor, vectors: set[str]) -> None:
        """Exchange the network for one with only the weights at `index` in `vectors`, and shrink the scores to those.

        A layer that stays dense still holds its frozen weights, as zeros.
        """
        assert self.task is not None
        assert self._plain is not None
        held = torch.zeros(self.total, dtype=torch.bool)
        held[index] = True
        parts = zip(self._by_layer(held), self.shapes, strict=True)
        masks = {name: part.view(shape) for (name, part), shape in parts if name in vectors}
        self._vectors = vectors
        net = None if self.task.model is self._plain else self.task.model
        self.task.model, self.weights = engine.search_network(self._plain, masks, self.names, net)
        before = torch.full((self.total,), -1)
        before[torch.arange(self.total) if self.index is None else self.index] = torch.arange(self.p.numel())
        at = before[index]
        if (at < 0).any():
            raise UsageError("a frozen weight cannot come back")
        self.index, self.q = index, self.q[at]
        self.initial = self.initial[at]
        self.sizes = [p.numel() for p in self.weights]
        with torch.no_grad():
            self.p.grad = None
            size, self.p.data = self.p.numel(), self.p[at].detach()
        if self._optimiser is not None:
            state = self._optimiser.state[self.p]
            for name, value in state.items():  # momentum, and Adam's moments
                if isinstance(value, Tensor) and value.numel() == size > 1:
                    state[name] = value[at]


@drawing()
def _first_scores(kind: Literal["uniform", "bernoulli", "beta"], parameter: Tensor, source: torch.Generator) -> Tensor:
    size = parameter.numel()
    if kind == "uniform":
        return torch.rand(size, generator=source)
    if kind == "bernoulli":
        return torch.bernoulli(torch.full((size,), 0.5), generator=source)
    # Beta(2, 2) is the median of three uniforms: no sampler without the global generator is needed.
    return torch.rand(3, size, generator=source).median(dim=0).values
