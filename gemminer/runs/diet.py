"""A data diet: the scores of training examples, network by network, and what a pre-training on some of them came to."""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import save
from torch import Tensor

from gemminer import methods
from gemminer.core.draw import Draw
from gemminer.core.errors import GemminerError, UsageError
from gemminer.core.files import atomic
from gemminer.core.model_state import copied, gradients
from gemminer.core.names import unwrapped
from gemminer.core.progress import Silent
from gemminer.core.randomness import mixed
from gemminer.data.picked import described
from gemminer.runs import identity
from gemminer.runs.experiment import Experiment, Start
from gemminer.runs.settings import default_epochs, draw_of, options_of
from gemminer.runs.steps import load_weights, save_weights
from gemminer.training.pretrain import Pretrain
from gemminer.training.pretraining import Choice, choice, noisy_classes, trained
from gemminer.training.ranks import Ranks
from gemminer.training.scores import Scores
from gemminer.training.scoring import checked_kind, classes_for, scored_once
from gemminer.training.settings import Settings

DENSE = "uniform"  # the method whose tickets of density 1 are dense networks: theirs is the draw of a scoring network


def dense_draw(initialiser: str | None, seed: int) -> Draw | None:
    """The initial weights of a dense network."""
    return draw_of(initialiser, methods.get(DENSE), 1.0, seed)


@gradients()
def scores_of(
    experiment: Experiment,
    kind: str,
    runs: int,
    epochs: int,
    draw: Draw | None,
    given: Mapping[str, Any],
    noise: float = 0.0,
) -> Scores:
    """The scores of the experiment's training examples by `runs` networks.

    The task's checkpoint, if it has one, keeps every network that is done, so that a killed scoring goes on with the
    one it was at.

    Args:
        draw: of the networks' weights, each with a seed of its own; None takes the model's own for all.
        given: settings of their training, at a constant rate unless they say otherwise.
        noise: the fraction of labels that is drawn anew, as for a pre-training with such noise.
    """
    checked_kind(kind, runs, epochs)
    task = experiment.task
    if task.ranks is not None:
        raise UsageError("scores are computed by one process: call it without distributed, and give the file to all")
    settings = options_of(Settings, {"schedule": "constant", **given, "epochs": epochs}, "training")
    data, classes = described(task.train), classes_for(task, kind)
    classes = noisy_classes(task, noise) if noise else classes
    done: list[dict[str, Any]] = []
    with experiment.claimed(identity.of_scores, kind, settings, experiment.seed, draw, noise):
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
    facts |= {"noise": noise} if noise else {}
    each = torch.stack([row["each"] for row in done])
    return Scores(each, kind, epochs, experiment.seed, data, classes, cost, facts)


# --- pre-training ------------------------------------------------------------------------------------------------

SCORES, EXAMPLES, STATE = "scores.safetensors", "examples.safetensors", "pretrained.safetensors"
PICKED = "gemminer.examples/1"
Work = Callable[[Experiment], dict[str, Any]]


