"""Many runs: means, deviations, gaps and fronts against values worked out by hand."""

from __future__ import annotations

import math

import pytest

from gemminer.reporting import aggregate, sentences
from tests.reporting.grids import only, small


def test_mean_and_deviation_are_over_seeds() -> None:
    field = only([small("x", 1, [0.8]), small("x", 2, [0.9]), small("x", 3, [1.0, 0.8])])
    (row,) = field.rows[0.01]
    # 0.8, 0.9 and the third run's mean 0.9; before 0.1, 0.2, 0.3; dense 0.91, 0.92, 0.93
    assert row.after
    assert row.before
    assert field.dense
    assert (row.after.mean, row.after.n) == (pytest.approx(2.6 / 3), 3)
    assert row.after.std == pytest.approx(math.sqrt((4 + 1 + 1) / 9 / 100 / 2))
    assert (row.before.mean, row.before.std) == (pytest.approx(0.2), pytest.approx(0.1))
    assert (field.dense.mean, field.dense.std, field.dense.n) == (pytest.approx(0.92), pytest.approx(0.01), 3)
    assert row.cost["search", "epochs"] == aggregate.Stat(40.0, 0.0, 3, (40.0, 40.0, 40.0))
    assert row.dead == pytest.approx(5 / 8)
    assert [(layer.name, layer.collapsed) for layer in row.collapsed] == [("b", 3)]
    assert row.worst
    assert row.worst.name == "b"


def test_one_run_shows_the_spread_of_its_trainings() -> None:
    (row,) = only([small("x", 1, [0.8, 0.9])]).rows[0.01]
    assert row.after
    assert row.before
    assert (row.after.mean, row.after.n, row.before.n, row.before.std) == (pytest.approx(0.85), 2, 1, None)
    assert row.after.std == pytest.approx(0.1 / math.sqrt(2))


def test_checks_join_the_pairs_of_all_seeds() -> None:
    def run(seed: int, ours: list[float], theirs: list[float]) -> aggregate.Run:
        check = {"mean": 0, "std": 0, "values": theirs, "ticket_values": ours, "verdict": "not decided"}
        return small("x", seed, ours, checks={"shuffle": check})

    (row,) = only([run(0, [0.95, 0.97], [0.90, 0.93]), run(1, [0.96], [0.90])]).rows[0.01]
    # differences 0.05, 0.04, 0.06: mean 0.05, deviation 0.01; t(0.95; 2) = 2.919986: 0.05 - 0.01686 > 0
    check = row.checks["shuffle"]
    assert (check.n, check.difference, check.difference_std) == (3, pytest.approx(0.05), pytest.approx(0.01))
    assert check.verdict == row.verdict == "pass"
    (row,) = only([run(0, [0.900], [0.900]), run(1, [0.901], [0.900]), run(2, [0.900], [0.901])]).rows[0.01]
    assert row.verdict == "fail", "0 + 2.92 * 0.001 / sqrt(3) = 0.0017 is below half a point"
    (row,) = only([run(0, [0.95], [0.90])]).rows[0.01]
    assert row.verdict == "not decided"


def test_the_best_is_told_apart_over_the_seeds_both_have() -> None:
    best = [small("best", seed, [x]) for seed, x in ((0, 0.97), (1, 0.96), (2, 0.98), (3, 0.97))]
    close = [small("close", seed, [x]) for seed, x in ((0, 0.99), (1, 0.93), (2, 0.95))]
    poor = [small("poor", seed, [x]) for seed, x in ((1, 0.90), (2, 0.91), (7, 0.10))]
    lone = [small("lone", 9, [0.2])]
    field = only([*poor, *close, *best, *lone])
    rows = field.rows[0.01]
    assert [row.method for row in rows] == ["best", "close", "poor", "lone"]
    assert rows[0].gap is rows[3].gap is None
    # close: -0.02, 0.03, 0.03: mean 0.0133, deviation 0.0289; poor, seeds 1 and 2: 0.06, 0.07
    assert rows[1].gap
    assert rows[1].gap.difference == pytest.approx(0.04 / 3)
    assert (rows[1].gap.n, rows[1].gap.verdict) == (3, "not decided")
    assert rows[2].gap
    assert rows[2].gap.values == (0.90, 0.91)
    assert rows[2].gap.difference == pytest.approx(0.065)
    assert rows[2].gap.verdict == "pass", "0.065 - 6.314 * 0.00707 / sqrt(2) = 0.033"
    assert [row.method for row in aggregate.tied(rows)] == ["close", "lone"]
    assert "close and poor at 1% density: no seed" not in "".join(field.notes)
    assert "lone at 1% density: no seed 0, 1, 2, 3 and 7, which others have" in field.notes


