"""The paper's recipes by name, as printed."""

from __future__ import annotations

import pytest

from gemminer import models
from gemminer.methods.gem_miner import Options
from gemminer.methods.parts.schedules import freeze_epochs
from gemminer.runs import recipe
from gemminer.training.settings import Settings


@pytest.mark.parametrize("name", recipe.names())
def test_every_named_recipe_can_be_run(name: str) -> None:
    found = recipe.load(name)
    options = Options(**{"epochs": found.epochs, **found.options})
    settings = Settings(**{"epochs": found.train_epochs or found.epochs, **found.train})
    assert found.model in models.names()
    models.describe(found.model)
    if name.startswith("paper/"):
        assert settings.epochs == found.train_epochs == found.epochs
        assert len(freeze_epochs(options.epochs, options.freeze_every)) > 10
        assert options.weight_decay == 0
        assert options.momentum == 0.9
        assert settings.schedule == "multistep"
        assert settings.milestones in ((80, 120), (100, 150), (150, 250))
        assert found.initialiser == "signed-constant"


def test_the_papers_table() -> None:
    """Three rows of the appendix as printed, and the number of rows."""
    assert len([n for n in recipe.names() if n.startswith("paper/")]) == 5 + 3 + 4 + 4 + 1
    row = recipe.load("paper/resnet20-cifar10-1.44")
    assert (row.model, row.data, row.density, row.epochs, row.batch_size) == ("resnet20", "cifar10", 0.0144, 150, 128)
    assert row.options == {"optimiser": "sgd", "lr": 0.1, "freeze_every": 5, "ridge": 1e-4}
    assert row.train == {"lr": 0.01, "schedule": "multistep", "milestones": (80, 120), "weight_decay": 1e-4}
    assert row.model_options == {"norm": "non-affine"}
    wide = recipe.load("paper/wideresnet-28-2-cifar10-1.4")
    assert wide.options == {"optimiser": "sgd", "lr": 0.5, "freeze_every": 10, "ridge": 1e-5}
    tiny = recipe.load("paper/resnet18-tiny-imagenet-1.4")
    assert (tiny.batch_size, tiny.epochs, tiny.train["lr"]) == (256, 200, 0.1)
    assert tiny.options == {"optimiser": "adam", "lr": 1e-3, "freeze_every": 5, "ridge": 9e-6}
    assert tiny.model_options == {"norm": "non-affine", "stem": "small"}
