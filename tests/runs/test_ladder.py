"""Which densities are looked at: a rung is found with few looks, and both ends are said as they are."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemminer.runs import ladder


def test_rungs_halve_the_weights_in_two_and_keep_a_weight_a_layer() -> None:
    rungs = ladder.rungs(268_048, 20)
    assert rungs[:5] == (0.5, 0.354, 0.25, 0.177, 0.125)
    assert rungs[-1] >= 0.001 > rungs[-1] * ladder.FACTOR * 0.99
    assert ladder.rungs(100, 10)[-1] * 100 >= 10  # a tenth: a weight for each layer
    assert ladder.rungs(10, 5) == (0.5,)


@given(st.integers(1, 40), st.data())
def test_the_sparsest_that_looks_right_is_found_with_few_looks(count: int, data: st.DataObject) -> None:
    last = data.draw(st.integers(-1, count - 1))
    asked: list[int] = []
    found = ladder.sparsest(count, lambda rung: asked.append(rung) or rung <= last)
    assert found == (None if last < 0 else last)
    assert len(asked) <= count.bit_length()
    assert len(asked) == len(set(asked))


def test_where_no_rung_is_right_the_densest_is_judged_and_said_to_be_wrong() -> None:
    assert ladder.sparsest(18, lambda rung: False) is None
    assert ladder.confirmed(0, lambda rung: ("not within", False)) == (0, "not within")


def test_a_wrong_candidate_gives_way_to_the_next_denser_one() -> None:
    judged = {3: ("not within", False), 2: ("undecided", False), 1: ("undecided", True), 0: ("within", True)}
    asked: list[int] = []
    assert ladder.confirmed(3, lambda rung: asked.append(rung) or judged[rung]) == (1, "undecided")
    assert asked == [3, 2, 1]


@pytest.mark.parametrize("shrink", [0.5, 1.0, 1.7, 4.0])
@given(limit=st.integers(1, 200_000))
def test_the_densest_that_fits_is_found_from_wrong_guesses(shrink: float, limit: int) -> None:
    """Guesses are wrong by a factor: the first size corrects it."""
    asked: list[int] = []

    def size(rung: int) -> float:
        asked.append(rung)
        return 100_000 * 0.7**rung

    found, denser = ladder.densest(18, lambda rung: shrink * 100_000 * 0.7**rung, size, limit)
    fitting = [rung for rung in range(18) if 100_000 * 0.7**rung <= limit]
    assert found == (fitting[0] if fitting else None)
    assert len(asked) <= 3
    if found:
        assert denser == pytest.approx(100_000 * 0.7 ** (found - 1))


@given(st.lists(st.floats(0.5, 2), min_size=12, max_size=12), st.integers(100, 100_000))
def test_what_is_said_to_fit_was_measured(noise: list[float], limit: int) -> None:
    sizes = [50_000 * 0.6**rung * factor for rung, factor in enumerate(noise)]
    asked: list[int] = []
    found, _ = ladder.densest(
        12, lambda rung: 50_000 * 0.6**rung, lambda rung: asked.append(rung) or sizes[rung], limit
    )
    assert len(asked) == len(set(asked))
    if found is not None:
        assert found in asked
        assert sizes[found] <= limit
