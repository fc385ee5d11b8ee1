"""Records -> one HTML page: what a run found, in the order a reader asks. Reads files only, never a model.

One page is one file: plotly's script is inside, a Content-Security-Policy forbids every request, and colours
are CSS variables (`var(--c0)`) that the page resolves again whenever the reader's colour scheme changes.
`_run_page` (one run) and `_runs_page` (many) choose what goes on a page; `_render` turns either into HTML.
"""

from __future__ import annotations

import html
import json
import math
import os
import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jinja2
import plotly.graph_objects as go
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from .errors import GemminerError, UsageError

SCHEMA = "gemminer.record/1"
_NEEDED = {"method": str, "model": str, "data": str, "density": dict, "accuracy": dict, "layers": list}
_ACCURACY = dict.fromkeys(("before", "after", "after_std", "after_values", "n", "dense"))
_CHECKS = {
    "shuffle": "the mask permuted inside each layer",
    "reinit": "the same mask, weights drawn anew from the same distribution",
    "invert": "the method's ranking turned upside down",
    "random": "a random mask, one draw over all layers",
    "uniform": "a random mask, the same density in each layer",
    "erk": "a random mask, layer densities by the Erdős-Rényi-kernel rule",
}
_MARKS = 30  # more freezes than this are shaded as a period: single lines would merge into a block


@dataclass(frozen=True)
class _Run:
    """What a run's folder holds: its record and its epochs by phase."""

    path: Path
    record: dict[str, Any]
    phases: dict[str, list[dict[str, Any]]]


def write(run: Path | str) -> Path:
    """Write run/report.html from run/record.json and run/metrics.jsonl; return its path.

    Raises GemminerError if the record is missing, damaged or not gemminer's.

    >>> write(Path("runs/gem"))  # doctest: +SKIP
    PosixPath('runs/gem/report.html')
    """
    return report([run])


def report(runs: Sequence[Path | str], out: Path | str | None = None) -> Path:
    """Write one page for one or many run folders, replaced whole and never half-written; return its path.

    One run gives its full page, by default run/report.html; many give a table and accuracy against density,
    by default report.html in the folder that holds them all. `out` is a file or an existing folder.
    Raises UsageError for no runs, GemminerError if a record is missing, damaged or not gemminer's.

    >>> report(["runs/a", "runs/b"], out="both.html")  # doctest: +SKIP
    PosixPath('both.html')
    """
    if not runs:
        raise UsageError("a report needs at least one run: pass the folder that 'gemminer mine' wrote")
    found = [_read(Path(run)) for run in runs]
    if out is None:
        out = Path(os.path.commonpath([run.path for run in found])) / "report.html"
    target = Path(out) / "report.html" if Path(out).is_dir() else Path(out)
    try:
        page = _run_page(found[0]) if len(found) == 1 else _runs_page(found, target.parent)
    except (LookupError, TypeError, ValueError, AttributeError, jinja2.UndefinedError) as error:
        where, what = ", ".join(str(r.path) for r in found), f"{type(error).__name__}: {error}"
        raise GemminerError(f"a record in {where} is damaged ({what}): run its command again") from error
    return _replace(target, page)


def _read(path: Path) -> _Run:
    """The run in a folder (or beside a record.json), checked as far as the page relies on it."""
    folder = (path.parent if path.is_file() else path).absolute()
    file = folder / "record.json"
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise GemminerError(f"cannot read {file} ({error.strerror}): pass a run's folder") from error
    except ValueError as error:
        raise GemminerError(f"{file} is damaged ({error}): run the command that made it again") from error
    schema = record.get("schema") if isinstance(record, dict) else None
    if not isinstance(schema, str) or not schema.startswith("gemminer.record/"):
        raise GemminerError(f"{file} is not a gemminer record: it has no 'schema' of the form {SCHEMA!r}")
    if schema != SCHEMA:
        raise GemminerError(f"{file} has schema {schema!r}, this gemminer reads {SCHEMA!r}: upgrade it")
    for key, kind in _NEEDED.items():
        if not isinstance(record.get(key), kind):
            raise GemminerError(f"{file} is damaged (no usable {key!r}): run the command that made it again")
    record |= {key: record.get(key) or {} for key in ("checks", "cost", "hardware")}
    record |= {"metric": record.get("metric") or "accuracy", "accuracy": _ACCURACY | record["accuracy"]}
    return _Run(folder, record, _epochs(folder / "metrics.jsonl"))


