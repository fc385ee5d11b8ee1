"""Records -> one HTML page: the result, in the order of a reader's questions. It reads files only, never a model.

One page is one file: plotly's script (its basic bundle, in templates) is inside and a Content-Security-Policy forbids
every request. `_run_page` (one run) and `_runs_page` (many) choose what goes on a page, `run_charts` and
`comparison_charts` draw, `aggregate` and `sentences` judge many runs, `render` turns it into HTML.
"""

from __future__ import annotations

import base64
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jinja2
from markupsafe import Markup

from gemminer.core import left_dense
from gemminer.core.errors import GemminerError, UsageError
from gemminer.core.files import as_path, read_json, read_rows, save_text
from gemminer.core.numbers import shown
from gemminer.core.ownership import refuse_foreign
from gemminer.reporting import aggregate, comparison_charts, run_charts, sentences, tables
from gemminer.reporting.axes import Figure, to_json
from gemminer.reporting.format import checked, deviation, epochs, is_share
from gemminer.reporting.format import density as _density
from gemminer.reporting.format import duration as _seconds
from gemminer.reporting.format import flops as _flops
from gemminer.reporting.format import number as _number
from gemminer.reporting.format import value as _value
from gemminer.runs import record
from gemminer.runs.archive import Archive
from gemminer.runs.record import Record

TEMPLATES = Path(__file__).parent / "templates"
PLOTLY = TEMPLATES / "plotly-basic.min.js"
_ABSENT = "no record: it has not run, or not finished"
_DAMAGE = (LookupError, TypeError, ValueError, ArithmeticError, AttributeError, jinja2.UndefinedError)


def write(run: Path | str) -> Path:
    """Write run/report.html from run/record.json and run/metrics.jsonl; return its path.

    Raises GemminerError if the record is missing, damaged or not gemminer's.

    >>> write(Path("runs/gem"))  # doctest: +SKIP
    PosixPath('runs/gem/report.html')
    """
    return report([run])


def report(
    runs: Path | str | Sequence[Path | str],
    out: Path | str | None = None,
    *,
    failed: Mapping[str, str] | None = None,
    table_files: Mapping[str, str] | None = None,
) -> Path:
    """Write one page for one or many run folders, and return its path. The file is replaced whole.

    One run gives its full page. Many give a comparison, with the same in numbers beside it (.csv, .md); a run that
    cannot be read is listed there with the reason. The folder of `gemminer.smallest` has a page already, which stays.

    Args:
        runs: folders of runs, or their record.json files; or one of them.
        out: a file or an existing folder; by default report.html in the run's folder, or in the folder that holds
            all of the runs.
        failed: runs to list as failed, a reason by name.
        table_files: tables to link to instead of writing some, a file by label: {"CSV": "table.csv"}.

    Raises:
        UsageError: there are no runs.
        GemminerError: no record can be read.

    >>> report(["runs/a", "runs/b"], out="both.html")  # doctest: +SKIP
    PosixPath('both.html')
    """
    runs = [runs] if isinstance(runs, (str, os.PathLike)) else runs
    if not isinstance(runs, Iterable):
        raise UsageError(f"a report is of run folders, not of {shown(runs)}")
    runs = [as_path("a run's folder", run) for run in runs]
    if not runs:
        raise UsageError("a report needs at least one run: pass the folder that 'gemminer mine' wrote")
    paths = list(dict.fromkeys(_folder(run) for run in runs))
    if out is None and len(paths) == 1 and (paths[0] / "smallest.json").is_file():
        raise UsageError(f"{paths[0]} holds an answer of gemminer smallest, and its page: give out= for a run's")
    if out is None:
        out = Path(os.path.commonpath(paths)) / "report.html"
    out = as_path("out", out)
    target = out / "report.html" if out.is_dir() else out
    if len(paths) > 1 or failed:
        return _compare(paths, target, dict(failed or {}), table_files)
    found = record.read(paths[0] / "record.json")
    ticket = paths[0] / "ticket.safetensors"
    link = link_to(ticket, target.parent.absolute()) if ticket.is_file() else ""
    return _one(found, _epochs(paths[0] / "metrics.jsonl"), str(paths[0]), target, link)


