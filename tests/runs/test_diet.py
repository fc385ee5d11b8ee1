"""Scores of a recipe or a call: network by network, resumed after a kill, refused for other data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import gemminer
from gemminer.core.errors import UsageError
from gemminer.core.progress import Monitor
from gemminer.runs import scoring_runs
from gemminer.runs.recipe import make
from gemminer.training.scores import Scores
from tests.helpers import Snapshot, states, tiny_data, tiny_net

HOW: dict[str, Any] = {"runs": 3, "epochs": 2, "batch_size": 16, "lr": 0.05}
RECIPE = {"model": "lenet-300-100", "model_options": {"width": 0.1}, "limit_train": 200, "train": {"lr": 0.1}}


class Kill(Monitor):
    def __init__(self, phase: str) -> None:
        self.phase, self.seen = phase, list[str]()

    def begin(self, phase: str, start: int, stop: int) -> None:
        self.seen.append(phase)
        if phase == self.phase:
            raise KeyboardInterrupt


def test_the_model_and_the_generators_are_left_as_they_were(snapshot: Snapshot) -> None:
    model = tiny_net()
    before, generators = snapshot(model), states()
    scores = gemminer.scores(model, tiny_data(), **HOW)
    assert snapshot(model) == before
    assert states() == generators
    assert scores.each.shape == (3, 96)
    assert torch.equal(scores.each, gemminer.scores(tiny_net(), tiny_data(), **HOW).each)
    assert not torch.equal(scores.each[0], scores.each[1])  # other weights, another order
    assert not torch.equal(scores.each, gemminer.scores(model, tiny_data(), **HOW, seed=1).each)
    assert scores.cost["epochs"] == 6
    assert scores.cost["flops_dense"] == 6 * 96 * 3 * 2 * 324
    assert torch.equal(scores.classes, tiny_data()[1])  # type: ignore[arg-type]


def test_the_models_own_weights_can_be_kept() -> None:
    own = gemminer.scores(tiny_net(), tiny_data(), **HOW, initialiser="keep")
    assert torch.equal(own.each, gemminer.scores(tiny_net(), tiny_data(), **HOW, initialiser="keep").each)
    assert not torch.equal(own.each, gemminer.scores(tiny_net(1), tiny_data(), **HOW, initialiser="keep").each)


def test_a_killed_call_goes_on_with_the_network_it_was_at(tmp_path: Path) -> None:
    file, whole = tmp_path / "c.pt", gemminer.scores(tiny_net(), tiny_data(), **HOW)
    with pytest.raises(KeyboardInterrupt):
        gemminer.scores(tiny_net(), tiny_data(), **HOW, checkpoint=file, monitor=Kill("scores:2"))
    with pytest.raises(UsageError, match=r"lr: 0\.05 there, 0\.1 here"):
        gemminer.scores(tiny_net(), tiny_data(), **{**HOW, "lr": 0.1}, checkpoint=file)
    watch = Kill("")
    found = gemminer.scores(tiny_net(), tiny_data(), **HOW, checkpoint=file, monitor=watch)
    assert watch.seen == ["scores:2"]
    assert torch.equal(found.each, whole.each)
    assert not file.exists()


def test_more_networks_go_on_from_those_that_are_done(tmp_path: Path) -> None:
    file = tmp_path / "c.pt"
    with pytest.raises(KeyboardInterrupt):
        gemminer.scores(tiny_net(), tiny_data(), **HOW, checkpoint=file, monitor=Kill("scores:2"))
    found = gemminer.scores(tiny_net(), tiny_data(), **{**HOW, "runs": 2}, checkpoint=file)
    assert torch.equal(found.each, gemminer.scores(tiny_net(), tiny_data(), **HOW).each[:2])


def test_a_recipes_scores_are_kept_in_a_file_and_not_computed_twice(tmp_path: Path) -> None:
    recipe, out = make(RECIPE), tmp_path / "s.safetensors"
    with pytest.raises(KeyboardInterrupt):
        scoring_runs.score_recipe(recipe, out, "el2n", 2, 2, device="cpu", monitor=Kill("scores:1"))
    assert not out.exists()
    watch = Kill("")
    found = scoring_runs.score_recipe(recipe, out, "el2n", 2, 2, device="cpu", monitor=watch)
    assert watch.seen == ["scores:1"]
    assert [p.name for p in tmp_path.iterdir()] == ["s.safetensors"]
    watch = Kill("")
    again = scoring_runs.score_recipe(recipe, out, "el2n", 2, 2, device="cpu", monitor=watch)
    assert not watch.seen
    assert again.checksum == found.checksum == Scores.load(out).checksum
    for changes in ({"kind": "loss"}, {"runs": 3}, {"epochs": 1}):
        with pytest.raises(UsageError, match="holds other scores"):
            scoring_runs.score_recipe(recipe, out, **{"kind": "el2n", "runs": 2, "epochs": 2, **changes}, device="cpu")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="holds other scores"):
        scoring_runs.score_recipe(recipe.replace(limit_train=150), out, "el2n", 2, 2, device="cpu")
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(UsageError, match="not written by gemminer"):
        scoring_runs.score_recipe(recipe, tmp_path / "mine.txt", "el2n", 2, 2, device="cpu")


def test_hard_examples_have_high_scores() -> None:
    """Four examples with a wrong label are the four hardest, by each kind that can tell so soon."""
    inputs, targets = tiny_data()
    wrong = torch.tensor([5, 20, 41, 77])
    targets = targets.clone()
    targets[wrong] = (targets[wrong] + 1) % 3
    for kind in ("el2n", "loss"):
        scores = gemminer.scores(tiny_net(), (inputs, targets), kind, runs=4, epochs=4, batch_size=16, lr=0.05)  # type: ignore[arg-type]
        assert scores.choose(4, "hardest", balanced=False).tolist() == wrong.tolist()
