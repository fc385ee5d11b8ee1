"""Schedules of freezing: the published one, and the exact count after each freeze."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemminer.core.errors import UsageError
from gemminer.methods.gem_miner import Options
from gemminer.methods.parts.schedules import freeze_epochs
from tests.methods.gem_miner.helpers import fixed


def test_the_published_schedule() -> None:
    epochs = freeze_epochs(150, 5)
    assert epochs == list(range(5, 146, 5))
    assert len(epochs) == 29 == math.floor((150 - 1) / 5)
    # 100 steps an epoch: at the last step of epoch 5, 10, ...; 1 - density^(1/29) of the rest each time.
    schedule = Options(epochs=150, freeze_every=5).freeze_schedule(100, 0.0144, 268_336)
    assert list(schedule) == [499 + 500 * i for i in range(29)]
    assert list(schedule.values()) == [round(268_336 * 0.0144 ** (k / 29)) for k in range(1, 30)]
    assert list(schedule.values())[-1] == 3864 == round(0.0144 * 268_336)


def test_the_released_codes_schedule_is_an_epoch_later() -> None:
    """Epochs are counted from 0 there and freeze after training: 6, 11, ..., 146 of 150, which leaves E - 1."""
    assert freeze_epochs(150, 5, late=True) == list(range(6, 147, 5))
    schedule = Options(epochs=150, freeze_every=5, freeze_late=True).freeze_schedule(100, 0.0144, 268_336)
    early = Options(epochs=150, freeze_every=5).freeze_schedule(100, 0.0144, 268_336)
    assert list(schedule.items()) == [(step + 100, count) for step, count in early.items()]
    assert freeze_epochs(10, 5, late=True) == [6]
    with pytest.raises(UsageError, match="at least 11 epochs"):
        Options(epochs=8, freeze_every=5, freeze_late=True)


@given(st.integers(1, 400), st.integers(1, 40))
def test_published_freezes_leave_time_to_recover_and_never_come_first(epochs: int, every: int) -> None:
    found = freeze_epochs(epochs, every)
    assert all(e % every == 0 and e >= every >= 1 for e in found)
    assert all(e < epochs or every == 1 for e in found)
    assert not found or epochs - found[-1] >= every - 1
    most = math.floor((epochs - 1) / every)
    assert most - 1 <= len(found) <= most  # at most the last one is left out
    assert found == [every * k for k in range(1, len(found) + 1)]


SETTINGS = {
    "epochs": st.integers(2, 60),
    "steps": st.integers(1, 50),
    "total": st.integers(10, 10**7),
    "density": st.floats(0.001, 1.0),
    "every": st.integers(0, 12),
    "repair": st.floats(0.0, 0.95),
}


@given(**SETTINGS)
def test_every_freeze_leaves_the_exact_count(
    epochs: int, steps: int, total: int, density: float, every: int, repair: float
) -> None:
    if round(density * total) == 0:
        return
    if every and not freeze_epochs(epochs, every):
        with pytest.raises(UsageError, match="leave no time to freeze"):
            Options(epochs=epochs, freeze_every=every)
        return
    schedule = fixed(epochs=epochs, freeze_every=every, repair=repair).freeze_schedule(steps, density, total)
    counts = list(schedule.values())
    assert counts[-1] == round(density * total)
    assert counts == sorted(counts, reverse=True)
    assert list(schedule) == sorted(schedule)
    assert min(schedule) >= 0
    assert max(schedule) < epochs * steps
    if every:
        k_all = len(freeze_epochs(epochs, every))
        assert counts == [round(total * density ** (k / k_all)) for k in range(1, k_all + 1)]
        assert min(schedule) == every * steps - 1  # the last step of epoch E, never epoch 0
    else:
        # Exponential in time, and the last `repair` of the search is free of freezes.
        assert max(schedule) + 1 == max(1, round(epochs * steps * (1 - repair)))
        for step, count in schedule.items():
            assert count == max(counts[-1], round(total * density ** ((step + 1) / (max(schedule) + 1))))


def test_a_continuous_search_takes_little_at_a_time() -> None:
    schedule = fixed(epochs=40).freeze_schedule(22, 0.0059, 268_048)
    counts = [268_048, *schedule.values()]
    assert counts[-1] == 1581
    assert max(schedule) < 0.75 * 40 * 22
    assert max(1 - b / a for a, b in pairwise(counts)) < 0.02