def draw(found: Archive, target: Path, where: str, table_files: Mapping[str, str]) -> Path:
    """Write the page of a comparison from its file of records, as `report` does from its folder; returns its path.

    A comparison of one cell gives that run's own page, with its curves if the file has them. `where` names the file.
    """
    missing = {f"{where} ends": "its last cell was cut short, and is left out"} if found.torn else {}
    entries = {cell.digest: found.entries.get(cell.digest) for cell in found.cells()}
    if len(entries) == 1 and not missing and (only := next(iter(entries.values()))) and only.record:
        return _one(only.record, _by_phase(only.curves, where), where, target)
    runs: dict[Path, aggregate.Run] = {}
    for cell in found.cells():
        entry = entries[cell.digest]
        if entry is None:
            missing[cell.digest] = _ABSENT
        elif entry.record is None:
            missing[f"{cell} ({cell.digest})"] = f"failed: {entry.error}"
        else:
            try:
                runs[target.parent / "cells" / cell.digest] = aggregate.read(cell.digest, entry.record)
            except _DAMAGE as error:
                missing[cell.digest] = str(_damaged(where, error))
    if not runs:
        raise GemminerError(f"there is no record in {where} to draw: run its command again")
    return save(target, _runs_page(runs, aggregate.fields(runs.values()), missing, target, table_files))


def _one(found: Record, phases: run_charts.Phases, where: str, target: Path, ticket: str = "") -> Path:
    """The page of one run; `ticket` is a link to the ticket's file, if it is there."""
    try:
        page = _run_page(found, phases, _downloads(found, phases) | ({"ticket.safetensors": ticket} if ticket else {}))
    except _DAMAGE as error:
        raise _damaged(where, error) from None
    return save(target, page)


def _compare(paths: list[Path], target: Path, missing: dict[str, str], table_files: Mapping[str, str] | None) -> Path:
    """The page of many runs; also writes its CSV and Markdown unless `table_files` are given."""
    root = Path(os.path.commonpath(paths)) if len(paths) > 1 else paths[0].parent
    runs: dict[Path, aggregate.Run] = {}
    errors: list[GemminerError] = []
    for path in paths:
        name = os.path.relpath(path, root)
        try:
            runs[path] = aggregate.read(name, record.read(path / "record.json"))
        except (GemminerError, *_DAMAGE) as error:
            errors.append(error if isinstance(error, GemminerError) else _damaged(str(path), error))
            missing.setdefault(*_missing(path, name, errors[-1]))
    if not runs:
        raise errors[0]
    fields = aggregate.fields(runs.values())
    if table_files is None:
        refuse_foreign([target, target.with_suffix(".csv"), target.with_suffix(".md")])
        save(target.with_suffix(".csv"), tables.fields_csv(fields))
        save(target.with_suffix(".md"), tables.fields_markdown(fields, missing))
        table_files = {"CSV": f"{target.stem}.csv", "Markdown": f"{target.stem}.md"}
    page = _runs_page(runs, fields, missing, target, table_files)
    return save(target, page)


def _missing(path: Path, name: str, error: GemminerError) -> tuple[str, str]:
    """A run without a usable record: its name and the reason, as `compare` leaves both in error.json."""
    if (path / "record.json").exists():
        return name, str(error).replace(f"{path}{os.sep}", "")
    try:
        said = read_json((path / "error.json").read_text(encoding="utf-8"))
        return f"{said['cell']} ({name})", f"failed: {said['error']}"
    except (OSError, LookupError, TypeError, ValueError):
        return name, _ABSENT


def _folder(run: Path | str) -> Path:
    """A run's folder, given it or its record.json."""
    path = Path(run)
    return (path.parent if path.is_file() else path).absolute()


def _damaged(where: str, error: Exception) -> GemminerError:
    what = f"{type(error).__name__}: {error}"
    return GemminerError(f"the record in {where} is damaged ({what}): run its command again")


def _epochs(file: Path) -> run_charts.Phases:
    """The rows of metrics.jsonl by phase."""
    return _by_phase(read_rows(file), str(file))


def _by_phase(rows: Iterable[Any], where: str) -> run_charts.Phases:
    """The rows of epochs by phase, in order; if an epoch was written again after a resume, the last counts."""
    phases: dict[str, dict[int, dict[str, Any]]] = {}
    for row in rows:
        if not isinstance(row, dict) or not isinstance(row.get("epoch"), int):
            raise GemminerError(f"{where} is damaged (a row without an epoch): run its command again")
        phases.setdefault(str(row.get("phase")), {})[row["epoch"]] = row
    return {name: [rows[epoch] for epoch in sorted(rows)] for name, rows in phases.items()}


