"""Which units of a network a compiled program still computes, told from its numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import nn

from gemminer.core.structure import Units
from gemminer.sparse.inference.layout import Sum
from gemminer.sparse.inference.program import Program


def computed_units(model: nn.Module, layers: Mapping[str, Units], program: Program) -> dict[str, npt.NDArray[np.bool_]]:
    """By layer, (units,): whether a weight of the unit, scaled by its batch norm, is one of the program's numbers.

    A unit may be taken for computed because another has a number of its own, never the other way round.

    Args:
        model: float32, in eval mode.
        layers: of its `Structure`.
        program: what `sparse.compile` made of it.
    """
    entries = [e.value for op in program.operations if isinstance(op, Sum) for e in op.entries]
    numbers = np.concatenate([np.empty(0, np.float32), *entries])
    return {name: np.asarray(np.isin(_scaled(model, units), numbers).any(1)) for name, units in layers.items()}


def _scaled(model: nn.Module, units: Units) -> npt.NDArray[np.float32]:
    """(units, weights): as compile folds them, NaN in place of zeros."""
    weight = model.get_submodule(units.name).weight.detach().double().flatten(1).numpy()  # type: ignore[operator]
    if units.norm is not None:
        norm: Any = model.get_submodule(units.norm)
        own = 1.0 if norm.weight is None else norm.weight.detach().double().numpy()
        weight = weight * (own / np.sqrt(norm.running_var.double().numpy() + norm.eps))[:, None]
    return np.where(weight == 0, np.nan, weight).astype(np.float32)
