"""Tiny grids and their cells."""

from __future__ import annotations

from typing import Any

from gemminer.runs import compare, grid
from gemminer.runs.grid import Cell

TINY = {"model": "lenet-300-100", "data": "digits", "epochs": 1, "limit_train": 300, "density": 0.1}


def plan(**fields: Any) -> grid.Grid:
    return compare.plan({**TINY, **fields})


def cells_of_seeds(count: int) -> list[Cell]:
    return plan(seed=f"0-{count - 1}", dense=False).cells()
