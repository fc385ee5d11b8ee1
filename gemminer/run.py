"""Recipe -> record, and the same steps for a user's own model: mine, train, check. The page to read first.

A run is a list of steps (search, before, train:i, dense, check:NAME:i). Each is finished once and its result kept in
the run's folder, so a run killed anywhere goes on with the step it was in, from that step's checkpoint.
"""

from __future__ import annotations

import copy
import dataclasses
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from pydantic import TypeAdapter, ValidationError
from safetensors.torch import save_file
from torch import Tensor, nn

from gemminer import checks, cost, data, methods, models, record
from gemminer.checks import Check
from gemminer.data import Batches
from gemminer.errors import GemminerError, UsageError, unknown
from gemminer.files import Checkpoint, atomic
from gemminer.initialise import Draw, mixed
from gemminer.masking import Dense, KeepMask, borrowed, prunable, target
from gemminer.progress import Monitor
from gemminer.recipe import Recipe, explain
from gemminer.record import Folder, Record
from gemminer.report import write as write_report
from gemminer.task import Loss, Metric, Task, accuracy, cross_entropy, evaluate, recalibrate
from gemminer.ticket import Ticket, named_state
from gemminer.train import Settings, fit

T = TypeVar("T")


# --- from names and options to values --------------------------------------------------------------------------


def options_of(kind: type[T], fields: Mapping[str, Any], where: str) -> T:
    """A dataclass of settings from plain fields; raises UsageError with one sentence that names the field at fault."""
    known = [f.name for f in dataclasses.fields(kind)]  # type: ignore[arg-type]
    for name in fields:
        if name not in known:
            raise unknown(f"option of {where}", name, known)
    adapter = TypeAdapter(kind)
    try:
        return adapter.validate_python(dict(fields))
    except ValidationError as error:
        raise UsageError(explain(error, where)) from None


def default_epochs(examples: int) -> int:
    """Epochs where none are asked for: 40 on small data, fewer as it grows (11 on 54,000 examples), at least 5."""
    return max(5, min(40, round(600_000 / max(1, examples))))