def _epochs(file: Path) -> dict[str, list[dict[str, Any]]]:
    """metrics.jsonl by phase and in order; of an epoch written again after a resume, the last counts."""
    phases: dict[str, dict[int, dict[str, Any]]] = {}
    lines = file.read_text(encoding="utf-8", errors="replace").splitlines() if file.is_file() else []
    for line in lines:
        try:
            row = json.loads(line)
        except ValueError:  # a line that a kill cut short; the resumed run wrote its epoch again
            continue
        if not isinstance(row, dict) or not isinstance(row.get("epoch"), int):
            raise GemminerError(f"{file} is damaged (a row without an epoch): run its command again")
        phases.setdefault(str(row.get("phase")), {})[row["epoch"]] = row
    return {name: [rows[epoch] for epoch in sorted(rows)] for name, rows in phases.items()}


# ---- numbers as people read them ----


def _number(x: Any) -> float | None:
    """x as a finite float, None if it is missing; a text where a number belongs is a damaged record."""
    return float(x) if x is not None and math.isfinite(float(x)) else None


def _is_share(metric: str) -> bool:
    return metric.lower().endswith("accuracy")


def _value(x: Any, metric: str, signed: bool = False) -> str:
    """A metric's value: accuracies in %, others in 4 digits; signed: a difference, accuracies in points."""
    number = _number(x)
    if number is None:
        return "–"
    sign = "+" if signed else ""
    text = f"{100 * number:{sign}.1f}{'' if signed else '%'}" if _is_share(metric) else f"{number:{sign}.4g}"
    return text.replace("-", "−")


def _density(x: Any) -> str:
    """A density in per cent, three digits: 0.005898 -> 0.59%."""
    number = _number(x)
    return "–" if number is None else f"{float(f'{100 * number:.3g}'):.10g}%"


