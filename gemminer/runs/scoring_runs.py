"""Scores of a recipe's training examples in a file: `gemminer score`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from gemminer.core.errors import UsageError
from gemminer.core.ownership import is_there, refuse_foreign
from gemminer.runs.diet import DENSE, scores_of
from gemminer.runs.execute import prepare
from gemminer.runs.recipe import ALONE, Recipe
from gemminer.training.checkpoint import Checkpoint, difference
from gemminer.training.scores import Scores
from gemminer.training.scoring import checked_kind


def score_recipe(
    recipe: Recipe, out: Path, kind: str, runs: int, epochs: int, noise: float = 0.0, **where: Any
) -> Scores:
    """Score the training examples of a recipe, and save the scores in the file `out`; `where` goes to `prepare`.

    Killed, the same call goes on from the networks that are done, which are in a file beside `out` until the end. A
    file that holds what is asked for is read, and nothing is computed.

    Raises UsageError where `out` holds something else.
    """
    checked_kind(kind, runs, epochs)
    refuse_foreign([out])
    bare = recipe.replace(method=DENSE, density=1.0).changed({"options": {}, "checks": (), **ALONE})
    prepared = prepare(bare, **where)
    experiment = prepared.experiment
    asked = {"kind": kind, "runs": str(runs), "epochs": str(epochs), "noise": f"{noise:g}", "recipe": bare.digest}
    if is_there(out):
        found = Scores.load(out)
        if differs := difference(asked, found.facts.get("asked", {})):
            raise UsageError(f"{out} holds other scores ({differs}): give another file with --out")
        return found
    checkpoint = Checkpoint(out.with_name(f"{out.name}.checkpoint"), every=0.0)
    found = scores_of(
        experiment.with_task(checkpoint=checkpoint), kind, runs, epochs, prepared.draw, dict(recipe.train), noise
    )
    found = dataclasses.replace(found, facts={**found.facts, "model": recipe.model, "asked": asked})
    found.save(out)
    checkpoint.clear()
    return found
