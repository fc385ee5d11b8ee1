"""The command `gemminer bench`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import typer

from gemminer.core.errors import unknown
from gemminer.reporting.flags import OUT, Json, Threads, print_json, set_threads, spread

MODELS = ("resnet20", "lenet-300-100")


def mount(app: typer.Typer) -> None:
    """Add it to the command line."""
    app.command()(spread(bench))


@dataclass(frozen=True)
class Measured:
    """The setups to measure."""

    model: Annotated[
        list[str] | None,
        typer.Option("--model", metavar="<str>", help="Network; repeatable. [resnet20, lenet-300-100]"),
    ] = None
    density: Annotated[float, typer.Option("--density", "-d", help="Fraction of weights kept.")] = 0.0144
    batch_size: Annotated[
        list[int] | None,
        typer.Option("--batch-size", metavar="<int>", help="Examples in a batch; repeatable. [128; infer: 1 and 128]"),
    ] = None
    runs: Annotated[int | None, typer.Option("--runs", min=1, help="Rounds measured. [15; end-to-end: 3]")] = None
    compile: Annotated[
        bool | None, typer.Option("--compile/--no-compile", help="Measure torch.compile too. [infer only]")
    ] = None
    memory: Annotated[bool, typer.Option("--memory/--no-memory", help="train: measure peak memory too.")] = True
    epochs: Annotated[int, typer.Option("--epochs", min=1, help="end-to-end: of the search and of training.")] = 4
    examples: Annotated[int, typer.Option("--examples", min=1, help="end-to-end: images of an epoch.")] = 2048


def bench(
    what: Annotated[
        str,
        typer.Argument(
            help="search, train: a step against dense training. infer: a compiled program against other engines. "
            "end-to-end: search and training against one dense training."
        ),
    ],
    measured: Measured,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Measure ratios of speed on this machine: baseline's time / ours, above 1 is faster than the baseline."""
    from gemminer.bench import BATCHES, BENCHES, Setup, run

    if what not in BENCHES:
        raise unknown("benchmark", what, BENCHES)
    set_threads(threads)
    m = measured
    setups = [
        Setup(name, m.density, batch, m.runs, m.compile, m.memory, m.epochs, m.examples)
        for name in m.model or MODELS
        for batch in m.batch_size or BATCHES[what]
    ]
    left_out: dict[str, str] = {}
    for found in run(what, setups):
        if as_json:
            print_json(found.as_dict())
        else:
            OUT.print(str(found), soft_wrap=True)
        left_out |= found.left_out
    for name, why in left_out.items():
        typer.echo(f"{name} was left out: {why}", err=True)