@dataclass(frozen=True)
class Begun:
    """Where a run's scores and pre-training are kept, and how a step of it is done once.

    Args:
        step: runs a piece of work under a name, or returns its result from an earlier run.
        folder: the run's; None where nothing is kept.
    """

    step: Callable[[str, Work], dict[str, Any]]
    folder: Path | None = None

    def start(self, experiment: Experiment, asked: Pretrain, draw: Draw | None, given: Mapping[str, Any]) -> Start:
        """The weights after the pre-training, scored and trained now or by the run that is resumed.

        Args:
            draw: of w_0; None takes the model's own.
            given: settings of a training, of which the pre-training is the first k steps.
        """
        given = {**given, **asked.train}
        scores = self._scores(experiment, asked, draw, given) if asked.needs_scores else None
        held: list[Mapping[str, Tensor]] = []

        def work(lent: Experiment) -> dict[str, Any]:
            state, found = pretrained(lent, asked, scores, draw, given, self.folder)
            held.append(state)
            return found

        found = self.step("pretrain", work)
        ranks, path = experiment.task.ranks, self.folder and self.folder / "state" / STATE
        state = held[0] if held else _read(ranks, lambda: load_weights(cast(Path, path)))
        return Start(state, asked.steps, found["facts"])

    def _scores(self, experiment: Experiment, asked: Pretrain, draw: Draw | None, given: Mapping[str, Any]) -> Scores:
        if asked.scores is not None:
            return Scores.given(asked.scores)
        held: list[Scores] = []
        path = self.folder and self.folder / SCORES

        def work(lent: Experiment) -> dict[str, Any]:
            own = None if draw is None else dense_draw(None, lent.seed)
            settings = {name: value for name, value in given.items() if name not in ("schedule", "milestones")}
            held.append(scores_of(lent, asked.kind, asked.runs, asked.epochs, own, settings, asked.noise))
            if path is not None:
                held[0].save(path)
            return {"cost": dict(held[0].cost), "checksum": held[0].checksum}

        checksum = self.step("score", work)["checksum"]
        found = held[0] if held else Scores.load(path or "")
        if found.checksum != checksum:
            raise GemminerError(f"{path} is not what this run has scored: begin anew, with --overwrite or elsewhere")
        return found


def _read(ranks: Ranks | None, work: Callable[[], Any]) -> Any:
    return work() if ranks is None else ranks.firsts(work)


def check_pretraining(experiment: Experiment, asked: Pretrain) -> None:
    """Raise UsageError, before anything is computed, for a pre-training that cannot be on this data."""
    experiment.task.position(asked.steps, experiment.settings.epochs)
    if asked.needs_scores and asked.scores is None:
        checked_kind(asked.kind, asked.runs, asked.epochs)
        classes_for(experiment.task, asked.kind)
    else:
        quiet = dataclasses.replace(experiment.task, notes=[], monitor=Silent())  # it is said when it is done
        choice(quiet, asked, None if asked.scores is None else Scores.given(asked.scores), experiment.seed)


@gradients()
def pretrained(
    experiment: Experiment,
    asked: Pretrain,
    scores: Scores | None,
    draw: Draw | None,
    given: Mapping[str, Any],
    folder: Path | None = None,
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The state after the pre-training, and what is known of it: facts for the ticket, cost; the model is left alone.

    With a folder, the indices of the examples are kept in it, and the state in its state/.
    """
    task, begun = experiment.task, time.monotonic()
    own = {"epochs": default_epochs(task.train.examples), **given}
    settings = options_of(Settings, own, "training")
    picked = choice(task, asked, scores, experiment.seed)
    with experiment.drawn(draw), experiment.claimed(identity.of_pretraining, settings, experiment.seed, picked.facts):
        rows = trained(task, settings, asked, picked, experiment.seed)
        state = copied(task.model)
        if folder is not None and experiment.writes:
            save_weights(task.model, folder / "state" / STATE)
    if folder is not None and experiment.writes and picked.indices is not None:
        _save(folder / EXAMPLES, picked)
    rate_found = rows[0].get("rate")
    epochs = math.fsum(row.get("fraction", 1.0) for row in rows)
    epochs += rate_found["steps"] / max(1, task.steps) if rate_found else 0.0
    facts = {**picked.facts, "lr": rate_found["lr"] if rate_found else settings.lr}
    costs = {"cost": experiment.dense_cost(epochs, time.monotonic() - begun)}
    return state, {**costs, "facts": facts, **({} if scores is None else {"score": dict(scores.cost)})}


def _save(path: Path, picked: Choice) -> None:
    """The indices of the examples, and their labels where those are not the data's."""
    assert picked.indices is not None
    tensors = {"indices": picked.indices.long()}
    tensors |= {} if picked.labels is None else {"labels": picked.labels[picked.indices]}
    about = {"format": PICKED, **{n: v for n, v in picked.facts.items() if n != "histogram"}}
    with atomic(path) as temporary:
        temporary.write_bytes(save(tensors, metadata={"gemminer": json.dumps(about)}))
