"""Commands from typed fields: the flags of a recipe, the flags that commands share, and where they print.

A room brings commands of its own in a module `commands` with a function `mount(app)`; `gemminer.cli` mounts them.

    @app.command()
    @spread
    def mine(given: ForMine, place: Place, voice: Voice) -> None: ...

`spread` gives the command a flag for each field of these parameters, and the function what came of the flags.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib
import inspect
import json
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol, Union, get_args, get_origin, get_type_hints

import typer
from pydantic.fields import FieldInfo
from rich.console import Console, ConsoleDimensions

from gemminer.core.errors import UsageError
from gemminer.core.progress import Monitor
from gemminer.reporting.terminal import Board, board_for, monitor_for
from gemminer.runs import recipe as recipes
from gemminer.runs.recipe import Flag, Recipe
from gemminer.runs.settings import checked_threads


class _Console(Console):
    """A console whose lines are broken on a terminal only, and that tells of a reader who has gone."""

    @property
    def size(self) -> ConsoleDimensions:
        found = super().size
        return found if self.is_terminal else ConsoleDimensions(10_000, found.height)

    @size.setter
    def size(self, new: tuple[int, int]) -> None:
        self._width, self._height = new

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


OUT = _Console(highlight=False)
ERR = _Console(stderr=True, highlight=False)


def print_json(*values: Any) -> None:
    """A line of JSON each on stdout."""
    for value in values:
        typer.echo(json.dumps(value))


# --- a command from its parameters -------------------------------------------------------------------------------


class Group(Protocol):
    """Several flags that a command's function takes as one value."""

    def flags(self) -> list[inspect.Parameter]:
        """The flags, as parameters that typer reads."""

    def value(self, given: Mapping[str, Any]) -> Any:
        """What the function is called with, from the value of each flag by name."""


@dataclass(frozen=True)
class Fields:
    """A flag for each field of a dataclass."""

    kind: type[Any]

    def flags(self) -> list[inspect.Parameter]:
        return _parameters(self.kind)

    def value(self, given: Mapping[str, Any]) -> Any:
        return self.kind(**{flag.name: given[flag.name] for flag in self.flags()})


def _parameters(called: Callable[..., Any]) -> list[inspect.Parameter]:
    hints = get_type_hints(called, include_extras=True)
    return [p.replace(annotation=hints[p.name]) for p in inspect.signature(called).parameters.values()]


def _group(parameter: inspect.Parameter) -> Group | None:
    """The group a parameter stands for; None where it is a flag itself."""
    if isinstance(parameter.annotation, type) and dataclasses.is_dataclass(parameter.annotation):
        return Fields(parameter.annotation)
    found = (m for m in getattr(parameter.annotation, "__metadata__", ()) if isinstance(m, RecipeFields))
    return next(found, None)


def spread(function: Callable[..., None]) -> Callable[..., None]:
    """The same command with a flag for each field of its dataclasses and `RecipeFields`."""
    parts = {p.name: (p, _group(p)) for p in _parameters(function)}
    flags = [flag for p, group in parts.values() for flag in (group.flags() if group else [p])]

    @functools.wraps(function)
    def called(**given: Any) -> None:
        function(**{name: group.value(given) if group else given[name] for name, (_, group) in parts.items()})

    called.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [flag.replace(kind=inspect.Parameter.KEYWORD_ONLY) for flag in flags]
    )
    called.__annotations__ = {flag.name: flag.annotation for flag in flags}
    return called


