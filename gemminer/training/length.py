"""Whether a training was long enough, as far as its validation data show it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

# A rise in the last quarter is worth a word from this part of the whole rise on and, of a share, from half a point on.
PART, POINTS = 0.05, 0.005
FEWEST = 4  # epochs


def short(rows: Sequence[dict[str, Any]], metric: str) -> str | None:
    """A sentence where the metric on validation data still rose in the last quarter of the epochs; else None.

        late = best(last quarter) - best(before) >= 5% of best(all) - first,   of an accuracy also >= 0.005

    Args:
        rows: a row an epoch, as of `training.loop.fit`.
        metric: its name.
    """
    values = [row["validation"] for row in rows]
    if len(values) < FEWEST or any(value is None for value in values):
        return None
    quarter = max(1, len(values) // 4)
    before, end = max(values[:-quarter]), max(values[-quarter:])
    rise, share = end - before, metric == "accuracy"
    if not rise > max(PART * (end - values[0]), POINTS if share else 0.0):
        return None
    much = f"{100 * rise:.1f} points" if share else f"{rise:.3g}"
    return (
        f"validation {metric} still rose by {much} in the last quarter of {len(values)} epochs of training: "
        "a longer training may end higher"
    )
