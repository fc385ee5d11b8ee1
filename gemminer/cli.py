"""argv -> recipe -> run; prints. No logic: what a command does is a function of another room."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import typer
from rich.console import Console
from rich.table import Table

from gemminer.core.errors import GemminerError, Stopped, UsageError, unknown
from gemminer.reporting.tables import summary_in_words
from gemminer.reporting.terminal import check_table, print_aligned, print_summary
from gemminer.runs import recipe as recipes

app = typer.Typer(
    name="gemminer",
    help="Find, train, prove and use lottery tickets at initialisation. Density = fraction of weights kept.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
_OUT = Console(highlight=False)
_ERR = Console(stderr=True, highlight=False)

Method = Annotated[str | None, typer.Option("--method", "-m", help="Pruning method (see 'gemminer methods').")]
Density = Annotated[
    float | None,
    typer.Option("--density", "-d", help="Fraction of prunable weights kept, above 0, at most 1."),
]
Model = Annotated[str | None, typer.Option("--model", help="Network (see 'gemminer models').")]
DataName = Annotated[str | None, typer.Option("--data", help="Data set (see 'gemminer data').")]
Seed = Annotated[int | None, typer.Option("--seed", help="Seed of weights, scores, batches and checks. [0]")]
Epochs = Annotated[int | None, typer.Option("--epochs", help="Epochs of the search. [by data size: 5 to 40]")]
Budget = Annotated[
    str | None, typer.Option("--budget", help="Length of the search instead: 120s, or a part of the training: 0.5.")
]
TrainEpochs = Annotated[int | None, typer.Option("--train-epochs", help="Epochs of training. [as the search]")]
Batch = Annotated[int | None, typer.Option("--batch-size", help="Examples in a training batch. [128]")]
Limit = Annotated[int | None, typer.Option("--limit-train", help="Use only the first N training images.")]
Ridge = Annotated[float | None, typer.Option("--lambda", help="Gem-Miner's lambda, fixed. [solved for at each step]")]
FreezeEvery = Annotated[
    int | None,
    typer.Option("--freeze-every", help="Freeze every E epochs, as published; 0: a little every few steps. [0]"),
]
Init = Annotated[
    str | None, typer.Option("--initialiser", help="Distribution of the initial weights. [the method's own]")
]
Option = Annotated[
    list[str] | None,
    typer.Option("--option", "-o", metavar="NAME=VALUE", help="An option of the method; repeatable."),
]
TrainOption = Annotated[
    list[str] | None,
    typer.Option(
        "--train-option",
        "-t",
        metavar="NAME=VALUE",
        help="A setting of the training (lr, optimiser, ...); repeatable.",
    ),
]
ModelOption = Annotated[
    list[str] | None,
    typer.Option(
        "--model-option",
        metavar="NAME=VALUE",
        help="An option of the network (norm, width, ...); repeatable.",
    ),
]
Augment = Annotated[
    str | None, typer.Option("--augment", help="crop4+flip and the like, or none. [the data set's own]")
]
NoChecks = Annotated[bool, typer.Option("--no-checks", help="Do not run the sanity checks.")]
NoDense = Annotated[bool, typer.Option("--no-dense", help="Do not train the dense network for reference.")]
CheckSeeds = Annotated[
    int | None, typer.Option("--check-seeds", help="Training seeds of the ticket and of each check. [3]")
]
RecipeName = Annotated[str | None, typer.Option("--recipe", help="A named recipe, or a TOML or JSON file of one.")]
Out = Annotated[Path | None, typer.Option("--out", help="Folder of the run. [runs/NAME]")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with a run that was stopped.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Begin anew in a folder that holds a run.")]
Engine = Annotated[
    str, typer.Option("--engine", help="dense, sparse (kept weights only), or auto: on a CPU what is faster.")
]
Device = Annotated[str, typer.Option("--device", help="cpu, cuda, cuda:1, mps or auto.")]
Threads = Annotated[int | None, typer.Option("--threads", min=1, help="CPU threads. [all cores]")]
Root = Annotated[Path | None, typer.Option("--data-root", help="Folder of the data set's files.")]
Download = Annotated[bool, typer.Option("--download", help="Let torchvision download the data set.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object, for machines.")]
TicketFile = Annotated[Path, typer.Argument(help="A ticket.safetensors, or the folder of its run.")]


def _pairs(texts: list[str] | None, flag: str) -> dict[str, Any]:
    """NAME=VALUE texts as a mapping; values are read as JSON where they are JSON."""
    return dict(recipes.setting(text, f"{flag} takes NAME=VALUE, not {text!r}") for text in texts or ())


def _recipe(base: str | None, changes: Mapping[str, Any], nested: Mapping[str, Mapping[str, Any]]) -> recipes.Recipe:
    """A named recipe (or the default) with what the command line sets."""
    start = recipes.load(base) if base else recipes.Recipe()
    merged = {name: {**getattr(start, name), **values} for name, values in nested.items() if values}
    return start.replace(**changes, **merged)


def _folder(recipe: recipes.Recipe, out: Path | None) -> Path:
    if out is not None:
        return out
    data = recipe.data.replace("/", "_").replace(":", "_")
    return Path("runs") / f"{recipe.model}-{data}-{recipe.density:g}-{recipe.method}-s{recipe.seed}-{recipe.digest[:6]}"


def _threads(count: int | None) -> None:
    if count is not None:
        import torch

        torch.set_num_threads(count)


def _print(value: Any) -> None:
    typer.echo(json.dumps(value))


@app.command()
def mine(
    method: Method = None,
    density: Density = None,
    model: Model = None,
    data: DataName = None,
    recipe: RecipeName = None,
    seed: Seed = None,
    epochs: Epochs = None,
    budget: Budget = None,
    train_epochs: TrainEpochs = None,
    batch_size: Batch = None,
    limit_train: Limit = None,
    ridge: Ridge = None,
    freeze_every: FreezeEvery = None,
    initialiser: Init = None,
    option: Option = None,
    train_option: TrainOption = None,
    model_option: ModelOption = None,
    augment: Augment = None,
    no_checks: NoChecks = False,
    no_dense: NoDense = False,
    check_seeds: CheckSeeds = None,
    out: Out = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    device: Device = "auto",
    engine: Engine = "auto",
    threads: Threads = None,
    data_root: Root = None,
    download: Download = False,
    as_json: Json = False,
) -> None:
    """Find a ticket, train it, check it and write a report."""
    options = _pairs(option, "--option")
    options |= {k: v for k, v in {"ridge": ridge, "freeze_every": freeze_every}.items() if v is not None}
    chosen = _recipe(
        recipe,
        {
            "method": method,
            "density": density,
            "model": model,
            "data": data,
            "seed": seed,
            "epochs": epochs,
            "budget": budget,
            "train_epochs": train_epochs,
            "batch_size": batch_size,
            "limit_train": limit_train,
            "initialiser": initialiser,
            "augment": augment,
            "check_seeds": check_seeds,
            "checks": () if no_checks else None,
            "dense": False if no_dense else None,
        },
        {
            "options": options,
            "train": _pairs(train_option, "--train-option"),
            "model_options": _pairs(model_option, "--model-option"),
        },
    )
    _threads(threads)
    from gemminer.reporting.page import write
    from gemminer.reporting.terminal import monitor_for
    from gemminer.runs.execute import run_recipe

    folder = _folder(chosen, out)
    monitor = monitor_for(_ERR if as_json else _OUT)
    try:
        result = run_recipe(
            chosen,
            folder,
            resume=resume,
            overwrite=overwrite,
            device=device,
            engine=engine,
            root=data_root,
            download=download,
            monitor=monitor,
        )
        write(folder)
    finally:
        monitor.close()
    if as_json:
        _print({**json.loads(result.to_json()), "out": str(folder)})
    else:
        print_summary(_OUT, json.loads(result.to_json()), folder)


def _ticket_of(path: Path) -> Path:
    return path / "ticket.safetensors" if path.is_dir() else path


@app.command()
def train(
    ticket: TicketFile,
    model: Model = None,
    data: DataName = None,
    recipe: RecipeName = None,
    seed: Seed = None,
    epochs: Epochs = None,
    batch_size: Batch = None,
    limit_train: Limit = None,
    train_option: TrainOption = None,
    model_option: ModelOption = None,
    augment: Augment = None,
    out: Annotated[Path | None, typer.Option("--out", help="Where the trained weights go. [beside the ticket]")] = None,
    device: Device = "auto",
    engine: Engine = "auto",
    threads: Threads = None,
    data_root: Root = None,
    download: Download = False,
    as_json: Json = False,
) -> None:
    """Train the kept weights of a ticket from their initial values."""
    chosen = _for_ticket(
        ticket,
        recipe,
        model,
        data,
        seed,
        epochs,
        batch_size,
        limit_train,
        augment,
        train_option,
        model_option,
    )
    _threads(threads)
    from gemminer.reporting.terminal import monitor_for
    from gemminer.runs.execute import train_ticket

    monitor = monitor_for(_ERR if as_json else _OUT)
    target = out or _ticket_of(ticket).with_name("trained.safetensors")
    try:
        result = train_ticket(
            chosen,
            _ticket_of(ticket),
            target,
            device=device,
            engine=engine,
            root=data_root,
            download=download,
            monitor=monitor,
        )
    finally:
        monitor.close()
    if as_json:
        _print({**result, "out": str(target)})
    else:
        _OUT.print(f"test accuracy after training {result['test']:.4f}; weights in {target}", soft_wrap=True)


@app.command()
def check(
    ticket: TicketFile,
    model: Model = None,
    data: DataName = None,
    recipe: RecipeName = None,
    seed: Seed = None,
    epochs: Epochs = None,
    batch_size: Batch = None,
    limit_train: Limit = None,
    train_option: TrainOption = None,
    model_option: ModelOption = None,
    augment: Augment = None,
    checks: Annotated[
        list[str] | None,
        typer.Option("--check", help="shuffle, reinit, invert, uniform, erk; repeatable. [all]"),
    ] = None,
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="Training seeds of the ticket and of each check.")] = 3,
    device: Device = "auto",
    engine: Engine = "auto",
    threads: Threads = None,
    data_root: Root = None,
    download: Download = False,
    as_json: Json = False,
) -> None:
    """Prove a ticket: train from it and from what each sanity check leaves of it."""
    chosen = _for_ticket(
        ticket,
        recipe,
        model,
        data,
        seed,
        epochs,
        batch_size,
        limit_train,
        augment,
        train_option,
        model_option,
    )
    chosen = chosen.replace(check_seeds=seeds, checks=tuple(checks) if checks else None)
    _threads(threads)
    from gemminer.reporting.terminal import monitor_for
    from gemminer.runs.execute import check_ticket

    monitor = monitor_for(_ERR if as_json else _OUT)
    try:
        verdict = check_ticket(
            chosen, _ticket_of(ticket), device=device, engine=engine, root=data_root, download=download, monitor=monitor
        )
    finally:
        monitor.close()
    rows = {name: dataclasses.asdict(c) for name, c in verdict.checks.items()}
    if as_json:
        _print({"verdict": verdict.verdict, "checks": rows})
    else:
        _OUT.print(check_table(rows))
        _OUT.print(f"sanity checks: {verdict.verdict}")


def _for_ticket(
    ticket: Path,
    base: str | None,
    model: str | None,
    data: str | None,
    seed: int | None,
    epochs: int | None,
    batch_size: int | None,
    limit_train: int | None,
    augment: str | None,
    train_option: list[str] | None,
    model_option: list[str] | None,
) -> recipes.Recipe:
    """The recipe a ticket was found with, as its run's record has it, with what the command line sets."""
    start: dict[str, Any] = {}
    found = _ticket_of(ticket).with_name("record.json")
    if base is None and found.exists():
        from gemminer.runs.record import read

        start = read(found).recipe
    elif base is not None:
        start = recipes.load(base).model_dump(exclude_defaults=True)
    elif model is None or data is None:
        raise UsageError(f"there is no record beside {ticket}: say which --model and --data it is of")
    begin = recipes.make(start)
    nested = {
        "train": {**begin.train, **_pairs(train_option, "--train-option")},
        "model_options": {**begin.model_options, **_pairs(model_option, "--model-option")},
    }
    return begin.replace(
        model=model,
        data=data,
        seed=seed,
        train_epochs=epochs,
        batch_size=batch_size,
        limit_train=limit_train,
        augment=augment,
        **nested,
    )