# --- the flags of a recipe ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RecipeFields:
    """The flags of `Recipe`'s fields that a command takes; their value is the fields that were given, by name.

    Args:
        command: "mine", "smallest", "train", "check", "export", or "compare", where a field may be an axis of several
            values.
        start: the recipe whose values hold where no flag is given; None where they are not known, as a record's.
    """

    command: str
    start: Callable[[], Recipe] | None = None

    def flags(self) -> list[inspect.Parameter]:
        start = self.start() if self.start else None
        return [p for name, field in _fields(self.command) for p in self._flags_of(name, field, start)]

    def _flags_of(self, name: str, field: FieldInfo, start: Recipe | None) -> Iterator[inspect.Parameter]:
        how, kind = flag_of(field), kind_of(field)
        flag = how.commands[self.command] or how.name or f"--{name.replace('_', '-')}"
        axis = how.axis if self.command == "compare" else ""
        said = [] if start is None else [how.unset or default_in_words(getattr(start, name))]
        said += [] if axis or kind in (dict, tuple) else [range_of(field)]
        text = axis or field.description or name
        if how.listed:
            text += f": {', '.join(names_in(how.complete))}"
        text = sentence(text) + brackets(said)
        more: dict[str, Any] = {"autocompletion": completion(how.complete)} if how.complete else {}
        given: Any = kind
        if axis or kind is tuple:
            given, more["metavar"] = list[str], f"<{'str' if kind is tuple else kind.__name__},...>"
        elif kind is dict:
            given, more["metavar"] = list[str], "NAME=VALUE"
        elif kind is bool:
            flag = f"{flag}/--no-{flag.removeprefix('--')}"
        names = [how.short, flag] if how.short else [flag]
        if self.command in ("mine", "check") and how.commands.get("check") and "train" not in how.commands:
            # check's own spelling and that of mine: either will do for both
            spellings = (how.name or f"--{name.replace('_', '-')}", how.commands["check"])
            names += [spelling for spelling in spellings if spelling not in names]
        yield parameter(name, given, typer.Option(*names, help=text, **more))
        for cut in how.shortcuts:
            yield parameter(cut.option, cut.type, typer.Option(cut.flag, help=cut.help))
        if how.no and self.command in recipes.RUN:
            yield parameter(f"no_{name}", bool, typer.Option(f"--no-{name}", help=sentence(how.no)), False)

    def value(self, given: Mapping[str, Any]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, field in _fields(self.command):
            how, kind, value = flag_of(field), kind_of(field), given[name]
            if kind is dict:
                own = pairs(value, how.name)
                own |= {s.option: given[s.option] for s in how.shortcuts if given[s.option] is not None}
                value = own or None
            elif kind is tuple or (how.axis and self.command == "compare"):
                value = [] if given.get(f"no_{name}") else several(value)
            if value is not None:
                found[name] = value
                self._check(name, value, how.commands[self.command])
        return found

    def _check(self, name: str, value: Any, flag: str) -> None:
        """Raise the error of a value that cannot be with the name of the flag, where that is not the field's."""
        try:
            if flag:
                recipes.make({name: value})
        except UsageError as error:
            raise UsageError(str(error).replace(f"{name}: ", f"{name} ({flag}): ", 1)) from None


def _fields(command: str) -> list[tuple[str, FieldInfo]]:
    return [(name, f) for name, f in Recipe.model_fields.items() if command in flag_of(f).commands]


def flag_of(field: FieldInfo) -> Flag:
    """How the command line takes a field of a recipe."""
    return next((m for m in field.metadata if isinstance(m, Flag)), Flag())


def kind_of(field: FieldInfo) -> type:
    """The type a flag's text is read as: of `int | None` int, of `tuple[str, ...]` tuple, of names str."""
    options = [field.annotation]
    if get_origin(field.annotation) in (Union, types.UnionType):
        options = [t for t in get_args(field.annotation) if t is not type(None)]
    kind: Any = get_origin(options[0]) or options[0]
    return kind if len(options) == 1 and kind in (int, float, bool, dict, tuple) else str


def parameter(name: str, kind: Any, option: Any, default: Any = None) -> inspect.Parameter:
    """A parameter that typer reads; it is `default` where the flag is not given."""
    annotation: Any = Annotated[kind if default is not None else kind | None, option]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def pairs(texts: Iterable[str] | None, flag: str) -> dict[str, Any]:
    """NAME=VALUE texts as a mapping; values are read as JSON where they are JSON."""
    return dict(recipes.setting(text, f"{flag} takes NAME=VALUE, not {text!r}") for text in texts or ())


def several(texts: Iterable[str] | None) -> list[str] | None:
    """The values of a flag that is repeated or takes several at once, between commas.

    >>> several(["0.1,0.05", "0.01"])
    ['0.1', '0.05', '0.01']
    """
    return [part.strip() for text in texts for part in text.split(",") if part.strip()] if texts else None


def completion(module: str) -> Callable[[str], list[str]]:
    """What a shell completes a name to: those of the module's names(), which is imported when it is asked.

    A module with more names than it lists has a function `completed` instead.
    """

    def complete(incomplete: str) -> list[str]:
        own = getattr(importlib.import_module(module), "completed", None)
        return own(incomplete) if own else [name for name in names_in(module) if name.startswith(incomplete)]

    return complete


def names_in(module: str) -> tuple[str, ...]:
    """What is registered in a module at this moment."""
    found: tuple[str, ...] = importlib.import_module(module).names()
    return found


# --- help in words -----------------------------------------------------------------------------------------------


def sentence(text: str) -> str:
    """With a capital and a full stop."""
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", "?")) else ".")


def brackets(said: Iterable[str]) -> str:
    """What holds by default and what may be given, behind a help text.

    >>> brackets(["0.1", "0 to below 1"]), brackets(["", ""])
    (' [0.1; 0 to below 1]', '')
    """
    words = "; ".join(filter(None, said))
    return f" [{words}]" if words else ""


def default_in_words(value: Any) -> str:
    """A default as a person writes it; nothing of one that is empty."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        return ",".join(map(str, value))
    return "" if value is None or value == {} else f"{value:g}" if isinstance(value, float) else str(value)


def range_of(field: FieldInfo) -> str:
    """The bounds of a field, or its choices, in words.

    >>> range_of(Recipe.model_fields["density"]), range_of(Recipe.model_fields["epochs"])
    ('above 0, at most 1', '1 or more')
    """
    if get_origin(field.annotation) is Literal:
        return ", ".join(map(str, get_args(field.annotation)))
    bounds = {key: getattr(m, key) for m in field.metadata for key in ("ge", "gt", "le", "lt") if hasattr(m, key)}
    low, high = bounds.get("ge", bounds.get("gt")), bounds.get("le", bounds.get("lt"))
    if high is not None and high >= 2**31:  # a limit of the machine's, not the person's
        high = None
    top = "" if high is None else f"{high:g}" if "le" in bounds else f"below {high:g}"
    if "ge" in bounds:
        return f"{low:g} to {top}" if top else f"{low:g} or more"
    top = f"at most {top}" if "le" in bounds else top
    return ", ".join(filter(None, ["" if low is None else f"above {low:g}", top]))


# --- flags that commands share -----------------------------------------------------------------------------------

Threads = Annotated[int | None, typer.Option("--threads", min=1, help="CPU threads. [all cores]")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object, for machines.")]
RecipeName = Annotated[
    str | None,
    typer.Option(
        "--recipe",
        help="A named recipe, or a TOML or JSON file of one.",
        autocompletion=completion("gemminer.runs.recipe"),
    ),
]
TicketFile = Annotated[Path, typer.Argument(help="A ticket.safetensors, or the folder of its run.")]


@dataclass(frozen=True)
class Place:
    """Where the work is done; nothing of what is asked for."""

    device: Annotated[str, typer.Option("--device", help="cpu, cuda, cuda:1, mps or auto.")] = "auto"
    engine: Annotated[
        str, typer.Option("--engine", help="dense, sparse (kept weights only), or auto: on a CPU what is faster.")
    ] = "auto"
    data_root: Annotated[Path | None, typer.Option("--data-root", help="Folder of the data set's files.")] = None
    download: Annotated[bool, typer.Option("--download", help="Let torchvision download the data set.")] = False

    def where(self) -> dict[str, Any]:
        """What every function that runs a recipe is told."""
        return {"device": self.device, "engine": self.engine, "root": self.data_root, "download": self.download}


@dataclass(frozen=True)
class SharedPlace(Place):
    """Where the work is done, by one process or by several together."""

    distributed: Annotated[
        bool, typer.Option("--distributed", help="Share the work with the other processes that torchrun has started.")
    ] = False

    def where(self) -> dict[str, Any]:
        return {**super().where(), "distributed": self.distributed or None}


def set_threads(count: int | None) -> None:
    """The CPU threads of this process; None leaves them as they are."""
    torch = importlib.import_module("torch")
    checked_threads(torch.get_num_threads() if count is None else count)
    if count is not None:
        torch.set_num_threads(count)


@dataclass(frozen=True)
class Voice:
    """How much is printed: results on stdout, how far the work is on stderr."""

    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing on stderr but errors.")] = False
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Say more on stderr: a line for every epoch.")] = (
        False
    )
    as_json: Json = False

    def __post_init__(self) -> None:
        if self.quiet and self.verbose:
            raise UsageError("-q and -v are opposites: give one of them")

    @contextlib.contextmanager
    def monitor(self) -> Iterator[Monitor]:
        """Progress on stderr while it lasts."""
        monitor = monitor_for(ERR, quiet=self.quiet, verbose=self.verbose)
        try:
            yield monitor
        finally:
            monitor.close()

    def board(self) -> Board:
        """A comparison's progress on stderr; as JSON an object for each cell that ends on stdout besides."""
        return board_for(ERR, print_json if self.as_json else None, quiet=self.quiet, verbose=self.verbose)
