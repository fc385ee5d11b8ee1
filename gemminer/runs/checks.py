"""Sanity checks: does it matter *which* weights a ticket keeps, and from which values they start?

Shuffle and reinit turn a ticket into another with one thing destroyed (Frankle et al. 2021; Su et al. 2020); the
inverted and random tickets come from the methods themselves. A ticket passes a check when training from it beats
training from the altered one, over seeds, by more than chance.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from gemminer import methods
from gemminer.core import statistics
from gemminer.core.errors import UsageError, unknown
from gemminer.core.html import table
from gemminer.core.layers import owned
from gemminer.core.model_state import borrowed, copied, gradients
from gemminer.core.numbers import strings
from gemminer.core.randomness import drawing, generator, mixed, private_randomness, seed_globals
from gemminer.core.statistics import Check
from gemminer.core.ticket import Ticket
from gemminer.methods.inside import find_inside
from gemminer.runs import identity, provenance
from gemminer.runs.experiment import Experiment
from gemminer.runs.settings import options_of


def shuffle(ticket: Ticket, seed: int) -> Ticket:
    """Permute the mask inside each layer: the layer densities stay, the choice of weights is destroyed.

    Of a ticket that was found inside a mask, only what is inside is permuted. Of one that removes layers others go,
    as many of each stage, and what is left of those that stay is permuted.

    Raises UsageError where every layer is empty or full, so that no permutation changes anything: a shuffle that
    shuffles nothing would be passed off as a check.
    """
    ticket, partly = shuffle_layers(ticket, seed) if ticket.removed else (ticket, False)
    masks = {}
    for name, mask in ticket.masks.items():
        places, source = _places(ticket, name), generator(seed, "shuffle", name)
        flat = mask.reshape(-1)[places]
        shuffled = flat
        while torch.equal(shuffled, flat) and 0 < ticket.masks.kept(name) < flat.numel():
            shuffled, partly = flat[torch.randperm(flat.numel(), generator=source)], True  # small ones may come back
        masks[name] = mask.reshape(-1).index_put((places,), shuffled).reshape(mask.shape)
    if not partly:
        raise UsageError("shuffling changes nothing in this ticket: each of its layers is empty or full")
    return ticket.replace(masks=masks, check="shuffle", check_seed=seed)


def _places(ticket: Ticket, name: str) -> Tensor:
    """The flat indices of a layer's weights that the search could keep."""
    if ticket.within is None:
        return torch.arange(math.prod(ticket.masks.shape(name)))
    return ticket.within[name].reshape(-1).nonzero().flatten()


def reinit(ticket: Ticket, seed: int) -> Ticket:
    """Keep the mask and draw the masked weights anew from the distribution the ticket's own were drawn from.

    Where that is unknown (a user's own weights) the layer's initial values are permuted, among those that the search
    could keep: a draw, without replacement, from the distribution they form.

    Raises UsageError where that changes nothing.
    """
    if ticket.draw is not None:
        draw = dataclasses.replace(ticket.draw, seed=mixed(seed, "reinit", ticket.draw.seed))
        shapes = {name: torch.Size(ticket.masks.shape(name)) for name in ticket.masks}
        fresh = {name: w.to(ticket.initial[name].dtype) for name, w in draw.weights(shapes, ticket.layouts).items()}
    else:
        draw, fresh = None, {}
        for name in ticket.masks:
            values, places = ticket.initial[name], _places(ticket, name)
            order = torch.randperm(len(places), generator=generator(seed, "reinit", name))
            flat = values.reshape(-1)
            fresh[name] = flat.index_put((places,), flat[places[order]]).reshape(values.shape)
    if all(torch.equal(fresh[name], ticket.initial[name]) for name in fresh):
        raise UsageError("drawing this ticket's weights anew changes nothing: each of its layers is constant")
    return ticket.replace(initial={**ticket.initial, **fresh}, draw=draw, check="reinit", check_seed=seed)


def shuffle_layers(ticket: Ticket, seed: int) -> tuple[Ticket, bool]:
    """The ticket with other layers removed, as many of each stage, and whether any stage has others that could go.

    What a layer keeps goes along to the layer that takes its place, of a stage and of equal shapes.
    """
    groups: dict[Any, list[str]] = {}
    for row in ticket.provenance.get("layers", ()):
        shapes = tuple(sorted(_own(ticket, row["name"]).items()))
        groups.setdefault((tuple(row["stage"]), shapes), []).append(row["name"])
    source, takes = generator(seed, "shuffle", "layers"), dict[str, str]()
    for group in groups.values():
        if 0 < len(set(group) & set(ticket.removed)) < len(group):
            gone = [name in ticket.removed for name in group]
            order = list(range(len(group)))
            while [gone[i] for i in order] == gone:
                order = torch.randperm(len(group), generator=source).tolist()
            takes |= {name: group[i] for name, i in zip(group, order, strict=True)}
    masks = dict(ticket.masks)
    for name, other in takes.items():
        for part in _own(ticket, name):
            masks[f"{name}.{part}"] = ticket.masks[f"{other}.{part}"]
    back = {other: name for name, other in takes.items()}
    return ticket.replace(masks=masks, removed=[back.get(name, name) for name in ticket.removed]), bool(takes)


