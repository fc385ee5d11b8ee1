"""The command of a data diet: `gemminer score`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from gemminer.reporting.flags import (
    OUT,
    Place,
    RecipeFields,
    RecipeName,
    Threads,
    Voice,
    print_json,
    set_threads,
    spread,
)
from gemminer.runs import recipe as recipes
from gemminer.runs.recipe import Recipe

ForScore = Annotated[dict[str, Any], RecipeFields("score", Recipe.model_construct)]


def mount(app: typer.Typer) -> None:
    """Add it to the command line."""
    app.command()(spread(score))


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
