"""The answer of `smallest` in words: a sentence for each verdict, with the figures it rests on."""

from __future__ import annotations

import math

from gemminer.core.statistics import Margin
from gemminer.runs.answer import Probe, Question, Spread, deviation, difference, in_bytes, is_share, percent, value

_MORE = "more seeds (--seeds) or more validation data decide it"


def allowed(asked: Question, metric: str) -> str:
    """What may be lost: "0.5 points", or a number in the metric's units."""
    unit = (" point" if asked.within == 1 else " points") if is_share(metric) else f" ({metric})"
    return f"{asked.within:g}{unit}"


def progress(density: float, found: Margin, margin: float, metric: str) -> str:
    """A line about a density that has been measured."""
    over = f"{found.n} seeds" if found.n > 1 else "one training"
    known = "looks within" if found.looks(margin) else "looks not within"
    verdict = known if found.n == 1 else found.verdict
    return f"density {percent(density)}: {difference(found.difference, metric)} against dense, {over}: {verdict}"


def sentence(verdict: str, asked: Question, probe: Probe, *, metric: str, last: bool, denser: float | None) -> str:
    """The answer. `probe` is what it is about: where there is none, the nearest.

    Args:
        last: whether that is the sparsest density there is to look at.
        denser: the size that the next denser program would have.
    """
    what = f"{percent(probe.density)} of the weights ({probe.kept:,})"
    size, limit = in_bytes(probe.bytes or 0), in_bytes(asked.size or 0)
    if asked.within is None:
        if verdict == "none":
            return f"No program fits into {limit}: with {what}, the sparsest looked at, it has {size}."
        more = f"; the next denser one has about {in_bytes(denser)}" if denser else ""
        return f"{what} fit into {limit}: the program has {size}{more}."
    near = f"within {allowed(asked, metric)} of the dense network"
    if verdict == "too large":
        return f"No ticket is both: the sparsest {near} keeps {what}, and its program has {size}, over {limit}."
    fit = f", and its program of {size} fits into {limit}" if asked.size else ""
    if verdict == "within":
        end = "; nothing sparser was looked at" if last else ""
        return f"{what} stay {near}{fit}{end}."
    if verdict == "none":
        return f"No density looked at stays {near}: even {what} do not."
    return f"Undecided: {what} may stay {near}{fit}."


def evidence(verdict: str, probe: Probe, *, dense: Spread, metric: str) -> str:
    """The figures that the answer rests on."""
    decides = f"; {_MORE}." if verdict == "undecided" else "."
    return f"{_far(probe, dense, metric)}{decides}"


def _far(probe: Probe, dense: Spread, metric: str) -> str:
    """What a probe came to on validation data, against the dense network."""
    n = len(probe.validation.values)
    of = f"Validation {metric} {value(probe.validation.mean or 0.0, metric)}"
    text = f"{of}, dense {value(dense.mean or 0.0, metric)}: {difference(probe.difference, metric)}"
    if n == 1 or probe.low is None or probe.high is None:
        return f"{text} in one training, which says nothing about chance"
    low, high = difference(probe.low, metric), difference(probe.high, metric)
    points = " points" if is_share(metric) else ""
    spread = f"{text} ± {deviation(probe.std, metric)}{points} over {n} seeds"
    return f"{spread}; at 95% no less than {low}, no more than {high}"


def resolution(examples: int, asked: Question, metric: str) -> str | None:
    """How fine the validation data measure, where a single example is worth a fifth of what may be lost or more."""
    if not is_share(metric) or asked.within is None:
        return None
    worth = 100 / examples
    if worth <= asked.within / 5:
        return None
    error = 100 * math.sqrt(2 * 0.02 * 0.98 / examples)
    return (
        f"there are {examples:,} validation examples, each worth {worth:.2g} points, of {asked.within:g} that may be "
        "lost: the bounds are about other training seeds on these examples; other examples could move the difference "
        f"by about {error:.1g} points (a standard deviation, of two networks at 98%)"
    )
