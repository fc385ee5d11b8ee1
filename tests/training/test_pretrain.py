"""A pre-training in words: what the command line takes, and what cannot be."""

from __future__ import annotations

from typing import Any

import pytest

from gemminer.core.errors import UsageError
from gemminer.training.pretrain import Pretrain


@pytest.mark.parametrize(
    ("text", "fields"),
    [
        ("all@200", {"steps": 200, "examples": "all"}),
        ("easiest:3200@200", {"steps": 200, "examples": "easiest", "count": 3200}),
        ("random:50@10:balanced=false", {"steps": 10, "examples": "random", "count": 50, "balanced": False}),
        (
            "hardest:7@1:kind=loss:runs=3:epochs=2:noise=0.5",
            {"steps": 1, "examples": "hardest", "count": 7, "kind": "loss", "runs": 3, "epochs": 2, "noise": 0.5},
        ),
        ("all@5:noise=1", {"steps": 5, "noise": 1}),
    ],
)
def test_a_text_and_its_fields_are_one(text: str, fields: dict[str, Any]) -> None:
    assert Pretrain.parse(text) == Pretrain(**fields)
    assert Pretrain(**fields).text == text
    assert Pretrain.given(text) == Pretrain.given(Pretrain(**fields)) == Pretrain(**fields)


def test_no_steps_are_no_pretraining() -> None:
    for asked in (None, "all@0", "easiest:3200@0", "all@0:noise=0.5"):
        assert Pretrain.given(asked) is None


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("all", "EXAMPLES:COUNT@STEPS"),
        ("all:30@20", "EXAMPLES:COUNT@STEPS"),
        ("easiest@20", "EXAMPLES:COUNT@STEPS"),
        ("easiest:x@20", "EXAMPLES:COUNT@STEPS"),
        ("all@-3", "EXAMPLES:COUNT@STEPS"),
        ("easiet:30@20", "did you mean 'easiest'"),
        ("all@20:noise=2", "0 to 1, not 2"),
        ("all@20:nois=0.5", "did you mean 'noise'"),
        ("all@20:noise=true", "must be a number"),
        ("random:0@3", "at least 1"),
    ],
)
def test_texts_that_are_none(text: str, word: str) -> None:
    with pytest.raises(UsageError, match=word):
        Pretrain.given(text)


def test_what_is_no_pretraining_at_all() -> None:
    for asked in (200, {"steps": 3}, True):
        with pytest.raises(UsageError, match=r"a gemminer\.Pretrain or a text"):
            Pretrain.given(asked)
    for fields in ({"steps": 0}, {"examples": "easy"}, {"noise": -0.1}, {"balanced": 1}):
        with pytest.raises(UsageError):
            Pretrain(**fields)  # type: ignore[arg-type]
