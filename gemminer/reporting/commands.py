"""The commands that show what there is: a ticket's layers, the methods, networks, data sets and recipes."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from gemminer.core.errors import UsageError
from gemminer.reporting.flags import (
    OUT,
    Json,
    TicketFile,
    brackets,
    completion,
    flag_of,
    print_json,
    range_of,
    sentence,
)
from gemminer.reporting.options import Option, of_dataclass, of_model
from gemminer.reporting.terminal import print_aside, print_list, print_overlap, print_ticket
from gemminer.runs import asked
from gemminer.runs import recipe as recipes
from gemminer.runs.recipe import Recipe


def _named(kind: str, module: str) -> Any:
    """The argument NAME of a list."""
    return typer.Argument(help=f"Show this {kind} alone.", autocompletion=completion(module))


def mount(app: typer.Typer) -> None:
    """Add them to the command line."""
    app.command()(inspect)
    app.command()(methods)
    app.command()(models)
    app.command("data")(data_sets)
    app.command()(checks)
    app.command("recipes")(named_recipes)


Other = Annotated[Path | None, typer.Argument(help="Another ticket or run: what the two have in common.")]


def inspect(ticket: TicketFile, other: Other = None, as_json: Json = False) -> None:
    """Print what a ticket keeps by layer, or what two share."""
    from gemminer.core.ticket import Ticket

    found = Ticket.load(asked.ticket_of(ticket))
    if other is not None:
        rows = found.overlap(Ticket.load(asked.ticket_of(other)))
        if as_json:
            derived = ("jaccard", "by_chance")
            print_json({"layers": [dataclasses.asdict(r) | {n: getattr(r, n) for n in derived} for r in rows]})
        else:
            print_overlap(OUT, rows)
        return
    if not as_json:
        print_ticket(OUT, found)
        return
    whole: dict[str, Any] = {"kept": found.kept, "prunable": found.prunable, "density": found.density}
    whole |= {"digest": found.digest, "removed": list(found.removed)}
    layers = [dataclasses.asdict(layer) for layer in found.per_layer()]
    draw = dataclasses.asdict(found.draw) if found.draw else None
    dense = [dataclasses.asdict(one) for one in found.left_dense]
    print_json({**whole, "layers": layers, "left_dense": dense, "draw": draw, "provenance": found.provenance})


def methods(
    name: Annotated[str | None, _named("method", "gemminer.methods")] = None,
    as_json: Json = False,
) -> None:
    """List the pruning methods, or one method's options."""
    from gemminer import methods as registry

    if name is not None:
        m = registry.get(name)
        return _show(
            m.name, f"{m.summary} ({m.source})", of_dataclass(m.options), "Options, given as -o NAME=VALUE:", as_json
        )
    rows = []
    for m in map(registry.get, registry.names()):
        options = of_dataclass(m.options)
        row: dict[str, Any] = {"name": m.name, "summary": m.summary, "source": m.source, "initialiser": m.initialiser}
        row |= {"options": {o.name: o.default for o in options}}
        rows.append({**row, "choices": {o.name: list(o.choices) for o in options if o.choices}})
    return _list(rows, ["name", "summary", "source"], as_json)


def models(
    name: Annotated[str | None, _named("network", "gemminer.models")] = None,
    as_json: Json = False,
) -> None:
    """List the networks, or one network's options.

    Of elsewhere too: timm:NAME, torchvision:NAME, hf:NAME and package.module:Net, which is imported.
    """
    from gemminer import models as library
    from gemminer.core import left_dense
    from gemminer.core.prunable import find_prunable

    if name is None:
        rows = [{"name": n, "description": library.describe(n)} for n in library.names()]
        return _list(rows, ["name", "description"], as_json)
    about = library.describe(name).partition("; options: ")[0]
    if not as_json:
        try:
            found = find_prunable(library.build(name))
        except UsageError as error:  # one of elsewhere may need options, or other images
            about = f"{about}\nnot made with the defaults: {error}"
        else:
            total = sum(p.numel() for p in found.weights.values())
            prunable = f"{total:,} prunable weights in {len(found.weights)} layers, with the defaults"
            about = "\n".join([about, prunable, *left_dense.lines(found.left, total)])
    return _show(name, about, of_model(name), "Options, given as --model-option NAME=VALUE:", as_json)


def data_sets(
    name: Annotated[str | None, _named("data set", "gemminer.data")] = None,
    as_json: Json = False,
) -> None:
    """List the data sets, or what can be chosen of one."""
    from gemminer import data as library

    if name is None:
        rows = [{"name": n, "description": library.describe(n)} for n in library.names()]
        return _list(rows, ["name", "description"], as_json)
    from gemminer.data.readers import find_source, is_function

    def option(name: str, default: Any) -> Option:
        field = Recipe.model_fields[name]
        about, unset = sentence(field.description or name), flag_of(field).unset
        return Option(f"--{name.replace('_', '-')}", default, range_of(field), about, unset=unset)

    own = "none" if is_function(name) else find_source(name)[0].augment
    fields = [option("augment", own), option("validation", Recipe().validation), option("limit_train", None)]
    return _show(name, library.describe(name), fields, "Flags that change what is taken of it:", as_json)


def checks(as_json: Json = False) -> None:
    """List the sanity checks: what each destroys in a ticket."""
    from gemminer.runs import checks as registry

    rows = [{"name": c.name, "sentence": c.sentence} for c in map(registry.get, registry.names())]
    return _list(rows, ["name", "sentence"], as_json)


def named_recipes(
    name: Annotated[str | None, _named("recipe", "gemminer.runs.recipe")] = None,
    as_json: Json = False,
) -> None:
    """List the named recipes, or print one as JSON (a file that --recipe takes)."""
    if name is not None:
        fields = recipes.load(name).model_dump(mode="json", exclude_defaults=True)
        return typer.echo(json.dumps(fields, indent=None if as_json else 1))
    columns = ["method", "model", "data", "density", "epochs"]
    chosen = [(n, recipes.load(n)) for n in recipes.names()]
    rows = [{"name": n, **{column: getattr(r, column) for column in columns}} for n, r in chosen]
    return _list(rows, ["name", "method", "density", "epochs"], as_json)  # the name says the model and the data


def _list(rows: Sequence[dict[str, Any]], columns: Sequence[str], as_json: bool) -> None:
    """The rows in columns, or a JSON object each."""
    return print_json(*rows) if as_json else print_list(OUT, rows, columns)


def _show(name: str, about: str, options: Sequence[Option], head: str, as_json: bool) -> None:
    """What something is and its options, a row each below their head."""
    rows = [{"option": o.name, "default": o.default, "type": o.values, "sentence": o.sentence} for o in options]
    if as_json:
        return print_json(*rows)
    OUT.print(f"{name}: {about}\n\n{head}\n", markup=False, soft_wrap=True)
    return print_aside(OUT, [(o.name, f"{o.sentence}{brackets([o.said, o.values])}".strip()) for o in options])