def device_of(name: str) -> torch.device:
    """The device of this name; "auto" is a GPU if there is one. Raises UsageError for one this machine lacks."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError):
        raise UsageError(f"device {name!r} is not on this machine: use cpu, cuda, cuda:1 or auto") from None
    return device


def wants_channels_last(task: Task) -> bool:
    """Whether batches of images should be laid out channels-last: up to 1.7x faster convolutions on a CPU.

    Tried once, forwards and backwards, on a borrowed model: one that flattens with `view` cannot take it.
    """
    if not any(isinstance(module, nn.Conv2d) for module in task.model.modules()):
        return False
    trial = dataclasses.replace(task, channels_last=True)
    inputs, targets = next(iter(task.train.epoch(0)))
    with borrowed(task.model), torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        try:
            trial.loss_of(inputs, targets).backward()
        except (RuntimeError, GemminerError):
            return False
    return True


def reseeded(batches: Batches, *keys: object) -> Batches:
    """The same batches in the order of another seed, where they have one."""
    if not hasattr(batches, "seed"):
        return batches
    other = copy.copy(batches)
    other.seed = mixed(*keys)
    return other


# --- the steps -------------------------------------------------------------------------------------------------


@dataclass
class Bench:
    """A model and its data, with the steps of a run as functions: each leaves the model as it was.

    Args:
        task: what methods may see.
        test: the test batches; only `evaluate` reads them.
        settings: how a ticket is trained.
        seed: the run's; training seed i is derived from it.
    """

    task: Task
    test: Batches | None
    settings: Settings
    seed: int = 0
    flops: cost.Flops | None = None
    notes: list[str] = field(default_factory=list)

    def note(self, text: str) -> None:
        self.notes.append(text)
        self.task.monitor.note(text)

    def find(self, method: str, density: float, options: Any, draw: Draw | None) -> tuple[Ticket, dict[str, Any]]:
        """Search for a ticket from weights drawn by `draw` (None: the model's own); returns it and the cost."""
        model = self.task.model
        begun = time.monotonic()
        with borrowed(model):
            parameters = prunable(model, exclude=self.task.exclude, embeddings=self.task.embeddings)
            if draw is not None:
                weights = draw.weights({name: p.shape for name, p in parameters.items()})
                with torch.no_grad():
                    for name, p in parameters.items():
                        p.copy_(weights[name])
            found = methods.get(method).find(self.task, density, options, self.seed)
        facts = found.provenance
        rows = facts.pop("rows", [])
        live = facts.pop("live", None)
        seconds = rows[-1]["seconds"] if rows else time.monotonic() - begun
        ticket = Ticket(
            found.masks,
            found.initial,
            {
                "method": method,
                "options": dataclasses.asdict(options),
                "seed": self.seed,
                "asked": density,
                "realised": found.density,
                "live": live,
                **facts,
                "versions": record.versions(),
            },
            draw if facts.get("at_initialisation", True) else None,
        )
        hint = "; the option floor=1 keeps a weight in each layer" if hasattr(options, "floor") else ""
        if empty := [layer.name for layer in ticket.per_layer() if layer.kept == 0]:
            self.note(f"warning: nothing is kept of {', '.join(empty)}{hint}")
        epochs = facts.get("epochs", len(rows))
        return ticket, {
            "live": live,
            "cost": self._cost(epochs, seconds, rows),
        }

    def before(self, ticket: Ticket) -> float:
        """accuracy.before: the masked network at its initial weights, batch-norm statistics re-estimated."""
        model = self.task.model
        with borrowed(model):
            ticket.apply(model)
            recalibrate(self.task)
            return evaluate(self.task, self._test)

    def train(
        self, ticket: Ticket | None, index: int, phase: str, keep: Callable[[nn.Module], None] | None = None
    ) -> dict[str, Any]:
        """Train from a ticket (None: the dense network) with training seed `index`; test once, at the end.

        `keep` is called with the trained model before it is given back.
        """
        model = self.task.model
        train_batches = reseeded(self.task.train, self.seed, "training batches", index)
        task = dataclasses.replace(self.task, train=train_batches)
        with borrowed(model):
            rule = Dense(model)
            if ticket is not None:
                ticket.apply(model)
                rule = KeepMask(model, ticket.masks)
            rows = fit(task, rule, self.settings, seed=mixed(self.seed, "training", index), phase=phase)
            result: dict[str, Any] = {
                "test": evaluate(task, self.test) if self.test else None,
                "validation": rows[-1]["validation"],
            }
            if keep:
                keep(model)
        kept = {"layers_kept": [layer.kept for layer in ticket.per_layer()]} if ticket else {}
        result["cost"] = self._cost(len(rows), rows[-1]["seconds"], [kept] * len(rows))
        return result

    @property
    def _test(self) -> Batches:
        if self.test is None:
            raise UsageError("there is no test data to measure on: pass test_data")
        return self.test

    def _cost(self, epochs: float, seconds: float, rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
        """FLOPs of `epochs` epochs of training steps; counting zeros with the weights each row's epoch kept.

        A row may be a `fraction` of an epoch; what no row with kept weights covers counts as dense.
        """
        if self.flops is None:
            parameters = prunable(self.task.model, exclude=self.task.exclude, embeddings=self.task.embeddings)
            self.flops = cost.count(self.task, parameters)
            self._sizes = {name: p.numel() for name, p in parameters.items()}
        passes = cost.TRAINING_PASSES * self.task.train.examples
        dense = passes * self.flops.dense
        known = [(row["layers_kept"], row.get("fraction", 1.0)) for row in rows if "layers_kept" in row]
        sparse = [
            part * passes * self.flops.sparse({n: k / s for (n, s), k in zip(self._sizes.items(), kept, strict=True)})
            for kept, part in known
        ]
        sparse.append(dense * max(0.0, epochs - math.fsum(part for _, part in known)))
        return {
            "epochs": epochs,
            "seconds": seconds,
            "flops_dense": dense * epochs,
            "flops_sparse": math.fsum(sparse),
        }


def counterpart(bench: Bench, name: str, ticket: Ticket, index: int) -> Ticket:
    """What the ticket is compared with in check `name`, for training seed `index`: as many weights, same start.

    The inversion is one ticket for all seeds: the ticket's own search, its ranking upside down.
    """
    seed = mixed(bench.seed, "check", index)
    if name == "shuffle":
        return checks.shuffle(ticket, seed)
    if name == "reinit":
        return checks.reinit(ticket, seed)
    facts = ticket.provenance
    method = facts.get("method") if name == "invert" else name
    if method not in methods.names():
        raise UsageError(f"the check {name!r} needs to know the ticket's method, which is {method!r}")
    options = dict(facts.get("options", {}), invert=True) if name == "invert" else {}
    chosen = options_of(methods.get(method).options, options, method)
    task = dataclasses.replace(bench.task, phase=f"check:{name}:search")
    with borrowed(task.model) as model:
        _start_from(model, ticket)
        find = methods.get(method).find
        found = find(task, ticket.density, chosen, facts.get("seed", bench.seed) if name == "invert" else seed)
    return ticket.with_(masks=found.masks, check=name)


def _start_from(model: nn.Module, ticket: Ticket) -> None:
    ticket.check_fits(model)
    tensors = named_state(model)
    with torch.no_grad():
        for name, value in ticket.initial.items():
            tensors[name].copy_(value)


def check_names(names: Sequence[str]) -> tuple[str, ...]:
    """The checks asked for, each once; raises UsageError for one that does not exist."""
    for name in names:
        if name not in checks.CHECKS:
            raise unknown("check", name, checks.CHECKS)
    return tuple(dict.fromkeys(names))


# --- a user's own model ----------------------------------------------------------------------------------------


def _bench(
    model: nn.Module,
    train_data: Any,
    test_data: Any,
    *,
    batch_size: int,
    seed: int,
    loss: Loss,
    metric: Metric,
    monitor: Monitor | None,
    settings: Settings,
    validation_data: Any = None,
    exclude: Sequence[str] = (),
    embeddings: bool = False,
) -> Bench:
    """The user's model and data, as the steps want them."""
    if not isinstance(model, nn.Module):
        raise UsageError(f"model must be a torch.nn.Module, not a {type(model).__name__}")

    def held_out(given: Any) -> Batches | None:
        return None if given is None else data.as_batches(given, batch_size=256, shuffle=False)

    task = Task(
        model,
        data.as_batches(train_data, batch_size=batch_size, seed=mixed(seed, "batches")),
        held_out(validation_data),
        loss,
        metric,
        str(getattr(metric, "__name__", "metric")),
        exclude=tuple(exclude),
        embeddings=embeddings,
        monitor=monitor or Monitor(),
    )
    prunable(model, exclude=task.exclude, embeddings=embeddings)
    task.channels_last = wants_channels_last(task)
    return Bench(task, held_out(test_data), settings, seed)


def mine(
    model: nn.Module,
    train_data: Any,
    density: float,
    *,
    method: str = "gem-miner",
    epochs: int | None = None,
    seed: int = 0,
    batch_size: int = 64,
    initialiser: str = "default",
    loss: Loss = cross_entropy,
    metric: Metric = accuracy,
    validation_data: Any = None,
    exclude: Sequence[str] = (),
    embeddings: bool = False,
    checkpoint: str | Path | None = None,
    monitor: Monitor | None = None,
    **options: Any,
) -> Ticket:
    """Find a lottery ticket in `model` at initialisation; the model is left as it was.

    Gem-Miner trains a score p for each weight w while w stays as it is, w_eff = w * q * 1[p > 1/2], and freezes the
    lowest scores (q = 0) on a schedule until round(density * d) of the d prunable weights remain.

    Args:
        model: any module; its convolutions, linear layers and attention projections are pruned.
        train_data: a DataLoader, a dataset, or a pair of tensors (inputs, targets).
        density: fraction of prunable weights kept, above 0 and at most 1.
        method: a name from `gemminer.methods.names()`.
        epochs: passes over the data; by default 40 on small data, fewer on large.
        seed: of the initial weights, the scores and the order of batches.
        batch_size: of datasets and tensors; a DataLoader has its own.
        initialiser: "default" draws the prunable weights anew from the method's own distribution (signed Kaiming
            constant for Gem-Miner), "keep" takes the model's, any of `gemminer.initialise.kinds()` draws from that.
        loss: (output, target) -> scalar; cross-entropy by default.
        metric: (output, target) -> tensor to average, higher is better; accuracy by default.
        validation_data: logged each epoch; never used to choose.
        exclude: parameter names to leave dense, as shell patterns.
        embeddings: prune embedding tables too.
        checkpoint: a file that a killed search is resumed from; removed at the end.
        monitor: a `gemminer.progress.Monitor` that is told of every step.
        options: the method's own, see `gemminer.methods.get(method).options`.

    Returns:
        The ticket: `ticket.apply(model)` makes `model` the subnetwork, `gemminer.train(model, ticket, ...)` trains it.

    Raises:
        UsageError: a density, name or option that cannot be, data that is not pairs, nothing to prune.
        GemminerError: the loss is not finite, the disk is full.

    Source: Sreenivasan et al., "Rare Gems: Finding Lottery Tickets at Initialization", NeurIPS 2022.

    >>> import gemminer, torch
    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 16), torch.nn.ReLU(), torch.nn.Linear(16, 2))
    >>> inputs = torch.randn(64, 4)
    >>> ticket = gemminer.mine(net, (inputs, (inputs[:, 0] > 0).long()), density=0.25, epochs=5)
    >>> ticket.kept, ticket.prunable
    (24, 96)
    """
    row = methods.get(method)
    bench = _bench(
        model,
        train_data,
        None,
        batch_size=batch_size,
        seed=seed,
        loss=loss,
        metric=metric,
        monitor=monitor,
        settings=Settings(),
        validation_data=validation_data,
        exclude=exclude,
        embeddings=embeddings,
    )
    fields = {f.name for f in dataclasses.fields(row.options)}
    if "epochs" in fields:
        options["epochs"] = epochs or default_epochs(bench.task.train.examples)
    elif epochs is not None:
        raise UsageError(f"the method {method!r} has no epochs to set")
    chosen = options_of(row.options, options, method)
    target(density, sum(p.numel() for p in prunable(model, exclude=exclude, embeddings=embeddings).values()))
    if checkpoint is not None:
        bench.task.checkpoint = Checkpoint(Path(checkpoint))
    ticket, _ = bench.find(method, density, chosen, draw_of(initialiser, row, density, seed))
    if bench.task.checkpoint:
        bench.task.checkpoint.clear()
    return ticket


def draw_of(name: str | None, method: methods.Method, density: float, seed: int) -> Draw | None:
    """The draw of an initialiser's name: "default" (or None) is the method's own, "keep" none at all."""
    if name == "keep":
        return None
    if name in (None, "default"):
        return Draw(method.initialiser, seed, density if method.fan_scaled else 1.0)
    return Draw(name, seed)


def train(
    model: nn.Module,
    ticket: Ticket,
    train_data: Any,
    test_data: Any = None,
    *,
    epochs: int | None = None,
    seed: int = 0,
    batch_size: int = 64,
    loss: Loss = cross_entropy,
    metric: Metric = accuracy,
    monitor: Monitor | None = None,
    **settings: Any,
) -> dict[str, Any]:
    """Train the kept weights from their initial values; afterwards `model` holds them, the others exactly zero.

    Args:
        model: of the ticket's shape; its own values are overwritten.
        ticket: what to keep.
        train_data, test_data: as in `mine`; the test data is read once, at the end.
        epochs: as in `mine`.
        settings: fields of `gemminer.train.Settings`: optimiser, lr, weight_decay, schedule, ...

    Returns:
        {"test": metric or None, "validation": None, "cost": {"epochs", "seconds", "flops_dense", "flops_sparse"}}.

    Raises:
        UsageError: the ticket is of another model; a setting that cannot be.
        GemminerError: the loss is not finite.

    >>> import gemminer, torch
    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 16), torch.nn.ReLU(), torch.nn.Linear(16, 2))
    >>> data = (x := torch.randn(64, 4), (x[:, 0] > 0).long())
    >>> ticket = gemminer.mine(net, data, density=0.25, epochs=5)
    >>> result = gemminer.train(net, ticket, data, data, epochs=5)
    >>> sum(int(p.count_nonzero()) for name, p in net.named_parameters() if name in ticket.masks) <= ticket.kept
    True
    """
    bench = _bench(
        model,
        train_data,
        test_data,
        batch_size=batch_size,
        seed=seed,
        loss=loss,
        metric=metric,
        monitor=monitor,
        settings=Settings(),
    )
    settings["epochs"] = epochs or default_epochs(bench.task.train.examples)
    bench.settings = options_of(Settings, settings, "training")
    ticket.check_fits(model)
    trained: dict[str, Tensor] = {}
    result = bench.train(ticket, 0, "train", lambda net: trained.update(_copied(net)))
    with torch.no_grad():
        for name, tensor in named_state(model).items():
            tensor.copy_(trained[name])
    return result


def _copied(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in named_state(model).items()}


@dataclass(frozen=True)
class Verdict:
    """The outcome of `check`: overall "pass", "fail" or "not decided", and each check's figures by name."""

    verdict: checks.Verdict
    checks: dict[str, Check]

    def __str__(self) -> str:
        lines = [f"{self.verdict}: training from the ticket against training from what is left of it"]
        for name, c in self.checks.items():
            lines.append(
                f"  {name:<8} {c.mean:.4f} +- {c.std:.4f}  ticket better by {c.difference:+.4f}"
                f" +- {c.difference_std:.4f}  (n={c.n})  {c.verdict}"
            )
        return "\n".join(lines)


def check(
    model: nn.Module,
    ticket: Ticket,
    train_data: Any,
    test_data: Any,
    *,
    seeds: int = 3,
    names: Sequence[str] = checks.CHECKS,
    epochs: int | None = None,
    seed: int = 0,
    batch_size: int = 64,
    loss: Loss = cross_entropy,
    metric: Metric = accuracy,
    monitor: Monitor | None = None,
    **settings: Any,
) -> Verdict:
    """Prove a ticket: train from it and from what each sanity check leaves of it, over paired seeds.

    A check is passed where the ticket's mean metric exceeds the check's beyond chance (`gemminer.checks.compare`).

    Args:
        model: of the ticket's shape; left as it was.
        seeds: trainings of the ticket and of each check; 1 decides nothing.
        names: shuffle, reinit, invert (the method upside down), uniform and erk (random at equal density).
        settings: fields of `gemminer.train.Settings`.

    Raises:
        UsageError: an unknown check, a ticket of another model.

    >>> import gemminer, torch
    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 16), torch.nn.ReLU(), torch.nn.Linear(16, 2))
    >>> data = (x := torch.randn(64, 4), (x[:, 0] > 0).long())
    >>> ticket = gemminer.mine(net, data, density=0.25, epochs=5)
    >>> gemminer.check(net, ticket, data, data, seeds=1, names=["shuffle"], epochs=2).verdict
    'not decided'
    """
    if seeds < 1:
        raise UsageError(f"seeds must be 1 or more, not {seeds}")
    names = check_names(names)
    facts = ticket.provenance
    bench = _bench(
        model,
        train_data,
        test_data,
        batch_size=batch_size,
        seed=seed,
        loss=loss,
        metric=metric,
        monitor=monitor,
        settings=Settings(),
        exclude=facts.get("exclude", ()),
        embeddings=facts.get("embeddings", False),
    )
    settings["epochs"] = epochs or default_epochs(bench.task.train.examples)
    bench.settings = options_of(Settings, settings, "training")
    ticket.check_fits(model)

    own = [bench.train(ticket, i, f"train:{i}")["test"] for i in range(seeds)]
    return judge(bench, ticket, own, names)


Step = Callable[[str, Callable[[], dict[str, Any]]], dict[str, Any]]


def judge(
    bench: Bench,
    ticket: Ticket,
    own: Sequence[float],
    names: Sequence[str],
    step: Step = lambda name, work: work(),
    inverted: Path | None = None,
) -> Verdict:
    """Run the checks `names` against the ticket's own metrics, one step for each training.

    `inverted` is where the inversion's ticket is kept, so that a resumed run need not search for it again.
    """
    found: dict[str, Check] = {}
    for name in names:
        others: list[Ticket] = []
        if name == "invert":
            held: list[Ticket] = []

            def invert(held: list[Ticket] = held) -> dict[str, Any]:
                held.append(counterpart(bench, "invert", ticket, 0))
                if inverted is not None:
                    held[0].save(inverted)
                return {"digest": held[0].digest}

            step("check:invert:search", invert)
            others = (held or [Ticket.load(inverted or "")]) * len(own)
        values = []
        for i in range(len(own)):

            def work(name: str = name, i: int = i, others: list[Ticket] = others) -> dict[str, Any]:
                other = others[i] if others else counterpart(bench, name, ticket, i)
                return bench.train(other, i, f"check:{name}:{i}")

            values.append(step(f"check:{name}:{i}", work)["test"])
        found[name] = checks.compare(own, values)
    return Verdict(checks.overall(list(found.values())), found)


# --- a recipe --------------------------------------------------------------------------------------------------


def prepare(
    recipe: Recipe,
    *,
    device: str = "auto",
    root: Path | None = None,
    download: bool = False,
    monitor: Monitor | None = None,
) -> tuple[Bench, Any, Draw | None]:
    """A recipe's names turned into values: the bench, the method's options, the draw of the initial weights."""
    row = methods.get(recipe.method)
    check_names(recipe.checks)
    place = device_of(device)
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
    options = dict(recipe.options)
    if "epochs" in {f.name for f in dataclasses.fields(row.options)}:
        options = {"epochs": epochs, **options}
    settings = options_of(Settings, {"epochs": recipe.train_epochs or epochs, **recipe.train}, "training")
    task = Task(
        model,
        loaded.train,
        loaded.validation,
        exclude=recipe.exclude,
        embeddings=recipe.embeddings,
        monitor=monitor or Monitor(),
    )
    pretrained = recipe.model_options.get("pretrained", False)
    initialiser = recipe.initialiser or ("keep" if pretrained else "default")
    draw = draw_of(initialiser, row, recipe.density, recipe.seed)
    chosen = options_of(row.options, options, recipe.method)
    target(recipe.density, sum(p.numel() for p in prunable(model, exclude=recipe.exclude).values()))
    task.channels_last = wants_channels_last(task)
    return Bench(task, loaded.test, settings, recipe.seed), chosen, draw


def train_ticket(recipe: Recipe, path: Path, out: Path, **where: Any) -> dict[str, Any]:
    """Train the ticket in a file as `recipe` says, and save the trained weights; `where` goes to `prepare`."""
    ticket = Ticket.load(path)
    bench, _, _ = prepare(recipe, **where)
    ticket.check_fits(bench.task.model)
    return bench.train(ticket, 0, "train", lambda model: _save_weights(model, out))


def check_ticket(recipe: Recipe, path: Path, **where: Any) -> Verdict:
    """Check the ticket in a file as `recipe` says; `where` goes to `prepare`."""
    ticket = Ticket.load(path)
    bench, _, _ = prepare(recipe, **where)
    ticket.check_fits(bench.task.model)
    own = [bench.train(ticket, i, f"train:{i}")["test"] for i in range(recipe.check_seeds)]
    return judge(bench, ticket, own, recipe.checks)


def _save_weights(model: nn.Module, path: Path) -> None:
    with atomic(path) as temporary:
        save_file({name: tensor.contiguous() for name, tensor in _copied(model).items()}, temporary)


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


def execute(
    recipe: Recipe,
    out: Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    device: str = "auto",
    root: Path | None = None,
    download: bool = False,
    monitor: Monitor | None = None,
) -> Record:
    """Run a recipe in the folder `out`: search, measure, train, check, report. Returns the record it wrote.

    Raises UsageError for what cannot be, before anything is computed or written; GemminerError for a disk or data at
    fault. Killed at any point, the same call with `resume` ends with the same ticket and weights, bit for bit on a CPU.
    """
    bench, options, draw = prepare(recipe, device=device, root=root, download=download, monitor=monitor)
    folder = Folder(out, recipe.digest, resume=resume, overwrite=overwrite)
    bench.task.monitor = _Logged(bench.task.monitor, folder)

    def step(name: str, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        if name in folder.steps:
            return folder.steps[name]
        bench.task.checkpoint = folder.checkpoint(name)
        result = folder.finish(name, work())
        bench.task.checkpoint.clear()
        return result

    def search() -> dict[str, Any]:
        found, facts = bench.find(recipe.method, recipe.density, options, draw)
        found = Ticket(found.masks, found.initial, {**found.provenance, "recipe": recipe.digest}, found.draw)
        found.save(out / "ticket.safetensors")
        return {**facts, "digest": found.digest}

    searched = step("search", search)
    ticket = Ticket.load(out / "ticket.safetensors")
    if ticket.digest != searched["digest"]:
        raise GemminerError(
            f"{out / 'ticket.safetensors'} is not the ticket this run found: begin anew with --overwrite"
        )
    before = step("before", lambda: {"test": bench.before(ticket)})["test"]
    runs = recipe.check_seeds if recipe.checks else 1

    def keep(model: nn.Module) -> None:
        _save_weights(model, out / "trained.safetensors")

    trained = [
        step(f"train:{i}", lambda i=i: bench.train(ticket, i, f"train:{i}", None if i else keep))  # type: ignore[misc]
        for i in range(runs)
    ]
    dense = step("dense", lambda: bench.train(None, 0, "dense"))["test"] if recipe.dense else None
    verdict = (
        judge(
            bench,
            ticket,
            [t["test"] for t in trained],
            recipe.checks,
            step,
            folder.state / "inverted.safetensors",
        )
        if recipe.checks
        else None
    )
    result = _record(recipe, bench, ticket, searched, before, trained, dense, verdict)
    result.save(out / "record.json")
    write_report(out)
    return result


def _record(
    recipe: Recipe,
    bench: Bench,
    ticket: Ticket,
    searched: dict[str, Any],
    before: float,
    trained: Sequence[dict[str, Any]],
    dense: float | None,
    verdict: Verdict | None,
) -> Record:
    values = [t["test"] for t in trained]
    spread = checks.compare(values, values)  # for its mean and deviation
    device = bench.task.device
    return Record(
        schema=record.SCHEMA,
        created=record.now(),
        command=record.command(),
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
        metric=bench.task.metric_name,
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
        verdict=verdict.verdict if verdict else None,
        checks={n: record.CheckRow(**dataclasses.asdict(c)) for n, c in verdict.checks.items()} if verdict else {},
        cost={"search": record.Cost(**searched["cost"]), "train": record.Cost(**trained[0]["cost"])},
        notes=bench.notes,
        hardware=record.hardware(str(device), torch.get_num_threads()),
        versions=record.versions(),
        git=record.git_revision(),
    )
