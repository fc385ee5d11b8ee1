"""Charts of one run: its search, its trainings, its checks and its layers."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from gemminer.reporting import format
from gemminer.reporting.axes import (
    Figure,
    add_bars,
    add_line,
    add_mark,
    add_scatter,
    add_shape,
    add_text,
    density_axis,
    escaped,
    metric_axis,
    new_figure,
    rows_axis,
)
from gemminer.runs import checks as sanity
from gemminer.runs.record import Record

Phases = Mapping[str, list[dict[str, Any]]]

MARKS = 30  # more freezes than this are shaded as a period: single lines would merge into a block


def about() -> dict[str, str]:
    """Sentences about what each check destroys, by its name."""
    return {name: sanity.get(name).sentence for name in sanity.names()}


def _colours(record: Record) -> dict[str, str]:
    """The colour of each name, the same on the whole page."""
    names = enumerate(dict.fromkeys((*sanity.names(), *record.checks)))
    return {"train": "var(--c0)", "dense": "var(--ink)"} | {name: f"var(--c{1 + i % 6})" for i, name in names}


def freezes(phases: Phases) -> dict[int, int]:
    """Number of freezes by epoch of the search, where there were any."""
    return {row["epoch"]: int(row["freezes"]) for row in phases.get("search", []) if row.get("freezes")}


def progress(record: Record, rows: Sequence[Mapping[str, Any]]) -> tuple[str, str, str]:
    """What epochs are judged by: its key in their rows, its name, and the metric that it is in ("" for a loss)."""
    if any(format.number(row.get("validation")) is not None for row in rows):
        return "validation", f"validation {record.metric}", record.metric
    return "loss", "training loss", ""


def search(record: Record, phases: Phases) -> Figure | None:
    """Validation accuracy above, else the loss, kept and live density below, over the epochs; freezes marked."""
    rows, frozen = phases.get("search"), freezes(phases)
    if not rows:
        return None
    asked = record.density.asked
    x = [row["epoch"] for row in rows]
    key, what, metric = progress(record, rows)
    values, kept, live = ([format.number(row.get(k)) for row in rows] for k in (key, "kept", "live"))
    figure = new_figure(
        520,
        hovermode="x unified",
        xaxis=metric_axis("epoch of the search", anchor="y2", hoverformat="d"),
        yaxis=metric_axis(what, metric, domain=[0.5, 1]),
        yaxis2=density_axis("density", [*kept, *live, asked], domain=[0, 0.43]),
    )
    add_line(figure, escaped(what), x, values, color="var(--c0)", width=2.5)
    add_line(figure, "kept: not frozen", x, kept, axis="y2", width=1.75, color="var(--ink)")
    add_line(figure, "live: kept and switched on", x, live, axis="y2", width=1.75, color="var(--c1)", dash="dash")
    add_mark(figure, asked, "var(--muted)", "dot", axis="y2")
    if sum(frozen.values()) > MARKS:  # the freezes of epoch e lie between e - 1 and e
        ends = {"x0": max(min(frozen) - 1, x[0]), "x1": max(frozen), "yref": "paper", "y0": 0, "y1": 1}
        add_shape(figure, type="rect", fillcolor="var(--shade)", line={"width": 0}, **ends)
    else:
        for epoch in frozen:
            add_mark(figure, epoch, "var(--mark)")
    return figure


def training(record: Record, phases: Phases) -> Figure | None:
    """Validation accuracy by epoch, else the loss: the ticket, the dense network and the checks, means over seeds."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for phase, rows in phases.items():
        if match := re.fullmatch(r"(train|dense|check:[^:]+)(:\d+)?", phase):
            groups.setdefault(match[1].removeprefix("check:"), []).extend(rows)
    if not groups:
        return None
    colours = _colours(record)
    key, what, metric = progress(record, [row for rows in groups.values() for row in rows])
    figure = new_figure(
        440,
        hovermode="x unified",
        legend={"traceorder": "reversed"},
        xaxis=metric_axis("epoch of training"),
        yaxis=metric_axis(what, metric),
    )
    first = [name for name in ("train", "dense") if name in groups]
    for name in reversed([*first, *(name for name in groups if name not in first)]):  # the last is on top
        values: dict[int, list[float]] = {}
        for row in groups[name]:
            if (y := format.number(row.get(key))) is not None:
                values.setdefault(row["epoch"], []).append(y)
        x, label = sorted(values), "ticket" if name == "train" else escaped(name)
        style = {"color": colours.get(name, "var(--muted)"), "dash": "dash" if name == "dense" else "solid"}
        means = [statistics.fmean(values[epoch]) for epoch in x]
        add_line(figure, label, x, means, width=3 if name == "train" else 1.75, **style)
    return figure


def layers(record: Record) -> Figure | None:
    """Density of each layer, in the network's order from top to bottom, on a log axis."""
    found, overall = record.layers, record.density.realised
    if not found:
        return None
    x = [layer.density for layer in found]
    low = math.log10(min((v for v in (*x, overall) if v > 0), default=0.001))
    floor = math.floor(4 * low - 1) / 4  # bars start at the axis' edge: leave the smallest a visible length
    figure = new_figure(
        (22 if len(x) <= 60 else 16) * len(x) + 70,
        bargap=0.25,
        showlegend=False,
        xaxis=density_axis("density: fraction of weights kept", [10**floor, 1], range=[floor, 0.5]),
        yaxis=rows_axis([layer.name for layer in found]),
    )
    hover = [
        f"<b>{escaped(layer.name)}</b><br>{layer.kept:,} of {layer.prunable:,} weights kept"
        f"<br>{layer.dead_filters if layer.filters else '?'} of {layer.filters or '?'} filters dead"
        for layer in found
    ]
    text = [f"{format.density(layer.density)} · {layer.kept:,}" for layer in found]
    font = {"size": 11, "color": ["var(--muted)" if v > 0 else "var(--fail)" for v in x]}
    fill = {"color": "var(--c0)", "line": {"color": "#E5ECF6", "width": 0.5}}
    look = {"marker": fill, "textposition": "outside", "textfont": font, "cliponaxis": False}
    bars = {"x": [max(v, 10**floor) for v in x], "y": list(range(len(x))), "orientation": "h"}
    add_bars(figure, text=text, hovertext=hover, hoverinfo="text", **bars, **look)
    add_mark(figure, overall, "var(--mark)")
    return figure


