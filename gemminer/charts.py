"""Charts as plotly figures: data and axes. Margins, fonts and grids are in report.js.j2.

Colours are CSS variables (`var(--c0)`) that the page resolves whenever the reader's colour scheme changes.
"""

from __future__ import annotations

import html
import math
import re
import statistics
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import plotly.graph_objects as go

from gemminer import words
from gemminer.answers import spread
from gemminer.comparison import Field, Layer, Row, Stat, pareto

Record = Mapping[str, Any]
Phases = Mapping[str, list[dict[str, Any]]]

ABOUT = {
    "shuffle": "the mask permuted inside each layer",
    "reinit": "the same mask, weights drawn anew from the same distribution",
    "invert": "the method's ranking turned upside down",
    "random": "a random mask, one draw over all layers",
    "uniform": "a random mask, the same density in each layer",
    "erk": "a random mask, layer densities by the Erdős-Rényi-kernel rule",
}
MARKS = 30  # more freezes than this are shaded as a period: single lines would merge into a block


def _text(x: object) -> str:
    """Plotly reads text as a little HTML: a name from a record must not be markup there either."""
    return html.escape(str(x))


def _short(name: str) -> str:
    name = name.removesuffix(".weight")
    return _text(name if len(name) <= 24 else f"{name[:9]}…{name[-14:]}")


def _colours(record: Record) -> dict[str, str]:
    """One colour for a name on the whole page."""
    names = enumerate(dict.fromkeys((*ABOUT, *record["checks"])))
    return {"train": "var(--c0)", "dense": "var(--ink)"} | {name: f"var(--c{1 + i % 6})" for i, name in names}


def _axis(title: str, metric: str = "", **more: Any) -> dict[str, Any]:
    share = {"tickformat": "~%", "hoverformat": ".1%"} if words.is_share(metric) else {"hoverformat": ".4~g"}
    return {"title": {"text": _text(title)}} | share | more


def _density_axis(title: str, values: Sequence[float | None], **more: Any) -> dict[str, Any]:
    """A log axis that ticks whole decades, or 1-2-5 when the values span less than one and a half."""
    known = [v for v in values if v] or [1.0]
    dtick = "D2" if max(known) < 30 * min(known) else 1
    return _axis(title, type="log", tickformat="~%", hoverformat=".3~p", dtick=dtick, **more)


def _rows_axis(names: Sequence[str]) -> dict[str, Any]:
    """Names from top to bottom at 0, 1, 2, ...: by place, for two layers may share a shortened name."""
    places = {"tickvals": list(range(len(names))), "ticktext": [_short(name) for name in names]}
    return places | {"range": [len(names) - 0.45, -0.55], "showgrid": False, "ticks": ""}


def _figure(height: int, **layout: Any) -> Any:
    """An empty figure; no template, for plotly's own would be 7 kB in each."""
    return go.Figure(layout={"template": None, "height": height} | layout)


def _line(figure: Any, name: str, x: list[int], y: list[Any], axis: str = "y", **style: Any) -> None:
    mode = "lines" if len(x) > 3 else "lines+markers"
    figure.add_scatter(x=x, y=y, name=name, mode=mode, yaxis=axis, line=style)


def _mark(figure: Any, at: float, colour: str, dash: str = "solid", axis: str = "x") -> None:
    """A line through the whole figure at a value of an axis."""
    ends = {f"{axis[0]}ref": axis, f"{axis[0]}0": at, f"{axis[0]}1": at}
    across = {"yref": "paper", "y0": 0, "y1": 1} if axis == "x" else {"xref": "paper", "x0": 0, "x1": 1}
    line = {"color": colour, "width": 1.25, "dash": dash}
    figure.add_shape(type="line", layer="below", line=line, **ends, **across)


def freezes(phases: Phases) -> dict[int, int]:
    """Number of freezes by epoch of the search, where there were any."""
    return {row["epoch"]: int(row["freezes"]) for row in phases.get("search", []) if row.get("freezes")}


def search(record: Record, phases: Phases) -> Any:
    """Validation accuracy above, kept and live density below, over the search's epochs; freezes marked."""
    rows, frozen, metric = phases.get("search"), freezes(phases), record["metric"]
    if not rows:
        return None
    asked = float(record["density"]["asked"])
    x = [row["epoch"] for row in rows]
    validation, kept, live = ([words.number(row.get(k)) for row in rows] for k in ("validation", "kept", "live"))
    figure = _figure(
        520,
        hovermode="x unified",
        xaxis=_axis("epoch of the search", anchor="y2", hoverformat="d"),
        yaxis=_axis(f"validation {metric}", metric, domain=[0.5, 1]),
        yaxis2=_density_axis("density", [*kept, *live, asked], domain=[0, 0.43]),
    )
    _line(figure, _text(f"validation {metric}"), x, validation, color="var(--c0)", width=2.5)
    _line(figure, "kept: not frozen", x, kept, axis="y2", width=1.75, color="var(--ink)")
    _line(figure, "live: kept and switched on", x, live, axis="y2", width=1.75, color="var(--c1)", dash="dash")
    _mark(figure, asked, "var(--muted)", "dot", axis="y2")
    if sum(frozen.values()) > MARKS:  # the freezes of epoch e lie between e - 1 and e
        ends = {"x0": max(min(frozen) - 1, x[0]), "x1": max(frozen), "yref": "paper", "y0": 0, "y1": 1}
        figure.add_shape(type="rect", layer="below", fillcolor="var(--shade)", line={"width": 0}, **ends)
    else:
        for epoch in frozen:
            _mark(figure, epoch, "var(--mark)")
    return figure


