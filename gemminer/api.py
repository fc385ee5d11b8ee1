"""From Python: mine, train and check a user's own model and data, and compare many recipes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from torch import Tensor, nn

from gemminer import methods
from gemminer.core import numbers
from gemminer.core.errors import UsageError
from gemminer.core.files import as_path
from gemminer.core.ownership import refuse_foreign
from gemminer.core.progress import Monitor
from gemminer.core.ticket import Ticket
from gemminer.reporting.calls import draw_page, told_of
from gemminer.runs import called
from gemminer.runs.checks import CheckResult, check_names
from gemminer.runs.experiment import BATCH_SIZE, require_test
from gemminer.runs.keywords import of_comparison, of_method, of_training, takes
from gemminer.runs.recipe import DEFAULT_CHECKS
from gemminer.runs.settings import check_length, draw_of, resolve
from gemminer.runs.typed import MineOptions, TrainOptions, TrainResult
from gemminer.training.losses import Loss, Metric, Step, cross_entropy
from gemminer.training.pretrain import Pretrain
from gemminer.training.ranks import Distributed

if TYPE_CHECKING:
    from gemminer.runs.compare import Outcome
    from gemminer.runs.grid import Grid


@takes("gemminer.mine", of_method)
def mine(
    model: nn.Module,
    train_data: Any,
    density: float,
    *,
    method: str = "gem-miner",
    epochs: int | None = None,
    budget: str | None = None,
    seed: int = 0,
    batch_size: int = BATCH_SIZE,
    initialiser: str = "default",
    loss: Loss = cross_entropy,
    step: Step | None = None,
    metric: Metric | None = None,
    validation_data: Any = None,
    include: str | Sequence[str] = (),
    exclude: str | Sequence[str] = (),
    embeddings: bool = False,
    within: Ticket | Mapping[str, Tensor] | None = None,
    pretrain: Pretrain | str | None = None,
    engine: str = "auto",
    precision: str = "fp32",
    accumulate: int = 1,
    checkpoint: str | Path | None = None,
    distributed: Distributed = None,
    out: str | Path | None = None,
    progress: bool = False,
    monitor: Monitor | None = None,
    **options: Unpack[MineOptions],
) -> Ticket:
    """Find a lottery ticket in `model` at initialisation; the model is left as it was.

    Gem-Miner trains a score p for each weight w while w stays as it is, w_eff = w * q * 1[p > 1/2], and freezes the
    lowest scores (q = 0) on a schedule until round(density * d) of the d prunable weights remain.

    Args:
        model: any module; its convolutions, linear and recurrent layers and attention projections are pruned. What
            else of two and more dimensions stays dense is said when it is over a tenth: `Ticket.left_dense`.
        train_data: a DataLoader, a dataset, a pair of tensors (inputs, targets) or a Lightning DataModule, whose other
            parts are the validation and test data where none are given.
        density: fraction of prunable weights kept, above 0 and at most 1.
        method: a name from `gemminer.methods.names()`.
        epochs: passes over the data; by default 40 on small data, fewer on large.
        budget: the search's length instead: "120s", or a part of those epochs, "0.5".
        seed: of the initial weights, the scores and the order of batches.
        batch_size: of datasets and tensors; a DataLoader has its own.
        initialiser: "default" draws the prunable weights anew from the method's own distribution (signed Kaiming
            constant for Gem-Miner), "keep" takes the model's, any of `gemminer.core.draw.kinds()` draws from that. The
            zeros of a pruned model that is kept stay zero where the density allows it.
        loss: (output, target) -> scalar; by default a dictionary's batch has the model's own, others cross-entropy.
        step: (model, batch) -> loss, in place of the loss: what runs the model, on whatever the data gives as a batch.
        metric: (output, target), or (model, batch) with a step, -> a number, or one for each example, higher is better;
            by default accuracy over the labels that a cross-entropy of classes does not ignore, else minus the loss.
        validation_data: logged each epoch; never used to choose.
        include: names of further parameters to prune, as shell patterns: fused experts, matrices of your own layers.
        exclude: names of parameters to leave dense, as shell patterns; it wins over `include`.
        embeddings: prune embedding tables too, also those an output layer shares.
        within: a ticket of this model, or masks by parameter name, inside which the search stays: what it keeps is a
            part of that, still `density` of all prunable weights, and checks stay inside too. It computes densely.
        pretrain: a `gemminer.Pretrain`, or its text, as "all@200": steps of the dense network, before the search.
        engine: "dense" computes every weight, "sparse" only those that are kept, "auto" (on a CPU) what is faster;
            results agree within rounding.
        precision: "fp32", or "bf16": the model runs in bfloat16 (autocast); weights, scores and the loss are float32.
        accumulate: the batches of an optimiser step, whose gradient is that of all their examples together.
        checkpoint: a file that a killed search is resumed from; removed at the end. Another call refuses it.
        distributed: where several processes run, as by torchrun, True lets them share the work (each a part of the
            data, gradients averaged), a process group those in it; False is each alone. None refuses several.
        out: a folder for the record, the metrics, the ticket and a page, report.html, of this and of what `train` and
            `check` with the same `out` make of the ticket. The same call goes on where it was killed, or returns what
            is there; another is refused.
        progress: show it on stderr, or in the notebook: a bar, or plain lines where there is no terminal.
        monitor: a `gemminer.core.progress.Monitor` that is told of every step.
        options: the method's own, see `gemminer.methods.get(method).options`.

    Returns:
        The ticket: `ticket.apply(model)` makes `model` the subnetwork, `gemminer.train(model, ticket, ...)` trains it.

    Raises:
        UsageError: a density, name or option that cannot be, data that is not pairs, nothing to prune, a checkpoint of
            another call.
        GemminerError: the loss is not finite, the disk is full.

    Source: Sreenivasan et al., "Rare Gems: Finding Lottery Tickets at Initialization", NeurIPS 2022.

    >>> import gemminer, torch
    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 16), torch.nn.ReLU(), torch.nn.Linear(16, 2))
    >>> inputs = torch.randn(64, 4)
    >>> ticket = gemminer.mine(net, (inputs, (inputs[:, 0] > 0).long()), density=0.25, epochs=5)
    >>> ticket.kept, ticket.prunable
    (24, 96)
    """
    seed, density = numbers.seed_of(seed), numbers.fraction("density is the fraction of weights kept", density)
    row = methods.get(method)
    check_length(row, epochs, budget, accumulate)
    with told_of(monitor, progress) as told:
        experiment = called.experiment_of(
            model,
            train_data,
            validation=validation_data,
            batch_size=batch_size,
            seed=seed,
            loss=loss,
            step=step,
            metric=metric,
            monitor=told,
            distributed=distributed,
            engine=engine,
            precision=precision,
            accumulate=accumulate,
            checkpoint=checkpoint,
            include=numbers.strings("include", include),
            exclude=numbers.strings("exclude", exclude),
            embeddings=embeddings,
            within=dict(within.masks) if isinstance(within, Ticket) else within,
        )
        resolved = resolve(method, experiment.task.train.examples, epochs=epochs, budget=budget, options=dict(options))
        experiment.check_density(density)
        draw = draw_of(initialiser, row, density, seed)
        call = called.Call(experiment, out)
        ticket = call.search(method, density, resolved.options, draw, resolved.seconds, Pretrain.given(pretrain))
        draw_page(call)
        return ticket


@takes("gemminer.train", of_training)
def train(
    model: nn.Module,
    ticket: Ticket | str | Path,
    train_data: Any,
    test_data: Any = None,
    *,
    epochs: int | None = None,
    seed: int = 0,
    batch_size: int = BATCH_SIZE,
    loss: Loss = cross_entropy,
    step: Step | None = None,
    metric: Metric | None = None,
    engine: str = "auto",
    precision: str = "fp32",
    accumulate: int = 1,
    checkpoint: str | Path | None = None,
    distributed: Distributed = None,
    out: str | Path | None = None,
    progress: bool = False,
    monitor: Monitor | None = None,
    **settings: Unpack[TrainOptions],
) -> TrainResult:
    """Train the kept weights from their initial values; afterwards `model` holds them, the others exactly zero.

    Args:
        model: of the ticket's shape; its own values are overwritten.
        ticket: what to keep, or the file it was saved in.
        train_data: as in `mine`.
        test_data: as `train_data`; read once, at the end.
        epochs: passes over the data; by default as in `mine`.
        seed: of the order of the batches, and of dropout.
        batch_size: as in `mine`.
        loss: as in `mine`.
        step: as in `mine`.
        metric: as in `mine`.
        engine: as in `mine`.
        precision: as in `mine`.
        accumulate: as in `mine`.
        checkpoint: a file that a killed training is resumed from; removed at the end. Another call refuses it.
        distributed: as in `mine`.
        out: as in `mine`, or a new folder.
        progress: as in `mine`.
        monitor: as in `mine`.
        settings: fields of `gemminer.training.settings.Settings`: optimiser, lr, weight_decay, schedule, ...

    Returns:
        A `TrainResult`, which is a mapping too: test (the metric or None), classes (the metric by class, where there is
        one class index and one value for each test example), validation, cost (epochs, seconds, flops_dense,
        flops_sparse) and rate (the learning rate and how it was found).

    Raises:
        UsageError: the ticket is of another model; a setting that cannot be; a checkpoint of another call.
        GemminerError: the loss is not finite.

    >>> import gemminer, torch
    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 16), torch.nn.ReLU(), torch.nn.Linear(16, 2))
    >>> data = (x := torch.randn(64, 4), (x[:, 0] > 0).long())
    >>> ticket = gemminer.mine(net, data, density=0.25, epochs=5)
    >>> result = gemminer.train(net, ticket, data, data, epochs=5)
    >>> sum(int(p.count_nonzero()) for name, p in net.named_parameters() if name in ticket.masks) <= ticket.kept
    True
    """
    ticket = Ticket.given(ticket)
    with told_of(monitor, progress) as told:
        experiment = called.for_ticket(
            ticket,
            model,
            train_data,
            epochs,
            dict(settings),
            test=test_data,
            batch_size=batch_size,
            seed=numbers.seed_of(seed),
            loss=loss,
            step=step,
            metric=metric,
            monitor=told,
            distributed=distributed,
            engine=engine,
            precision=precision,
            accumulate=accumulate,
            checkpoint=checkpoint,
        )
        call = called.Call(experiment, out)
        result = call.train(ticket)
        draw_page(call)
        return TrainResult(**result)


@takes("gemminer.check", of_training)
def check(
    model: nn.Module,
    ticket: Ticket | str | Path,
    train_data: Any,
    test_data: Any = None,
    *,
    seeds: int = 3,
    names: str | Sequence[str] = DEFAULT_CHECKS,
    epochs: int | None = None,
    seed: int = 0,
    batch_size: int = BATCH_SIZE,
    loss: Loss = cross_entropy,
    step: Step | None = None,
    metric: Metric | None = None,
    engine: str = "auto",
    precision: str = "fp32",
    accumulate: int = 1,
    distributed: Distributed = None,
    out: str | Path | None = None,
    progress: bool = False,
    monitor: Monitor | None = None,
    **settings: Unpack[TrainOptions],
) -> CheckResult:
    """Prove a ticket: train it and the altered ticket of each sanity check, over paired seeds.

    The ticket passes a check when its mean metric exceeds that of the altered ticket beyond chance
    (`gemminer.core.statistics.paired_test`).

    Args:
        model: of the ticket's shape; left as it was.
        ticket: what to check, or the file it was saved in.
        train_data: as in `mine`.
        test_data: as `train_data`; what the metric is measured on.
        seeds: trainings of the ticket and of each check; 1 decides nothing.
        names: shuffle, reinit, scratch (all values drawn anew), invert (the method's ranking turned upside down),
            uniform and erk (random tickets of equal density).
        epochs: of each training; by default as in `mine`.
        seed: the first training seed is derived from it.
        batch_size: as in `mine`.
        loss: as in `mine`.
        step: as in `mine`.
        metric: as in `mine`.
        engine: as in `mine`.
        precision: as in `mine`.
        accumulate: as in `mine`.
        distributed: as in `mine`.
        out: as in `mine`, or a new folder.
        progress: as in `mine`.
        monitor: as in `mine`.
        settings: fields of `gemminer.training.settings.Settings`.

    Returns:
        The verdict over all checks, and the figures of each by name; printed, it is a table.

    Raises:
        UsageError: an unknown check, a ticket of another model.

    >>> import gemminer, torch
    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 16), torch.nn.ReLU(), torch.nn.Linear(16, 2))
    >>> data = (x := torch.randn(64, 4), (x[:, 0] > 0).long())
    >>> ticket = gemminer.mine(net, data, density=0.25, epochs=5)
    >>> gemminer.check(net, ticket, data, data, seeds=1, names=["shuffle"], epochs=2).verdict
    'not decided'
    """
    seeds, names, ticket = numbers.whole("seeds", seeds, least=1), check_names(names), Ticket.given(ticket)
    with told_of(monitor, progress) as told:
        experiment = called.for_ticket(
            ticket,
            model,
            train_data,
            epochs,
            dict(settings),
            test=test_data,
            batch_size=batch_size,
            seed=numbers.seed_of(seed),
            loss=loss,
            step=step,
            metric=metric,
            monitor=told,
            distributed=distributed,
            engine=engine,
            precision=precision,
            accumulate=accumulate,
        )
        require_test(experiment.test)
        call = called.Call(experiment, out)
        result = call.check(ticket, seeds, names)
        draw_page(call)
        return result


@takes("gemminer.compare", of_comparison)
def compare(asked: Grid | Mapping[str, Any], out: str | Path, **how: Any) -> Outcome:
    """Run every cell of a comparison that is not finished yet, then write its tables and its page in the folder `out`.

    table.csv and table.md have a row a cell, summary.csv means over seeds, costs.csv the seconds, report.html the page,
    records.jsonl.gz the records, from which `draw` writes the others again.

    Args:
        asked: a grid, or what `gemminer.runs.compare.plan` makes one of: the fields of a recipe, lists for some.
        out: the folder; what is finished there stays.
        how: as for `gemminer.runs.compare.run_cells`: workers, threads, device, engine, root, download, backend, part,
            watch. With a part there are no tables and no page yet.

    Raises:
        UsageError: what cannot be in any cell; nothing has been run.
        GemminerError: the disk, or the data of every cell.
    """
    from gemminer.reporting import tables  # here, for a page needs Jinja and nothing else does
    from gemminer.reporting.page import report
    from gemminer.runs.compare import plan, run_cells
    from gemminer.runs.grid import Grid

    if not isinstance(asked, (Mapping, Grid)):
        raise UsageError(f"a comparison is a grid or the fields of one by name, not {numbers.shown(asked)}")
    folder = as_path("out, the folder,", out)
    outcome = run_cells(plan(asked) if isinstance(asked, Mapping) else asked, folder, **how)
    if how.get("part") is not None:
        return outcome
    tables.write(outcome.out, outcome.cells, outcome.records, outcome.failures)
    if outcome.records:
        # All of them: the page names those that failed or are missing.
        report([outcome.folder(cell) for cell in outcome.cells], folder / "report.html", table_files=tables.PAGE_FILES)
    return outcome


def draw(file: str | Path, out: str | Path | None = None) -> Path:
    """Write a comparison's tables and its page from its file of records, without running anything; return the page.

    `gemminer.compare` keeps records.jsonl.gz in its folder. What is written from it is what the comparison wrote.

    Args:
        file: the records of a comparison, or of single runs; or a comparison's folder, with the cells that are there.
        out: the folder to write in, made where it is missing; by default the file's own.

    Raises:
        UsageError: a file that gemminer did not write would be replaced.
        GemminerError: the file cannot be read, or it has no record.
    """
    from gemminer.reporting import page, tables
    from gemminer.runs import archive
    from gemminer.runs.compare import gathered

    path = as_path("file, the records,", file)
    path = gathered(path) if path.is_dir() else path
    found = archive.read(path)
    folder = path.parent if out is None else as_path("out, the folder,", out)
    refuse_foreign([folder / "report.html"])
    tables.write(folder, found.cells(), found.records, found.failures)
    return page.draw(found, folder / "report.html", str(path), tables.PAGE_FILES)