@app.command()
def inspect(ticket: TicketFile, as_json: Json = False) -> None:
    """Print what a ticket keeps of each layer, and where it came from."""
    from gemminer.core.ticket import Ticket

    found = Ticket.load(_ticket_of(ticket))
    layers, facts = found.per_layer(), found.provenance
    if as_json:
        _print(
            {
                "kept": found.kept,
                "prunable": found.prunable,
                "density": found.density,
                "digest": found.digest,
                "layers": [dataclasses.asdict(layer) for layer in layers],
                "draw": dataclasses.asdict(found.draw) if found.draw else None,
                "provenance": facts,
            }
        )
        return
    table = Table("layer", "shape", box=None, pad_edge=False)
    for name in ("weights", "kept", "density", "filters", "dead"):
        table.add_column(name, justify="right")
    for layer in layers:
        table.add_row(
            layer.name,
            "x".join(map(str, layer.shape)),
            str(layer.prunable),
            str(layer.kept),
            f"{layer.density:.4%}",
            str(layer.filters),
            str(layer.dead_filters),
        )
    table.add_row("all", "", str(found.prunable), str(found.kept), f"{found.density:.4%}", "", "")
    _OUT.print(table)
    draw = f"{found.draw.kind}, seed {found.draw.seed}" if found.draw else "the model's own"
    _OUT.print(
        f"found by {facts.get('method', 'an unknown method')}, seed {facts.get('seed')}; initial weights: {draw}"
    )