def training(record: Record, phases: Phases) -> Any:
    """Validation accuracy by epoch: the ticket, the dense network and the checks, means over seeds."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for phase, rows in phases.items():
        if match := re.fullmatch(r"(train|dense|check:[^:]+)(:\d+)?", phase):
            groups.setdefault(match[1].removeprefix("check:"), []).extend(rows)
    if not groups:
        return None
    metric, colours = record["metric"], _colours(record)
    measured = any(words.number(row.get("validation")) is not None for rows in groups.values() for row in rows)
    key, what = ("validation", f"validation {metric}") if measured else ("loss", "training loss")
    figure = _figure(440, hovermode="x unified", legend={"traceorder": "reversed"})
    figure.update_layout(xaxis=_axis("epoch of training"), yaxis=_axis(what, metric if measured else ""))
    first = [name for name in ("train", "dense") if name in groups]
    for name in reversed([*first, *(name for name in groups if name not in first)]):  # the last is on top
        values: dict[int, list[float]] = {}
        for row in groups[name]:
            if (y := words.number(row.get(key))) is not None:
                values.setdefault(row["epoch"], []).append(y)
        x, label = sorted(values), "ticket" if name == "train" else _text(name)
        style = {"color": colours.get(name, "var(--muted)"), "dash": "dash" if name == "dense" else "solid"}
        means = [statistics.fmean(values[epoch]) for epoch in x]
        _line(figure, label, x, means, width=3 if name == "train" else 1.75, **style)
    return figure


def layers(record: Record) -> Any:
    """Density of each layer, in the network's order from top to bottom, on a log axis."""
    found, overall = record["layers"], float(record["density"]["realised"])
    if not found:
        return None
    x = [float(layer["density"]) for layer in found]
    low = math.log10(min((v for v in (*x, overall) if v > 0), default=0.001))
    floor = math.floor(4 * low - 1) / 4  # bars start at the axis' edge: leave the smallest a visible length
    figure = _figure(
        (22 if len(x) <= 60 else 16) * len(x) + 70,
        bargap=0.25,
        showlegend=False,
        xaxis=_density_axis("density: fraction of weights kept", [10**floor, 1], range=[floor, 0.5]),
        yaxis=_rows_axis([str(layer["name"]) for layer in found]),
    )
    hover = [
        f"<b>{_text(layer['name'])}</b><br>{layer['kept']:,} of {layer['prunable']:,} weights kept"
        f"<br>{_text(layer.get('dead_filters', '?'))} of {_text(layer.get('filters', '?'))} filters dead"
        for layer in found
    ]
    text = [f"{words.density(layer['density'])} · {layer['kept']:,}" for layer in found]
    font = {"size": 11, "color": ["var(--muted)" if v > 0 else "var(--fail)" for v in x]}
    look = {"marker_color": "var(--c0)", "textposition": "outside", "textfont": font, "cliponaxis": False}
    bars = {"x": [max(v, 10**floor) for v in x], "y": list(range(len(x))), "orientation": "h"}
    figure.add_bar(text=text, hovertext=hover, hoverinfo="text", **bars, **look)
    _mark(figure, overall, "var(--mark)")
    return figure


