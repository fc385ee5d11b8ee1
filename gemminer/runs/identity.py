"""What a checkpoint is of: the call, the network, its first weights and the data, as texts by name."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from gemminer.core.errors import UsageError
from gemminer.core.model_state import named_state
from gemminer.core.ticket import Ticket
from gemminer.data import Batches
from gemminer.data.fingerprint import digest, fingerprint, some_rows
from gemminer.runs import provenance
from gemminer.training.checkpoint import difference
from gemminer.training.shards import Own, Shard
from gemminer.training.task import Task

# What another call may change without changing what is computed, and what is named below.
_NOT_OF = {
    "begun", "below", "channels_last", "checkpoint", "engine", "first", "loss", "metric", "metric_name", "model",
    "monitor", "notes", "phase", "ranks", "step", "train", "validation",
}  # fmt: skip


def of_search(
    task: Task, method: str, density: float, options: Any, seed: int, seconds: float | None = None
) -> dict[str, str]:
    """What a search is: to be asked when the model holds its first weights.

    Args:
        seconds: the time that the search was given instead of epochs, which differ whenever they are measured.
    """
    own = dataclasses.asdict(options)
    if seconds is not None:
        own = {name: value for name, value in own.items() if name != "epochs"} | {"budget": f"{seconds:g}s"}
    return {"the call": "mine", "the method": method, "the density": repr(density), **_settings(own), **_of(task, seed)}


def of_training(task: Task, ticket: Ticket | None, settings: Any, seed: int, index: int, phase: str) -> dict[str, str]:
    """What a training is: to be asked when the ticket has been applied."""
    which = "none" if ticket is None else ticket.digest[:12]
    own = {"the call": "train", "the ticket": which, "the training seed": repr(index)}
    task = dataclasses.replace(task, begun=provenance.steps_behind(ticket))
    return {**own, **_settings(dataclasses.asdict(settings)), **_of(task, seed), "the phase": phase}


def of_scores(task: Task, kind: str, settings: Any, seed: int, draw: Any, noise: float = 0.0) -> dict[str, str]:
    """What scores of examples are, but for the number of networks: there may be more of them later."""
    drawn = "the model's own" if draw is None else draw.kind
    own = {"the call": "score", "the kind": kind, "the initial weights": drawn, "the noise": f"{noise:g}"}
    return {**own, **_settings(dataclasses.asdict(settings)), **_of(task, seed)}


def of_weights(task: Task, seed: int) -> dict[str, str]:
    """What the network, its weights as they are, and the data are."""
    return _of(task, seed)


def of_pretraining(task: Task, settings: Any, seed: int, facts: Mapping[str, Any]) -> dict[str, str]:
    """What a pre-training is: to be asked when the model holds its first weights."""
    own = {name: value for name, value in facts.items() if name != "histogram"}
    return {"the call": "pretrain", **_settings(own), **_settings(dataclasses.asdict(settings)), **_of(task, seed)}


def _settings(fields: Mapping[str, Any]) -> dict[str, str]:
    return {name: repr(value) for name, value in fields.items()}


def _of(task: Task, seed: int) -> dict[str, str]:
    state = named_state(task.model)
    shapes = {name: f"{tuple(t.shape)} {t.dtype}" for name, t in state.items()}
    own = {f.name: _text(getattr(task, f.name)) for f in dataclasses.fields(task) if f.name not in _NOT_OF}
    found = {
        "the phase": task.phase,
        "the seed": repr(int(seed)),
        "the model": f"{type(task.model).__name__} {digest(sorted(shapes.items()))}",
        **data_of(task.train),
        "the loss": called(task.loss),
        "the engine": task.engine,
        **own,
    }
    if task.ranks is not None:
        found["the ranks"] = str(task.ranks.world)
    if task.begun:
        found["the steps behind its weights"] = str(task.begun)
    if task.step is not None:
        found["the step"] = called(task.step)
    if task.validation is not None:
        found["the metric"] = called(task.metric)
    return {**found, "the model's first weights": digest(sorted(state.items()))}  # last: others say more


def data_of(batches: Batches | None, name: str = "the data") -> dict[str, str]:
    """Data: how much there is and what it holds, and rows of a loader's data set, for its first batch is not all."""
    if batches is None:
        return {name: "none"}
    if isinstance(batches, Shard | Own):
        batches = batches.batches
    found = {name: f"{batches.examples} examples in {len(batches)} batches, {fingerprint(batches)}"}
    rows = some_rows(batches)
    return found if rows is None else {**found, f"rows of {name}": rows}


def same_call(calls: Sequence[Mapping[str, str]]) -> None:
    """Raise UsageError unless all ranks make the same call; their parts of the data may differ."""
    for rank, call in enumerate(calls):
        if differs := difference(calls[0], call, {"the data", "rows of the data"}):
            raise UsageError(f"rank {rank} was called with other arguments ({differs} on rank 0): call all ranks alike")


def _text(value: Any) -> str:
    if callable(value):
        return called(value)
    if isinstance(value, Tensor) or (isinstance(value, Mapping) and any(isinstance(v, Tensor) for v in value.values())):
        return digest(value)
    return str(value.digest) if hasattr(value, "digest") else repr(value)


def called(function: Callable[..., Any]) -> str:
    """A function's name, with what is fixed of its arguments; a module's with its numbers. No addresses."""
    if isinstance(function, functools.partial):
        fixed = [_fixed(a) for a in function.args] + [f"{n}={_fixed(v)}" for n, v in sorted(function.keywords.items())]
        return f"{called(function.func)}({', '.join(fixed)})"
    if isinstance(function, nn.Module):
        numbers = {n: v for n, v in vars(function).items() if isinstance(v, (int, float, str)) and n != "training"}
        said = ", ".join(f"{n}={v!r}" for n, v in sorted(numbers.items()) if not n.startswith("_"))
        return f"{type(function).__name__}({said}) {digest(sorted(named_state(function).items()))}"
    owner = getattr(function, "__self__", None)
    if isinstance(owner, nn.Module):
        return f"{called(owner)}.{getattr(function, '__name__', '')}"
    name = str(getattr(function, "__qualname__", type(function).__qualname__))
    code = getattr(function, "__code__", None)
    ours = str(getattr(function, "__module__", "")).partition(".")[0] in ("torch", "gemminer")
    return name if code is None or ours else f"{name} {digest(_inside(function, code))}"


def _inside(function: Any, code: Any) -> str:
    """A user's function: what it does, and the values that it has from outside."""
    cells = zip(code.co_freevars, function.__closure__ or (), strict=True)
    held = [f"{name}={_fixed(cell.cell_contents)}" for name, cell in cells if _filled(cell)]
    held += [_fixed(v) for v in (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values())]
    return f"{code.co_code.hex()} {code.co_names} {[_fixed(c) for c in code.co_consts]} {held}"


def _filled(cell: Any) -> bool:
    try:
        return cell.cell_contents is not None
    except ValueError:
        return False


def _fixed(value: Any) -> str:
    """A value without an address: what has no text of its own is its class."""
    if isinstance(value, Tensor):
        return digest(value)
    if hasattr(value, "co_code"):
        return f"{value.co_code.hex()} {[_fixed(c) for c in value.co_consts]}"
    if callable(value):
        return called(value)
    plain = isinstance(value, str | bytes | int | float | complex | bool | tuple | list | dict | frozenset | None)
    return repr(value) if plain else type(value).__qualname__