def removable(record: Record) -> Figure | None:
    """The score of each layer that could be removed, in the network's order; those removed in another colour."""
    found = [layer for layer in record.removable if math.isfinite(layer.score)]
    if not found:
        return None
    figure = new_figure(
        22 * len(found) + 90,
        bargap=0.25,
        barmode="overlay",
        xaxis=metric_axis(f"score: {escaped(str(record.options.get('criterion', '')))}"),
        yaxis=rows_axis([layer.name for layer in found]),
    )
    for name, gone, colour in (("stays", False, "var(--c0)"), ("removed", True, "var(--fail)")):
        rows = [place for place, layer in enumerate(found) if layer.removed is gone]
        x = [found[place].score for place in rows]
        hover = [f"<b>{escaped(found[place].name)}</b><br>{found[place].score:.4g}, {name}" for place in rows]
        bars = {"x": x, "y": rows, "orientation": "h", "marker": {"color": colour}}
        add_bars(figure, name=name, hovertext=hover, hoverinfo="text", **bars)
    return figure


def examples(record: Record) -> Figure | None:
    """How many examples have which score, and of them those that a pre-training was on."""
    found = (record.start.pretrain if record.start else {}).get("histogram")
    if not found:
        return None
    width = (found["high"] - found["low"]) / len(found["all"])
    x = [found["low"] + width * (i + 0.5) for i in range(len(found["all"]))]
    figure = new_figure(
        320,
        barmode="overlay",
        bargap=0.05,
        xaxis=metric_axis(f"score: {record.start.pretrain.get('kind') if record.start else ''}"),
        yaxis=metric_axis("examples"),
    )
    for name, key, look in (
        ("all examples", "all", {"color": "var(--muted)", "opacity": 0.35}),
        ("chosen", "chosen", {"color": "var(--c0)"}),
    ):
        add_bars(figure, name=name, x=x, y=found[key], width=width, marker=look)
    return figure


class _Result(NamedTuple):
    """The numbers drawn in the row of the ticket or of a check."""

    mean: float
    std: float | None
    n: int
    values: tuple[float, ...]


def checks(record: Record) -> Figure | None:
    """The ticket and each check after training: mean, standard deviation, seeds as points; dense a line."""
    metric, found, accuracy = record.metric, record.checks, record.accuracy
    after, dense, colours = format.number(accuracy.after), format.number(accuracy.dense), _colours(record)
    if not found or after is None:
        return None
    rows = {"train": _Result(after, accuracy.after_std, accuracy.n, accuracy.after_values)}
    rows |= {name: _Result(c.mean, c.std, c.n, c.values) for name, c in found.items()}
    figure = new_figure(
        40 * len(rows) + 80,
        showlegend=False,
        xaxis=metric_axis(f"test {metric} after training", metric),
        yaxis=rows_axis(["ticket", *found]),
    )
    for place, (name, row) in enumerate(rows.items()):
        std, colour = format.number(row.std), colours[name]
        points = {"size": 9, "opacity": 0.45, "color": colour}
        tick = {"size": 14, "symbol": "line-ns", "line": {"width": 3, "color": colour}}
        spread = {"array": [std or 0], "visible": bool(std), "color": colour, "thickness": 2}
        for x, look, said in (
            (list(row.values), {"marker": points}, "one seed"),
            ([row.mean], {"marker": tick, "error_x": spread}, f"mean, n = {row.n or 1}"),
        ):
            hover = f"%{{x}}<extra>{said}</extra>"
            add_scatter(figure, x=x, y=[place] * len(x), mode="markers", hovertemplate=hover, **look)
    _zoom(figure, rows, after, metric)
    add_mark(figure, after, "var(--c0)", "dot")
    if dense is not None:
        add_mark(figure, dense, "var(--ink)", "dash")
    return figure


def _zoom(figure: Figure, rows: Mapping[str, _Result], after: float, metric: str) -> None:
    """Leave a check that ends far from the others (`invert`, at chance) off the scale, with an arrow towards it.

    It is far if its distance to the ticket is over four times the checks' median.
    """
    gaps = {name: abs(row.mean - after) for name, row in rows.items() if name != "train"}
    far = [name for name, gap in gaps.items() if gap > 4 * statistics.median(gaps.values()) > 0]
    near = [row for name, row in rows.items() if name not in far]
    values = [x for row in near for x in (row.mean, *row.values)]
    pad = 0.12 * (max(values) - min(values))
    for name in far:
        value = format.value(rows[name].mean, metric)
        low = rows[name].mean < after
        place = {"x": 0.01 if low else 0.99, "xref": "paper", "xanchor": "left" if low else "right"}
        text = f"◀ {value}, off the scale" if low else f"off the scale, {value} ▶"
        add_text(figure, text, y=list(rows).index(name), **place)
        figure["layout"]["xaxis"]["range"] = [min(values) - pad, max(values) + pad]
