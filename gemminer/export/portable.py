"""A ticketed network as a graph without Python: a copy in eval mode, traced by torch.export for any size of batch."""

from __future__ import annotations

import contextlib
import functools
import io
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from gemminer.core.compacting import arguments_of, compact, ticketed
from gemminer.core.copies import duplicate
from gemminer.core.errors import GemminerError, UsageError, cause, in_words
from gemminer.core.files import atomic
from gemminer.core.fitting import require_numbers
from gemminer.core.gapped import GappedLinear, close_gaps
from gemminer.core.numbers import whole
from gemminer.core.ownership import VERSION
from gemminer.core.ticket import Ticket
from gemminer.core.tracing import tensors

# What outputs may differ by, of the largest: rounding of float32 in another order, and of shorter types.
LIMIT, SHORT = 1e-4, 3e-2

Arguments = tuple[tuple[Any, ...], dict[str, Any]]
Run = Callable[[Arguments], list[Tensor]]


@dataclass(frozen=True)
class Exported:
    """A file that was written; `str` says it in a line.

    Args:
        path: of the file.
        bytes: its size.
        difference: the largest difference of its outputs from PyTorch's, of the largest output; None: not compared.
        note: by what it was compared, or why it was not.
    """

    path: Path
    bytes: int
    difference: float | None
    note: str

    def __str__(self) -> str:
        far = "" if self.difference is None else f"outputs within {self.difference:.1g} of PyTorch's in "
        return f"{self.path}: {self.bytes:,} bytes, {far}{self.note}"


@dataclass(frozen=True)
class Portable:
    """What is written into a file.

    Args:
        model: the ticketed network before anything was cut out of it, in eval mode.
        program: the network as a graph.
        given: example arguments.
        outputs: the names of its outputs.
        facts: about the ticket, as texts by name, for the file's metadata.
        any_batch: whether it takes batches of any size.
    """

    model: nn.Module
    program: ExportedProgram
    given: Arguments
    outputs: tuple[str, ...]
    facts: dict[str, str]
    any_batch: bool

    def difference(self, run: Run) -> float:
        """The largest difference of outputs from the model's, of the largest: on the example, and on a larger batch.

        Raises UsageError where it is more than rounding.
        """
        worst, limit = 0.0, LIMIT
        for given in (self.given, *([_rows(self.given, 3)] if self.any_batch else [])):
            with torch.no_grad():
                want = list(tensors(simple(self.model(*given[0], **given[1]))))
            got = run(given)
            if [x.shape for x in want] != [x.shape for x in got]:
                raise UsageError("what was exported gives results of other shapes: nothing was written")
            for a, b in zip(want, got, strict=True):
                if a.is_floating_point() and a.numel():
                    limit = limit if a.dtype in (torch.float32, torch.float64) else SHORT
                    a, b = a.double(), b.double()
                    worst = max(worst, float((a - b).abs().max()) / max(float(a.abs().max()), 1e-30))
        if not worst <= limit:
            raise UsageError(
                f"what was exported differs from the network by {worst:.1g} of its largest output: nothing was written"
            )
        return worst


def portable(
    model: nn.Module,
    example: Any,
    ticket: Ticket | Mapping[str, Tensor] | None,
    *,
    smaller: bool,
    batch: int | None,
    plain_features: bool = False,
) -> Portable:
    """The network with a ticket's zeros, or its own, as a graph; the model itself is left as it was.

    Args:
        smaller: cut out what is dead, as `gemminer.compact` does.
        batch: the one size of batch it is to take; None for any.
        plain_features: leave no selections of features, which some runtimes compute one by one.

    Raises:
        UsageError: an example that the model does not take, a ticket of another model, a model that cannot be exported
            or made smaller.
    """
    require_numbers(model)
    plain = ticketed(model, ticket)[0].to("cpu").eval()
    given = _on_cpu(arguments_of(example))
    if batch is not None:
        given = _rows(given, whole("batch", batch, least=1))
    small = duplicate(plain)
    if smaller:
        try:
            small = compact(plain, None, given[1] if given[1] else given[0]).eval()
        except GemminerError as error:
            raise UsageError(f"{error}; compact=False (--no-compact) leaves it as it is") from None
        if plain_features:
            _close(small, given)
    with torch.no_grad():
        try:
            result = small(*given[0], **given[1])
        except Exception as error:  # whatever a model raises
            raise UsageError(f"the model does not take the example: {in_words(error)}") from cause(error)
    if not isinstance(result, Tensor):
        small.forward = _simply(small.forward)
    names = tuple(_names(simple(result)))
    if not names:
        raise UsageError(f"the model gives no tensor, nor any by name, but a {type(result).__name__}")
    return Portable(plain, _program(small, given, batch), given, names, facts_of(ticket), batch is None)


