"""The answer in words: how good, how sure and at what cost."""

from __future__ import annotations

from gemminer.reporting import sentences
from tests.reporting.grids import only, small


def test_the_answer_says_how_good_how_sure_and_at_what_cost() -> None:
    cheap = {"cost": {"search": {"epochs": 40, "seconds": 1, "flops_dense": 1, "flops_sparse": 1}}}
    dear = {"cost": {"search": {"epochs": 600, "seconds": 1, "flops_dense": 1, "flops_sparse": 1}}}
    free = {"cost": {"search": {"epochs": 0, "seconds": 1, "flops_dense": 0, "flops_sparse": 0}}}
    gem = [small("gem", s, [x], **cheap) for s, x in ((1, 0.97), (2, 0.96), (3, 0.98))]
    imp = [small("imp", s, [x], **dear) for s, x in ((1, 0.96), (2, 0.97), (3, 0.95))]
    erk = [small("erk", s, [x], **free) for s, x in ((1, 0.80), (2, 0.80), (3, 0.81))]
    said = sentences.answer(only([*gem, *imp, *erk]), 0.01).sentence
    assert said == (
        "At 1% density: gem 97.0% ± 1.0 after training (n = 3), 20.0% before; dense 92.0%; not told apart from "
        "imp (96.0%); its search takes 40 epochs, imp's 600 (15 times that); not checked."
    )
    alone = only([*gem, *erk])
    assert sentences.answer(alone, 0.01).standing == "ahead of every other method beyond chance (next: erk, 80.3%)"
    assert sentences.lead_beyond_chance(alone) == "The lead is beyond chance at 1% density."
    best = [small("imp", s, [x], **dear) for s, x in ((1, 0.99), (2, 0.97), (3, 0.98))]
    assert sentences.answer(only([*gem, *best]), 0.01).cost == "its search takes 600 epochs, gem's 40 (1/15 of that)"
    assert sentences.answer(only([*erk, *imp]), 0.01).cost == "its search takes 600 epochs, erk's none"
    zero = small("zero", 9, [0.1], **dear)
    assert sentences.answer(only([*erk, zero]), 0.01).cost == "it needs no search, zero's 600 epochs"
    single = only([gem[0], imp[0]])
    assert sentences.answer(single, 0.01).standing == "a single seed, so its lead over imp may be chance"
    assert sentences.answer(only(gem), 0.01).standing == "the only method"
    assert sentences.headline(only(gem)) == "resnet20 on digits: one method, gem"


def test_a_heading_claims_nothing_that_may_be_chance() -> None:
    values = {"good": (0.97, 0.96, 0.98), "level": (0.96, 0.97, 0.95), "poor": (0.80, 0.80, 0.81)}
    good, level, poor = ([small(name, s, [x]) for s, x in enumerate(found)] for name, found in values.items())
    for rows, said in (
        ([*good, *level], "no method is told apart"),
        ([*good, *poor], "good finds the best ticket at 1% density"),
    ):
        field = only(rows)
        assert sentences.headline(field) == f"resnet20 on digits: {said}"
        assert ("No lead" in sentences.lead_beyond_chance(field)) == ("told apart" in said)
    both = [only([*good, *poor]), only([*good, *level])]
    assert sentences.summary(both) == "Best ticket beyond chance in 1 of 2 comparisons: good in 1"
    assert sentences.summary(both[1:] * 2) == "No method is told apart in 2 comparisons"


def test_ratios_are_written_out() -> None:
    assert [sentences._times(x, own) for x, own in ((1, 330), (0.1, 160), (13_200, 40), (6, 4), (4, 4.1))] == [
        "1 (1/330 of that)", "0.1 (1/1,600 of that)", "13,200 (330 times that)", "6 (1.5 times that)", "as many",
    ]  # fmt: skip