def _flops(x: Any) -> str:
    number = _number(x)
    if number is None:
        return "–"
    power = min(int(math.log10(max(number, 1))) // 3, 6)
    return f"{number / 1000**power:.3g} {' kMGTPE'[power].strip()}FLOP"


def _seconds(x: Any) -> str:
    number = _number(x)
    if number is None or number < 100:
        return "–" if number is None else f"{number:.1f} s"
    minutes, seconds = divmod(round(number), 60)
    return f"{minutes} min {seconds:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def _verdicts(record: dict[str, Any]) -> dict[str, list[str]]:
    """Check names by verdict: pass, fail, and every other verdict as 'not decided'."""
    names: dict[str, list[str]] = {"pass": [], "fail": [], "not decided": []}
    for name, check in record["checks"].items():
        names.get(check.get("verdict"), names["not decided"]).append(name)
    return names


def _costs(record: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The record's costs and, last, their sum: a sum with an unknown part is unknown."""
    rows, total = dict(record["cost"]), {}
    for key in ("epochs", "seconds", "flops_dense", "flops_sparse"):
        parts = [_number(row.get(key)) for row in rows.values()]
        total[key] = sum(p for p in parts if p is not None) if parts and None not in parts else None
    return rows | {"together": total}


def _headline(record: dict[str, Any]) -> str:
    """The whole result in one sentence."""
    metric, accuracy, verdicts = record["metric"], record["accuracy"], _verdicts(record)
    share, density = _is_share(metric), _density(record["density"]["realised"])
    said: list[str] = []
    for key, ending in (("before", "before any weight is trained"), ("after", "after training")):
        if _number(accuracy.get(key)) is not None:
            value = _value(accuracy[key], metric)
            full = f"{value} accurate" if share else f"{metric} {value}"
            said.append(f"{value if said else full} {ending}")
    parts = [", ".join(said) or "not evaluated"]
    if _number(accuracy.get("dense")) is not None:
        parts.append(f"dense {_value(accuracy['dense'], metric)}")
    if record["checks"]:
        notes = [f"fails {', '.join(verdicts['fail'])}"] if verdicts["fail"] else []
        notes += [f"{', '.join(verdicts['not decided'])} not decided"] if verdicts["not decided"] else []
        tail = f" ({'; '.join(notes)})" if notes else ""
        parts.append(f"passes {len(verdicts['pass'])} of {len(record['checks'])} checks{tail}")
    article = "An" if re.match(r"8|1[18](\D|$)", density) else "A"
    return f"{article} {density} ticket: {'; '.join(parts)}"


# ---- charts: data and axes; margins, fonts and grids are in report.js.j2 ----


def _text(x: object) -> str:
    """Plotly reads text as a little HTML: a name from a record must not be markup there either."""
    return html.escape(str(x))


def _short(name: str) -> str:
    name = name.removesuffix(".weight")
    return _text(name if len(name) <= 24 else f"{name[:9]}…{name[-14:]}")


def _colours(record: dict[str, Any]) -> dict[str, str]:
    """One colour for a name on the whole page."""
    names = enumerate(dict.fromkeys((*_CHECKS, *record["checks"])))
    return {"train": "var(--c0)", "dense": "var(--ink)"} | {name: f"var(--c{1 + i % 6})" for i, name in names}


def _axis(title: str, metric: str = "", **more: Any) -> dict[str, Any]:
    share = {"tickformat": "~%", "hoverformat": ".1%"} if _is_share(metric) else {"hoverformat": ".4~g"}
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


def _freezes(run: _Run) -> dict[int, int]:
    """Number of freezes by epoch of the search, where there were any."""
    return {row["epoch"]: int(row["freezes"]) for row in run.phases.get("search", []) if row.get("freezes")}


def _search_chart(run: _Run) -> Any:
    """Validation accuracy above, kept and live density below, over the search's epochs; freezes marked."""
    rows, freezes, metric = run.phases.get("search"), _freezes(run), run.record["metric"]
    if not rows:
        return None
    asked = float(run.record["density"]["asked"])
    x = [row["epoch"] for row in rows]
    validation, kept, live = ([_number(row.get(k)) for row in rows] for k in ("validation", "kept", "live"))
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
    if sum(freezes.values()) > _MARKS:  # the freezes of epoch e lie between e - 1 and e
        ends = {"x0": max(min(freezes) - 1, x[0]), "x1": max(freezes), "yref": "paper", "y0": 0, "y1": 1}
        figure.add_shape(type="rect", layer="below", fillcolor="var(--shade)", line={"width": 0}, **ends)
    else:
        for epoch in freezes:
            _mark(figure, epoch, "var(--mark)")
    return figure


def _training_chart(run: _Run) -> Any:
    """Validation accuracy by epoch: the ticket, the dense network and the checks, means over seeds."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for phase, rows in run.phases.items():
        if match := re.fullmatch(r"(train|dense|check:[^:]+)(:\d+)?", phase):
            groups.setdefault(match[1].removeprefix("check:"), []).extend(rows)
    if not groups:
        return None
    metric, colours = run.record["metric"], _colours(run.record)
    measured = any(_number(row.get("validation")) is not None for rows in groups.values() for row in rows)
    key, what = ("validation", f"validation {metric}") if measured else ("loss", "training loss")
    figure = _figure(440, hovermode="x unified", legend={"traceorder": "reversed"})
    figure.update_layout(xaxis=_axis("epoch of training"), yaxis=_axis(what, metric if measured else ""))
    first = [name for name in ("train", "dense") if name in groups]
    for name in reversed([*first, *(name for name in groups if name not in first)]):  # the last is on top
        values: dict[int, list[float]] = {}
        for row in groups[name]:
            if (y := _number(row.get(key))) is not None:
                values.setdefault(row["epoch"], []).append(y)
        x, label = sorted(values), "ticket" if name == "train" else _text(name)
        style = {"color": colours.get(name, "var(--muted)"), "dash": "dash" if name == "dense" else "solid"}
        means = [statistics.fmean(values[epoch]) for epoch in x]
        _line(figure, label, x, means, width=3 if name == "train" else 1.75, **style)
    return figure


def _layers_chart(run: _Run) -> Any:
    """Density of each layer, in the network's order from top to bottom, on a log axis."""
    layers, overall = run.record["layers"], float(run.record["density"]["realised"])
    if not layers:
        return None
    x = [float(layer["density"]) for layer in layers]
    low = math.log10(min((v for v in (*x, overall) if v > 0), default=0.001))
    floor = math.floor(4 * low - 1) / 4  # bars start at the axis' edge: leave the smallest a visible length
    figure = _figure(
        (22 if len(x) <= 60 else 16) * len(x) + 70,
        bargap=0.25,
        showlegend=False,
        xaxis=_density_axis("density: fraction of weights kept", [10**floor, 1], range=[floor, 0.5]),
        yaxis=_rows_axis([str(layer["name"]) for layer in layers]),
    )
    hover = [
        f"<b>{_text(layer['name'])}</b><br>{layer['kept']:,} of {layer['prunable']:,} weights kept"
        f"<br>{_text(layer.get('dead_filters', '?'))} of {_text(layer.get('filters', '?'))} filters dead"
        for layer in layers
    ]
    text = [f"{_density(layer['density'])} · {layer['kept']:,}" for layer in layers]
    font = {"size": 11, "color": ["var(--muted)" if v > 0 else "var(--fail)" for v in x]}
    look = {"marker_color": "var(--c0)", "textposition": "outside", "textfont": font, "cliponaxis": False}
    bars = {"x": [max(v, 10**floor) for v in x], "y": list(range(len(x))), "orientation": "h"}
    figure.add_bar(text=text, hovertext=hover, hoverinfo="text", **bars, **look)
    _mark(figure, overall, "var(--mark)")
    return figure


def _checks_chart(run: _Run) -> Any:
    """The ticket and each check after training: mean, standard deviation, seeds as points; dense a line."""
    metric, checks, accuracy = run.record["metric"], run.record["checks"], run.record["accuracy"]
    after, dense, colours = _number(accuracy["after"]), _number(accuracy["dense"]), _colours(run.record)
    if not checks or after is None:
        return None
    ticket = {"mean": after} | {key: accuracy[f"after_{key}"] for key in ("std", "values")}
    rows: dict[str, dict[str, Any]] = {"train": ticket | {"n": accuracy["n"]}} | checks
    figure = _figure(
        40 * len(rows) + 80,
        showlegend=False,
        xaxis=_axis(f"test {metric} after training", metric),
        yaxis=_rows_axis(["ticket", *checks]),
    )
    for place, (name, row) in enumerate(rows.items()):
        seeds, std, colour = row.get("values") or [], _number(row["std"]), colours[name]
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
        value = _value(rows[name]["mean"], metric)
        low = rows[name]["mean"] < after
        place = {"x": 0.01 if low else 0.99, "xref": "paper", "xanchor": "left" if low else "right"}
        text = f"◀ {value}, off the scale" if low else f"off the scale, {value} ▶"
        figure.add_annotation(text=text, y=list(rows).index(name), showarrow=False, **place)
        figure.update_xaxes(range=[min(values) - pad, max(values) + pad])


def _scatter_chart(metric: str, records: list[dict[str, Any]]) -> Any:
    """Accuracy against density of runs, a colour a method: after training full, before it open."""
    densities = [float(record["density"]["realised"]) for record in records]
    figure = _figure(460, yaxis=_axis(f"test {metric}", metric))
    figure.update_layout(xaxis=_density_axis("density: fraction of weights kept", densities))
    for i, method in enumerate(dict.fromkeys(r["method"] for r in records)):
        for key, symbol in (("after", "circle"), ("before", "circle-open")):
            mine = [r for r in records if r["method"] == method and r["accuracy"][key] is not None]
            marker = {"size": 10, "color": f"var(--c{i % 7})", "symbol": symbol, "line": {"width": 2}}
            figure.add_scatter(
                x=[r["density"]["realised"] for r in mine],
                y=[r["accuracy"][key] for r in mine],
                mode="markers",
                name=_text(f"{method}, {key}"),
                marker=marker,
                text=[_text(f"{r['model']}, {r['data']}, seed {r.get('seed')}") for r in mine],
                hovertemplate="%{y} at density %{x}<br>%{text}",
            )
    return figure


# ---- pages ----


def _run_page(run: _Run) -> str:
    record, layers = run.record, run.record["layers"]
    drawn = {"search": _search_chart(run), "training": _training_chart(run)}
    drawn |= {"checks": _checks_chart(run), "layers": _layers_chart(run)}
    context = {
        "headline": _headline(record),
        "r": record,
        "share": _is_share(record["metric"]),
        "verdicts": _verdicts(record),
        "costs": _costs(record),
        "about": _CHECKS,
        "freezes": _freezes(run),
        "marks": _MARKS,
        "collapsed": [layer["name"] for layer in layers if int(layer["kept"]) == 0],
        "dead": sum(int(layer.get("dead_filters") or 0) for layer in layers),
        "filters": sum(int(layer.get("filters") or 0) for layer in layers),
    }
    title = f"{record['method']}: {record['model']} on {record['data']}"
    return _render("run.html.j2", title, drawn, context)


def _runs_page(runs: list[_Run], folder: Path) -> str:
    rows, groups = [], dict[str, list[dict[str, Any]]]()
    for run in runs:
        page = run.path / "report.html"
        link = quote(os.path.relpath(page, folder.absolute())) if page.is_file() else ""
        extra = {"verdicts": _verdicts(run.record), "cost": _costs(run.record)["together"]}
        rows.append({"r": run.record, "name": run.path.name, "link": link} | extra)
        groups.setdefault(run.record["metric"], []).append(run.record)
    charts = {f"scatter{i}": _scatter_chart(*group) for i, group in enumerate(groups.items())}
    title = f"{len(runs)} runs side by side"
    return _render("runs.html.j2", title, charts, {"headline": title, "rows": rows, "metrics": groups})


def _render(template: str, title: str, charts: dict[str, Any], context: dict[str, Any]) -> str:
    """A page: the template with its values escaped, plotly's script and the charts' data once each."""
    loader = jinja2.FileSystemLoader(Path(__file__).parent / "templates")
    env = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True)
    env.filters |= {"value": _value, "density": _density, "flops": _flops, "duration": _seconds}
    drawn = {name: figure.to_json() for name, figure in charts.items() if figure is not None}
    data = ",".join(f"{json.dumps(name)}:{figure}" for name, figure in drawn.items())
    for char in "<>&":  # nothing inside the JSON can end the script element it stands in
        data = data.replace(char, f"\\u{ord(char):04x}")
    scripts = {"plotly": Markup(get_plotlyjs()), "figures": Markup("{" + data + "}")}
    return env.get_template(template).render(title=title, charts=charts, **scripts, **context)


def _replace(target: Path, page: str) -> Path:
    """Write beside the target, then move over it: a reader sees the old page or the new one, never half."""
    half = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        half.write_text(page, encoding="utf-8")
        half.replace(target)
    except OSError as error:
        raise GemminerError(f"cannot write {target} ({error.strerror}): choose another place") from error
    finally:
        half.unlink(missing_ok=True)
    return target
