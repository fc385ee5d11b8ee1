"""Figures, axes, lines and text for all charts. Margins, fonts and grids are in report.js.j2.

A figure is the JSON that plotly.js draws: {"data": traces, "layout": axes, shapes, annotations and the rest}.

Colours are CSS variables (`var(--c0)`) that the page resolves whenever the reader's colour scheme changes.
"""

from __future__ import annotations

import html
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from gemminer.reporting import format

Figure = dict[str, Any]


def escaped(x: object) -> str:
    """Text escaped for Plotly, which reads some HTML: a name from a record must not become markup."""
    return html.escape(str(x))


def short_name(name: str) -> str:
    name = name.removesuffix(".weight")
    return escaped(name if len(name) <= 24 else f"{name[:9]}…{name[-14:]}")


def metric_axis(title: str, metric: str = "", **more: Any) -> dict[str, Any]:
    share = {"tickformat": "~%", "hoverformat": ".1%"} if format.is_share(metric) else {"hoverformat": ".4~g"}
    return {"title": {"text": escaped(title)}} | share | more


def density_axis(title: str, values: Sequence[float | None], **more: Any) -> dict[str, Any]:
    """A log axis that ticks whole decades, or 1-2-5 when the values span less than one and a half."""
    known = [v for v in values if v] or [1.0]
    dtick = "D2" if max(known) < 30 * min(known) else 1
    return metric_axis(title, type="log", tickformat="~%", hoverformat=".3~p", dtick=dtick, **more)


def rows_axis(names: Sequence[str]) -> dict[str, Any]:
    """Names from top to bottom at 0, 1, 2, ...: by place, for two layers may share a shortened name."""
    places = {"tickvals": list(range(len(names))), "ticktext": [short_name(name) for name in names]}
    return places | {"range": [len(names) - 0.45, -0.55], "showgrid": False, "ticks": ""}


def new_figure(height: int, **layout: Any) -> Figure:
    """An empty figure."""
    return {"data": [], "layout": {"height": height, **layout}}


def add_scatter(figure: Figure, **trace: Any) -> None:
    figure["data"].append({"type": "scatter", **trace})


def add_bars(figure: Figure, **trace: Any) -> None:
    figure["data"].append({"type": "bar", **trace})


def add_line(figure: Figure, name: str, x: list[int], y: list[Any], axis: str = "y", **style: Any) -> None:
    mode = "lines" if len(x) > 3 else "lines+markers"
    add_scatter(figure, x=x, y=y, name=name, mode=mode, yaxis=axis, line=style)


def add_shape(figure: Figure, **shape: Any) -> None:
    """A shape below the traces."""
    figure["layout"].setdefault("shapes", []).append({"layer": "below", **shape})


def add_mark(figure: Figure, at: float, colour: str, dash: str = "solid", axis: str = "x") -> None:
    """A line through the whole figure at a value of an axis."""
    ends = {f"{axis[0]}ref": axis, f"{axis[0]}0": at, f"{axis[0]}1": at}
    across = {"yref": "paper", "y0": 0, "y1": 1} if axis == "x" else {"xref": "paper", "x0": 0, "x1": 1}
    line = {"color": colour, "width": 1.25, "dash": dash}
    add_shape(figure, type="line", line=line, **ends, **across)


def add_text(figure: Figure, text: str, **place: Any) -> None:
    """An annotation without an arrow."""
    figure["layout"].setdefault("annotations", []).append({"text": text, "showarrow": False, **place})


def to_json(figure: Figure) -> str:
    """The figure as JSON; NaN and infinities become null."""
    return json.dumps(_finite(figure), allow_nan=False, separators=(",", ":"))


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _finite(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