# ---- the contents of a page ----


def _verdicts(found: Record) -> dict[str, list[str]]:
    """Check names by verdict."""
    names: dict[str, list[str]] = {"pass": [], "fail": [], "not decided": []}
    for name, check in found.checks.items():
        names[check.verdict].append(name)
    return names


def _costs(found: Record) -> dict[str, dict[str, float | None]]:
    """The record's costs and, last, their sum: a sum with an unknown part is unknown."""
    rows = {name: {key: _number(getattr(cost, key)) for key in aggregate.MEASURES} for name, cost in found.cost.items()}
    total: dict[str, float | None] = {}
    for key in aggregate.MEASURES:
        known = [x for row in rows.values() if (x := row[key]) is not None]
        total[key] = sum(known) if rows and len(known) == len(rows) else None
    return rows | {"together": total}


def _headline(found: Record) -> str:
    """The whole result in one sentence."""
    metric, accuracy = found.metric, found.accuracy
    share, density = is_share(metric), _density(found.density.realised)
    said: list[str] = []
    first = aggregate.before(found)  # of weights that have been trained k steps it says nothing of a gem
    for result, ending in ((first, "before any weight is trained"), (accuracy.after, "after training")):
        if _number(result) is not None:
            value = _value(result, metric)
            full = f"{value} accurate" if share else f"{metric} {value}"
            said.append(f"{value if said else full} {ending}")
    parts = [", ".join(said) or "not evaluated"]
    if _number(accuracy.dense) is not None:
        parts.append(f"dense {_value(accuracy.dense, metric)}")
    if found.checks:
        parts.append(checked({name: check.verdict for name, check in found.checks.items()}))
    article = "An" if re.match(r"8|1[18](\D|$)", density) else "A"
    return f"{article} {density} ticket: {'; '.join(parts)}"


# ---- pages ----


def _downloads(found: Record, phases: run_charts.Phases) -> dict[str, str]:
    """The record and the epochs' rows by file name, as links that hold them: a page that is sent on has them still."""
    rows = "".join(json.dumps(row) + "\n" for phase in phases.values() for row in phase)
    files = {"record.json": ("application/json", found.to_json()), "metrics.jsonl": ("application/jsonl", rows)}
    return {
        name: f"data:{kind};base64,{base64.b64encode(text.encode()).decode()}"
        for name, (kind, text) in files.items()
        if text
    }


def link_to(file: Path, folder: Path) -> str:
    return quote(os.fsencode(os.path.relpath(file, folder)))


def _run_page(found: Record, phases: run_charts.Phases, downloads: Mapping[str, str]) -> str:
    drawn = {"search": run_charts.search(found, phases), "training": run_charts.training(found, phases)}
    drawn |= {"checks": run_charts.checks(found), "layers": run_charts.layers(found)}
    drawn |= {"examples": run_charts.examples(found), "removable": run_charts.removable(found)}
    gone = [layer.name for layer in found.removable if layer.removed]
    removed = {layer.name for layer in found.layers if layer.name.startswith(tuple(f"{name}." for name in gone))}
    own = [layer for layer in found.layers if layer.name not in removed]
    context = {
        "gone": gone,
        "removed": removed,
        "headline": _headline(found),
        "r": found,
        "downloads": downloads,
        "share": is_share(found.metric),
        "verdicts": _verdicts(found),
        "costs": _costs(found),
        "about": run_charts.about(),
        "searched_by": run_charts.progress(found, phases.get("search", []))[1],
        "freezes": run_charts.freezes(phases),
        "dense_trained": any(phase.partition(":")[0] == "dense" for phase in phases),
        "marks": run_charts.MARKS,
        "collapsed": [layer.name for layer in own if layer.kept == 0],
        "dead": sum(layer.dead_filters for layer in own),
        "filters": sum(layer.filters for layer in own),
        "left_dense": left_dense.groups(found.left_dense),
        "dense_share": left_dense.share(found.left_dense, sum(layer.prunable for layer in found.layers)),
    }
    title = f"{found.method}: {found.model} on {found.data}"
    return render("run.html.j2", title, drawn, context)


