"""Which engine computes a step: PyTorch's dense kernels under a mask, or `sparse`, on kept weights only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from gemminer.core.errors import UsageError, unknown
from gemminer.training import cost
from gemminer.training.task import Task

ENGINES = ("auto", "dense", "sparse")
# FLOPs of a dense training step below which `auto` stays dense: five to ten milliseconds of one core. There a
# launch, and loading the compiled kernels (a second), cost what kept weights save.
WORTH = 5e8


def checked(engine: str, device: torch.device) -> str:
    """The engine's name; raises UsageError for one that does not exist, or not on this device."""
    if engine not in ENGINES:
        raise unknown("engine", engine, ENGINES)
    if engine == "sparse" and device.type != "cpu":
        raise UsageError(f"engine 'sparse' runs on the CPU, not on {device}: use engine auto or dense")
    return engine


def choose(task: Task, flops: cost.Flops) -> dict[str, float]:
    """By parameter name the density below which its layer computes kept weights only; a layer not named is dense.

    An experiment chooses once and writes it into its record and checkpoints, since with "auto" the densities are
    timings of this machine: a run that is resumed or repeated takes them from there, and rounds the same way.
    """
    if checked(task.engine, task.device) == "dense" or task.device.type != "cpu":
        return {}
    if task.engine == "auto" and cost.TRAINING_PASSES * flops.dense * flops.examples < WORTH:
        return {}
    from gemminer.sparse.training.convert import crossovers_of  # numba takes a second to load

    return crossovers_of(task.model, task.prunable(), task.engine)


def resumed(task: Task, flops: cost.Flops) -> Mapping[str, float]:
    """What the task's checkpoint says was chosen, if it is of the same engine; else what is chosen now."""
    state = task.checkpoint.load() if task.checkpoint else None
    before = (state or {}).get("engine", {})
    if before.get("asked") == task.engine and before.get("below") is not None:
        below: Mapping[str, float] = before["below"]
        return below
    return choose(task, flops)


def chosen(task: Task) -> Mapping[str, float]:
    """What was chosen for the task's experiment or, for a task of no experiment, what is chosen now."""
    return choose(task, cost.count(task, {})) if task.below is None else task.below


def kept_only(task: Task, masks: Mapping[str, Tensor]) -> nn.Module | None:
    """`task.model` as `sparse.sparsify` makes it; None where every layer is to be dense."""
    below = chosen(task)
    if not below:
        return None
    from gemminer.sparse.training.convert import converted, layers

    net = converted(task.model, masks, task.engine, below)
    return net if layers(net) else None


def write_back(net: nn.Module | None, model: nn.Module) -> None:
    """The state of what `kept_only` gave into the plain model, zeros where pruned."""
    if net is not None:
        from gemminer.sparse.training.convert import densify

        model.load_state_dict(densify(net))


def layers_worth_sparse(
    model: nn.Module,
    masks: Mapping[str, Tensor],
    engine: str,
    below: Mapping[str, float],
    live: Mapping[str, Tensor],
) -> set[str]:
    """The weights whose layers are faster on what their masks keep, or, with the engine sparse, can be computed so.

    Of a step's three passes two, the sums and the input's gradient, compute `live` weights only, the third all kept.
    """
    from gemminer.sparse.training.convert import held_as_vectors

    computed = {n: (2 * int(live[n].sum()) + int(m.sum())) / 3 for n, m in masks.items()}
    return held_as_vectors(model, masks, engine, below, computed)


def searching(
    model: nn.Module, masks: Mapping[str, Tensor], names: Sequence[str], net: nn.Module | None = None
) -> tuple[nn.Module, list[nn.Parameter]]:
    """A network that holds of the weights in `masks` the kept ones only, and the parameters a search puts in `names`.

    Those of kept weights are vectors; where one is zero the network's sums leave it out, and its gradient is still
    that of the loss. Weights that are not in `masks` stay what they are.

    Args:
        net: what the search has run so far, if not `model`. Where the same layers hold vectors in it, it is returned
            with shorter ones, which spares a trace and a copy.
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
    plain = dict(getattr(net, "net", net).named_parameters())
    return net, [vectors[name].values if name in masks else plain[name] for name in names]
