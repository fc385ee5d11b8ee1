"""Benchmarks: this package's time against a baseline's, as lines for people and machines.

for line in bench.run("infer", [Setup("resnet20", density=0.0144)]):
    print(line)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gemminer.bench.listed import BATCHES, BENCHES, Measurement, Memory, Setup, run

__all__ = ["BATCHES", "BENCHES", "Measurement", "Memory", "Setup", "run"]


def __getattr__(name: str) -> Any:
    """Import the names above when first used: the benchmarks take a second to import, their flags do not."""
    if name in __all__:
        return getattr(importlib.import_module("gemminer.bench.listed"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
