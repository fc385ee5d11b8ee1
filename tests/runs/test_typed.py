"""Options and results are typed, and the types are those of the options and results themselves."""

from __future__ import annotations

import dataclasses
import pickle
import typing
from collections.abc import Mapping
from pathlib import Path

import pytest

import gemminer
from gemminer import methods
from gemminer.runs.typed import MineOptions, TrainOptions, TrainResult
from gemminer.training.settings import Settings
from tests.helpers import Pair, tiny_net

SNIPPET = """
import gemminer, torch, typing
net, data = torch.nn.Linear(4, 2), (torch.ones(4, 4), torch.ones(4))
ticket = gemminer.mine(net, data, 0.5, lr=0.1, rounds=3, milestones=(1, 2), ridge=None)
result = gemminer.train(net, ticket, data, data, lr=0.1, optimiser="adam")
x: float | None = result["test"]
y: float = result["cost"]["seconds"]
z: float | None = result.test
own: dict[str, typing.Any] = {"strength": 3}
gemminer.mine(net, data, 0.5, method="my-own", **own)
gemminer.mine(net, data, 0.5, lamda=3)
gemminer.mine(net, data, 0.5, lr="fast")
gemminer.train(net, ticket, data, scores="beta")
gemminer.check(net, ticket, data, data, optimiser="adm")
result["tset"]
result.test = 3.0
"""


def test_a_type_checker_finds_what_cannot_be(tmp_path: Path) -> None:
    api = pytest.importorskip("mypy.api")
    file = tmp_path / "snippet.py"
    file.write_text(SNIPPET)
    config = tmp_path / "mypy.ini"
    own = ("api", "core.model_state", "core.randomness", "runs.keywords", "runs.typed")
    needed = ",".join(["gemminer", *(f"gemminer.{module}" for module in own)])
    config.write_text(f"[mypy]\nfollow_imports = skip\n[mypy-{needed}]\nfollow_imports = silent\n")
    out, _, _ = api.run([str(file), "--config-file", str(config), "--cache-dir", str(tmp_path / "cache")])
    wrong = {int(line.split(":")[1]) for line in out.splitlines() if ": error:" in line}
    first = 1 + next(i for i, line in enumerate(SNIPPET.splitlines()) if "lamda" in line)
    assert wrong == set(range(first, first + 6)), out


def annotations(kind: type) -> dict[str, object]:
    """The types of a dataclass's fields, without the epochs, which are an argument of their own."""
    hints = typing.get_type_hints(kind)
    return {f.name: hints[f.name] for f in dataclasses.fields(kind) if f.name != "epochs"}


def test_typed_options_are_those_of_settings_and_methods() -> None:
    assert typing.get_type_hints(TrainOptions) == annotations(Settings)
    typed = typing.get_type_hints(MineOptions)
    own: dict[str, set[object]] = {}
    for name in methods.names():
        for option, kind in annotations(methods.get(name).options).items():
            own.setdefault(option, set()).add(kind)
    assert typed.keys() == own.keys() | annotations(Settings).keys()
    for option, kinds in own.items():
        either = typing.Union[tuple(kinds)]  # noqa: UP007 - of types that are known when it runs only
        assert set(typing.get_args(typed[option]) or [typed[option]]) == set(typing.get_args(either) or [either]), (
            option
        )


def test_a_result_is_frozen_and_still_a_mapping(pair: Pair) -> None:
    net = tiny_net()
    result = gemminer.train(net, gemminer.mine(net, pair, 0.2, epochs=1), pair, pair, epochs=1)
    assert isinstance(result, TrainResult)
    assert isinstance(result, Mapping)
    assert result.test == result["test"] == dict(result)["test"] == dict(**result)["test"]
    assert list(result) == ["test", "classes", "validation", "cost", "rate"]
    assert result == dict(result)
    assert pickle.loads(pickle.dumps(result)) == result
    assert result != {**result, "test": 2.0}
    assert result.get("nothing") is None
    with pytest.raises(KeyError, match="tset"):
        result["tset"]  # type: ignore[call-overload]
    with pytest.raises(dataclasses.FrozenInstanceError):
        result.test = 1.0  # type: ignore[misc]


def test_a_result_is_printed_in_a_few_aligned_lines() -> None:
    cost: typing.Any = {"epochs": 2, "seconds": 0.0361, "flops_dense": 147456.0, "flops_sparse": 29184.0}
    found = {"lr": 0.1, "max_norm": 1.1, "steps": 20, "seconds": 0.02, "tried": [[0.1, 0.57]]}
    result = TrainResult(0.65625, [0.85, None], 0.5, cost, found)
    assert repr(result) == "TrainResult(test=0.65625, validation=0.5, epochs=2)"
    assert str(result).splitlines() == [
        "test        0.6562",
        "by class    0.8500  -",
        "validation  0.5000",
        "training    2 epochs, 0.0361 s",
        "FLOPs       2.92e+04 of the weights kept, 1.47e+05 of all",
        "rate        lr 0.1, found in 20 steps; gradients at most 1.1 long",
    ]
    given = {"lr": 0.5, "max_norm": None, "steps": 0, "seconds": 0.0, "tried": []}
    assert [line.split()[0] for line in str(TrainResult(None, None, None, cost, given)).splitlines()] == [
        *("training", "FLOPs", "rate")
    ]
    many = str(TrainResult(0.5, [0.5] * 1000, None, cost, given))
    assert max(map(len, many.splitlines())) < 100
    assert "..." in many
