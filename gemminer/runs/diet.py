"""A data diet: the scores of a recipe's or a user's training examples, network by network."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from gemminer import methods
from gemminer.core.draw import Draw
from gemminer.core.errors import UsageError
from gemminer.core.model_state import gradients
from gemminer.core.names import unwrapped
from gemminer.core.ownership import is_there, refuse_foreign
from gemminer.core.randomness import mixed
from gemminer.data.picked import described
from gemminer.runs import identity
from gemminer.runs.execute import prepare
from gemminer.runs.experiment import Experiment
from gemminer.runs.recipe import Recipe
from gemminer.runs.settings import draw_of, options_of
from gemminer.training.checkpoint import Checkpoint, difference
from gemminer.training.scores import Scores
from gemminer.training.scoring import checked_kind, classes_for, scored_once
from gemminer.training.settings import Settings

DENSE = "uniform"  # the method whose tickets of density 1 are dense networks: theirs is the draw of a scoring network


def dense_draw(initialiser: str | None, seed: int) -> Draw | None:
    """The initial weights of a dense network."""
    return draw_of(initialiser, methods.get(DENSE), 1.0, seed)


@gradients()
def scores_of(
    experiment: Experiment, kind: str, runs: int, epochs: int, draw: Draw | None, given: Mapping[str, Any]
) -> Scores:
    """The scores of the experiment's training examples by `runs` networks.

    The task's checkpoint, if it has one, keeps every network that is done, so that a killed scoring goes on with the
    one it was at.

    Args:
        draw: of the networks' weights, each with a seed of its own; None takes the model's own for all.
        given: settings of their training, at a constant rate unless they say otherwise.
    """
    checked_kind(kind, runs, epochs)
    task = experiment.task
    if task.ranks is not None:
        raise UsageError("scores are computed by one process: call it without distributed, and give the file to all")
    settings = options_of(Settings, {"schedule": "constant", **given, "epochs": epochs}, "training")
    data, classes = described(task.train), classes_for(task, kind)
    done: list[dict[str, Any]] = []
    with experiment.claimed(identity.of_scores, kind, settings, experiment.seed, draw):
        if task.checkpoint is not None and (state := task.checkpoint.load()) is not None:
            with task.checkpoint.restoring():
                done = [{**row, "each": row["each"].float()} for row in state.get("scores", [])][:runs]
        for run in range(len(done), runs):
            begun = time.monotonic()
            own = draw and dataclasses.replace(draw, seed=mixed(experiment.seed, "scores", run))
            with experiment.drawn(own):
                each, took = scored_once(task, kind, classes, settings, experiment.seed, run)
            done.append({"each": each, "epochs": took, "seconds": time.monotonic() - begun})
            if task.checkpoint is not None:
                task.checkpoint.save({"phase": "scores", "rule": {}, "scores": done})
    cost = experiment.dense_cost(*(float(sum(row[name] for row in done)) for name in ("epochs", "seconds")))
    facts = {"model": type(unwrapped(task.model)).__name__, "lr": settings.lr, "threads": torch.get_num_threads()}
    each = torch.stack([row["each"] for row in done])
    return Scores(each, kind, epochs, experiment.seed, data, classes, cost, facts)


def score_recipe(recipe: Recipe, out: Path, kind: str, runs: int, epochs: int, **where: Any) -> Scores:
    """Score the training examples of a recipe, and save the scores in the file `out`; `where` goes to `prepare`.

    Killed, the same call goes on from the networks that are done, which are in a file beside `out` until the end. A
    file that holds what is asked for is read, and nothing is computed.

    Raises UsageError where `out` holds something else.
    """
    checked_kind(kind, runs, epochs)
    refuse_foreign([out])
    bare = recipe.replace(method=DENSE, density=1.0).changed({"options": {}, "checks": (), "within": None})
    prepared = prepare(bare, **where)
    experiment = prepared.experiment
    asked = {"kind": kind, "runs": str(runs), "epochs": str(epochs), "recipe": bare.digest}
    if is_there(out):
        found = Scores.load(out)
        if differs := difference(asked, found.facts.get("asked", {})):
            raise UsageError(f"{out} holds other scores ({differs}): give another file with --out")
        return found
    checkpoint = Checkpoint(out.with_name(f"{out.name}.checkpoint"), every=0.0)
    found = scores_of(
        experiment.with_task(checkpoint=checkpoint), kind, runs, epochs, prepared.draw, dict(recipe.train)
    )
    found = dataclasses.replace(found, facts={**found.facts, "model": recipe.model, "asked": asked})
    found.save(out)
    checkpoint.clear()
    return found