def _runs_page(
    runs: Mapping[Path, aggregate.Run],
    fields: list[aggregate.Field],
    missing: Mapping[str, str],
    target: Path,
    table_files: Mapping[str, str],
) -> str:
    methods = aggregate.methods(fields)
    densities = sorted({asked for field in fields for asked in field.rows}, reverse=True)
    names = dict.fromkeys(check for f in fields for rows in f.rows.values() for row in rows for check in row.checks)
    known = [name for name in run_charts.about() if name in names]
    of = (row for field in fields for rows in field.rows.values() for row in rows)
    labels = {run.name: row.method for row in of for run in row.runs}
    context = {
        "headline": sentences.summary(fields),
        "headlines": [sentences.headline(field) for field in fields],
        "leads": [sentences.lead_beyond_chance(field) for field in fields],
        "answers": [[sentences.answer(field, asked) for asked in field.rows] for field in fields],
        "fields": fields,
        "densities": densities,
        "methods": methods,
        "styles": [comparison_charts.style(place) for place in range(len(methods))],
        "measures": {measure: title for measure, (title, _) in comparison_charts.UNITS.items()},
        "checks": [*known, *(name for name in names if name not in known)],
        "about": run_charts.about(),
        "missing": missing,
        "rows": [
            _table_row(path, run, labels.get(run.name, run.record.method), target.parent.absolute())
            for path, run in runs.items()
        ],
        "beside": table_files,
    }
    drawn = dict(_many_charts(fields, densities, methods))
    return render("runs.html.j2", f"{len(runs)} runs side by side", drawn, context)


def _many_charts(
    fields: list[aggregate.Field], densities: list[float], methods: list[str]
) -> Iterator[tuple[str, Figure | None]]:
    """Each chart by the choices it stands for: kind/field/density/measure, as `data-figure` spells them."""
    for i, field in enumerate(fields):
        yield f"after/{i}", comparison_charts.accuracy(field, "after", methods)
        yield f"before/{i}", comparison_charts.accuracy(field, "before", methods)
        for j, asked in enumerate(densities):
            yield f"layers/{i}/{j}", comparison_charts.layer_lines(field, asked, methods)
            for measure in comparison_charts.UNITS:
                yield f"cost/{i}/{j}/{measure}", comparison_charts.cost(field, asked, measure, methods)


def _table_row(path: Path, run: aggregate.Run, label: str, folder: Path) -> dict[str, Any]:
    page, found = path / "report.html", run.record
    link = link_to(page, folder) if page.is_file() else ""
    single = all(len(check.values) == 1 for check in found.checks.values())
    extra = {"verdicts": _verdicts(found), "cost": _costs(found)["together"], "single": single}
    extra["before"] = aggregate.before(found)
    return {"r": found, "name": run.name, "label": label, "link": link} | extra


def render(template: str, title: str, drawn: Mapping[str, Figure | None], context: Mapping[str, Any]) -> str:
    """A page: the template with its values escaped, plotly's script and the charts' data once each."""
    env = jinja2.Environment(loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True, trim_blocks=True)
    env.filters |= {"value": _value, "density": _density, "flops": _flops, "duration": _seconds}
    env.filters |= {"deviation": deviation, "epochs": epochs, "spread": sentences.spread}
    env.filters |= {"difference": tables.difference}
    figures = {name: to_json(figure) for name, figure in drawn.items() if figure is not None}
    data = ",".join(f"{json.dumps(name)}:{figure}" for name, figure in figures.items())
    for char in "<>&":  # nothing inside the JSON can end the script element it stands in
        data = data.replace(char, f"\\u{ord(char):04x}")
    scripts = {"plotly": Markup(PLOTLY.read_text(encoding="utf-8")), "figures": Markup("{" + data + "}")}
    return env.get_template(template).render(title=title, charts=drawn, **scripts, **context)


def save(target: Path, text: str) -> Path:
    """Write whole and in one step: a reader sees the old page or the new one, never half."""
    if not target.parent.is_dir():  # a path that was mistyped, where a run makes its own folder
        raise GemminerError(f"cannot write {target} (there is no such folder): choose another place")
    refuse_foreign([target])
    return save_text(target, text)
