"""Numbers as people read them, the same on every page and in every table."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any


def number(x: Any) -> float | None:
    """x as a finite float, None if it is missing; a text where a number belongs is a damaged record."""
    return float(x) if x is not None and math.isfinite(float(x)) else None


def is_share(metric: str) -> bool:
    return metric.lower().endswith("accuracy")


def value(x: Any, metric: str, signed: bool = False) -> str:
    """A metric's value: accuracies in %, others in 4 digits; signed: a difference, accuracies in points."""
    known = number(x)
    if known is None:
        return "–"
    sign = "+" if signed else ""
    text = f"{100 * known:{sign}.1f}{'' if signed else '%'}" if is_share(metric) else f"{known:{sign}.4g}"
    return text.replace("-", "" if not text.strip("-0.%") else "−")  # no minus before a rounded zero


def deviation(x: Any, metric: str) -> str:
    """A standard deviation to print after its mean, accuracies in points; "" where it is unknown."""
    return "" if number(x) is None else f" ± {value(x, metric, True).lstrip('+')}"


def density(x: Any) -> str:
    """A density in per cent, three digits: 0.005898 -> 0.59%."""
    known = number(x)
    return "–" if known is None else f"{float(f'{100 * known:.3g}'):.10g}%"


def flops(x: Any) -> str:
    known = number(x)
    if known is None:
        return "–"
    power = min(int(math.log10(max(known, 1))) // 3, 6)
    return f"{known / 1000**power:.3g} {' kMGTPE'[power].strip()}FLOP"


def duration(x: Any) -> str:
    known = number(x)
    if known is None or known < 100:
        return "–" if known is None else f"{known:.1f} s"
    minutes, seconds = divmod(round(known), 60)
    return f"{minutes} min {seconds:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def epochs(x: Any) -> str:
    known = number(x)
    return "–" if known is None else f"{known:.3g}" if known < 100 else f"{known:,.0f}"


def listed(names: Sequence[str], most: int | None = None) -> str:
    """a, b and c; no more names than `most`, then how many are left."""
    if most is not None and len(names) > most + 1:
        names = [*names[:most], f"{len(names) - most} more"]
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}" if names else ""


def checked(verdicts: Mapping[str, str | None]) -> str:
    """Verdicts by check as half a sentence: 'passes 3 of 5 checks (fails shuffle; reinit not decided)'."""
    fails = [name for name, verdict in verdicts.items() if verdict == "fail"]
    undecided = [name for name, verdict in verdicts.items() if verdict not in ("pass", "fail")]
    notes = [f"fails {', '.join(fails)}"] if fails else []
    notes += [f"{', '.join(undecided)} not decided"] if undecided else []
    passed = len(verdicts) - len(fails) - len(undecided)
    return f"passes {passed} of {len(verdicts)} checks" + (f" ({'; '.join(notes)})" if notes else "")
