"""Odd arguments, some right and most mistakes: each works or ends in one sentence, before anything long."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import gemminer
from gemminer import sparse
from gemminer.core.errors import GemminerError, UsageError, unknown

X, Y = torch.randn(64, 8, generator=torch.Generator().manual_seed(0)), torch.arange(64) % 3
PAIR = (X, Y)


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))


TICKET = gemminer.mine(mlp(), PAIR, 0.2, method="random")
NAN = X.clone()
NAN[3, 4] = torch.nan


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter(zip(X, Y, strict=True))


def ragged(rows: Any) -> Any:
    return [row[0] for row in rows], [row[1] for row in rows]


DATA: dict[str, Any] = {
    "None": None,
    "inputs alone": X,
    "a number": 5,
    "text": "digits",
    "a path": Path("digits"),
    "three tensors": (X, Y, Y),
    "one in a tuple": (X,),
    "empty tuple": (),
    "a dictionary": {"x": X, "y": Y},
    "lengths differ": (X, Y[:5]),
    "empty tensors": (X[:0], Y[:0]),
    "NaN": (NAN, Y),
    "infinity": (X / 0, Y),
    "objects": (np.array([object()] * 64), Y.numpy()),
    "text array": (np.array(["a"] * 64), Y.numpy()),
    "ragged lists": ([[1.0], [1.0, 2.0]], [0, 1]),
    "lists": (X.tolist(), Y.tolist()),
    "a generator": ((x, y) for x, y in zip(X, Y, strict=True)),
    "an iterator": iter([(X, Y)]),
    "a list of pairs": [(X[i], Y[i]) for i in range(4)],
    "an empty list": [],
    "a set": {1, 2},
    "bytes": b"abc",
    "a function": mlp,
    "an iterable data set": Stream(),
    "a loader of inputs": DataLoader(TensorDataset(X), batch_size=8),
    "a loader of three": DataLoader(TensorDataset(X, Y, Y), batch_size=8),
    "a loader of nothing": DataLoader(TensorDataset(X, Y), batch_size=128, drop_last=True),
    "a loader of lists": DataLoader(TensorDataset(X, Y), batch_size=8, collate_fn=ragged),
    "too wide": (torch.randn(64, 9), Y),
    "images for a vector": (torch.randn(64, 3, 4, 4), Y),
    "one number each": (X[:, 0], Y),
    "no dimension": (torch.tensor(1.0), torch.tensor(1)),
    "complex": (X.to(torch.complex64), Y),
    "classes beyond": (X, Y + 5),
    "negative classes": (X, Y - 7),
    "float classes": (X, Y.double()),
    "boolean targets": (X, Y > 0),
    "text targets": (X.numpy(), np.array(["a"] * 64)),
    "on meta": (X.to("meta"), Y.to("meta")),
    "sparse inputs": (X.to_sparse(), Y),
    "a data set of text": DataLoader([("a", 0), ("b", 1)], batch_size=2),
    "double": (X.double(), Y),
    "half": (X.half(), Y),
    "whole numbers": ((X * 4).int(), Y),
    "requires grad": (X.clone().requires_grad_(), Y),
    "a pair in a list": [X, Y],
    "NumPy": (X.numpy(), Y.numpy()),
    "big endian": (X.numpy().astype(">f4"), Y.numpy()),
    "dates": (np.zeros((64, 8), "datetime64[s]"), Y.numpy()),
}
MODELS: dict[str, Any] = {
    "None": None,
    "the class": nn.Linear,
    "a function": mlp,
    "a name": "resnet20",
    "a state dict": mlp().state_dict(),
    "a list of layers": [nn.Linear(8, 3)],
    "nothing inside": nn.Sequential(),
    "no weights": nn.ReLU(),
    "frozen": mlp().requires_grad_(False),
    "a tensor out of nothing": nn.Identity(),
    "another output": nn.Sequential(nn.Linear(8, 3), nn.Flatten(0)),
    "a recurrent one": nn.LSTM(8, 3),
    "in double": mlp().double(),
    "on meta": mlp().to("meta"),
    "a ticket": TICKET,
    "a number": 3,
}
MINE: dict[str, dict[str, Any]] = {
    "density": {"density": [True, False, "0.1", None, 0, -1, 2, float("nan"), [0.1], (), np.ones(2), 1j, 1e-9]},
    "seed": {"seed": [True, None, -1, 1.5, "1", [1], 2**64, float("nan"), np.float64(2), X]},
    "epochs": {"epochs": [True, 0, -1, 1.5, "three", "1", [], float("inf"), np.int64(1), 1.0, {}]},
    "batch_size": {"batch_size": [True, 0, -1, 1.5, "8", None, [8], 10**9, np.int64(8)]},
    "budget": {"budget": [5, 0.5, "", "s", "-1s", "0", "nan", "infs", True, [], "1e-3"], "epochs": [None]},
    "method": {"method": ["", "snp", None, 5, ["snip"], "IMP", b"snip"]},
    "initialiser": {"initialiser": ["", "kaiming", None, 5, True, "keep", nn.init.xavier_normal_]},
    "engine": {"engine": ["", "cuda", None, 5, True, "Dense", ["auto"]]},
    "exclude": {"exclude": [5, [5], None, "nothing*", ["*"], "2.*", {"2.weight": 1}, b"2", "[", [None], "0.weight"]},
    "embeddings": {"embeddings": [1, None, "yes", [], True]},
    "loss": {"loss": [None, 5, "mse", nn.CrossEntropyLoss(), nn.CrossEntropyLoss, nn.MSELoss(), lambda: 0]},
    "metric": {"metric": [5, "accuracy"], "validation_data": [PAIR]},
    "monitor": {"monitor": [5, "loud", print, object(), gemminer.Monitor]},
    "checkpoint": {"checkpoint": [5, [], True, b"x", "", "/nowhere/at/all/x", "/"]},
    "lr": {"lr": [True, "fast", None, 0, -1, float("nan"), float("inf"), [0.1], "0.1", np.float32(0.1)]},
    "optimiser": {"optimiser": ["adm", None, torch.optim.SGD, 5]},
    "schedule": {"schedule": ["cosin", None, 5], "milestones": [()]},
    "milestones": {"milestones": [5, "5", [1.5], [None], None, (1,), [np.int64(1)]]},
    "weight_decay": {"weight_decay": [True, -1, "x", None, float("inf")]},
    "momentum": {"momentum": [1, -0.1, "x", None, True]},
    "unknown": {
        "lamda": [3],
    },
    "ridge": {"ridge": [-1, "x", float("nan"), True]},
    "floor": {"floor": [-1, 1.5, 10**6, "x", True]},
    "repair": {"repair": [-1, 1, 2, None]},
    "threshold": {"threshold": [0, 1, "x"]},
    "scores": {"scores": ["normal", None, 5]},
    "invert": {"invert": ["maybe", 5, None, 1]},
    "validation_data": {"validation_data": [5, "digits", X, (X[:, :3], Y), (X[:0], Y[:0])]},
}
TICKETS: dict[str, Any] = {
    "None": None,
    "a path": "gem.safetensors",
    "another path": Path("gem.safetensors"),
    "a dictionary": {"0.weight": torch.ones(16, 8)},
    "masks": TICKET.masks,
    "a model": mlp(),
    "of another model": gemminer.mine(nn.Linear(8, 3), PAIR, 0.5, method="random"),
    "the class": gemminer.Ticket,
    "a number": 3,
}
CHECK: dict[str, list[Any]] = {
    "seeds": [0, -1, 1.5, True, "3", None, [], np.int64(1)],
    "names": ["shufle", [], None, 5, [5], "shuffle", ["shuffle", "shuffle"], {"shuffle": 1}, ["random"]],
    "lr": ["x", -1],
    "epochs": [0, "x", 1.5],
    "seed": [-1, "x"],
    "lamda": [3],
    "engine": ["x"],
}


def calls() -> dict[str, Callable[[], Any]]:
    """Every call of the table, by a name."""
    found: dict[str, Callable[[], Any]] = {}
    train, check, mine = gemminer.train, gemminer.check, gemminer.mine
    for name, data in DATA.items():
        found[f"mine, data: {name}"] = lambda data=data: mine(mlp(), data, 0.2, epochs=1)
        found[f"train, test data: {name}"] = lambda data=data: train(mlp(), TICKET, PAIR, data, epochs=1)
        found[f"check, test data: {name}"] = lambda data=data: check(
            mlp(), TICKET, PAIR, data, epochs=1, seeds=1, names="shuffle"
        )
    for name, model in MODELS.items():
        found[f"mine, model: {name}"] = lambda model=model: mine(model, PAIR, 0.2, epochs=1)
        found[f"train, model: {name}"] = lambda model=model: train(model, TICKET, PAIR, epochs=1)
        found[f"apply, model: {name}"] = lambda model=model: TICKET.apply(model)
        found[f"sparsify, model: {name}"] = lambda model=model: sparse.sparsify(model, TICKET)
        found[f"compile, model: {name}"] = lambda model=model: sparse.compile(model, input_shape=(8,))
    for one in MINE.values():
        (option, values), *rest = one.items()
        for value in values:
            how = {"density": 0.2, "epochs": 1, **{k: v[0] for k, v in rest}, option: value}
            found[f"mine, {option}={value!r:.30}"] = lambda how=how: mine(mlp(), PAIR, **how)
    for name, ticket in TICKETS.items():
        found[f"train, ticket: {name}"] = lambda ticket=ticket: train(mlp(), ticket, PAIR, epochs=1)
        found[f"check, ticket: {name}"] = lambda ticket=ticket: check(mlp(), ticket, PAIR, PAIR, epochs=1, seeds=1)
        found[f"sparsify, ticket: {name}"] = lambda ticket=ticket: sparse.sparsify(mlp(), ticket)
    for option, values in CHECK.items():
        for value in values:
            how = {"epochs": 1, "seeds": 1, "names": "shuffle", option: value}
            found[f"check, {option}={value!r:.30}"] = lambda how=how: check(mlp(), TICKET, PAIR, PAIR, **how)
    return found | others()


def others() -> dict[str, Callable[[], Any]]:
    mask, state = {"w": torch.ones(2, 2, dtype=torch.bool)}, {"w": torch.ones(2, 2)}
    ticket, compiled = gemminer.Ticket, sparse.compile
    program = compiled(mlp(), input_shape=(8,))
    return {
        "Ticket of no masks": lambda: ticket({}, state),
        "Ticket of None": lambda: ticket(None, state),
        "Ticket of a list": lambda: ticket([mask["w"]], state),
        "Ticket, float mask": lambda: ticket({"w": torch.ones(2, 2)}, state),
        "Ticket, NumPy mask": lambda: ticket({"w": np.ones((2, 2), bool)}, state),
        "Ticket, empty mask": lambda: ticket({"w": torch.zeros(2, 2, dtype=torch.bool)}, state),
        "Ticket, another shape": lambda: ticket({"w": torch.ones(2, 3, dtype=torch.bool)}, state),
        "Ticket, no such weight": lambda: ticket({"v": mask["w"]}, state),
        "Ticket, no state": lambda: ticket(mask, None),
        "Ticket, a model for a state": lambda: ticket(mask, mlp()),
        "Ticket, state of arrays": lambda: ticket(mask, {"w": np.ones((2, 2))}),
        "Ticket, meta state": lambda: ticket(mask, {"w": torch.ones(2, 2, device="meta")}),
        "Ticket, meta mask": lambda: ticket({"w": mask["w"].to("meta")}, state),
        "Ticket, odd provenance": lambda: ticket(mask, state, {"when": object()}),
        "Ticket, provenance a list": lambda: ticket(mask, state, [1, 2]),
        "Ticket, names that are numbers": lambda: ticket({1: mask["w"]}, {1: state["w"]}),
        "save to a number": lambda: TICKET.save(5),
        "save to a folder": lambda: TICKET.save("/"),
        "save to None": lambda: TICKET.save(None),
        "load a number": lambda: ticket.load(5),
        "load None": lambda: ticket.load(None),
        "load nothing": lambda: ticket.load("nowhere.safetensors"),
        "load a folder": lambda: ticket.load("/"),
        "load a ticket": lambda: ticket.load(TICKET),
        "sparsify, engine": lambda: sparse.sparsify(mlp(), TICKET, engine="fast"),
        "sparsify, engine dense": lambda: sparse.sparsify(mlp(), TICKET, engine="dense"),
        "densify a number": lambda: sparse.densify(5),
        "compile, no shape": lambda: compiled(mlp()),
        "compile, a number": lambda: compiled(mlp(), input_shape=8),
        "compile, text": lambda: compiled(mlp(), input_shape="8"),
        "compile, another width": lambda: compiled(mlp(), input_shape=(9,)),
        "compile, negative": lambda: compiled(mlp(), input_shape=(-8,)),
        "compile, float": lambda: compiled(mlp(), input_shape=(8.0,)),
        "compile, NumPy shape": lambda: compiled(mlp(), input_shape=np.array([8])),
        "compile, an example that is none": lambda: compiled(mlp(), 5),
        "compile, an array": lambda: compiled(mlp(), X.numpy()),
        "run, another width": lambda: program(X[:, :3]),
        "run, a list": lambda: program(X.tolist()),
        "run, None": lambda: program(None),
        "run, threads": lambda: program(X, threads=0),
        "run, threads text": lambda: program(X, threads="2"),
        "run, half a thread": lambda: program(X, threads=1.5),
        "run, bfloat16": lambda: program(X.bfloat16()),
        "report of nothing": lambda: gemminer.report([]),
        "report, no such run": lambda: gemminer.report("runs/nowhere"),
        "report of a number": lambda: gemminer.report(5),
        "report of None": lambda: gemminer.report(None),
        "draw of nothing": lambda: gemminer.draw("nowhere.jsonl.gz"),
        "draw of a number": lambda: gemminer.draw(5),
        "draw of None": lambda: gemminer.draw(None),
        "compare of nothing": lambda: gemminer.compare(None, "x"),
        "compare of text": lambda: gemminer.compare("grid.toml", "x"),
        "compare, unknown field": lambda: gemminer.compare({"densty": 0.1}, "x"),
        "compare, density": lambda: gemminer.compare({"density": [2], "data": "digits"}, "x"),
        "compare, method": lambda: gemminer.compare({"method": "snp"}, "x"),
        "compare, seed": lambda: gemminer.compare({"seed": [True]}, "x"),
        "compare, model": lambda: gemminer.compare({"model": mlp()}, "x"),
        "methods.get of a number": lambda: gemminer.methods.get(5),
    }


def own(error: BaseException) -> bool:
    """Whether code of this file is in what is shown of an error."""
    return any(frame.filename == __file__ for frame in traceback.extract_tb(error.__traceback__))


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_odd_arguments_work_or_end_in_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    raw, table = [], calls()
    assert len(table) >= 300
    for name, call in table.items():
        try:
            call()
        except GemminerError as error:
            if "\n" in str(error) or not str(error):
                raw.append(f"{name}: more than a sentence: {error}")
            # No traceback of PyTorch's in front of the sentence; those of the caller's own code may stand there.
            if error.__context__ is not None and not error.__suppress_context__:
                raw.append(f"{name}: during handling of {error.__context__!r}")
            if error.__cause__ is not None and not own(error.__cause__):
                raw.append(f"{name}: from {error.__cause__!r}")
        except Exception as error:
            raw.append(f"{name}: {type(error).__name__}: {str(error)[:100]}")
    assert not raw, "\n".join(raw)


def test_a_name_that_is_not_known_names_the_nearest() -> None:
    assert str(unknown("method", "snp", ["snip", "grasp"])).startswith("unknown method 'snp'; did you mean 'snip'?")
    for how, near in (({"lamda": 3}, "lambda|slack|lr|ridge|known"), ({"epoch": 3}, "did you mean 'epochs'")):
        with pytest.raises(UsageError, match=near):
            gemminer.mine(mlp(), PAIR, 0.2, **how)  # type: ignore[arg-type]


def test_the_cause_is_shown_where_the_callers_own_code_is_in_it() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(9, 3)

        def forward(self, x: torch.Tensor) -> Any:
            return self.layer(x)

    with pytest.raises(UsageError, match="the model does not take the training data's inputs") as caught:
        gemminer.mine(Net(), PAIR, 0.2)
    assert isinstance(caught.value.__cause__, RuntimeError)
    with pytest.raises(UsageError, match="the model does not take the training data's inputs") as caught:
        gemminer.mine(nn.Sequential(nn.Linear(9, 3)), PAIR, 0.2)
    assert caught.value.__cause__ is None