def _listing(rows: list[dict[str, Any]], columns: list[str], as_json: bool) -> None:
    if as_json:
        for row in rows:
            _print(row)
        return
    table = Table(*columns, box=None, pad_edge=False)
    for row in rows:
        table.add_row(*(str(row[c]) for c in columns))
    _OUT.print(table)


@app.command()
def methods(
    name: Annotated[str | None, typer.Argument(help="Show the options of this method.")] = None,
    as_json: Json = False,
) -> None:
    """List the pruning methods, or one method's options."""
    from gemminer import methods as registry

    if name is None:
        rows = []
        for m in map(registry.get, registry.names()):
            row = {"name": m.name, "summary": m.summary, "source": m.source, "initialiser": m.initialiser}
            defaults = {field.name: field.default for field in dataclasses.fields(m.options)}
            rows.append({**row, "options": defaults, "choices": _choices(m.options)})
        _listing(rows, ["name", "summary", "source"], as_json)
        return
    found = registry.get(name)
    choices = _choices(found.options)
    fields = [
        {"option": f.name, "default": f.default, "type": " | ".join(choices.get(f.name, [str(f.type)]))}
        for f in dataclasses.fields(found.options)
    ]
    if not as_json:
        _OUT.print(f"{found.name}: {found.summary} ({found.source})\n\n{found.options.__doc__}\n", markup=False)
    _listing(fields, ["option", "default", "type"], as_json)