def facts_of(ticket: Ticket | Mapping[str, Tensor] | None) -> dict[str, str]:
    """gemminer's version and what a ticket is known by, as texts by name, for a file's metadata.

    >>> sorted(facts_of({"weight": torch.tensor([True, False])}))
    ['gemminer_density', 'gemminer_version']
    """
    facts = {VERSION: metadata.version("gemminer")}
    if ticket is None:
        return facts
    masks = ticket.masks if isinstance(ticket, Ticket) else ticket
    kept, total = sum(int(m.sum()) for m in masks.values()), sum(m.numel() for m in masks.values())
    facts["gemminer_density"] = f"{kept / max(1, total):.6g}"
    return facts | ({"gemminer_ticket": ticket.digest} if isinstance(ticket, Ticket) else {})


def written(path: Path, data: bytes, difference: float | None, note: str) -> Exported:
    """Write a file, atomically."""
    with atomic(path) as temporary:
        temporary.write_bytes(data)
    return Exported(path, len(data), difference, note)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the remarks of PyTorch's exporters about themselves, and the graphs that they print where they fail."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        nowhere = io.StringIO()
        with warnings.catch_warnings(), contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


# --- arguments and results ---


def _on_cpu(given: Arguments) -> Arguments:
    def here(x: Any) -> Any:
        return x.to("cpu") if isinstance(x, Tensor) else x

    return tuple(map(here, given[0])), {name: here(x) for name, x in given[1].items()}


def _rows(given: Arguments, count: int) -> Arguments:
    """The arguments with so many examples."""
    old = _size(given)

    def cut(x: Any) -> Any:
        if not _has_batch(x, old):
            return x
        return x.repeat(-(-count // old), *(1 for _ in x.shape[1:]))[:count]

    return tuple(map(cut, given[0])), {name: cut(x) for name, x in given[1].items()}


def _size(given: Arguments) -> int:
    """The examples in the first tensor."""
    return next((len(x) for x in (*given[0], *given[1].values()) if isinstance(x, Tensor) and x.dim()), 1)


def _has_batch(x: Any, size: int) -> bool:
    return isinstance(x, Tensor) and x.dim() > 0 and len(x) == size


def simple(result: Any) -> Any:
    """A result of tensors, lists and dictionaries alone: what else is in one (a cache) is dropped."""
    if isinstance(result, Mapping):
        parts = {str(name): simple(part) for name, part in result.items()}
        return {name: part for name, part in parts.items() if part is not None} or None
    if isinstance(result, list | tuple):
        return tuple(part for part in map(simple, result) if part is not None) or None
    return result if isinstance(result, Tensor) else None


def _simply(forward: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(forward)
    def simply(*args: Any, **kwargs: Any) -> Any:
        return simple(forward(*args, **kwargs))

    return simply


def _names(result: Any, name: str = "output") -> Iterator[str]:
    """The names of a simple result's tensors: `output`, a dictionary's own, and numbers behind them."""
    if isinstance(result, Tensor):
        yield name
    elif isinstance(result, dict):
        for own, part in result.items():
            yield from _names(part, own if name == "output" else f"{name}.{own}")
    elif isinstance(result, tuple):
        for number, part in enumerate(result):
            yield from _names(part, f"{name}.{number}")


# --- the graph ---


def _close(small: nn.Module, given: Arguments) -> None:
    """Make linear layers between selections plain."""
    layers = [m for m in small.modules() if isinstance(m, GappedLinear)]
    widths: dict[nn.Module, int] = {}
    seen = [m.register_forward_pre_hook(lambda m, x: widths.setdefault(m, x[0].shape[-1]) and None) for m in layers]
    with torch.no_grad():
        small(*given[0], **given[1])
    for handle in seen:
        handle.remove()
    for layer, width in widths.items():
        close_gaps(layer, width)


def _program(small: nn.Module, given: Arguments, batch: int | None) -> ExportedProgram:
    """The graph of a network; raises UsageError where there can be none."""
    if batch is not None:
        return _traced(small, given, None)
    size, free = _size(given), Dim("batch")

    def axes(x: Any) -> Any:
        return {0: free} if _has_batch(x, size) else None

    shapes: Any = {name: axes(x) for name, x in given[1].items()} or tuple(map(axes, given[0]))
    try:
        return _traced(small, given, shapes)
    except UsageError:
        _traced(small, given, None)  # which says what is wrong where that is not the size of the batch
    kind = type(small).__name__
    raise UsageError(
        f"{kind} computes otherwise for another size of batch: give the one it is to take with batch= (--batch)"
    )


def _traced(small: nn.Module, given: Arguments, shapes: Any) -> ExportedProgram:
    try:
        with quiet(), torch.no_grad():
            return torch.export.export(small, given[0], given[1], dynamic_shapes=shapes, strict=False)
    except Exception as error:  # whatever tracing meets in a model's own code
        raise UsageError(f"{type(small).__name__} cannot be exported by torch.export: {in_words(error)}") from cause(
            error
        )