def checks(record: Record) -> Any:
    """The ticket and each check after training: mean, standard deviation, seeds as points; dense a line."""
    metric, found, accuracy = record["metric"], record["checks"], record["accuracy"]
    after, dense, colours = words.number(accuracy["after"]), words.number(accuracy["dense"]), _colours(record)
    if not found or after is None:
        return None
    ticket = {"mean": after} | {key: accuracy[f"after_{key}"] for key in ("std", "values")}
    rows: dict[str, dict[str, Any]] = {"train": ticket | {"n": accuracy["n"]}} | found
    figure = _figure(
        40 * len(rows) + 80,
        showlegend=False,
        xaxis=_axis(f"test {metric} after training", metric),
        yaxis=_rows_axis(["ticket", *found]),
    )
    for place, (name, row) in enumerate(rows.items()):
        seeds, std, colour = row.get("values") or [], words.number(row["std"]), colours[name]
        points = {"size": 9, "opacity": 0.45, "color": colour}
        tick = {"size": 14, "symbol": "line-ns", "line": {"width": 3, "color": colour}}
        spread = {"array": [std or 0], "visible": bool(std), "color": colour, "thickness": 2}
        for x, look, said in (
            (seeds, {"marker": points}, "one seed"),
            ([row["mean"]], {"marker": tick, "error_x": spread}, f"mean, n = {_text(row.get('n') or 1)}"),
        ):
            hover = f"%{{x}}<extra>{said}</extra>"
            figure.add_scatter(x=x, y=[place] * len(x), mode="markers", hovertemplate=hover, **look)
    _zoom(figure, rows, after, metric)
    _mark(figure, after, "var(--c0)", "dot")
    if dense is not None:
        _mark(figure, dense, "var(--ink)", "dash")
    return figure


def _zoom(figure: Any, rows: dict[str, dict[str, Any]], after: float, metric: str) -> None:
    """Put a check that ends far from the others (`invert`, at chance) off the scale, with an arrow to it.

    Far: its distance to the ticket is over four times the checks' median.
    """
    gaps = {name: abs(row["mean"] - after) for name, row in rows.items() if name != "train"}
    far = [name for name, gap in gaps.items() if gap > 4 * statistics.median(gaps.values()) > 0]
    near = [row for name, row in rows.items() if name not in far]
    values = [x for row in near for x in (row["mean"], *(row.get("values") or []))]
    pad = 0.12 * (max(values) - min(values))
    for name in far:
        value = words.value(rows[name]["mean"], metric)
        low = rows[name]["mean"] < after
        place = {"x": 0.01 if low else 0.99, "xref": "paper", "xanchor": "left" if low else "right"}
        text = f"◀ {value}, off the scale" if low else f"off the scale, {value} ▶"
        figure.add_annotation(text=text, y=list(rows).index(name), showarrow=False, **place)
        figure.update_xaxes(range=[min(values) - pad, max(values) + pad])


# ---- many runs: a trace a method, its index in `meta`, so that the page can show and hide it ----

_DASHES = ("solid", "4px,3px", "9px,3px,2px,3px")
_SYMBOLS = ("circle", "diamond", "square", "triangle-up", "x")
UNITS = {
    "epochs": ("epochs of the search", words.epochs),
    "seconds": ("seconds of the search", words.duration),
    "flops_dense": ("FLOPs of the search", words.flops),
    "flops_sparse": ("FLOPs of the search, counting zeros", words.flops),
}


def style(place: int) -> dict[str, Any]:
    """Colour, dash and symbol of a method: seven colours, then again with another dash and symbol."""
    turn = place // 7
    return {"colour": f"var(--c{place % 7})", "dash": _DASHES[turn % 3], "symbol": _SYMBOLS[turn % 5]}


def _said(row: Row, metric: str, which: str) -> str:
    found = row.after if which == "after" else row.before
    values = ", ".join(words.value(v, metric) for v in found.values[:8]) if found else ""
    n = f" (n = {found.n})" if found else ""
    return f"<b>{_text(row.method)}</b>, {words.density(row.realised)}<br>{spread(found, metric)}{n}<br>{values}"


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


