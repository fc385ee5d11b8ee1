"""The benchmarks by name."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

from gemminer.bench.inference import infer
from gemminer.bench.measure import Measurement, Setup
from gemminer.bench.memory import Memory
from gemminer.bench.search_and_train import end_to_end
from gemminer.bench.training import search, train
from gemminer.core.errors import unknown

__all__ = ["BATCHES", "BENCHES", "Measurement", "Memory", "Setup", "run"]

Line = Measurement | Memory

BENCHES: dict[str, Callable[[Setup], Iterable[Line]]] = {
    "search": search,
    "train": train,
    "infer": infer,
    "end-to-end": end_to_end,
}
# The default batch sizes of each: inference is often for one image at a time.
BATCHES: dict[str, tuple[int, ...]] = dict.fromkeys(BENCHES, (128,)) | {"infer": (1, 128)}


def run(what: str, setups: Sequence[Setup]) -> Iterator[Line]:
    """The lines of a benchmark for each of the setups, as they are measured; raises UsageError for an unknown one."""
    if what not in BENCHES:
        raise unknown("benchmark", what, BENCHES)
    for setup in setups:
        yield from BENCHES[what](setup)
