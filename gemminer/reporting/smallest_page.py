"""smallest.json -> one HTML page: the answer, accuracy against density, size and latency, the files to ship."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from gemminer.reporting.axes import (
    Figure,
    add_mark,
    add_scatter,
    add_shape,
    add_text,
    density_axis,
    metric_axis,
    new_figure,
)
from gemminer.reporting.page import link_to, render, save
from gemminer.runs import answer, saying
from gemminer.runs.answer import Probe, Smallest


class _Axis(NamedTuple):
    """What accuracy is drawn against: its title, a probe's place on it (None: unknown), and a place in words."""

    title: str
    of: Callable[[Probe], float | None]
    said: Callable[[float], str]


AXES = {
    "density": _Axis("density: fraction of weights kept", lambda p: p.density, answer.percent),
    "size": _Axis("size of the program, in KB", lambda p: p.bytes and p.bytes / 1e3, lambda x: f"{x:.3g} KB"),
    "latency": _Axis("time of one example, in ms", lambda p: p.latency and 1e3 * p.latency, lambda x: f"{x:.3g} ms"),
}


def write(folder: Path | str) -> Path:
    """Write folder/report.html from folder/smallest.json; return its path.

    Raises GemminerError if that is missing, damaged or not gemminer's.
    """
    found = answer.read(folder)
    target = Path(folder) / "report.html"
    drawn = {name: figure(found, name) for name in AXES}
    chosen = next((probe for probe in found.probes if probe.chosen), None)
    asked = found.question
    context: dict[str, Any] = {
        "headline": found.sentence,
        "a": found,
        "chosen": chosen,
        "asked": saying.allowed(asked, found.metric) if asked.within is not None else "",
        "limit": answer.in_bytes(asked.size) if asked.size else "",
        "links": {name: link_to(target.parent / name, target.parent) for name in found.files},
        "ladder": ", ".join(map(answer.percent, found.ladder)),
        "points": ", points" if answer.is_share(found.metric) else "",
        "size": answer.in_bytes,
        "far": lambda x: "–" if x is None else answer.difference(x, found.metric),
        "percent": answer.percent,
        "time": lambda x: answer.milliseconds(x) or "–",
        "plus": lambda x: f"± {answer.deviation(x.std or 0.0, found.metric)}" if len(x.values) > 1 else "",
        "number": lambda x: answer.value(x.mean or 0.0, found.metric),
    }
    title = f"The smallest ticket: {found.method}, {found.model} on {found.data}"
    return save(target, render("smallest.html.j2", title, drawn, context))


def figure(found: Smallest, name: str) -> Figure | None:
    """Validation metric against density, size or latency: means, single seeds, the dense network, what may be lost."""
    axis = AXES[name]
    placed = [(x, probe) for probe in found.probes if (x := axis.of(probe)) is not None]
    if not placed:
        return None
    metric, dense = found.metric, found.dense.mean or 0.0
    asked = found.question.within
    look = density_axis(axis.title, [x for x, _ in placed])
    if name != "density":
        look |= {"tickformat": "~g", "hoverformat": ".3~g"}
    drawn = new_figure(
        430 if name == "density" else 330,
        showlegend=False,
        xaxis=look,
        yaxis=metric_axis(f"validation {metric}", metric, **_range(found)),
    )
    if asked is not None:
        ends = {"xref": "paper", "x0": 0, "x1": 1, "y0": dense - found.question.margin(metric), "y1": dense}
        add_shape(drawn, type="rect", fillcolor="var(--shade)", line={"width": 0}, **ends)
    add_mark(drawn, dense, "var(--ink)", "dash", axis="y")
    if name == "density":
        place = {"x": 0, "xref": "paper", "xanchor": "left", "y": dense, "yanchor": "bottom"}
        add_text(drawn, f"dense {found.spread(found.dense)}", **place)
    _points(drawn, found, placed, axis)
    return drawn


def _points(drawn: Figure, found: Smallest, placed: list[tuple[float, Probe]], axis: _Axis) -> None:
    every = [(x, y) for x, probe in placed for y in probe.validation.values]
    single = {"size": 8, "opacity": 0.45, "color": "var(--c0)"}
    seeds = {"marker": single, "hovertemplate": "%{y}<extra>one seed</extra>", "mode": "markers"}
    add_scatter(drawn, x=[x for x, _ in every], y=[y for _, y in every], **seeds)
    said = [
        f"<b>{answer.percent(probe.density)}</b>, {axis.said(x)}<br>{found.spread(probe.validation)}"
        f"<br>against dense {answer.difference(probe.difference, found.metric)}<br>{probe.verdict}"
        for x, probe in placed
    ]
    size = [13 if probe.chosen else 8 for _, probe in placed]
    symbol = ["circle" if len(probe.validation.values) > 1 else "circle-open" for _, probe in placed]
    means = {"x": [x for x, _ in placed], "y": [probe.validation.mean for _, probe in placed]}
    # Times are measured: two that are equal but for chance would be joined by a zigzag.
    look = {
        "line": {"color": "var(--c0)", "width": 1.75},
        "mode": "markers" if axis is AXES["latency"] else "lines+markers",
    }
    marker = {"size": size, "symbol": symbol, "color": "var(--c0)"}
    add_scatter(drawn, **means, **look, marker=marker, text=said, hovertemplate="%{text}<extra></extra>")


def _range(found: Smallest) -> dict[str, Any]:
    """The values near what may be lost: a density far below it is off the scale."""
    dense, margin = found.dense.mean or 0.0, found.question.margin(found.metric)
    means = [probe.validation.mean or 0.0 for probe in found.probes]
    spread = max(6 * margin, 3 * (found.dense.std or 0.0))
    near = [y for y in means if y >= dense - spread] if spread else means
    values = [y for p in found.probes if (p.validation.mean or 0.0) in near for y in p.validation.values]
    ends = [*values, *found.dense.values, dense - margin]
    pad = 0.08 * (max(ends) - min(ends)) or 0.01
    return {"range": [min(ends) - pad, max(ends) + pad]} if len(near) < len(means) else {}
