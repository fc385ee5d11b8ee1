"""Options, epochs, budgets and devices as they are settled before a run."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import gemminer
from gemminer.cli import main
from gemminer.core.errors import UsageError
from gemminer.runs import execute
from gemminer.runs.recipe import Recipe
from gemminer.runs.settings import default_epochs, device_of, options_of
from gemminer.training.settings import Settings
from tests.helpers import tiny_data, tiny_net


def test_options_from_plain_fields() -> None:
    found = options_of(Settings, {"lr": 1, "milestones": [1, 2]}, "training")
    assert (found.lr, found.milestones) == (1.0, (1, 2))
    with pytest.raises(UsageError, match="unknown option of training 'lrr'; did you mean 'lr'"):
        options_of(Settings, {"lrr": 1}, "training")


@pytest.mark.parametrize(
    ("examples", "epochs"), [(0, 40), (100, 40), (15_000, 40), (54_000, 11), (60_000, 10), (10**7, 5)]
)
def test_default_epochs(examples: int, epochs: int) -> None:
    assert default_epochs(examples) == epochs


@pytest.mark.parametrize("name", ["cuda:99", "tpu", "", "cpu:x"])
def test_devices_this_machine_lacks(name: str) -> None:
    with pytest.raises(UsageError, match="is not on this machine: use cpu, cuda, cuda:1 or auto"):
        device_of(name)


def test_the_meta_device_is_refused() -> None:
    with pytest.raises(UsageError, match="meta"):
        device_of("meta")


def test_devices_this_machine_has() -> None:
    assert device_of("cpu") == torch.device("cpu")
    assert device_of("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")


def test_a_budget_sets_the_length_of_the_search(tmp_path: Path) -> None:
    recipe = Recipe(
        model="lenet-300-100", density=0.1, budget="0.5", train_epochs=4, checks=(), dense=False, limit_train=100
    )
    result = execute.run_recipe(recipe, tmp_path / "part")
    assert result.cost["search"].epochs == 2
    assert result.cost["train"].epochs == 4
    seconds = execute.run_recipe(recipe.replace(budget="1s"), tmp_path / "seconds")
    assert seconds.cost["search"].epochs >= 2
    again = execute.run_recipe(recipe.replace(budget="1s"), tmp_path / "seconds", resume=True)  # measured once
    assert again.cost["search"].epochs == seconds.cost["search"].epochs
    rows = gemminer.mine(tiny_net(), tiny_data(), density=0.2, budget="0.1").provenance
    assert rows["options"]["epochs"] == 4  # of 40


def test_a_budget_beside_epochs_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UsageError, match="epochs or a budget, not both"):
        gemminer.mine(tiny_net(), tiny_data(), density=0.2, epochs=2, budget="0.5")
    assert main(["mine", "--epochs", "2", "--budget", "5s", "--out", "nowhere"]) == 2
    assert "not both" in capsys.readouterr().err


def test_an_initialiser_that_is_none_names_keep_and_default() -> None:
    with pytest.raises(UsageError, match="initialiser 'kep'; did you mean 'keep'"):
        gemminer.mine(tiny_net(), tiny_data(), 0.5, method="random", initialiser="kep")
