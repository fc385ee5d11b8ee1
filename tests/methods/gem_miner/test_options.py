"""Options of the search that cannot be."""

from __future__ import annotations

import math
from typing import Any

import pytest

from gemminer.core.errors import UsageError
from gemminer.methods.gem_miner import Options


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"ridge": -1.0}, "lambda .ridge. must be 0 or more"),
        ({"ridge": math.inf}, "lambda .ridge. must be 0 or more"),
        ({"repair": 1.0}, "repair, a fraction of the search"),
        ({"repair": -0.1}, "repair, a fraction of the search"),
        ({"start": 0.0}, "start, the fraction live at first"),
        ({"slack": 0.5}, "slack, unfrozen weights for each live one"),
        ({"threshold": 0.4}, "threshold is 0.5 where lambda is solved for"),
        ({"threshold": 0.0}, "threshold must lie between 0 and 1"),
        ({"threshold": 1.0}, "threshold must lie between 0 and 1"),
        ({"freeze_every": -1}, "freeze_every is a number of epochs"),
        ({"floor": -1}, "floor is a number of weights"),
        ({"scores": "gamma"}, "scores must be uniform, bernoulli or beta"),
        ({"mask": "p"}, "mask must be q or live"),
        ({"epochs": 5, "freeze_every": 5}, "leave no time to freeze every 5: search for at least 10"),
        ({"epochs": 0}, "epochs must be 1 or more"),
        ({"lr": math.nan}, "lr, the learning rate"),
    ],
)
def test_options_that_cannot_be(fields: Any, text: str) -> None:
    with pytest.raises(UsageError, match=text):
        Options(**fields)
