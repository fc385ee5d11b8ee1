"""What a search or training reports, written to an experiment tracker."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from gemminer.core.errors import UsageError
from gemminer.core.progress import Monitor


class Tracker(Monitor):
    """Gives each epoch's numbers to a function, under names like `search/loss`, with one step over all phases.

    Args:
        log: takes the numbers by name and the step, which counts the training steps since the first phase began.
        close: called by `close`.

    >>> seen = []
    >>> monitor = Tracker(lambda numbers, step: seen.append((step, numbers)))
    >>> monitor.step("search", 12, 24)
    >>> monitor.epoch({"phase": "search", "epoch": 1, "step": 12, "loss": 0.5})
    >>> seen
    [(12, {'search/loss': 0.5})]
    """

    def __init__(self, log: Callable[[dict[str, float], int], Any], close: Callable[[], Any] = lambda: None) -> None:
        self._log, self._close = log, close
        self._before, self._here = 0, 0  # steps of the phases before, and of this one

    def begin(self, phase: str, start: int, stop: int) -> None:
        self._before, self._here = self._before + self._here, 0

    def step(self, phase: str, step: int, steps: int) -> None:
        self._here = step

    def epoch(self, row: dict[str, Any]) -> None:
        phase = row["phase"].replace(":", "/")  # most trackers take no colon in a name
        numbers = {n: float(v) for n, v in row.items() if type(v) in (int, float) and n not in ("epoch", "step")}
        self._log({f"{phase}/{name}": value for name, value in numbers.items()}, self._before + self._here)

    def close(self) -> None:
        self._close()


def tensorboard(folder: str | Path) -> Tracker:
    """A monitor that writes an event file for TensorBoard into `folder`."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ModuleNotFoundError:
        raise UsageError("tensorboard is not installed: pip install 'gemminer[trackers]'") from None
    writer = SummaryWriter(folder)

    def log(numbers: dict[str, float], step: int) -> None:
        for name, value in numbers.items():
            writer.add_scalar(name, value, step)
        writer.flush()

    return Tracker(log, writer.close)


def wandb(run: Any = None, **options: Any) -> Tracker:
    """A monitor that logs to a run of Weights & Biases: to `run`, or to one begun as `wandb.init(**options)`.

    The step is a metric of its own, `gemminer/step`, so that what else is logged to the run keeps its steps. A run that
    was begun here is finished by `close`.
    """
    own = run is None
    if own:
        try:
            import wandb as library
        except ModuleNotFoundError:
            raise UsageError("wandb is not installed: pip install 'gemminer[trackers]'") from None
        run = library.init(**options)
    known: set[str] = set()

    def log(numbers: dict[str, float], step: int) -> None:
        for name in numbers.keys() - known:
            run.define_metric(name, step_metric="gemminer/step")
        known.update(numbers)
        run.log({**numbers, "gemminer/step": step})

    return Tracker(log, run.finish if own else lambda: None)
