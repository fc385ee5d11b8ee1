"""A training's place in its schedule, which is corrected by the batches that really come."""

from __future__ import annotations

import math
from typing import Any


class Clock:
    """Counts batches as steps of a schedule that was made of the steps the data promises, `steps` an epoch.

    Before batch c (the first is 0) of epoch e of T, where P batches are expected of an epoch,

        position := min(position + (T * steps - position) / left, (e + 1) * steps)
        left      = max(P - c, 0) + (T - 1 - e) * P

    P is the promise in the first epoch, and then what the epoch before came to. So a promise that is kept makes each
    batch a step, exactly; one that is not is made up for over all the batches that are still to come.

    Args:
        steps: batches that the data promises of an epoch.
        epochs: T, the epochs of the schedule.
        first_epoch, first_step: where in the schedule a training begins.
        of: the batches of a step, for the remark: what is called a batch here are then so many.
    """

    def __init__(self, steps: int, epochs: int, first_epoch: int = 0, first_step: int = 0, *, of: int = 1) -> None:
        self.of = of
        self.steps, self.epochs, self.end = steps, epochs, steps * epochs
        self.epoch, self.batches, self.expected = first_epoch, first_step, steps
        self.taken = first_epoch * steps + first_step  # steps of the schedule's beginning are taken as done
        self.position = float(self.taken)
        self.missing = 0  # batches that were promised and did not come
        self._read = 0  # batches of this epoch's own pass, once that is over

    @property
    def step(self) -> int:
        """The number of the schedule's step that the last batch has done (the first is 0)."""
        return math.floor(self.position + 1e-6) - 1

    @property
    def part(self) -> float:
        """The fraction of the epoch that is over, for learning rates."""
        return min(self.batches / self.expected, 1.0)

    @property
    def short(self) -> bool:
        """Whether the last epoch's batches are over before the schedule is."""
        return self.epoch == self.epochs - 1 and 0 < self.batches < self.expected

    def tick(self) -> int:
        """Another batch is taken; returns its step of the schedule."""
        left = max(self.expected - self.batches, 0) + (self.epochs - 1 - self.epoch) * self.expected
        goal = self.end if left <= 1 else self.position + (self.end - self.position) / left
        self.position = max(self.position, min(float(goal), float((self.epoch + 1) * self.steps)))
        self.batches += 1
        self.taken += 1
        return self.step

    def came(self) -> None:
        """The epoch has no more batches of its own."""
        self._read = self.batches
        self.missing += max(0, self.steps - self.batches)
        if self.epochs == 1:  # only the promise is known, which may be any number: no more than a second pass
            self.expected = min(self.expected, 2 * self.batches)

    def next_epoch(self) -> int:
        """Go on to the next epoch; returns its first step in the schedule."""
        self.epoch += 1
        self.expected, self.batches, self._read = self._read or self.batches, 0, 0
        return self.epoch * self.steps

    @property
    def told(self) -> str | None:
        """A remark where fewer batches came than were promised."""
        if not self.missing:
            return None
        what = "batches" if self.of == 1 else f"steps of {self.of} batches"
        return (
            f"the data gave {self.missing} of {self.epoch * self.steps} {what} less than its length promised: "
            f"schedules follow the {what.split()[0]} that came"
        )

    def state_dict(self) -> dict[str, Any]:
        own = {"position": self.position, "taken": self.taken, "missing": self.missing}
        return {**own, "expected": self.expected, "epoch": self.epoch}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.position, self.taken, self.missing = state["position"], state["taken"], state["missing"]
        self.expected, self.epoch, self.batches = state["expected"], state["epoch"], 0
        if not (0 <= self.position <= self.end and 0 <= self.missing <= self.end and 0 < self.epoch <= self.epochs):
            raise ValueError("a place outside its schedule")
        if not 0 < self.expected <= max(self.steps, self.taken):
            raise ValueError("an epoch of more batches than there were")
