"""Charts of many runs: a trace a method, its index in `meta`, so that the page can show and hide it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from gemminer.reporting import format
from gemminer.reporting.aggregate import Field, MeanLayer, Row, Stat, pareto
from gemminer.reporting.axes import (
    Figure,
    add_mark,
    add_scatter,
    add_text,
    density_axis,
    escaped,
    metric_axis,
    new_figure,
    short_name,
)
from gemminer.reporting.sentences import spread

_DASHES = ("solid", "4px,3px", "9px,3px,2px,3px")
_SYMBOLS = ("circle", "diamond", "square", "triangle-up", "x")
UNITS = {
    "epochs": ("epochs of the search", format.epochs),
    "seconds": ("seconds of the search", format.duration),
    "flops_dense": ("FLOPs of the search", format.flops),
    "flops_sparse": ("FLOPs of the search, counting zeros", format.flops),
}


def style(place: int) -> dict[str, Any]:
    """Colour, dash and symbol of a method: seven colours, then again with another dash and symbol."""
    turn = place // 7
    return {"colour": f"var(--c{place % 7})", "dash": _DASHES[turn % 3], "symbol": _SYMBOLS[turn % 5]}


def _said(row: Row, metric: str, which: str) -> str:
    found = row.after if which == "after" else row.before
    values = ", ".join(format.value(v, metric) for v in found.values[:8]) if found else ""
    n = f" (n = {found.n})" if found else ""
    return f"<b>{escaped(row.method)}</b>, {format.density(row.realised)}<br>{spread(found, metric)}{n}<br>{values}"


def _near(rows: Sequence[Row], which: str, dense: Stat | None) -> list[float]:
    """The range that holds the better half of each density's rows: a close-up of an axis the worst would stretch."""
    best: list[Stat] = [dense] if dense else []
    for asked in {row.asked for row in rows}:
        found = [getattr(row, which) for row in rows if row.asked == asked]
        found.sort(key=lambda stat: -stat.mean)
        best += found[: (len(found) + 1) // 2]
    ends = [found.mean + side * (found.std or 0) for found in best for side in (-1, 1)]
    pad = 0.06 * (max(ends) - min(ends)) or 0.01
    return [min(ends) - pad, max(ends) + pad]


def _bars(means: Sequence[Any], colour: str) -> dict[str, Any]:
    array = [found.std or 0 for found in means]
    return {"array": array, "visible": any(array), "color": colour, "thickness": 1.25, "width": 3}


def accuracy(field: Field, which: str, methods: Sequence[str]) -> Figure | None:
    """Result before or after training against density; methods a little side by side, so that bars can be read."""
    known = [row for m in methods for row in field.of(m) if getattr(row, which)]
    if not known:
        return None
    spans = sorted({math.log10(asked) for asked in field.rows})
    step = min((b - a for a, b in pairwise(spans)), default=0.5)
    dense = field.dense if which == "after" else None
    near = {"near": _near(known, which, dense)}
    figure = new_figure(430, showlegend=False, meta=near, yaxis=metric_axis(f"test {field.metric}", field.metric))
    edge = 0.35 * step
    axis = density_axis("density: fraction of weights kept", [row.asked for row in known])
    axis |= {"range": [spans[0] - edge, spans[-1] + edge]}
    axis |= {"tickvals": [10**x for x in spans], "ticktext": [format.density(10**x) for x in spans]}
    if len(spans) > 6:
        del axis["tickvals"], axis["ticktext"]
    figure["layout"]["xaxis"] = axis
    for place, method in enumerate(methods):
        rows = [row for row in field.of(method) if getattr(row, which)]
        look, means = style(place), [getattr(row, which) for row in rows]
        if not rows:
            continue
        aside = 10 ** (0.4 * step * (place / max(len(methods) - 1, 1) - 0.5))
        add_scatter(
            figure,
            x=[row.asked * aside for row in rows],
            y=[found.mean for found in means],
            error_y=_bars(means, look["colour"]),
            name=escaped(method),
            meta=place,
            mode="lines+markers",
            line={"color": look["colour"], "dash": look["dash"], "width": 1.75},
            marker={"size": 8, "symbol": look["symbol"], "color": look["colour"]},
            text=[_said(row, field.metric, which) for row in rows],
            hovertemplate="%{text}<extra></extra>",
        )
    if dense:
        _dense_line(figure, field)
    return figure


def _dense_line(figure: Figure, field: Field) -> None:
    if field.dense is None:
        return
    add_mark(figure, field.dense.mean, "var(--ink)", "dash", axis="y")
    place = {"x": 0, "xref": "paper", "xanchor": "left", "y": field.dense.mean, "yanchor": "bottom"}
    add_text(figure, f"dense {spread(field.dense, field.metric)}", **place)


def cost(field: Field, asked: float, measure: str, methods: Sequence[str]) -> Figure | None:
    """Result after training against the cost of the search; the Pareto front is a line, its methods are named."""
    title, say = UNITS[measure]
    points = {
        row.method: (found.mean, row.after.mean, row)
        for row in field.rows.get(asked, ())
        if row.after and (found := row.cost["search", measure])
    }
    if not points:
        return None
    floor, axis = _cost_axis(title, say, [x for x, _, _ in points.values()])
    near = {"near": _near([row for *_, row in points.values()], "after", field.dense)}
    figure = new_figure(
        460, showlegend=False, meta=near, xaxis=axis, yaxis=metric_axis(f"test {field.metric}", field.metric)
    )
    best = pareto([(x, y) for x, y, _ in points.values()])
    front = sorted((max(x, floor), y, name) for (name, (x, y, _)), on in zip(points.items(), best, strict=True) if on)
    _front(figure, front)
    for place, method in enumerate(methods):
        if method not in points:
            continue
        spent, result, row = points[method]
        look, on = style(place), ", on the Pareto front" if method in {name for *_, name in front} else ""
        add_scatter(
            figure,
            x=[max(spent, floor)],
            y=[result],
            error_y=_bars([row.after], look["colour"]),
            name=escaped(method),
            meta=place,
            mode="markers",
            marker={"size": 11, "symbol": look["symbol"], "color": look["colour"]},
            text=[f"{_said(row, field.metric, 'after')}<br>{title}: {say(spent)}{on}"],
            hovertemplate="%{text}<extra></extra>",
        )
    if field.dense:
        _dense_line(figure, field)
    return figure


def _front(figure: Figure, front: Sequence[tuple[float, float, str]]) -> None:
    """The best result that a cost buys, as steps; rings and names mark the methods that buy it."""
    places = {"x": [x for x, _, _ in front], "y": [y for _, y, _ in front], "hoverinfo": "skip"}
    line = {"color": "var(--mark)", "width": 2, "shape": "hv"}
    add_scatter(figure, mode="lines", line=line, name="Pareto front", **places)
    ring = {"size": 19, "symbol": "circle-open", "color": "var(--ink)", "line": {"width": 1.5}}
    left, right = figure["layout"]["xaxis"]["range"]
    ends = [(math.log10(x) - left) / (right - left) for x, _, _ in front]  # names at the edges must not be cut
    aside = ["right" if end < 0.25 else "left" if end > 0.75 else "center" for end in ends]
    names = {"text": [f"<b>{escaped(name)}</b>" for *_, name in front], "textposition": [f"top {at}" for at in aside]}
    font = {"size": 12, "color": "var(--ink)"}
    add_scatter(figure, mode="markers+text", marker=ring, name="on the front", textfont=font, **places, **names)


def _cost_axis(title: str, say: Any, costs: Sequence[float]) -> tuple[float, dict[str, Any]]:
    """A log axis with a place at its left for 'none', and that place."""
    positive = [x for x in costs if x > 0] or [1.0]
    low, high = math.log10(min(positive)), math.log10(max(positive))
    free = len(positive) < len(costs)
    floor = math.floor(low) - 0.75 if free else low
    wide = max(high - floor, 1.0)
    stride = max(1, math.ceil(wide / 6))
    decades = range(math.floor(low), math.ceil(high) + 1, stride)
    ticks = {10.0**floor: "none"} if free else {}
    ticks |= {10.0**d: say(10.0**d).replace(".0 s", " s") for d in decades}
    span = [floor - 0.09 * wide, max(high, floor + 1.0) + 0.09 * wide]
    return 10.0**floor, metric_axis(title, type="log", tickvals=list(ticks), ticktext=list(ticks.values()), range=span)


def _kept(layer: MeanLayer, runs: int) -> str:
    said = f"{format.density(layer.density)} kept"
    return f"{said}; nothing in {layer.collapsed} of {runs} runs" if layer.collapsed else said


def layer_lines(field: Field, asked: float, methods: Sequence[str]) -> Figure | None:
    """Mean density of each layer, a line a method; a layer that a run keeps nothing of is a cross."""
    rows = {row.method: row for row in field.rows.get(asked, ()) if row.layers}
    names = list(dict.fromkeys(layer.name for row in rows.values() for layer in row.layers))
    if not names:
        return None
    low = min((layer.density for row in rows.values() for layer in row.layers if layer.density > 0), default=asked)
    floor, every = math.floor(4 * math.log10(low) - 1) / 4, math.ceil(len(names) / 40)
    axis: dict[str, Any] = {
        "tickvals": list(range(0, len(names), every)),
        "ticktext": [short_name(n) for n in names[::every]],
    }
    figure = new_figure(
        520,
        showlegend=False,
        hovermode="closest",
        xaxis=metric_axis("layers, input to output", tickangle=-60, range=[-0.5, len(names) - 0.5], **axis),
        yaxis=density_axis("density of the layer", [10**floor, 1], range=[floor, 0.08]),
    )
    for place, method in enumerate(methods):
        if method not in rows:
            continue
        look, own = style(place), {layer.name: layer for layer in rows[method].layers}
        kept = [own[name].density for name in names if name in own]
        whole = [not own[name].collapsed for name in names if name in own]
        add_scatter(
            figure,
            x=[i for i, name in enumerate(names) if name in own],
            y=[max(v, 10**floor) for v in kept],
            name=escaped(method),
            meta=place,
            mode="lines+markers",
            line={"color": look["colour"], "dash": look["dash"], "width": 1.75},
            marker={
                "size": [6 if v else 11 for v in whole],
                "symbol": [look["symbol"] if v else "x-thin" for v in whole],
                "color": look["colour"],
                "line": {"width": [0 if v else 2.5 for v in whole], "color": look["colour"]},
            },
            text=[
                f"<b>{escaped(method)}</b><br>{escaped(name)}<br>{_kept(own[name], len(rows[method].runs))}"
                for name in names
                if name in own
            ],
            hovertemplate="%{text}<extra></extra>",
        )
    add_mark(figure, asked, "var(--muted)", "dot", axis="y")
    return figure
