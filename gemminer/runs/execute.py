"""Recipe -> record. The page to read first.

A run is a list of steps (search, before, train:i, dense, check:NAME:i). Each is finished once and its result kept in
the run's folder, so a run killed anywhere goes on with the step it was in, from that step's checkpoint.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import nn

from gemminer import data, methods, models
from gemminer.core.draw import Draw
from gemminer.core.errors import GemminerError, UsageError
from gemminer.core.files import atomic
from gemminer.core.model_state import copied
from gemminer.core.progress import Monitor
from gemminer.core.prunable import prunable_weights
from gemminer.core.randomness import mixed
from gemminer.core.selection import target
from gemminer.core.statistics import paired_test
from gemminer.core.ticket import Ticket
from gemminer.runs import environment, record
from gemminer.runs.checks import CheckResult, check_names, judge
from gemminer.runs.experiment import Experiment, wants_channels_last
from gemminer.runs.folder import Folder
from gemminer.runs.recipe import Recipe, budget_of
from gemminer.runs.record import Record
from gemminer.runs.settings import default_epochs, device_of, draw_of, options_of
from gemminer.training import engine as engines
from gemminer.training.settings import Settings
from gemminer.training.task import Task


def prepare(
    recipe: Recipe,
    *,
    device: str = "auto",
    engine: str = "auto",
    root: Path | None = None,
    download: bool = False,
    monitor: Monitor | None = None,
) -> tuple[Experiment, Any, Draw | None]:
    """A recipe's names turned into values: the experiment, the method's options, the draw of the initial weights."""
    row = methods.get(recipe.method)
    check_names(recipe.checks)
    place = device_of(device)
    engines.checked(engine, place)
    loaded = data.load(
        recipe.data,
        root=root,
        batch_size=recipe.batch_size or 128,
        validation=recipe.validation,
        limit_train=recipe.limit_train,
        augment=recipe.augment,
        seed=mixed(recipe.seed, "batches"),
        download=download,
    )
    if loaded.test is None:
        raise UsageError(f"{recipe.data} has no test set to report on")
    model = models.build(
        recipe.model,
        in_channels=loaded.in_channels,
        classes=loaded.classes,
        image_size=loaded.image_size,
        **recipe.model_options,
    ).to(place)
    epochs = recipe.epochs or default_epochs(loaded.train.examples)
    if recipe.budget and (part := budget_of(recipe.budget)[1]):
        epochs = max(1, round(part * (recipe.train_epochs or epochs)))
    options = dict(recipe.options)
    if "epochs" in {f.name for f in dataclasses.fields(row.options)}:
        options = {"epochs": epochs, **options}
    whole = default_epochs(loaded.train.examples) if recipe.budget else epochs
    settings = options_of(Settings, {"epochs": recipe.train_epochs or whole, **recipe.train}, "training")
    task = Task(
        model,
        loaded.train,
        loaded.validation,
        exclude=recipe.exclude,
        embeddings=recipe.embeddings,
        engine=engine,
        monitor=monitor or Monitor(),
    )
    pretrained = recipe.model_options.get("pretrained", False)
    initialiser = recipe.initialiser or ("keep" if pretrained else "default")
    draw = draw_of(initialiser, row, recipe.density, recipe.seed)
    chosen = options_of(row.options, options, recipe.method)
    target(
        recipe.density,
        sum(p.numel() for p in prunable_weights(model, exclude=recipe.exclude, embeddings=recipe.embeddings).values()),
    )
    task.channels_last = wants_channels_last(task)
    return Experiment(task, loaded.test, settings, recipe.seed, classes=loaded.class_names), chosen, draw


def train_ticket(recipe: Recipe, path: Path, out: Path, **where: Any) -> dict[str, Any]:
    """Train the ticket in a file as `recipe` says, and save the trained weights; `where` goes to `prepare`."""
    ticket = Ticket.load(path)
    experiment, _, _ = prepare(recipe, **where)
    ticket.check_fits(experiment.task.model)
    return experiment.train(ticket, 0, "train", lambda model: _save_weights(model, out))


def check_ticket(recipe: Recipe, path: Path, **where: Any) -> CheckResult:
    """Check the ticket in a file as `recipe` says; `where` goes to `prepare`."""
    ticket = Ticket.load(path)
    experiment, _, _ = prepare(recipe, **where)
    ticket.check_fits(experiment.task.model)
    own = [experiment.train(ticket, i, f"train:{i}")["test"] for i in range(recipe.check_seeds)]
    return judge(experiment, ticket, own, recipe.checks)


def _save_weights(model: nn.Module, path: Path) -> None:
    with atomic(path) as temporary:
        temporary.write_bytes(save({name: tensor.contiguous() for name, tensor in copied(model).items()}))


class _Logged(Monitor):
    """Passes everything on, and writes each epoch to the run's metrics.jsonl."""

    def __init__(self, inner: Monitor, folder: Folder) -> None:
        self.inner, self.folder = inner, folder

    def begin(self, phase: str, start: int, stop: int) -> None:
        self.folder.forget_after(phase, start)
        self.inner.begin(phase, start, stop)

    def step(self, phase: str, step: int, steps: int) -> None:
        self.inner.step(phase, step, steps)

    def epoch(self, row: dict[str, Any]) -> None:
        self.folder.log(row)
        self.inner.epoch(row)

    def note(self, text: str) -> None:
        self.inner.note(text)


