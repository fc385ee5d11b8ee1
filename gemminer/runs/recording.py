"""The record of a run, from what its steps came to."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from gemminer.core.statistics import paired_test
from gemminer.core.ticket import Ticket
from gemminer.runs import environment, record
from gemminer.runs.checks import CheckResult
from gemminer.runs.experiment import Experiment
from gemminer.runs.record import Record


def record_of(
    experiment: Experiment,
    ticket: Ticket,
    steps: Mapping[str, Mapping[str, Any]],
    *,
    dense: float | None = None,
    verdict: CheckResult | None = None,
    asked: float,
    **fields: Any,
) -> Record:
    """The record of a run whose steps so far are these; what has not been done yet is not in it.

    Args:
        steps: the results of search, before and train:i, by name.
        dense: the metric of the dense network.
        verdict: of the checks, if they were run.
        asked: the density that was asked for.
        fields: the record's method, model, data and how they were asked for.
    """
    searched = steps.get("search", {})
    trained = [steps[f"train:{i}"] for i in itertools.takewhile(lambda i: f"train:{i}" in steps, itertools.count())]
    values = [t["test"] for t in trained if t["test"] is not None]
    spread = paired_test(values, values) if values else None  # for its mean and deviation
    device, ranks = experiment.task.device, experiment.task.ranks
    pretrained, facts = steps.get("pretrain", {}), ticket.provenance
    costs = {"score": {"cost": pretrained["score"]} if "score" in pretrained else {}, "pretrain": pretrained}
    costs |= {"search": searched, "train": trained[0] if trained else {}}
    start = None
    if not facts.get("at_initialisation", True):
        start = record.Start(step=facts.get("rewind_step"), pretrain=facts.get("pretrain") or {})
    return Record(
        schema=record.SCHEMA,
        created=environment.now(),
        command=environment.command(),
        options=ticket.provenance.get("options", {}),
        metric=experiment.task.metric_name,
        precision=experiment.task.precision,
        accumulate=experiment.task.accumulate,
        density=record.Density(
            asked=asked,
            realised=ticket.density,
            kept=ticket.kept,
            prunable=ticket.prunable,
            live=searched.get("live"),
        ),
        layers=ticket.per_layer(),
        left_dense=list(ticket.left_dense),
        accuracy=record.Accuracy(
            before=steps.get("before", {}).get("test"),
            after=spread and spread.mean,
            after_std=spread and spread.std,
            after_values=tuple(values),
            n=len(values),
            dense=dense,
            validation=trained[0]["validation"] if trained else None,
        ),
        start=start,
        removable=[record.Removable(**row) for row in ticket.provenance.get("layers", ())],
        per_class=_per_class([t.get("classes") for t in trained], experiment.classes),
        verdict=verdict.verdict if verdict else None,
        checks=verdict.checks if verdict else {},
        cost={name: record.Cost(**done["cost"]) for name, done in costs.items() if done},
        notes=[note for done in steps.values() for note in done.get("notes", ())],
        rates={name: record.Rate(**done["rate"]) for name, done in steps.items() if done.get("rate")},
        engine=record.Engine(asked=experiment.task.engine, below=dict(experiment.task.below or {})),
        hardware=environment.hardware(str(device), torch.get_num_threads()) | ({"ranks": ranks.world} if ranks else {}),
        versions=environment.versions(),
        git=environment.git_revision(),
        **fields,
    )


def _per_class(runs: Sequence[Sequence[float | None] | None], names: Sequence[str]) -> record.PerClass | None:
    """Means over the training seeds; None where the metric is not one value for each example of a class."""
    found = [classes for classes in runs if classes]
    if not found:
        return None
    of_class = [[x for x in values if x is not None] for values in zip(*found, strict=True)]
    after = [statistics.fmean(values) if values else None for values in of_class]
    return record.PerClass(after=tuple(after), names=tuple(names) if len(names) == len(after) else ())
