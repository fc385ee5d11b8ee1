"""The command line: argv -> a call, a print. What a command does is a function of another room."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

import gemminer
from gemminer.bench import commands as bench_commands
from gemminer.core import interrupts
from gemminer.core.errors import GemminerError, Stopped, UsageError
from gemminer.core.files import reason
from gemminer.reporting import commands as listing_commands
from gemminer.reporting import diet_commands
from gemminer.reporting.flags import (
    ERR,
    OUT,
    Json,
    Place,
    RecipeFields,
    RecipeName,
    SharedPlace,
    Threads,
    TicketFile,
    Voice,
    print_json,
    set_threads,
    spread,
)
from gemminer.reporting.terminal import check_table, estimate_rows, print_aligned, print_estimates, print_summary
from gemminer.runs import asked
from gemminer.runs.recipe import Recipe


def is_first() -> bool:
    """Whether this process prints: the only one, or of those that work together the first."""
    ranks = sys.modules.get("gemminer.training.ranks")  # --help need not wait for it
    return ranks is None or ranks.is_first()


app = typer.Typer(
    name="gemminer",
    help="Find, train, prove and use lottery tickets at initialisation. Density = fraction of weights kept.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

ForMine = Annotated[dict[str, Any], RecipeFields("mine", Recipe.model_construct)]
ForSmallest = Annotated[dict[str, Any], RecipeFields("smallest", asked.sought)]
ForTrain = Annotated[dict[str, Any], RecipeFields("train")]
ForCheck = Annotated[dict[str, Any], RecipeFields("check")]
ForExport = Annotated[dict[str, Any], RecipeFields("export")]
ForCompare = Annotated[dict[str, Any], RecipeFields("compare", asked.compared)]


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"gemminer {gemminer.__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """What holds for every command."""


@dataclass(frozen=True)
class RunFolder:
    """Where a run is kept."""

    out: Annotated[Path | None, typer.Option("--out", help="Folder of the run. [runs/NAME]")] = None
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a run that was stopped.")] = False
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Begin anew in a folder that holds a run.")] = False


@app.command()
@spread
def mine(
    *,
    recipe: RecipeName = None,
    given: ForMine,
    folder: RunFolder,
    place: SharedPlace,
    threads: Threads = None,
    voice: Voice,
) -> None:
    """Find a ticket, train it, check it and write a report.

    Without a flag that says what to run (or with --seed alone) this is the recipe digits, as make mine runs it.
    """
    from gemminer.reporting.page import write
    from gemminer.runs.execute import run_recipe

    run = asked.to_mine(given, recipe)
    out = folder.out or run.recipe.folder
    set_threads(threads)
    with voice.monitor() as monitor:
        result = run_recipe(
            run.recipe,
            out,
            resume=folder.resume,
            overwrite=folder.overwrite,
            monitor=monitor,
            announce=lambda resolved: monitor.note(run.says(resolved)),
            **place.where(),
        )
        if is_first():
            write(out)
    if not is_first():
        return
    found = json.loads(result.to_json())
    if voice.as_json:
        print_json({**found, "out": str(out)})
    else:
        print_summary(OUT, found, out)


@app.command()
@spread
def smallest(
    *,
    within: Annotated[
        float | None, typer.Option("--within", help="Points of accuracy that may be lost. [0.5, without --size]")
    ] = None,
    size: Annotated[
        str | None, typer.Option("--size", help="Most that the compiled program may take, as 60KB or 1.5MB.")
    ] = None,
    seeds: Annotated[
        int, typer.Option("--seeds", min=1, help="Trainings of the candidate and of the dense network. [3]")
    ] = 3,
    recipe: RecipeName = None,
    given: ForSmallest,
    folder: RunFolder,
    place: Place,
    threads: Threads = None,
    voice: Voice,
) -> None:
    """Find the smallest ticket that is good enough.

    The sparsest whose trained network stays within so many points of the dense one (--within), or the densest whose
    compiled program is no larger than --size. Chosen on validation data; --out has a page and what to ship.
    """
    from gemminer.reporting import smallest_page
    from gemminer.runs.answer import question
    from gemminer.runs.seeking import smallest_of

    wanted, run = question(within, size, seeds), asked.to_smallest(given, recipe)
    out = folder.out or asked.folder_of_smallest(run)
    set_threads(threads)
    with voice.monitor() as monitor:
        where = {"resume": folder.resume, "overwrite": folder.overwrite, "monitor": monitor, **place.where()}
        found = smallest_of(run, wanted, out, **where)
        page = smallest_page.write(out)
    if voice.as_json:
        print_json({**json.loads(found.model_dump_json(by_alias=True)), "out": str(out)})
    else:
        OUT.print(str(found), markup=False, soft_wrap=True)
        OUT.print(f"{page}, {', '.join(found.files) or 'nothing to ship'}", markup=False, soft_wrap=True)
    if not found.files:
        raise typer.Exit(1)


@app.command()
@spread
def train(
    ticket: TicketFile,
    *,
    recipe: RecipeName = None,
    given: ForTrain,
    out: Annotated[Path | None, typer.Option("--out", help="Where the trained weights go. [beside the ticket]")] = None,
    place: SharedPlace,
    threads: Threads = None,
    voice: Voice,
) -> None:
    """Train the kept weights of a ticket from their initial values.

    What no flag says is as in the record beside the ticket.
    """
    from gemminer.runs.execute import train_ticket

    chosen = asked.of_ticket(ticket, given, recipe)
    target = out or asked.ticket_of(ticket).with_name("trained.safetensors")
    if out is None and target.exists():
        raise UsageError(f"{target} holds weights already, a run's result: say with --out where these go")
    set_threads(threads)
    with voice.monitor() as monitor:
        result = train_ticket(chosen, asked.ticket_of(ticket), target, monitor=monitor, **place.where())
    if not is_first():
        return
    if voice.as_json:
        print_json({**result, "out": str(target)})
    else:
        OUT.print(f"test accuracy after training {result['test']:.4f}; weights in {target}", soft_wrap=True)


@app.command()
@spread
def check(
    ticket: TicketFile,
    *,
    recipe: RecipeName = None,
    given: ForCheck,
    place: SharedPlace,
    threads: Threads = None,
    voice: Voice,
) -> None:
    """Prove a ticket: train from it and from what each sanity check leaves of it.

    What no flag says is as in the record beside the ticket, but for the checks (all) and their seeds (3).
    """
    from gemminer.runs.execute import check_ticket

    chosen = asked.of_ticket(ticket, given, recipe, leave=("checks", "check_seeds"))
    set_threads(threads)
    with voice.monitor() as monitor:
        verdict = check_ticket(chosen, asked.ticket_of(ticket), monitor=monitor, **place.where())
    if not is_first():
        return
    rows = {name: dataclasses.asdict(c) for name, c in verdict.checks.items()}
    if voice.as_json:
        print_json({"verdict": verdict.verdict, "checks": rows})
    else:
        OUT.print(check_table(rows))
        OUT.print(f"sanity checks: {verdict.verdict}")


@app.command()
@spread
def export(
    run: TicketFile,
    *,
    to: Annotated[str, typer.Option("--to", help="onnx, dense, compact or program.")],
    out: Annotated[Path | None, typer.Option("--out", help="The file. [in the run's folder]")] = None,
    given: ForExport,
    batch: Annotated[
        int | None, typer.Option("--batch", min=1, help="The one size of batch that onnx or compact takes. [any]")
    ] = None,
    opset: Annotated[int | None, typer.Option("--opset", help="Version of ONNX's operators.")] = None,
    no_compact: Annotated[bool, typer.Option("--no-compact", help="Leave dead filters and neurons in onnx.")] = False,
    data_root: Annotated[Path | None, typer.Option("--data-root", help="Folder of the data set's files.")] = None,
    as_json: Json = False,
) -> None:
    """Write a run's trained network in a format that other programs read.

    onnx: for ONNX Runtime. dense: a state dict for PyTorch, zeros included. compact: a smaller dense network, which
    torch.export.load runs without its class. program: for gemminer.sparse. Network and data are those of the record
    beside the ticket, if no flag says others.
    """
    from gemminer.runs.exporting import export_run

    how = {name: value for name, value in (("batch", batch), ("opset", opset)) if value is not None}
    how |= {"compact": False} if no_compact else {}
    made = export_run(asked.of_ticket(run, given), asked.ticket_of(run), to, out, how, root=data_root)
    if as_json:
        print_json({"to": to, "out": str(made.path), **{n: getattr(made, n) for n in ("bytes", "difference", "note")}})
    else:
        OUT.print(str(made), markup=False, soft_wrap=True)


# What a comparison writes beside its page.
_BESIDE = ", table.csv, table.md, summary.csv, costs.csv"


@app.command()
@spread
def compare(
    *,
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder of the comparison; what is finished there stays.")
    ] = None,
    recipe: Annotated[
        Path | None, typer.Option("--recipe", help="A TOML or JSON file of these fields, options by method.")
    ] = None,
    given: ForCompare,
    workers: Annotated[int, typer.Option("--workers", "-w", min=0, help="Processes; 0: none but this one.")] = 1,
    threads: Annotated[
        int | None, typer.Option("--threads", min=1, help="CPU threads of each cell. [cores / workers]")
    ] = None,
    backend: Annotated[str, typer.Option("--backend", help="local, or ray for a Ray cluster.")] = "local",
    ray: Annotated[
        str | None, typer.Option("--ray", help="Address of the Ray cluster, or auto for the one that runs here.")
    ] = None,
    part: Annotated[
        str | None, typer.Option("--part", help="3/10: only every tenth cell from the third on, no tables yet.")
    ] = None,
    place: Place,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the cells and their cost; run nothing.")] = False,
    draw: Annotated[
        Path | None,
        typer.Option("--draw", help="Draw tables and page of a comparison's folder or records.jsonl.gz; run nothing."),
    ] = None,
    voice: Voice,
) -> None:
    """Run methods x densities x networks x data sets x seeds, resume what was stopped, and report on all."""
    from gemminer import api
    from gemminer.reporting.tables import summary_in_words
    from gemminer.runs.compare import plan
    from gemminer.runs.estimate import estimates

    if draw is not None:
        if given or recipe or dry_run:
            raise UsageError("--draw takes what is in its file: give only --out beside it")
        page = api.draw(draw, out)
        return print_json({"page": str(page)}) if voice.as_json else OUT.print(f"{page}{_BESIDE}", soft_wrap=True)
    grid = plan(asked.to_compare(given, recipe))
    if out is None and not dry_run:
        raise UsageError("a comparison needs a folder: add --out FOLDER, or --dry-run to see what it would cost")
    if dry_run or out is None:
        cells = grid.cells()
        rows = estimate_rows(cells, estimates(cells, root=place.data_root, download=place.download))
        return print_json(*rows) if voice.as_json else print_estimates(OUT, rows)
    board = voice.board()
    try:
        how = {"workers": workers, "threads": threads, "backend": f"ray:{ray}" if ray else backend, "part": part}
        result = api.compare(grid, out, watch=board, **how, **place.where())
    except KeyboardInterrupt:
        done = f" with {board.done} of {board.total} cells done" if board.total else ""
        raise Stopped(f"stopped{done}; the same command goes on from there") from None
    if voice.as_json:
        print_json({"finished": len(result.records), "failed": result.failures, "out": str(out)})
    else:
        columns = ["method", "model", "data", "density", "n", "before", "after"]
        print_aligned(OUT, summary_in_words(result.cells, result.records), columns)
        OUT.print(f"{out / 'report.html'}{_BESIDE}" if part is None else f"part {part} of {out}", soft_wrap=True)
    if result.failures:
        ERR.print(f"gemminer: {result.sentence()}", markup=False, soft_wrap=True)
        raise typer.Exit(1)
    return None


for room in (diet_commands, listing_commands, bench_commands):
    room.mount(app)


def main(argv: list[str] | None = None) -> int:
    """The program: exit code 0, 1 where cells failed, 2 with one sentence for the caller, 130 for Ctrl-C.

    143 for SIGTERM, and 141, without a word, where who reads what it prints has stopped reading (`| head`).
    """
    interrupts.begin()
    try:
        code = app(args=argv, prog_name="gemminer", standalone_mode=False)  # what typer.Exit was raised with
        if sys.stdout is not None:
            sys.stdout.flush()
    except (KeyboardInterrupt, typer.Abort):
        code = 130
    except (BrokenPipeError, SystemExit) as error:
        if isinstance(error, SystemExit) and not isinstance(error.__context__, BrokenPipeError):  # click makes 1 of it
            raise
        return 141
    except Exception as error:
        if interrupts.stopped() and not isinstance(error, Stopped):  # what a Ctrl-C was turned into on its way
            return _complain(Stopped(interrupts.AGAIN))
        return _complain(error, together=_together(sys.argv[1:] if argv is None else argv))
    if code == 130:  # typer gives Ctrl-C back as this code
        return _complain(Stopped(interrupts.AGAIN))
    return code if isinstance(code, int) else 0


def _together(argv: list[str]) -> bool:
    """Whether several processes, as torchrun has started, work together by this command line: all see one error.

    A rank in the environment alone says nothing: a cluster's jobs have one, whatever is typed in them.
    """
    return "--distributed" in argv and os.environ.get("WORLD_SIZE", "1") not in ("", "1")


def _complain(error: Exception, together: bool = False) -> int:
    """One sentence for an error of the caller's or the disk's; any other is ours, and raised again.

    Args:
        together: whether the first of several processes says what is wrong with what all were asked.
    """
    if isinstance(error, OSError):
        text = f"{error.filename}: {reason(error)}" if error.filename else f"cannot write: {reason(error)}"
    elif isinstance(error, GemminerError):
        text = str(error)
    elif hasattr(error, "format_message"):  # what typer makes of a wrong option, whichever click it carries
        text = error.format_message()
        if type(error).__name__ == "NoArgsIsHelpError":
            ERR.print(text, markup=False)
            return 2
    else:
        raise error
    if isinstance(error, UsageError) and together and os.environ.get("RANK", "0") != "0":
        return 2  # the first of the processes says it
    with contextlib.suppress(OSError):  # a stderr that takes nothing is no reason for another code
        ERR.print(f"gemminer: {text}", markup=False, soft_wrap=True)
    return interrupts.code() if isinstance(error, Stopped) else 2


def entry() -> None:
    """The console script, whatever its streams are: closed, or of an encoding that has not every character."""
    for name in ("stdin", "stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "r" if name == "stdin" else "w"))  # noqa: SIM115, PTH123
        elif name != "stdin":
            stream.reconfigure(errors="backslashreplace")
    code = main()
    interrupts.end()
    if code == 141:  # nothing is left to flush at the end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(code)


if __name__ == "__main__":
    entry()