def _own(ticket: Ticket, layer: str) -> dict[str, tuple[int, ...]]:
    """The shapes of a layer's masks, by their names in it."""
    return {n.removeprefix(f"{layer}."): ticket.masks.shape(n) for n in ticket.masks if owned(n, [layer])}


def scratch(ticket: Ticket, model: nn.Module, seed: int) -> Ticket:
    """Keep the mask, and let the model's layers draw all their values anew as PyTorch's layers do by default.

    Raises UsageError where no layer knows how (`reset_parameters`).
    """
    with borrowed(model), private_randomness(), drawing(), torch.no_grad():
        ticket.start_from(model)
        seed_globals(mixed(seed, "scratch"))
        able = [m for m in model.modules() if callable(getattr(m, "reset_parameters", None))]
        for module in able:
            cast(Any, module).reset_parameters()
        fresh = copied(model)
    if not able:
        raise UsageError("no layer of this model knows how to draw its values anew: it has no reset_parameters")
    return ticket.replace(initial=fresh, check="scratch", check_seed=seed)


# --- the list of checks ------------------------------------------------------------------------------------------

Make = Callable[[Experiment, Ticket, int], Ticket]


@dataclass(frozen=True)
class SanityCheck:
    """One row of the list of checks.

    Args:
        sentence: a sentence about what is destroyed, for pages, tables and the command line.
        make: (experiment, ticket, seed) -> the altered ticket, which keeps as many weights.
        kept_as: the file in which a run keeps the altered ticket of a check that searches: it searches once, for all
            training seeds, and a resumed run does not search again.
    """

    name: str
    sentence: str
    make: Make
    kept_as: str | None = None


_CHECKS: dict[str, SanityCheck] = {}


def register(name: str, sentence: str, *, kept_as: str | None = None) -> Callable[[Make], Make]:
    """Decorator that registers a check as `name`; the command line, recipes and pages list all of them."""

    def add(make: Make) -> Make:
        _CHECKS[name] = SanityCheck(name, sentence, make, kept_as)
        return make

    return add


def names() -> tuple[str, ...]:
    """All checks, in the order they were registered."""
    return tuple(_CHECKS)


def get(name: str) -> SanityCheck:
    """The check of this name; raises UsageError naming the nearest."""
    if name not in _CHECKS:
        raise unknown("check", name, names())
    return _CHECKS[name]


def check_names(asked: str | Sequence[str]) -> tuple[str, ...]:
    """The checks asked for, each once; raises UsageError for one that does not exist."""
    return tuple(dict.fromkeys(get(name).name for name in strings("names, the checks,", asked)))


@register("shuffle", "the mask permuted inside each layer")
def _shuffle(experiment: Experiment, ticket: Ticket, seed: int) -> Ticket:
    return shuffle(ticket, seed)


@register("reinit", "the same mask, weights drawn anew from the same distribution")
def _reinit(experiment: Experiment, ticket: Ticket, seed: int) -> Ticket:
    return reinit(ticket, seed)


@register("scratch", "the same mask, all values drawn anew as the layers do by default")
def _scratch(experiment: Experiment, ticket: Ticket, seed: int) -> Ticket:
    return scratch(ticket, experiment.task.model, seed)


@register("invert", "the method's ranking turned upside down", kept_as="inverted.safetensors")
def _invert(experiment: Experiment, ticket: Ticket, seed: int) -> Ticket:
    facts = ticket.provenance
    method, asked = facts.get("method"), facts.get("asked", ticket.density)
    options = {**facts.get("options", {}), "invert": True}
    return _found_by(experiment, ticket, "invert", method, asked, options, facts.get("seed", experiment.seed))


@register("uniform", "a random mask, the same density in each layer")
def _uniform(experiment: Experiment, ticket: Ticket, seed: int) -> Ticket:
    if ticket.removed:
        return _random_layers(experiment, ticket, seed)
    return _found_by(experiment, ticket, "uniform", "uniform", ticket.density, {}, seed)


def _random_layers(experiment: Experiment, ticket: Ticket, seed: int) -> Ticket:
    """As many layers removed anywhere, at random; of what is left as many single weights kept, if some were pruned."""
    options = {**ticket.provenance.get("options", {}), "criterion": "random", "remove": len(ticket.removed)}
    further = options.get("then", "none") != "none"
    options |= {"invert": False, "then": "uniform" if further else "none"}
    density = ticket.density if further else 1.0
    return _found_by(experiment, ticket, "uniform", "layers", density, options, seed)


@register("erk", "a random mask, layer densities by the Erdős-Rényi-kernel rule")
def _erk(experiment: Experiment, ticket: Ticket, seed: int) -> Ticket:
    return _found_by(experiment, ticket, "erk", "erk", ticket.density, {}, seed)