def run_recipe(
    recipe: Recipe,
    out: Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    device: str = "auto",
    engine: str = "auto",
    root: Path | None = None,
    download: bool = False,
    monitor: Monitor | None = None,
    announce: Callable[[str], None] | None = None,
) -> Record:
    """Run a recipe in the folder `out`: search, measure, train, check. Returns the record it wrote.

    Raises UsageError for what cannot be, before anything is computed or written; GemminerError for a disk or data at
    fault. Killed at any point, the same call with `resume` ends with the same ticket and weights, bit for bit on a CPU.
    """
    experiment, options, draw = prepare(
        recipe, device=device, engine=engine, root=root, download=download, monitor=monitor
    )
    folder = Folder(out, recipe.digest, resume=resume, overwrite=overwrite)
    if announce:
        announce(_resolved(recipe, experiment.settings.epochs, options))
    experiment.task.monitor = _Logged(experiment.task.monitor, folder)

    def step(name: str, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        if name in folder.steps:
            folder.checkpoint(name).clear()  # a kill may have come before it was
            return folder.steps[name]
        experiment.task.checkpoint = folder.checkpoint(name)
        noted = len(experiment.notes)
        found = work()
        result = folder.finish(name, {**found, "notes": experiment.notes[noted:]})
        experiment.task.checkpoint.clear()
        return result

    if recipe.budget and (seconds := budget_of(recipe.budget)[0]) and hasattr(options, "epochs"):
        # Measured once, also if resumed.
        affordable = step("budget", lambda: {"epochs": experiment.affordable(seconds)})
        options = dataclasses.replace(options, epochs=affordable["epochs"])

    def search() -> dict[str, Any]:
        found, facts = experiment.find(recipe.method, recipe.density, options, draw)
        found = Ticket(found.masks, found.initial, {**found.provenance, "recipe": recipe.digest}, found.draw)
        found.save(out / "ticket.safetensors")
        return {**facts, "digest": found.digest}

    searched = step("search", search)
    ticket = Ticket.load(out / "ticket.safetensors")
    if ticket.digest != searched["digest"]:
        raise GemminerError(
            f"{out / 'ticket.safetensors'} is not the ticket this run found: begin anew with --overwrite"
        )
    before = step("before", lambda: {"test": experiment.before(ticket)})["test"]
    runs = recipe.check_seeds if recipe.checks else 1

    def keep(model: nn.Module) -> None:
        _save_weights(model, out / "trained.safetensors")

    trained = [
        step(f"train:{i}", lambda i=i: experiment.train(ticket, i, f"train:{i}", None if i else keep))  # type: ignore[misc]
        for i in range(runs)
    ]
    dense = step("dense", lambda: experiment.train(None, 0, "dense"))["test"] if recipe.dense else None
    verdict = (
        judge(
            experiment,
            ticket,
            [t["test"] for t in trained],
            recipe.checks,
            step,
            folder.state / "inverted.safetensors",
        )
        if recipe.checks
        else None
    )
    notes = [note for done in folder.steps.values() for note in done.get("notes", ())]
    result = _record(recipe, experiment, ticket, searched, before, trained, dense, verdict, notes)
    result.save(out / "record.json")
    return result


def _resolved(recipe: Recipe, trained: int, options: Any) -> str:
    """What is about to be run, in a sentence."""
    searched = getattr(options, "epochs", None)
    if searched and recipe.budget and budget_of(recipe.budget)[0]:
        lengths = f"a search of {recipe.budget}, {trained} epochs of training"
    elif searched:
        lengths = f"{searched} epochs of search, {trained} of training"
    else:
        lengths = f"{trained} epochs of training"
    what = f"{recipe.method}, {recipe.model} on {recipe.data}, density {100 * recipe.density:.4g}%"
    return f"{what}, {lengths}, seed {recipe.seed}"


def _record(
    recipe: Recipe,
    experiment: Experiment,
    ticket: Ticket,
    searched: dict[str, Any],
    before: float,
    trained: Sequence[dict[str, Any]],
    dense: float | None,
    verdict: CheckResult | None,
    notes: list[str],
) -> Record:
    values = [t["test"] for t in trained]
    spread = paired_test(values, values)  # for its mean and deviation
    device = experiment.task.device
    return Record(
        schema=record.SCHEMA,
        created=environment.now(),
        command=environment.command(),
        method=recipe.method,
        options=ticket.provenance["options"],
        model=recipe.model,
        model_options=recipe.model_options,
        data=recipe.data,
        data_options={
            "limit_train": recipe.limit_train,
            "validation": recipe.validation,
            "augment": recipe.augment,
            "batch_size": recipe.batch_size,
        },
        seed=recipe.seed,
        recipe=recipe.model_dump(mode="json", exclude_defaults=True),
        recipe_hash=recipe.digest,
        metric=experiment.task.metric_name,
        density=record.Density(
            asked=recipe.density,
            realised=ticket.density,
            kept=ticket.kept,
            prunable=ticket.prunable,
            live=searched["live"],
        ),
        layers=[record.LayerRow(**dataclasses.asdict(layer)) for layer in ticket.per_layer()],
        accuracy=record.Accuracy(
            before=before,
            after=spread.mean,
            after_std=spread.std,
            after_values=tuple(values),
            n=len(values),
            dense=dense,
            validation=trained[0]["validation"],
        ),
        per_class=_per_class([t.get("classes") for t in trained], experiment.classes),
        verdict=verdict.verdict if verdict else None,
        checks={n: record.CheckRow(**dataclasses.asdict(c)) for n, c in verdict.checks.items()} if verdict else {},
        cost={"search": record.Cost(**searched["cost"]), "train": record.Cost(**trained[0]["cost"])},
        notes=notes,
        hardware=environment.hardware(str(device), torch.get_num_threads()),
        versions=environment.versions(),
        git=environment.git_revision(),
    )


def _per_class(runs: Sequence[Sequence[float | None] | None], names: Sequence[str]) -> record.PerClass | None:
    """Means over the training seeds; None where the metric is not one value for each example of a class."""
    found = [classes for classes in runs if classes]
    if not found:
        return None
    of_class = [[x for x in values if x is not None] for values in zip(*found, strict=True)]
    after = [statistics.fmean(values) if values else None for values in of_class]
    return record.PerClass(after=tuple(after), names=tuple(names) if len(names) == len(after) else ())
