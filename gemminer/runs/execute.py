"""Recipe -> record. The page to read first.

A run is a list of steps (search, before, train:i, dense, check:NAME:i; score and pretrain first, where asked for). Each
is finished once and its result kept in the run's folder, so a run killed anywhere goes on with the step it was in, from
that step's checkpoint.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gemminer import data, methods, models
from gemminer.core.draw import Draw
from gemminer.core.errors import UsageError
from gemminer.core.ownership import refuse_foreign
from gemminer.core.progress import Monitor, Together
from gemminer.core.ticket import Ticket
from gemminer.runs import record
from gemminer.runs.asked import ticket_of
from gemminer.runs.building import build
from gemminer.runs.checks import CheckResult, check_names, judge
from gemminer.runs.diet import Begun, check_pretraining
from gemminer.runs.experiment import BATCH_SIZE, Experiment
from gemminer.runs.folder import Folder
from gemminer.runs.recipe import ALONE, Recipe
from gemminer.runs.record import Record
from gemminer.runs.recording import record_of
from gemminer.runs.settings import Resolved, device_of, draw_of, resolve_recipe
from gemminer.runs.shared_folder import folder_for
from gemminer.runs.steps import Logged, Steps, engine_of, save_weights, ticket_kept
from gemminer.training import engine as engines
from gemminer.training.pretrain import Pretrain
from gemminer.training.ranks import Distributed, ranks_of
from gemminer.training.scores import Scores


@dataclass(frozen=True)
class Prepared:
    """A recipe's names turned into values.

    Args:
        resolved: the options of the search and the settings of the training, epochs included.
        draw: the distribution of the initial weights; None keeps the model's own.
        pretrain: the pre-training before the search, its scores loaded.
    """

    experiment: Experiment
    resolved: Resolved
    draw: Draw | None
    pretrain: Pretrain | None = None


def prepare(
    recipe: Recipe,
    *,
    device: str = "auto",
    engine: str = "auto",
    root: Path | None = None,
    download: bool = False,
    monitor: Monitor | None = None,
    distributed: Distributed = None,
) -> Prepared:
    """Load the data, build the network and resolve what the recipe leaves open; nothing is searched or trained."""
    ranks = ranks_of(distributed)
    row = methods.get(recipe.method)
    check_names(recipe.checks)
    place = device_of(device)
    engines.checked(engine, place)
    batch_size = recipe.batch_size or BATCH_SIZE
    loaded = data.load(
        recipe.data,
        root=root,
        batch_size=batch_size,
        validation=recipe.validation,
        limit_train=recipe.limit_train,
        augment=recipe.augment,
        download=download,
    )
    if loaded.test is None:
        raise UsageError(f"{recipe.data} has no test set to report on")
    sizes = {name: getattr(loaded, name) for name in ("in_channels", "classes", "image_size")}
    model = models.from_options(recipe.model, sizes, recipe.model_options)
    resolved = resolve_recipe(recipe, loaded.train.examples)
    kept = models.has_weights(recipe.model, recipe.model_options)
    initialiser = recipe.initialiser or ("keep" if kept else "default")
    draw = draw_of(initialiser, row, recipe.density, recipe.seed)
    experiment = build(
        model.to(place),
        loaded.train,
        validation=loaded.validation,
        test=loaded.test,
        seed=recipe.seed,
        batch_size=batch_size,
        classes=loaded.class_names,
        include=recipe.include,
        exclude=recipe.exclude,
        embeddings=recipe.embeddings,
        within=None if recipe.within is None else dict(Ticket.load(ticket_of(Path(recipe.within))).masks),
        engine=engine,
        precision=recipe.precision,
        accumulate=recipe.accumulate,
        monitor=monitor or Monitor(),
        ranks=ranks,
    )
    experiment.check_density(recipe.density)
    pretrain = Pretrain.given(recipe.pretrain, recipe.scores and Scores.load(recipe.scores))
    experiment = dataclasses.replace(experiment, settings=resolved.settings)
    if pretrain is not None:
        check_pretraining(experiment, pretrain)
    return Prepared(experiment, resolved, draw, pretrain)


def train_ticket(recipe: Recipe, path: Path, out: Path, **where: Any) -> dict[str, Any]:
    """Train the ticket in a file as `recipe` says, and save the trained weights; `where` goes to `prepare`."""
    refuse_foreign([out])
    ticket, experiment = _with_ticket(recipe, path, where)
    keep = (lambda model: save_weights(model, out, ticket)) if experiment.writes else None
    return experiment.train(ticket, 0, "train:0", keep)


def check_ticket(recipe: Recipe, path: Path, **where: Any) -> CheckResult:
    """Check the ticket in a file as `recipe` says; `where` goes to `prepare`."""
    ticket, experiment = _with_ticket(recipe, path, where)
    own = [experiment.train(ticket, i, f"train:{i}")["test"] for i in range(recipe.check_seeds)]
    return judge(experiment, ticket, own, recipe.checks)


def _with_ticket(recipe: Recipe, path: Path, where: Mapping[str, Any]) -> tuple[Ticket, Experiment]:
    """A ticket and its experiment, with the choice of engine in the record beside the ticket, if there is one."""
    ticket = Ticket.load(path)
    experiment = prepare(recipe.changed(ALONE), **where).experiment  # the ticket knows it
    ticket.check_fits(experiment.task.model)
    beside = path.with_name("record.json")
    found = record.read(beside).engine if beside.exists() else None
    if found is not None and found.asked == experiment.task.engine:
        return ticket, experiment.with_task(below=found.below)
    return ticket, experiment


def run_recipe(
    recipe: Recipe,
    out: Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    monitor: Monitor | None = None,
    announce: Callable[[str], None] | None = None,
    **where: Any,
) -> Record:
    """Run a recipe in the folder `out`: search, measure, train, check. Returns the record it wrote.

    `where` goes to `prepare`: device, engine, root, download, distributed.

    Raises UsageError for an invalid recipe, before anything is computed or written; GemminerError for a disk or data
    at fault. After a kill at any point the same call with `resume` ends with the same ticket and weights, bit for bit
    on a CPU.
    """
    prepared = prepare(recipe, monitor=monitor, **where)
    experiment = prepared.experiment
    ranks = experiment.task.ranks
    folder = folder_for(ranks, lambda: Folder(out, recipe.digest, resume=resume, overwrite=overwrite))
    if announce and experiment.writes:
        announce(_meant(recipe, prepared.resolved))
    experiment = experiment.with_task(monitor=Together(Logged(folder), experiment.task.monitor))
    experiment = experiment.with_task(below=engine_of(experiment, folder))
    step = Steps(experiment, folder)
    if resume and not folder.held:
        experiment.task.monitor.note(f"{out} holds no run to go on with: this one begins anew")

    options = prepared.resolved.options
    if (seconds := prepared.resolved.seconds) is not None:
        # Measured once, even if resumed.
        affordable = step("budget", lambda lent: {"epochs": lent.affordable(seconds)})
        options = dataclasses.replace(options, epochs=affordable["epochs"])

    def train(lent: Experiment, index: int) -> dict[str, Any]:
        target = out / "trained.safetensors"
        keep = None if index or not lent.writes else lambda model: save_weights(model, target, ticket)
        return lent.train(ticket, index, f"train:{index}", keep)

    search = {"method": recipe.method, "density": recipe.density, "options": options, "draw": prepared.draw}
    if prepared.pretrain is not None:
        given = dataclasses.asdict(prepared.resolved.settings)
        search["start"] = Begun(step, out).start(experiment, prepared.pretrain, prepared.draw, given)

    def keep(ticket: Ticket) -> None:
        if experiment.writes:
            ticket.save(out / "ticket.safetensors")

    searched = step("search", functools.partial(Experiment.search, **search, keep=keep, recipe=recipe.digest))
    ticket = ticket_kept(folder, searched["digest"])
    step("before", lambda lent: {"test": lent.before(ticket)})
    seeds = range(recipe.check_seeds if recipe.checks else 1)
    trained = [step(f"train:{i}", functools.partial(train, index=i)) for i in seeds]
    dense = step("dense", lambda lent: lent.train(None, 0, "dense"))["test"] if recipe.dense else None
    verdict = None
    if recipe.checks:
        verdict = judge(experiment, ticket, [t["test"] for t in trained], recipe.checks, step, folder.state)
    result = record_of(experiment, ticket, folder.steps, dense=dense, verdict=verdict, **asked_fields(recipe))
    if experiment.writes:
        result.save(out / "record.json")
    return result


def _meant(recipe: Recipe, resolved: Resolved) -> str:
    """A sentence about the run that a recipe stands for."""
    search, training = getattr(resolved.options, "epochs", None), resolved.settings.epochs
    searches = methods.get(recipe.method).cost(resolved.options, recipe.density, 1) > 0
    if not searches:
        lengths = f"{training} epochs of training"
    elif resolved.seconds is not None:
        lengths = f"{resolved.seconds:g} seconds of search, {training} epochs of training"
    else:
        lengths = f"{search} epochs of search, {training} of training"
    what = f"{recipe.method}, {recipe.model} on {recipe.data}, density {100 * recipe.density:.4g}%"
    how = ", bf16" if recipe.precision == "bf16" else ""
    how += f", steps of {recipe.accumulate} batches" if recipe.accumulate > 1 else ""
    return f"{what}, {lengths}{how}, seed {recipe.seed}"


def asked_fields(recipe: Recipe) -> dict[str, Any]:
    """The fields of a record that say what the recipe asked for."""
    data_options = ("limit_train", "validation", "augment", "batch_size")
    return {
        "asked": recipe.density,
        "method": recipe.method,
        "model": recipe.model,
        "model_options": recipe.model_options,
        "data": recipe.data,
        "data_options": {name: getattr(recipe, name) for name in data_options},
        "seed": recipe.seed,
        "recipe": recipe.model_dump(mode="json", exclude_defaults=True),
        "recipe_hash": recipe.digest,
    }
