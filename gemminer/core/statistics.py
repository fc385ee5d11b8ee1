"""A paired t-test over seeds, which judges whether one result is better than another beyond chance.

It is apart from `runs.checks`, which makes the altered tickets, so that reports can use it without torch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from gemminer.core.errors import UsageError

Judgement = Literal["pass", "fail", "not decided"]


@dataclass(frozen=True)
class Check:
    """A check's outcome over n paired seeds, and a row of a record; `difference` is the mean of ticket minus check,
    pair by pair.
    """

    mean: float
    std: float
    n: int
    difference: float
    difference_std: float
    verdict: Judgement
    values: tuple[float, ...]
    ticket_values: tuple[float, ...]


def least_gain(metric: str, values: Sequence[float]) -> float:
    """The least gain of a metric that matters: half a point of accuracy, half a per cent of other metrics' size."""
    if metric.lower().endswith("accuracy"):
        return 0.005
    return 0.005 * max((abs(v) for v in values if math.isfinite(v)), default=0.0)


def paired_test(
    ticket: Sequence[float], check: Sequence[float], *, margin: float = 0.005, level: float = 0.95
) -> Check:
    """Compare a ticket with its altered ticket by a one-sided paired t-test over training seeds.

    With the mean m and standard error s of the n differences and Student's t quantile at `level`, one-sided:

        pass         m - t * s > 0              the ticket is better, beyond chance
        fail         m + t * s < margin         any gain is below the margin, beyond chance
        not decided  otherwise, and always for n = 1

    Args:
        ticket: the ticket's metrics, one a seed; higher is better.
        check: the altered ticket's metrics, of the same seeds in the same order.
        margin: the least gain that matters, in units of the metric (0.005: half a point of accuracy).
        level: of the one-sided test.

    >>> paired_test([0.97, 0.96, 0.98], [0.90, 0.91, 0.90]).verdict
    'pass'
    """
    if len(ticket) != len(check) or not ticket:
        raise UsageError(f"paired values are needed; there are {len(ticket)} of the ticket, {len(check)} of the check")
    n = len(ticket)
    differences = [a - b for a, b in zip(ticket, check, strict=True)]
    mean, std = mean_std(differences)
    verdict: Judgement = "not decided"
    if n > 1:
        reach = _quantile(level, n - 1) * std / math.sqrt(n)
        verdict = "pass" if mean - reach > 0 else "fail" if mean + reach < margin else "not decided"
    own, own_std = mean_std(check)
    return Check(own, own_std, n, mean, std, verdict, tuple(check), tuple(ticket))


@dataclass(frozen=True)
class Margin:
    """How far tickets are from dense networks over n paired seeds: the mean difference, and what it may be.

    `low` and `high` are one-sided bounds of the mean difference; without bounds, for n = 1, both are None.
    """

    difference: float
    std: float
    n: int
    low: float | None
    high: float | None
    verdict: Literal["within", "not within", "undecided"]

    def looks(self, margin: float) -> bool:
        """Whether the mean difference itself is inside the margin, chance or not."""
        return self.difference >= -margin - ROUNDING


ROUNDING = 1e-9  # two means of the same examples that differ by less are equal


def margin_test(ticket: Sequence[float], dense: Sequence[float], margin: float, *, level: float = 0.95) -> Margin:
    """Whether a ticket loses no more than a margin to the dense network, by a one-sided paired t-test over seeds.

    With the mean m and standard error s of the n differences ticket - dense and Student's t quantile at `level`:

        within      m - t * s >= -margin        it loses no more, beyond chance
        not within  m + t * s < -margin         it loses more, beyond chance
        undecided   otherwise, and always for n = 1

    Args:
        ticket: the ticket's metrics, one a seed; higher is better.
        dense: the dense network's, of the same seeds in the same order.
        margin: what may be lost, in units of the metric (0.005: half a point of accuracy).
        level: of the one-sided test.

    >>> margin_test([0.97, 0.972, 0.971], [0.973, 0.974, 0.974], 0.005).verdict
    'within'
    """
    found = paired_test(ticket, dense, level=level)
    mean, n = found.difference, found.n
    if n == 1:
        return Margin(mean, 0.0, n, None, None, "undecided")
    reach = _quantile(level, n - 1) * found.difference_std / math.sqrt(n)
    low, high = mean - reach, mean + reach
    verdict: Literal["within", "not within", "undecided"] = "undecided"
    if low >= -margin - ROUNDING:
        verdict = "within"
    elif high < -margin - ROUNDING:
        verdict = "not within"
    return Margin(mean, found.difference_std, n, low, high, verdict)


def _quantile(level: float, freedom: int) -> float:
    """Student's t at `level`, equal to `scipy.stats.t.ppf`, whose import takes half a second."""
    from scipy.special import stdtrit

    return float(stdtrit(freedom, level))


def overall(checks: Sequence[Check]) -> Judgement:
    """pass when every check passes, fail when one fails, else not decided."""
    verdicts = {check.verdict for check in checks}
    return "fail" if "fail" in verdicts else "pass" if verdicts == {"pass"} else "not decided"


def mean_std(values: Sequence[float]) -> tuple[float, float]:
    """Mean and sample standard deviation (n - 1; 0 for one value)."""
    mean = math.fsum(values) / len(values)
    if len(values) == 1:
        return mean, 0.0
    return mean, math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (len(values) - 1))