def accuracy(field: Field, which: str, methods: Sequence[str]) -> Any:
    """Result before or after training against density; methods a little side by side, so that bars can be read."""
    known = [row for m in methods for row in field.of(m) if getattr(row, which)]
    if not known:
        return None
    spans = sorted({math.log10(asked) for asked in field.rows})
    step = min((b - a for a, b in pairwise(spans)), default=0.5)
    dense = field.dense if which == "after" else None
    near = {"near": _near(known, which, dense)}
    figure = _figure(430, showlegend=False, meta=near, yaxis=_axis(f"test {field.metric}", field.metric))
    edge = 0.35 * step
    axis = _density_axis("density: fraction of weights kept", [row.asked for row in known])
    axis |= {"range": [spans[0] - edge, spans[-1] + edge]}
    axis |= {"tickvals": [10**x for x in spans], "ticktext": [words.density(10**x) for x in spans]}
    if len(spans) > 6:
        del axis["tickvals"], axis["ticktext"]
    figure.update_layout(xaxis=axis)
    for place, method in enumerate(methods):
        rows = [row for row in field.of(method) if getattr(row, which)]
        look, means = style(place), [getattr(row, which) for row in rows]
        if not rows:
            continue
        aside = 10 ** (0.4 * step * (place / max(len(methods) - 1, 1) - 0.5))
        figure.add_scatter(
            x=[row.asked * aside for row in rows],
            y=[found.mean for found in means],
            error_y=_bars(means, look["colour"]),
            name=_text(method),
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


def _dense_line(figure: Any, field: Field) -> None:
    if field.dense is None:
        return
    _mark(figure, field.dense.mean, "var(--ink)", "dash", axis="y")
    place = {"x": 0, "xref": "paper", "xanchor": "left", "y": field.dense.mean, "yanchor": "bottom"}
    figure.add_annotation(text=f"dense {spread(field.dense, field.metric)}", showarrow=False, **place)


def cost(field: Field, asked: float, measure: str, methods: Sequence[str]) -> Any:
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
    figure = _figure(460, showlegend=False, meta=near, xaxis=axis)
    figure.update_layout(yaxis=_axis(f"test {field.metric}", field.metric))
    best = pareto([(x, y) for x, y, _ in points.values()])
    front = sorted((max(x, floor), y, name) for (name, (x, y, _)), on in zip(points.items(), best, strict=True) if on)
    _front(figure, front)
    for place, method in enumerate(methods):
        if method not in points:
            continue
        spent, result, row = points[method]
        look, on = style(place), ", on the Pareto front" if method in {name for *_, name in front} else ""
        figure.add_scatter(
            x=[max(spent, floor)],
            y=[result],
            error_y=_bars([row.after], look["colour"]),
            name=_text(method),
            meta=place,
            mode="markers",
            marker={"size": 11, "symbol": look["symbol"], "color": look["colour"]},
            text=[f"{_said(row, field.metric, 'after')}<br>{title}: {say(spent)}{on}"],
            hovertemplate="%{text}<extra></extra>",
        )
    if field.dense:
        _dense_line(figure, field)
    return figure


def _front(figure: Any, front: Sequence[tuple[float, float, str]]) -> None:
    """The best result that a cost buys, as steps; rings and names mark the methods that buy it."""
    places = {"x": [x for x, _, _ in front], "y": [y for _, y, _ in front], "hoverinfo": "skip"}
    line = {"color": "var(--mark)", "width": 2, "shape": "hv"}
    figure.add_scatter(mode="lines", line=line, name="Pareto front", **places)
    ring = {"size": 19, "symbol": "circle-open", "color": "var(--ink)", "line": {"width": 1.5}}
    left, right = figure.layout.xaxis.range
    ends = [(math.log10(x) - left) / (right - left) for x, _, _ in front]  # names at the edges must not be cut
    aside = ["right" if end < 0.25 else "left" if end > 0.75 else "center" for end in ends]
    names = {"text": [f"<b>{_text(name)}</b>" for *_, name in front], "textposition": [f"top {at}" for at in aside]}
    font = {"size": 12, "color": "var(--ink)"}
    figure.add_scatter(mode="markers+text", marker=ring, name="on the front", textfont=font, **places, **names)


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
    return 10.0**floor, _axis(title, type="log", tickvals=list(ticks), ticktext=list(ticks.values()), range=span)


def _kept(layer: Layer, runs: int) -> str:
    said = f"{words.density(layer.density)} kept"
    return f"{said}; nothing in {layer.collapsed} of {runs} runs" if layer.collapsed else said


def layer_lines(field: Field, asked: float, methods: Sequence[str]) -> Any:
    """Mean density of each layer, a line a method; a layer that a run keeps nothing of is a cross."""
    rows = {row.method: row for row in field.rows.get(asked, ()) if row.layers}
    names = list(dict.fromkeys(layer.name for row in rows.values() for layer in row.layers))
    if not names:
        return None
    low = min((layer.density for row in rows.values() for layer in row.layers if layer.density > 0), default=asked)
    floor, every = math.floor(4 * math.log10(low) - 1) / 4, math.ceil(len(names) / 40)
    axis: dict[str, Any] = {
        "tickvals": list(range(0, len(names), every)),
        "ticktext": [_short(n) for n in names[::every]],
    }
    figure = _figure(
        520,
        showlegend=False,
        hovermode="closest",
        xaxis=_axis("layers, input to output", tickangle=-60, range=[-0.5, len(names) - 0.5], **axis),
        yaxis=_density_axis("density of the layer", [10**floor, 1], range=[floor, 0.08]),
    )
    for place, method in enumerate(methods):
        if method not in rows:
            continue
        look, own = style(place), {layer.name: layer for layer in rows[method].layers}
        kept = [own[name].density for name in names if name in own]
        whole = [not own[name].collapsed for name in names if name in own]
        figure.add_scatter(
            x=[i for i, name in enumerate(names) if name in own],
            y=[max(v, 10**floor) for v in kept],
            name=_text(method),
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
                f"<b>{_text(method)}</b><br>{_text(name)}<br>{_kept(own[name], len(rows[method].runs))}"
                for name in names
                if name in own
            ],
            hovertemplate="%{text}<extra></extra>",
        )
    _mark(figure, asked, "var(--muted)", "dot", axis="y")
    return figure