def _choices(options: type) -> dict[str, list[str]]:
    """The names an option can have, where it is one of several: Edge-Popup's rungs, IMP's rewinding."""
    types = {name: kind for name, kind in get_type_hints(options).items() if get_origin(kind) is Literal}
    return {name: list(get_args(kind)) for name, kind in types.items()}


@app.command()
def models(as_json: Json = False) -> None:
    """List the networks."""
    from gemminer import models as library

    rows = [{"name": n, "description": library.describe(n)} for n in library.names()]
    _listing(rows, ["name", "description"], as_json)


@app.command("data")
def data_sets(as_json: Json = False) -> None:
    """List the data sets."""
    from gemminer import data as library

    rows = [{"name": n, "description": library.describe(n)} for n in library.names()]
    _listing(rows, ["name", "description"], as_json)


@app.command("recipes")
def named_recipes(
    name: Annotated[str | None, typer.Argument(help="Print this recipe.")] = None, as_json: Json = False
) -> None:
    """List the named recipes, or print one as JSON (a file that --recipe takes)."""
    if name is not None:
        typer.echo(json.dumps(recipes.load(name).model_dump(mode="json", exclude_defaults=True), indent=1))
        return
    rows = [
        {
            "name": n,
            "method": r.method,
            "model": r.model,
            "data": r.data,
            "density": r.density,
            "epochs": r.epochs,
        }
        for n, r in ((n, recipes.load(n)) for n in recipes.names())
    ]
    _listing(rows, ["name", "method", "model", "data", "density", "epochs"], as_json)


