"""A run's trained ticket in a file that other programs read: `gemminer export`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import Tensor

from gemminer.core.errors import GemminerError, UsageError, unknown
from gemminer.core.fitting import matched
from gemminer.core.ownership import refuse_foreign
from gemminer.core.ticket import Ticket
from gemminer.export import Exported
from gemminer.export.portable import facts_of, written
from gemminer.runs import shipping
from gemminer.runs.execute import prepare
from gemminer.runs.recipe import ALONE, Recipe
from gemminer.runs.steps import WEIGHTS, digest_of, load_weights
from gemminer.training.task import Task

DENSE = "dense.safetensors"
# What --to calls a format -> its file's name, and the options that it takes.
FILES: dict[str, tuple[str, tuple[str, ...]]] = {
    "onnx": ("model.onnx", ("batch", "opset", "compact")),
    "dense": (DENSE, ()),
    "compact": ("compact.pt2", ("batch",)),
    "program": ("program.safetensors", ()),
}


def export_run(recipe: Recipe, path: Path, to: str, out: Path | None, how: Mapping[str, Any], **where: Any) -> Exported:
    """Write the trained network of the ticket in a file; it stays whole on an error.

    Args:
        recipe: which network it is, and on which data, whose first batch is the example.
        path: of the ticket; `trained.safetensors` lies beside it.
        to: a name in `FILES`.
        out: the file; by default beside the ticket.
        how: options of the format.
        where: goes to `prepare`: root, download.

    Raises:
        UsageError: an unknown format or an option that it does not take, no trained weights, a file of somebody's in
            the way, a network that the format cannot hold.
        GemminerError: weights that are not of this ticket.
    """
    if to not in FILES:
        raise unknown("format", to, FILES)
    name, options = FILES[to]
    if other := [option for option in how if option not in options]:
        raise UsageError(f"--to {to} takes no {'--no-compact' if other[0] == 'compact' else f'--{other[0]}'}")
    trained, target = path.with_name("trained.safetensors"), out or path.with_name(name)
    refuse_foreign([target])
    if target.resolve() in (path.resolve(), trained.resolve()):
        raise UsageError(f"{target} is the run's own: give another place with --out")
    ticket = Ticket.load(path)
    if not trained.exists():
        raise UsageError(f"there are no trained weights {trained}: 'gemminer train {path}' makes them")
    task = prepare(recipe.changed(ALONE), device="cpu", engine="dense", **where).experiment.task
    weights = _weights(task, ticket.fitted(task.model), trained)
    if to == "dense":
        return _dense(task, weights, ticket, target)
    return shipping.FORMATS[name](task, weights, ticket, target, **how)


def _weights(task: Task, ticket: Ticket, path: Path) -> dict[str, Tensor]:
    """The trained weights by the model's names; raises GemminerError unless they are of this ticket."""
    found = load_weights(path)
    if digest_of(path) not in (None, ticket.digest):
        raise GemminerError(f"{path} has the weights of another ticket than the one beside it: train it again")
    try:
        names = matched(found, task.model)
    except UsageError as error:
        raise GemminerError(f"{path}: {error}") from None
    weights = {names[name]: tensor for name, tensor in found.items()}
    if moved := [name for name, mask in ticket.masks.items() if bool(weights[name][~mask].any())]:
        raise GemminerError(f"{path} is not of the ticket beside it: pruned weights of {moved[0]!r} are not zero")
    return weights


def _dense(task: Task, weights: Mapping[str, Tensor], ticket: Ticket, path: Path) -> Exported:
    """The plain state dict, tied weights under each of their names, as `load_state_dict` asks for them."""
    shipping.place(task, weights)
    state = task.model.state_dict()
    tensors = {name: t.detach().clone().contiguous() for name, t in state.items() if isinstance(t, Tensor)}
    about = {"format": WEIGHTS, "ticket": ticket.digest, **facts_of(ticket)}
    data = save(tensors, metadata={"format": "pt", "gemminer": json.dumps(about)})
    return written(path, data, None, "model.load_state_dict(safetensors.torch.load_file(...)) takes it")
