"""The commands of a data diet: `gemminer score` and `gemminer instability`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from gemminer.core.errors import UsageError
from gemminer.reporting.flags import (
    OUT,
    Place,
    RecipeFields,
    RecipeName,
    Threads,
    TicketFile,
    Voice,
    print_json,
    set_threads,
    several,
    spread,
)
from gemminer.runs import asked as asking
from gemminer.runs import recipe as recipes
from gemminer.runs.recipe import Recipe

ForScore = Annotated[dict[str, Any], RecipeFields("score", Recipe.model_construct)]


def mount(app: typer.Typer) -> None:
    """Add them to the command line."""
    app.command()(spread(score))
    app.command()(spread(instability))


def score(
    *,
    kind: Annotated[str, typer.Option("--kind", help="el2n, forgetting or loss.")] = "el2n",
    runs: Annotated[int, typer.Option("--runs", min=1, help="Networks that are trained to score with.")] = 10,
    epochs: Annotated[int, typer.Option("--epochs", help="Epochs before an example is scored.")] = 20,
    noise: Annotated[
        float, typer.Option("--noise", min=0, max=1, help="Fraction of labels drawn anew, as in --pretrain.")
    ] = 0.0,
    out: Annotated[Path | None, typer.Option("--out", help="The file. [runs/scores-...safetensors]")] = None,
    recipe: RecipeName = None,
    given: ForScore,
    place: Place,
    threads: Threads = None,
    voice: Voice,
) -> None:
    """Score how hard each training example is, for a pre-training on a few of them.

    The file is for --scores of mine and compare, with the same data, --validation and --limit-train. A killed command
    goes on with the network it was at.
    """
    from gemminer.runs.scoring_runs import score_recipe

    asked = (recipes.load(recipe) if recipe else Recipe()).changed(given)
    target = out or asked.folder.parent / f"scores-{kind}-{asked.replace(method='uniform').folder.name}.safetensors"
    set_threads(threads)
    with voice.monitor() as monitor:
        found = score_recipe(asked, target, kind, runs, epochs, noise, monitor=monitor, **place.where())
    if voice.as_json:
        about = {"kind": found.kind, "runs": found.runs, "epochs": found.epochs, "examples": found.each.shape[1]}
        print_json({**about, "cost": dict(found.cost), "checksum": found.checksum, "out": str(target)})
    else:
        passes = f"{found.cost['epochs']:g} epochs of training, {found.cost['seconds']:.0f} s"
        OUT.print(f"{found!r}, {passes}: {target}", markup=False, soft_wrap=True)


def instability(
    run: TicketFile,
    *,
    at: Annotated[
        list[str] | None,
        typer.Option("--at", metavar="<int,...>", help="Steps of the dense network, as 0,50,200; or repeated."),
    ] = None,
    ticket: Annotated[bool, typer.Option("--ticket/--no-ticket", help="Measure the ticket too.")] = True,
    pairs: Annotated[int, typer.Option("--pairs", min=1, help="Pairs of trainings from each.")] = 3,
    points: Annotated[int, typer.Option("--points", min=3, help="Points on the line.")] = 11,
    statistics: Annotated[
        str, typer.Option("--statistics", help="Of batch norm on the line: recalibrate or average.")
    ] = "recalibrate",
    out: Annotated[Path | None, typer.Option("--out", help="The folder. [instability, in the run's]")] = None,
    place: Place,
    threads: Threads = None,
    voice: Voice,
) -> None:
    """Measure whether a run's weights are stable: error along the line between two trainings from them.

    Two trainings begin with the same weights and see other orders of the data. Below a barrier of 2% they are stable.
    A killed command goes on with the training it was at.
    """
    from gemminer.reporting import instability_page
    from gemminer.runs.stability_runs import instability_of

    recipe, file = asking.of_ticket(run, {}), asking.ticket_of(run)
    steps = several(at) or []
    if not all(step.isdecimal() for step in steps):
        raise UsageError(f"--at takes steps, as 0,50,200, not {','.join(steps)}")
    if not steps and not ticket:
        raise UsageError("there is nothing to measure: give --at 0,200, or leave out --no-ticket")
    target = out or file.parent / "instability"
    set_threads(threads)
    with voice.monitor() as monitor:
        how = {"pairs": pairs, "points": points, "statistics": statistics, "monitor": monitor, **place.where()}
        found = instability_of(recipe, file if ticket else None, [int(step) for step in steps], target, **how)
    page = instability_page.write(target)
    if voice.as_json:
        print_json({"starts": [one.as_dict() for one in found], "out": str(target)})
    else:
        for one in found:
            OUT.print(str(one), markup=False, soft_wrap=True)
        OUT.print(str(page), markup=False, soft_wrap=True)
