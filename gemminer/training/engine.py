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


def wanted(task: Task) -> bool:
    """Whether kept weights may be computed alone in this task: it is asked for, or its steps are long enough."""
    if checked(task.engine, task.device) == "dense" or task.device.type != "cpu":
        return False
    if task.engine == "sparse":
        return True
    _, targets = next(iter(task.train.epoch(0)))
    flops = cost.TRAINING_PASSES * cost.count(task, {}).dense
    return flops * (len(targets) if hasattr(targets, "__len__") else 1) >= WORTH


def kept_only(task: Task, masks: Mapping[str, Tensor]) -> nn.Module | None:
    """`task.model` as `sparse.sparsify` makes it; None where the engine is dense, or nothing pays."""
    if not wanted(task):
        return None
    from gemminer.sparse.training.convert import converted, layers  # numba takes a second to load

    net = converted(task.model, masks, task.engine)
    return net if layers(net) else None


def write_back(net: nn.Module | None, model: nn.Module) -> None:
    """The state of what `kept_only` gave into the plain model, zeros where pruned."""
    if net is not None:
        from gemminer.sparse.training.convert import densify

        model.load_state_dict(densify(net))


def paying(model: nn.Module, masks: Mapping[str, Tensor], engine: str, live: Mapping[str, Tensor]) -> set[str]:
    """The weights whose layers are faster on what their masks keep, or, with the engine sparse, can be computed so.

    Of a step's three passes two, the sums and the input's gradient, compute `live` weights only, the third all kept.
    """
    from gemminer.sparse.training.convert import held

    return held(model, masks, engine, {n: (2 * int(live[n].sum()) + int(m.sum())) / 3 for n, m in masks.items()})


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
