"""Names that a call does not take: refused before anything is computed, with the one that was meant."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

import gemminer
from gemminer.cli import main
from gemminer.core.errors import UsageError
from tests.helpers import tiny_net

PAIR = (torch.randn(12, 6), torch.arange(12) % 3)
MEANT = {
    "acumulate": "accumulate",
    "precison": "precision",
    "batchsize": "batch_size",
    "progres": "progress",
    "learning_rate": "lr",
    "num_epochs": "epochs",
    "n_epochs": "epochs",
    "random_state": "seed",
    "verbose": "progress",
    "out_dir": "out",
    "output": "out",
    "criterion": "loss",
}


def calls() -> dict[str, Callable[..., object]]:
    ticket = gemminer.mine(tiny_net(), PAIR, 0.3, method="uniform")
    return {
        "gemminer.mine": lambda **given: gemminer.mine(tiny_net(), PAIR, 0.3, **given),
        "gemminer.train": lambda **given: gemminer.train(tiny_net(), ticket, PAIR, PAIR, **given),
        "gemminer.check": lambda **given: gemminer.check(tiny_net(), ticket, PAIR, PAIR, **given),
    }


@pytest.mark.parametrize("call", ["gemminer.mine", "gemminer.train", "gemminer.check"])
def test_a_misspelt_argument_names_the_one_that_was_meant(call: str) -> None:
    work = calls()[call]
    for given, meant in MEANT.items():
        with pytest.raises(UsageError) as caught:
            work(**{given: 1})
        text = str(caught.value)
        assert text.startswith(f"unknown argument of {call}")
        assert f"{given!r}; did you mean {meant!r}?" in text


@pytest.mark.parametrize(
    ("work", "text"),
    [
        # Also where, by the right name, nothing was given that must be.
        (lambda: gemminer.mine(tiny_net(), PAIR, sparsity=0.9), r"'density' \(density = 1 - sparsity\)"),  # type: ignore[call-arg]
        (lambda: gemminer.Search(tiny_net(), sparsity=0.9), r"'density' \(density = 1 - sparsity\)"),  # type: ignore[call-arg]
        (lambda: gemminer.mine(tiny_net(), PAIR, 0.3, test_data=PAIR), "'test_data' of gemminer.train"),  # type: ignore[call-arg]
        (lambda: gemminer.mine(tiny_net(), PAIR, 0.3, method="snip", ridge=1.0), "with snip 'ridge'; known: .*scope"),
        (lambda: gemminer.compare({"density": 0.1}, "x", num_workers=3), "'workers'"),
        (lambda: gemminer.smallest(tiny_net(), PAIR, out="x", learning_rate=1), "'lr' of train"),  # type: ignore[call-arg]
        (
            lambda: gemminer.smallest(tiny_net(), PAIR, validation_data=PAIR, out="x", train={"batchsize": 3}),
            "option of training 'batchsize'; did you mean 'batch_size', beside options and train",
        ),
    ],
)
def test_what_was_meant_may_stand_elsewhere(
    work: Callable[[], object], text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=text):
        work()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("lines", "text"),
    [
        ("sparsity = 0.9", "'density' (density = 1 - sparsity)"),
        ("learning_rate = 0.1", "'lr' of train, or 'lr' of options for the search"),
        ('method = "snip"\nlearning_rate = 0.1', "'lr' of train?"),
        ("lambda = 0.1", "'ridge' of options"),
        ("train = {learning_rate = 0.1}", "did you mean 'lr'?"),
        ("train = {batchsize = 3}", "'batch_size', beside options and train"),
        ("options = {acumulate = 3}", "'accumulate', beside options and train"),
    ],
)
def test_recipes_are_told_the_same(lines: str, text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "r.toml").write_text(f'model = "lenet-300-100"\n{lines}\n', encoding="utf-8")
    assert main(["mine", "--recipe", str(tmp_path / "r.toml"), "--out", str(tmp_path / "run")]) == 2
    assert text in capsys.readouterr().err


def test_a_call_keeps_its_name_and_documentation() -> None:
    named: dict[str, Any] = {"mine": gemminer.mine, "train": gemminer.train, "check": gemminer.check}
    for name, call in named.items():
        assert call.__name__ == name
        assert "Args:" in call.__doc__


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda net: gemminer.mine(net), "gemminer.mine was not given train_data and density"),
        (
            lambda net: gemminer.train(net, train_data=PAIR),
            "gemminer.train was not given ticket: it needs model, ticket",
        ),
        (lambda net: gemminer.smallest(net, PAIR), "gemminer.smallest was not given out"),
        (lambda net: gemminer.Search(net), "gemminer.Search was not given density: it needs model, density"),
        (lambda net: gemminer.mine(net, PAIR, 0.3, None, None, None), "too many positional arguments; give"),
        (lambda net: gemminer.mine(net, PAIR, 0.3, model=net), "multiple values for argument 'model'"),
        (lambda net: gemminer.mine(DataLoader([PAIR]), net, 0.3), "not a DataLoader: the model comes first"),
    ],
)
def test_what_a_call_was_not_given_or_given_in_anothers_place_is_said(call: Callable[[Any], object], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        call(tiny_net())