@app.command()
def bench(
    what: Annotated[
        str,
        typer.Argument(
            help="search, train: a step against dense training. infer: a compiled program against other engines. "
            "end-to-end: search and training against one dense training."
        ),
    ],
    model: Annotated[
        list[str] | None, typer.Option("--model", help="Network; repeatable. [resnet20, lenet-300-100]")
    ] = None,
    density: Annotated[float, typer.Option("--density", "-d", help="Fraction of weights kept.")] = 0.0144,
    batch_size: Annotated[
        list[int] | None, typer.Option("--batch-size", help="Examples in a batch; repeatable. [128; infer: 1 and 128]")
    ] = None,
    runs: Annotated[int | None, typer.Option("--runs", min=1, help="Rounds measured. [15; end-to-end: 3]")] = None,
    compile: Annotated[
        bool | None, typer.Option("--compile/--no-compile", help="Measure torch.compile too. [infer only]")
    ] = None,
    memory: Annotated[bool, typer.Option("--memory/--no-memory", help="train: measure peak memory too.")] = True,
    epochs: Annotated[int, typer.Option("--epochs", min=1, help="end-to-end: of the search and of training.")] = 4,
    examples: Annotated[int, typer.Option("--examples", min=1, help="end-to-end: images of an epoch.")] = 2048,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Measure ratios of speed on this machine: baseline's time / ours, above 1 is faster than the baseline."""
    from gemminer import bench as benches

    if what not in benches.BENCHES:
        raise unknown("benchmark", what, benches.BENCHES)
    _threads(threads)
    setups = [
        benches.Setup(name, density, batch, runs, compile, memory, epochs, examples)
        for name in model or ["resnet20", "lenet-300-100"]
        for batch in batch_size or benches.BATCHES[what]
    ]
    left_out: dict[str, str] = {}
    for found in benches.run(what, setups):
        if as_json:
            _print(found.as_dict())
        else:
            _OUT.print(str(found), soft_wrap=True)
        left_out |= found.left_out
    for name, why in left_out.items():
        typer.echo(f"{name} was left out: {why}", err=True)


Many = list[str] | None


def _list(texts: Many) -> list[str] | None:
    """The values of a repeatable flag that also takes several at once, between commas."""
    return [part.strip() for text in texts for part in text.split(",") if part.strip()] if texts else None


@app.command()
def compare(
    out: Annotated[Path, typer.Option("--out", help="Folder of the comparison; what is finished there stays.")],
    method: Annotated[
        Many, typer.Option("--method", "-m", help="Methods: NAME or NAME:OPTION=VALUE, a,b or repeated; all.")
    ] = None,
    density: Annotated[Many, typer.Option("--density", "-d", help="Densities, as 0.05,0.01; or repeated.")] = None,
    model: Annotated[Many, typer.Option("--model", help="Networks; a,b or repeated.")] = None,
    data: Annotated[Many, typer.Option("--data", help="Data sets; a,b or repeated.")] = None,
    seed: Annotated[Many, typer.Option("--seed", help="Seeds, as 0,1,2 or 0-2; or repeated. [0]")] = None,
    recipe: Annotated[
        Path | None, typer.Option("--recipe", help="A TOML or JSON file of these fields, options by method.")
    ] = None,
    epochs: Epochs = None,
    train_epochs: TrainEpochs = None,
    batch_size: Batch = None,
    limit_train: Limit = None,
    initialiser: Init = None,
    train_option: TrainOption = None,
    model_option: ModelOption = None,
    augment: Augment = None,
    checks: Annotated[
        Many, typer.Option("--checks", help="Sanity checks of each cell. [shuffle,reinit,invert]")
    ] = None,
    no_checks: NoChecks = False,
    check_seeds: Annotated[
        int | None, typer.Option("--check-seeds", help="Training seeds of each cell and check. [1]")
    ] = None,
    no_dense: NoDense = False,
    workers: Annotated[int, typer.Option("--workers", "-w", min=0, help="Processes; 0: none but this one.")] = 1,
    threads: Annotated[
        int | None, typer.Option("--threads", min=1, help="CPU threads of each cell. [cores / workers]")
    ] = None,
    backend: Annotated[str, typer.Option("--backend", help="local, or ray for a Ray cluster.")] = "local",
    device: Device = "auto",
    engine: Engine = "auto",
    data_root: Root = None,
    download: Download = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the cells and their cost; run nothing.")] = False,
    as_json: Json = False,
) -> None:
    """Run methods x densities x networks x data sets x seeds, resume what was stopped, and report on all."""
    from gemminer import api
    from gemminer.reporting.terminal import board_for
    from gemminer.runs import grid
    from gemminer.runs.compare import plan
    from gemminer.runs.estimate import estimates

    chosen = {
        **{"method": _list(method), "density": _list(density), "model": _list(model), "data": _list(data)},
        **{"seed": _list(seed), "epochs": epochs, "train_epochs": train_epochs, "batch_size": batch_size},
        **{"limit_train": limit_train, "initialiser": initialiser, "augment": augment, "check_seeds": check_seeds},
        **{"checks": [] if no_checks else _list(checks), "dense": False if no_dense else None},
    }
    chosen = {name: value for name, value in chosen.items() if value is not None}
    nested = {"train": _pairs(train_option, "--train-option"), "model_options": _pairs(model_option, "--model-option")}
    parts = [
        {**part, **chosen, **{name: {**part.get(name, {}), **pairs} for name, pairs in nested.items() if pairs}}
        for part in grid.parts_of(grid.load(recipe) if recipe else {})
    ]
    asked = plan({grid.PARTS: parts})
    if dry_run:
        _estimates(asked.cells(), estimates(asked.cells(), root=data_root, download=download), as_json)
        return
    board = board_for(_ERR if as_json else _OUT, _print if as_json else None)
    try:
        result = api.compare(
            asked,
            out,
            workers=workers,
            threads=threads,
            device=device,
            engine=engine,
            root=data_root,
            download=download,
            backend=backend,
            watch=board,
        )
    except KeyboardInterrupt:
        done = f" with {board.done} of {board.total} cells done" if board.total else ""
        raise Stopped(f"stopped{done}; the same command goes on from there") from None
    if as_json:
        _print({"finished": len(result.records), "failed": result.failures, "out": str(out)})
    else:
        columns = ["method", "model", "data", "density", "n", "before", "after"]
        print_aligned(_OUT, summary_in_words(result.cells, result.records), columns)
        _OUT.print(f"{out / 'report.html'}, table.csv, table.md, summary.csv, costs.csv", soft_wrap=True)
    if result.failures:
        _ERR.print(f"gemminer: {result.sentence()}", markup=False, soft_wrap=True)
        raise typer.Exit(1)


def _estimates(cells: Any, expected: Mapping[str, Any], as_json: bool) -> None:
    """The cells of a comparison with what each will cost, in epochs and as a part of the whole."""
    whole = sum(e.flops for e in expected.values()) or 1.0
    rows = []
    for cell in cells:
        r, e = cell.recipe, expected.get(cell.digest)
        row = {"cell": cell.digest, "method": cell.label, "model": r.model, "data": r.data}
        row |= {"density": r.density, "seed": r.seed}
        row |= {k: getattr(e, k, None) for k in ("search", "training", "checks", "epochs", "flops")}
        rows.append({**row, "share": e.flops / whole if e else None})
    if as_json:
        for row in rows:
            _print(row)
        return
    words = {
        "search": "g",
        "training": "g",
        "checks": "g",
        "epochs": "g",
        "density": "g",
        "flops": ".3g",
        "share": ".1%",
    }
    texts = [{k: "?" if v is None else format(v, words.get(k, "")) for k, v in row.items()} for row in rows]
    print_aligned(_OUT, texts, list(rows[0]))
    total = sum(e.epochs for e in expected.values())
    _OUT.print(f"{len(rows)} cells, {total:g} epochs, {whole:.3g} FLOPs; nothing was run", soft_wrap=True)


def main(argv: list[str] | None = None) -> int:
    """The program: exit code 0, 1 where cells failed, 2 with one sentence for the caller, 130 for Ctrl-C."""
    try:
        code = app(args=argv, prog_name="gemminer", standalone_mode=False)  # what typer.Exit was raised with
    except (KeyboardInterrupt, typer.Abort):
        code = 130
    except Exception as error:
        return _complain(error)
    if code == 130:  # typer gives Ctrl-C back as this code
        return _complain(Stopped("stopped; the same command with --resume goes on where it was"))
    return code if isinstance(code, int) else 0


def _complain(error: Exception) -> int:
    """One sentence for an error of the caller's or the disk's; any other is ours, and raised again."""
    if isinstance(error, (GemminerError, OSError)):
        text = str(error)
    elif hasattr(error, "format_message"):  # what typer makes of a wrong option, whichever click it carries
        text = error.format_message()
        if type(error).__name__ == "NoArgsIsHelpError":
            _ERR.print(text, markup=False)
            return 2
    else:
        raise error
    _ERR.print(f"gemminer: {text}", markup=False, soft_wrap=True)
    return 130 if isinstance(error, Stopped) else 2


def entry() -> None:
    """The console script."""
    sys.exit(main())


if __name__ == "__main__":
    entry()