def test_pareto_front_by_hand() -> None:
    points = [(0, 0.5), (1, 0.9), (2, 0.9), (2, 0.95), (3, 0.94), (1, 0.9)]
    assert aggregate.pareto(points) == [True, True, False, True, False, True]
    assert aggregate.pareto([]) == []


def test_density_one_is_the_dense_line_and_no_method() -> None:
    field = only([small("x", 1, [0.8]), small("uniform", 1, [0.95], density=1.0), small("x", 2, [0.7])])
    assert list(field.rows) == [0.01]
    assert field.dense == aggregate.Stat(0.95, None, 1, (0.95,))
    lone = only([small("uniform", 1, [0.95], density=1.0)])
    assert sentences.summary([lone]) == "resnet20 on digits: dense networks only, 95.0%"


def test_runs_that_differ_are_not_pooled() -> None:
    warm = {"options": {"rewind": "warm", "rate": 0.2}, "recipe": {"options": {"rewind": "warm"}}}
    cold = {"options": {"rewind": "cold", "rate": 0.2}}
    runs = [small("imp", 1, [0.9], **warm), small("imp", 1, [0.8], **cold), small("snip", 1, [0.5])]
    assert [row.method for row in only(runs).rows[0.01]] == ["imp:rewind=warm", "imp", "snip"]
    bare = [small("imp", 1, [0.9], options={"k": 1}), small("imp", 1, [0.8], options={"k": 2})]
    assert [row.method for row in only(bare).rows[0.01]] == ["imp:k=1", "imp:k=2"]
    tuned = [small("imp", 1, [0.9], options={"k": 1}), small("imp", 1, [0.8], 0.1, options={"k": 2})]
    assert {row.method for rows in only(tuned).rows.values() for row in rows} == {"imp"}, "tuned by density: one line"
    longer = [small("x", 1, [0.9]), small("x", 1, [0.8], recipe={"train_epochs": 9})]
    assert {row.method for row in only(longer).rows[0.01]} == {"x", "x:train_epochs=9"}
    wide = [small("x", 1, [0.9], model_options={}), small("x", 1, [0.8], model_options={"width": 2})]
    assert [field.title for field in aggregate.fields(wide)] == ["resnet20 on digits", "resnet20 (width=2) on digits"]


def test_the_same_seed_twice_is_no_second_sample() -> None:
    field = only([small("x", 1, [0.8]), small("x", 1, [0.8]), small("x", 2, [0.9])])
    assert [len(row.runs) for row in field.rows[0.01]] == [2]
    assert any("counted once" in note for note in field.notes)


def test_layers_and_classes_are_means_over_runs() -> None:
    first = small("x", 1, [0.8], per_class={"after": [0.5, 1.0], "names": ["cat", "dog"]})
    half = [{"name": "a", "kept": 1, "density": 0.1, "filters": 4, "dead_filters": 3}]
    second = small("x", 2, [0.8], per_class={"after": {"cat": 0.7}}, layers=half)
    (row,) = only([first, second, small("x", 3, [0.8], layers=half)]).rows[0.01]
    assert row.layers[0].density == pytest.approx((0.5 + 0.1 + 0.1) / 3)
    assert row.layers[0].dead == pytest.approx(7 / 3)
    assert {name: s.mean for name, s in row.classes.items()} == {"cat": pytest.approx(0.6), "dog": 1.0}
    assert small("x", 1, [0.8], per_class={"after": [0.5, 1.0]}).classes == {"0": 0.5, "1": 1.0}
