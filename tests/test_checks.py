"""Sanity checks that check something, and verdicts against Student's t by hand."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from conftest import tiny_net
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from test_ticket import drawn_ticket

from gemminer.core.draw import Draw, kinds
from gemminer.core.errors import UsageError
from gemminer.core.statistics import Check, overall, paired_test
from gemminer.core.ticket import Ticket
from gemminer.runs.checks import reinit, shuffle


def masks_ticket(**masks: list[bool]) -> Ticket:
    tensors = {name: torch.tensor(mask).reshape(-1, 1) for name, mask in masks.items()}
    return Ticket(tensors, {name: torch.ones(mask.shape) for name, mask in tensors.items()})


# --- shuffle ---------------------------------------------------------------------------------------------------


@given(st.lists(st.lists(st.booleans(), min_size=1, max_size=12), min_size=1, max_size=4), st.integers(0, 2**62))
def test_a_shuffle_keeps_the_counts_and_changes_every_partly_filled_layer(layers: list[list[bool]], seed: int) -> None:
    if not any(map(any, layers)):
        return
    ticket = masks_ticket(**{f"layer{i}": layer for i, layer in enumerate(layers)})
    partly = [name for name, m in ticket.masks.items() if 0 < ticket.masks.kept(name) < m.numel()]
    if not partly:
        with pytest.raises(UsageError, match=r"shuffling changes nothing .* empty or full"):
            shuffle(ticket, seed)
        return
    shuffled = shuffle(ticket, seed)
    for name in ticket.masks:
        assert shuffled.masks.kept(name) == ticket.masks.kept(name)
        assert torch.equal(shuffled.masks[name], ticket.masks[name]) == (name not in partly)
    assert shuffled == shuffle(ticket, seed)
    assert all(torch.equal(shuffled.initial[n], t) for n, t in ticket.initial.items())


def test_shuffles_of_all_seeds_differ_and_are_even() -> None:
    ticket = drawn_ticket(tiny_net(), 0.2)
    found = [shuffle(ticket, seed) for seed in range(200)]  # 0 varies like any other
    assert len(set(found) | {ticket}) == 201
    share = torch.stack([t.masks["3.weight"].double() for t in found]).mean(0)
    expected = ticket.per_layer()[1].density
    assert share.sub(expected).abs().max() < 5 * math.sqrt(expected * (1 - expected) / 200)
    assert found[0].provenance["check"] == "shuffle"
    assert found[3].provenance["check_seed"] == 3
    assert found[0].draw == ticket.draw


# --- reinit ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", kinds())
def test_a_reinit_draws_from_the_tickets_own_distribution(kind: str, tmp_path: Path) -> None:
    ticket = drawn_ticket(tiny_net(), 0.2)
    draw = Draw(kind, 11, 0.25)
    shapes = {name: mask.shape for name, mask in ticket.masks.items()}
    ticket = ticket.replace(initial={**ticket.initial, **draw.weights(shapes)}, draw=draw)
    found = [reinit(ticket, seed) for seed in range(40)]
    assert len(set(found) | {ticket}) == 41
    name = "3.weight"
    own, fresh = ticket.initial[name], torch.stack([t.initial[name] for t in found])
    assert found[0].masks["3.weight"].equal(ticket.masks["3.weight"])
    fan = 16 + 12 if kind.startswith("xavier") else 16  # 12 units of 16 inputs
    assert float(fresh.var()) == pytest.approx(2 / (0.25 * fan), rel=0.1)
    if kind == "signed-constant":
        # Signs are new, the one magnitude is the same: the released code drew normals here.
        assert fresh.abs().unique().tolist() == own.abs().unique().tolist()
        assert 0.4 < float((fresh[0] == own).double().mean()) < 0.6
    others = set(ticket.initial) - set(ticket.masks)
    assert all(torch.equal(found[0].initial[n], ticket.initial[n]) for n in others)
    small = found[0].save(tmp_path / "t", weights=False)  # its draw is its own
    assert Ticket.load(small) == found[0]


def test_a_reinit_of_unknown_weights_permutes_them() -> None:
    ticket = drawn_ticket(tiny_net(), 0.2)
    values = {n: torch.randn(m.shape, dtype=torch.float64) for n, m in ticket.masks.items()}
    own = ticket.replace(initial={**ticket.initial, **values})
    first, second = reinit(own, 0), reinit(own, 1)
    assert len({own, first, second}) == 3
    assert first.draw is None
    for name, value in values.items():
        assert first.initial[name].dtype == torch.float64
        assert torch.equal(first.initial[name].reshape(-1).sort().values, value.reshape(-1).sort().values)
        assert not torch.equal(first.initial[name], value)


def test_a_reinit_that_changes_nothing_is_refused() -> None:
    with pytest.raises(UsageError, match="changes nothing"):
        reinit(masks_ticket(a=[True, False, True]), 0)


def test_a_reinit_keeps_the_models_type() -> None:
    ticket = drawn_ticket(tiny_net(), 0.2)
    double = Ticket(ticket.masks, {n: t.double() for n, t in ticket.initial.items()}, {}, ticket.draw)
    assert all(reinit(double, 0).initial[n].dtype == torch.float64 for n in double.masks)


# --- verdicts --------------------------------------------------------------------------------------------------


def test_a_verdict_by_hand() -> None:
    # Differences 0.07, 0.05, 0.08: mean 0.2 / 3, deviation sqrt(((0.01/3)^2 + (0.05/3)^2 + (0.04/3)^2) / 2).
    # One-sided t at 95% with 2 degrees of freedom is 2.920: reach = 2.920 * 0.015275 / sqrt(3) = 0.02575.
    found = paired_test([0.97, 0.96, 0.98], [0.90, 0.91, 0.90])
    assert found.verdict == "pass"
    assert found.mean == pytest.approx(2.71 / 3)
    assert found.std == pytest.approx(math.sqrt((2 * (0.01 / 3) ** 2 + (0.02 / 3) ** 2) / 2))
    assert found.difference == pytest.approx(0.2 / 3)
    assert found.difference_std == pytest.approx(0.0152753, rel=1e-4)
    assert found.values == (0.90, 0.91, 0.90)
    assert found.ticket_values == (0.97, 0.96, 0.98)
    assert found.n == 3


@pytest.mark.parametrize(
    ("ticket", "check", "verdict"),
    [
        ([0.9], [0.1], "not decided"),  # one seed decides nothing
        ([0.9, 0.9], [0.9, 0.9], "fail"),  # no gain at all
        ([0.9, 0.9], [0.8, 0.8], "pass"),
        ([0.90, 0.91, 0.90], [0.97, 0.96, 0.98], "fail"),  # worse
        ([0.90, 0.80, 0.95], [0.85, 0.88, 0.86], "not decided"),  # scattered around zero
        ([0.951, 0.951, 0.951], [0.950, 0.950, 0.950], "pass"),  # a certain gain is a gain, however small
        ([0.9500, 0.9510, 0.9505], [0.9500, 0.9501, 0.9502], "fail"),  # below half a point for sure, not above 0
        ([0.9, math.nan], [0.8, 0.8], "not decided"),
        # Differences m - s, m, m + s: t = m * sqrt(3) / s against 2.920 (2.353 would be 3 degrees of freedom).
        ([0.51, 0.53, 0.55], [0.5, 0.5, 0.5], "not decided"),  # t = 2.598
        ([0.5125, 0.53, 0.5475], [0.5, 0.5, 0.5], "pass"),  # t = 2.969
        ([0.4475, 0.47, 0.4925], [0.5, 0.5, 0.5], "not decided"),  # -0.03 + 0.0379 = 0.0079, above the margin
        ([0.45, 0.47, 0.49], [0.5, 0.5, 0.5], "fail"),  # -0.03 + 0.0337 = 0.0037
        ([-0.1, -0.2], [-0.5, -0.6], "pass"),  # any metric of which more is better
    ],
)
def test_verdicts(ticket: list[float], check: list[float], verdict: str) -> None:
    assert paired_test(ticket, check).verdict == verdict


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=2, max_size=6))
def test_a_pass_is_a_one_sided_paired_t_test(pairs: list[tuple[float, float]]) -> None:
    ticket, check = [a for a, _ in pairs], [b for _, b in pairs]
    differences = [a - b for a, b in pairs]
    if max(differences) - min(differences) < 1e-6:
        return
    p = stats.ttest_rel(ticket, check, alternative="greater").pvalue
    if abs(p - 0.05) > 1e-6:
        assert (paired_test(ticket, check).verdict == "pass") == (p < 0.05)


def test_pairs_are_needed() -> None:
    for ticket, check in (([0.9], [0.8, 0.7]), ([], [])):
        with pytest.raises(UsageError, match="paired values are needed"):
            paired_test(ticket, check)


@pytest.mark.parametrize(
    ("verdicts", "expected"),
    [
        (["pass", "pass"], "pass"),
        (["pass", "not decided"], "not decided"),
        (["pass", "not decided", "fail"], "fail"),
        ([], "not decided"),
    ],
)
def test_overall(verdicts: list[str], expected: str) -> None:
    rows = [Check(0.0, 0.0, 1, 0.0, 0.0, v, (), ()) for v in verdicts]  # type: ignore[arg-type]
    assert overall(rows) == expected
