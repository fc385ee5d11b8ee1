"""instability.json -> one HTML page: error along the line, and the barrier against the step that is begun with."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gemminer.reporting.axes import Figure, add_mark, add_scatter, add_shape, escaped, metric_axis, new_figure
from gemminer.reporting.page import render, save
from gemminer.runs import stability_runs


def write(folder: Path | str) -> Path:
    """Write folder/report.html from folder/instability.json; return its path.

    Raises GemminerError if that is missing, damaged or not gemminer's.
    """
    found = stability_runs.read(folder)
    starts, limit = found["starts"], found["limit"]
    drawn = {"lines": lines(starts), "barriers": barriers(starts, limit)}
    context: dict[str, Any] = {
        "a": found,
        "starts": starts,
        "headline": headline(starts),
        "spread": spread,
        "curves": list(starts[0]["barriers"]) if starts else [],
    }
    title = f"Instability: {found['model']} on {found['data']}"
    return save(Path(folder) / "report.html", render("instability.html.j2", title, drawn, context))


def headline(starts: Sequence[Mapping[str, Any]]) -> str:
    """Which of what is begun with is stable, in a sentence."""
    stable = [one["name"] for one in starts if one["verdict"] == "stable"]
    others = [one["name"] for one in starts if one["verdict"] != "stable"]
    if not starts or not (stable or others):
        return "Nothing was measured"
    if not others:
        return f"Stable: {', '.join(stable)}"
    return f"{'Stable: ' + ', '.join(stable) + '; not' if stable else 'None is'} stable: {', '.join(others)}"


def spread(values: Sequence[float]) -> str:
    """A mean of barriers in points, with its deviation."""
    std = f" ± {100 * statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{100 * statistics.fmean(values):.2f}{std}"


def _mean(one: Mapping[str, Any], curve: str) -> list[float]:
    return [statistics.fmean(values) for values in zip(*(line[curve] for line in one["lines"]), strict=True)]


def lines(starts: Sequence[Mapping[str, Any]]) -> Figure | None:
    """The test error along the line between two trainings, mean over the pairs; a line for each start."""
    if not starts:
        return None
    share = "accuracy" if all(one["metric"] == "accuracy" for one in starts) else ""
    along = metric_axis("from one training (0) to the other (1)")
    figure = new_figure(420, hovermode="x unified", xaxis=along, yaxis=metric_axis("test error", share))
    for place, one in enumerate(starts):
        dash = "dash" if one["name"].startswith("ticket") else "solid"
        style = {"color": f"var(--c{place % 7})", "width": 2, "dash": dash}
        look = {"name": escaped(one["name"]), "mode": "lines+markers", "line": style}
        add_scatter(figure, x=one["points"], y=_mean(one, "test_error"), **look)
    return figure


def barriers(starts: Sequence[Mapping[str, Any]], limit: float) -> Figure | None:
    """The barrier of the test error against the step that is begun with: single pairs, means, the limit."""
    if not starts:
        return None
    figure = new_figure(
        380,
        xaxis=metric_axis("step k that is begun with"),
        yaxis=metric_axis("barrier of the test error", "accuracy", rangemode="tozero"),
    )
    ends = {"xref": "paper", "x0": 0, "x1": 1, "y0": 0, "y1": limit}
    add_shape(figure, type="rect", fillcolor="var(--shade)", line={"width": 0}, **ends)
    add_mark(figure, limit, "var(--mark)", "dash", axis="y")
    for place, what in enumerate(("dense", "ticket")):
        own = sorted((one for one in starts if one["name"].startswith(what)), key=lambda one: int(one["step"]))
        if own:
            every = [(one["step"], value) for one in own for value in one["barriers"]["test_error"]]
            colour = f"var(--c{place})"
            points = {"marker": {"size": 8, "opacity": 0.45, "color": colour}, "mode": "markers", "showlegend": False}
            add_scatter(figure, x=[x for x, _ in every], y=[y for _, y in every], name=f"a pair, {what}", **points)
            means = [statistics.fmean(one["barriers"]["test_error"]) for one in own]
            look = {"mode": "lines+markers", "line": {"color": colour, "width": 2}, "marker": {"size": 10}}
            add_scatter(figure, x=[one["step"] for one in own], y=means, name=f"{what}, mean", **look)
    return figure