def _found_by(
    experiment: Experiment,
    ticket: Ticket,
    check: str,
    method: str | None,
    density: float,
    options: Mapping[str, Any],
    seed: int,
) -> Ticket:
    """The ticket with the masks that a method finds from the ticket's initial weights, inside what it was found in."""
    if method not in methods.names():
        raise UsageError(f"the check {check!r} needs to know the ticket's method, which is {method!r}")
    row, facts = methods.get(method), ticket.provenance
    chosen = options_of(row.options, options, method)
    within = None if ticket.within is None else dict(ticket.within)
    as_found = {"precision": facts.get("precision", "fp32"), "accumulate": facts.get("accumulate", 1)}
    as_found["begun"] = provenance.steps_behind(ticket)
    task = dataclasses.replace(experiment.task, phase=f"check:{check}:search", within=within, **as_found)
    with borrowed(task.model) as model:
        ticket.start_from(model)
        of = (identity.of_search, f"{method} for the check {check}", density, chosen, seed)
        # A method that does not train writes no checkpoint: the step's is that of the training that follows.
        with experiment.claimed(*of) if row.trains else contextlib.nullcontext():
            found = find_inside(row, task, density, chosen, seed)
    return ticket.replace(masks=found.masks, check=check, removed=found.removed)


def altered_ticket(experiment: Experiment, name: str, ticket: Ticket, index: int) -> Ticket:
    """The altered ticket of check `name` for training seed `index`, which keeps as many weights."""
    return get(name).make(experiment, ticket, mixed(experiment.seed, "check", index))


# --- running them ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CheckResult:
    """The outcome of `check`: overall "pass", "fail" or "not decided", and each check's figures by name."""

    verdict: statistics.Judgement
    checks: dict[str, Check]
    metric: str = "accuracy"

    def __repr__(self) -> str:
        each = "".join(f", {name}: {c.verdict}" for name, c in self.checks.items())
        return f"Verdict({self.verdict}{each})"

    def __str__(self) -> str:
        by = "" if self.metric == "accuracy" else f", by {self.metric}"
        lines = [f"{self.verdict}: training from the ticket against training from what is left of it{by}"]
        width = max(map(len, self.checks), default=0)
        for name, c in self.checks.items():
            lines.append(
                f"  {name:<{width}}  {c.mean:.4f} +- {c.std:.4f}  ticket better by {c.difference:+.4f}"
                f" +- {c.difference_std:.4f}  (n={c.n})  {c.verdict}"
            )
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        rows = [
            (name, f"{c.mean:.4f} ± {c.std:.4f}", f"{c.difference:+.4f} ± {c.difference_std:.4f}", c.n, c.verdict)
            for name, c in self.checks.items()
        ]
        title = f"{self.verdict}: training from the ticket against training from what is left of it, by {self.metric}"
        return table(title, ("check", "altered", "ticket better by", "n", "verdict"), rows)


Work = Callable[[Experiment], dict[str, Any]]
Step = Callable[[str, Work], dict[str, Any]]


@gradients()
def judge(
    experiment: Experiment,
    ticket: Ticket,
    own: Sequence[float],
    asked: Sequence[str],
    step: Step | None = None,
    folder: Path | None = None,
) -> CheckResult:
    """Run the checks asked for against the ticket's own metrics, one step for each training.

    Args:
        own: the ticket's metrics, one for each training seed.
        step: runs a piece of work under a name, or returns its result from an earlier run; by default just runs it.
        folder: where the ticket of a check that searches is kept for a resumed run.
    """
    ticket, ranks = ticket.fitted(experiment.task.model), experiment.task.ranks
    kept = ranks.firsts if ranks else lambda work: work()
    step, metric = step or (lambda name, work: work(experiment)), experiment.task.metric_name
    found: dict[str, Check] = {}
    for name in asked:
        searched = None if get(name).kept_as is None else _search_once(name, ticket, step, folder, kept)
        values = []
        for i in range(len(own)):
            train = functools.partial(_train, name=name, ticket=ticket, index=i, searched=searched)
            values.append(step(f"check:{name}:{i}", train)["test"])
        found[name] = statistics.paired_test(own, values, margin=statistics.least_gain(metric, [*own, *values]))
    return CheckResult(statistics.overall(list(found.values())), found, metric)


def _train(experiment: Experiment, name: str, ticket: Ticket, index: int, searched: Ticket | None) -> dict[str, Any]:
    """Train from the altered ticket of a check, with the training seed of this index."""
    other = searched or altered_ticket(experiment, name, ticket, index)
    return experiment.train(other, index, f"check:{name}:{index}")


def _search_once(
    name: str, ticket: Ticket, step: Step, folder: Path | None, kept: Callable[[Callable[[], Ticket]], Ticket]
) -> Ticket:
    """The altered ticket of a check that searches: found now, or by the run that is resumed, as `kept` reads it."""
    path = None if folder is None else folder / str(get(name).kept_as)
    found: list[Ticket] = []

    def search(lent: Experiment) -> dict[str, Any]:
        found.append(altered_ticket(lent, name, ticket, 0))
        if path is not None and lent.writes:
            found[0].save(path)
        return {"digest": found[0].digest}

    step(f"check:{name}:search", search)
    return found[0] if found else kept(lambda: Ticket.load(path or ""))
