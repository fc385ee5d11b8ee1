"""Which dead units `sparse.compile` finds and `gemminer.compact` does not, told from a program's numbers alone."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from gemminer.core.structure import Units
from gemminer.sparse.inference.compiler import compile
from gemminer.sparse.inference.operations import Sum
from gemminer.sparse.inference.program import Program


def missed_units(model: nn.Module, layers: Mapping[str, Units], example: Tensor) -> dict[str, list[int]]:
    """By layer, the units that are alive by its `Structure` but that the compiled program does not compute.

    A unit is computed where one of its weights, scaled by its batch norm, is a number of the program; a number may be
    scaled by another norm too, so what is not found is looked for by changing the unit: the program changes with it.

    Args:
        model: float32, in eval mode.
        layers: of its `Structure`.
        example: what it takes.
    """
    program = compile(model, example)
    numbers, missed = _numbers(program), {}
    for name, units in layers.items():
        found = np.isin(_scaled(model, units), numbers).any(1)
        unsure = np.flatnonzero(~units.dead.numpy() & ~found).tolist()
        if missing := [unit for unit in unsure if not _matters(model, name, unit, example, numbers)]:
            missed[name] = missing
    return missed


def _numbers(program: Program) -> npt.NDArray[np.float32]:
    sums = [op for op in program.operations if isinstance(op, Sum)]
    return np.concatenate([np.empty(0, np.float32), *(part for op in sums for part in (op.bias, *_values(op)))])


def _values(op: Sum) -> list[Any]:
    return [entries.value for entries in op.entries]


def _matters(model: nn.Module, name: str, unit: int, example: Tensor, numbers: npt.NDArray[np.float32]) -> bool:
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.get_parameter(f"{name}.weight")[unit] *= 1.5
    return not np.array_equal(_numbers(compile(other, example)), numbers)


def _scaled(model: nn.Module, units: Units) -> npt.NDArray[np.float32]:
    """(units, weights): as compile folds them, NaN in place of zeros."""
    weight = model.get_parameter(f"{units.name}.weight").detach().double().flatten(1).numpy()
    if units.norm is not None:
        norm: Any = model.get_submodule(units.norm)
        own = 1.0 if norm.weight is None else norm.weight.detach().double().numpy()
        weight = weight * (own / np.sqrt(norm.running_var.double().numpy() + norm.eps))[:, None]
    return np.where(weight == 0, np.nan, weight).astype(np.float32)
