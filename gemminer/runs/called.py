"""What a call from Python gives, as an experiment."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from torch import nn

from gemminer.core.files import as_path
from gemminer.core.progress import Monitor
from gemminer.core.ticket import Ticket
from gemminer.data import parts_of
from gemminer.runs.experiment import Experiment, build
from gemminer.runs.settings import default_epochs, options_of
from gemminer.training.checkpoint import Checkpoint
from gemminer.training.losses import Metric
from gemminer.training.settings import Settings


def experiment_of(
    model: nn.Module,
    train_data: Any,
    *,
    metric: Metric | None,
    monitor: Monitor | None,
    checkpoint: str | Path | None = None,
    validation: Any = None,
    test: Any = None,
    tested: bool = False,
    **given: Any,
) -> Experiment:
    """The experiment of a call."""
    file = None if checkpoint is None else Checkpoint(as_path("checkpoint", checkpoint))
    if file is not None:
        file.load()  # a file that is no checkpoint is refused before anything else
    train_data, validation, test = parts_of(train_data, validation, test, tested=tested)
    return build(
        model,
        train_data,
        validation=validation,
        test=test,
        metric=metric,
        monitor=monitor or Monitor(),
        checkpoint=file,
        **given,
    )


def for_ticket(
    ticket: Ticket, model: nn.Module, train_data: Any, epochs: int | None, settings: dict[str, Any], **given: Any
) -> Experiment:
    """The experiment in which a ticket is trained: prunable is what it says, and the settings are checked."""
    facts = ticket.provenance
    prunes: dict[str, Any] = {key: tuple(facts.get(key, ())) for key in ("include", "exclude")}
    prunes["embeddings"] = facts.get("embeddings", False)
    experiment = experiment_of(model, train_data, tested=True, **prunes, **given)
    settings["epochs"] = default_epochs(experiment.task.train.examples) if epochs is None else epochs
    ticket.check_fits(model)
    return dataclasses.replace(experiment, settings=options_of(Settings, settings, "training"))
