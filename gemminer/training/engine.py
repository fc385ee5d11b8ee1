"""Which engine computes a step: PyTorch's dense kernels under a mask, or `sparse`, on kept weights only."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from gemminer.core.errors import UsageError, in_words, unknown
from gemminer.core.model_state import named_state
from gemminer.core.names import named_parameters
from gemminer.training import cost
from gemminer.training.task import Task

ENGINES = ("auto", "dense", "sparse")
# FLOPs of a dense training step below which `auto` stays dense: five to ten milliseconds of one core. Launching a
# kernel, and loading the compiled kernels (a second), would cost what kept weights save.
WORTH = 5e8


def checked(engine: str, device: torch.device) -> str:
    """The engine's name; raises UsageError for one that does not exist, or not on this device."""
    if engine not in ENGINES:
        raise unknown("engine", engine, ENGINES)
    if engine == "sparse" and device.type != "cpu":
        raise UsageError(f"engine 'sparse' runs on the CPU, not on {device}: use engine auto or dense")
    if engine == "sparse" and not _compiles():
        raise UsageError("engine 'sparse' is compiled by Numba: unset NUMBA_DISABLE_JIT, or use engine dense")
    return engine


def _compiles() -> bool:
    """Whether Numba may compile; without importing it."""
    return os.environ.get("NUMBA_DISABLE_JIT", "0") in ("", "0")


def choose(task: Task, flops: cost.Flops | None = None) -> dict[str, float]:
    """The density below which a layer computes kept weights only, by parameter name; a layer not named is dense.

    An experiment chooses once and writes it into its record and checkpoints, since with "auto" the densities are
    timings of this machine: a run that is resumed or repeated takes them from there, and rounds the same way.

    Args:
        flops: the FLOPs of the task's forward pass, if they have been counted.
    """
    if task.ranks is not None and task.engine == "auto":  # one machine's times for all of them
        alone = dataclasses.replace(task, ranks=None)
        return task.ranks.firsts(lambda: choose(alone, flops))
    if checked(task.engine, task.device) == "dense" or not _compiles() or task.device.type != "cpu":
        return {}
    if task.engine == "auto":
        flops = flops or cost.count(task, {})
        if cost.TRAINING_PASSES * flops.dense * flops.examples < WORTH:
            return {}
    try:
        from gemminer.sparse.training.convert import crossovers_of  # numba takes a second to load
    except ValueError as error:  # of NUMBA_NUM_THREADS=0 and the like
        raise UsageError(
            f"Numba, which compiles the sparse engine, does not load ({in_words(error)}): unset the environment "
            "variable that it complains of, or use engine dense"
        ) from None

    _say_what_is_passed_over(task)
    return crossovers_of(task.model, task.prunable(), task.engine, task.precision)


def _say_what_is_passed_over(task: Task) -> None:
    """Tell a person which layers stay dense for hooks or a forward of their own, and would not otherwise."""
    from gemminer.sparse.training.convert import passed_over

    if said := passed_over(task.model, task.prunable()):
        task.note(said)


def resumed(task: Task, flops: cost.Flops) -> Mapping[str, float]:
    """The choice in the task's checkpoint, if made with the same engine; else a new choice."""
    known: dict[str, float] | None = None
    if task.checkpoint and (state := task.checkpoint.load()) is not None:
        with task.checkpoint.restoring():
            before = state.get("engine", {})
            if before.get("asked") == task.engine and before.get("below") is not None:
                known = {str(name): float(density) for name, density in before["below"].items()}
    if known:
        _say_what_is_passed_over(task)
    return choose(task, flops) if known is None else known


def chosen(task: Task) -> Mapping[str, float]:
    """The choice made for the task's experiment; for a task without an experiment, a new choice."""
    return choose(task) if task.below is None else task.below


def kept_only(task: Task, masks: Mapping[str, Tensor]) -> nn.Module | None:
    """A sparse network of `task.model` and its masks, as from `sparse.sparsify`; None if every layer is to be dense."""
    below = chosen(task)
    if not below:
        return None
    from gemminer.sparse.training.convert import converted, layers

    net = converted(task.model, masks, task.engine, below)
    return net if layers(net) else None


def write_back(net: nn.Module | None, model: nn.Module) -> None:
    """Copy a sparse network's state into the plain model, zeros where pruned, and what its modules counted or kept."""
    if net is not None:
        from gemminer.sparse.training.convert import carry_back, densify

        carry_back(net, model)
        state = densify(net)
        with torch.no_grad():
            for name, tensor in named_state(model).items():
                tensor.copy_(state[name])


def layers_worth_sparse(
    model: nn.Module,
    masks: Mapping[str, Tensor],
    engine: str,
    below: Mapping[str, float],
    live: Mapping[str, Tensor],
) -> set[str]:
    """Names of the weights whose layers run faster on kept weights or, with the engine sparse, can run so at all.

    Two of a step's three passes, the outputs and the input gradients, compute only `live` weights; the third, the
    weight gradients, computes all kept weights.
    """
    from gemminer.sparse.training.convert import held_as_vectors

    computed = {n: (2 * int(live[n].sum()) + int(m.sum())) / 3 for n, m in masks.items()}
    return held_as_vectors(model, masks, engine, below, computed)


def search_network(
    model: nn.Module, masks: Mapping[str, Tensor], names: Sequence[str], net: nn.Module | None = None
) -> tuple[nn.Module, list[nn.Parameter]]:
    """A network for a search, which holds only the kept weights of those in `masks`; and its parameters for `names`.

    The parameter of a weight in `masks` is a vector of its kept values; the network skips the zeros in it, but their
    gradients are still those of the loss. Weights that are not in `masks` stay as they are.

    Args:
        net: the network that the search has run so far, if not `model`. If the same layers hold vectors in it, it is
            returned with shorter vectors, which spares a copy of the network.
    """
    from gemminer.sparse.training.convert import converted, layers

    vectors = {} if net is None else {f"{path}.weight": layer for path, layer in layers(net).items()}
    shared = {n: [v for v in vectors.values() if v.values is vectors[n].values] for n in masks if n in vectors}
    if net is not None and shared.keys() == masks.keys() and sum(map(len, shared.values())) == len(vectors):
        for name, same in shared.items():
            values = nn.Parameter(same[0].values.new_empty(int(masks[name].sum())))
            for layer in same:
                layer.narrow(masks[name], values)
    else:
        write_back(net, model)
        net = converted(model, masks, "sparse")
        vectors = {f"{path}.weight": layer for path, layer in layers(net).items()}
        for layer in vectors.values():
            layer.sift = True
    plain = named_parameters(net)
    return net, [vectors[name].values if name in masks else plain[name] for name in names]
