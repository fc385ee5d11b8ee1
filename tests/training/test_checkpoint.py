"""Checkpoints: whole or not there, and as often as asked."""

from __future__ import annotations

import functools
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import gemminer
from gemminer.core.errors import GemminerError, UsageError
from gemminer.training import checkpoint as checkpoints
from gemminer.training.checkpoint import Checkpoint
from tests.helpers import tiny_data, tiny_net
from tests.mutations.kinds import mutate


def test_a_checkpoint_on_a_full_disk_is_one_sentence(tmp_path: Path, full_disk: None) -> None:
    checkpoint = Checkpoint(tmp_path / "c.pt")
    checkpoint.path.write_text("old")
    with pytest.raises(GemminerError, match=r"cannot write .*c\.pt") as caught:
        checkpoint.save({"w": torch.ones(64, 64)})
    assert "\n" not in str(caught.value)
    assert checkpoint.path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["c.pt"]


def test_checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(checkpoints.time, "monotonic", lambda: now[0])
    checkpoint = Checkpoint(tmp_path / "c.pt", every=2.0)
    assert checkpoint.load() is None
    assert checkpoint.due()
    checkpoint.save({"epoch": 3, "w": torch.arange(4), "rows": [{"loss": 0.5, "validation": None}]})
    assert not checkpoint.due()
    now[0] += 2.0
    assert checkpoint.due()
    state = checkpoint.load()
    assert state is not None
    assert state["epoch"] == 3
    assert state["rows"] == [{"loss": 0.5, "validation": None}]
    assert torch.equal(state["w"], torch.arange(4))
    checkpoint.path.write_bytes(checkpoint.path.read_bytes()[:50])
    with pytest.raises(GemminerError, match=r"damaged .*, or delete it to begin anew") as caught:
        checkpoint.load()
    assert "\n" not in str(caught.value)
    checkpoint.clear()
    checkpoint.clear()
    assert checkpoint.load() is None


def test_how_often_checkpoints_are_written_can_be_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert Checkpoint(tmp_path / "c").every == 2.0
    monkeypatch.setenv("GEMMINER_CHECKPOINT_SECONDS", "0")
    checkpoint = Checkpoint(tmp_path / "c")
    checkpoint.save({})
    assert checkpoint.due()
    for bad in ("often", "-1", "nan"):
        monkeypatch.setenv("GEMMINER_CHECKPOINT_SECONDS", bad)
        with pytest.raises(UsageError, match="GEMMINER_CHECKPOINT_SECONDS"):
            Checkpoint(tmp_path / "c")


def test_mutated_checkpoints_are_refused_in_one_sentence_or_gone_on_with(tmp_path: Path) -> None:
    found, faults = mutate("checkpoints", range(80), tmp_path)
    assert not faults
    assert found["the right end"] + found["another end"] > 5


@pytest.mark.parametrize("packing", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_checkpoint_whose_bytes_went_wrong_is_refused(tmp_path: Path, packing: int) -> None:
    checkpoint = Checkpoint(tmp_path / "c.pt")
    checkpoint.save({"phase": "train", "w": torch.zeros(1000)})
    with zipfile.ZipFile(checkpoint.path) as there:
        parts = {name: there.read(name) for name in there.namelist()}
    if packing == zipfile.ZIP_STORED:  # one bit of a weight; torch reads no checksums
        at = checkpoint.path.read_bytes().index(bytes(4000)) + 1000
        file = bytearray(checkpoint.path.read_bytes())
        file[at] ^= 64
        checkpoint.path.write_bytes(file)
    else:
        with zipfile.ZipFile(checkpoint.path, "w", packing) as packed:
            for name, content in parts.items():
                packed.writestr(name, content)
    with pytest.raises(GemminerError, match=r"is damaged \(.*(checksum|unpacks to more)"):
        checkpoint.load()


# --- whose a checkpoint is -------------------------------------------------------------------------------------


class Kill(gemminer.Monitor):
    """Ctrl-C in the third epoch of all."""

    def __init__(self) -> None:
        self.left = 3

    def epoch(self, row: dict[str, Any]) -> None:
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt


@functools.cache
def random_ticket(seed: int) -> gemminer.Ticket:
    return gemminer.mine(tiny_net(), tiny_data(), 0.2, method="random", seed=seed)


def loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(output, target)


def mine(**given: Any) -> gemminer.Ticket:
    fields = {"model": tiny_net(), "train_data": tiny_data(), "density": 0.2, "epochs": 5, **given}
    return gemminer.mine(**fields)


def train(**given: Any) -> dict[str, torch.Tensor]:
    """The trained weights."""
    fields = {"model": tiny_net(), "ticket": random_ticket(1), "train_data": tiny_data(), "epochs": 5, **given}
    gemminer.train(**fields)
    return {name: tensor.clone() for name, tensor in fields["model"].state_dict().items()}


def same(a: Any, b: Any) -> bool:
    return all(torch.equal(a[n], b[n]) for n in a) if isinstance(a, dict) else bool(a == b)


def other_labels() -> tuple[torch.Tensor, torch.Tensor]:
    inputs, targets = tiny_data()
    return inputs, torch.cat([targets[:-1], (targets[-1:] + 1) % 3])


def doubles() -> tuple[torch.Tensor, torch.Tensor]:
    inputs, targets = tiny_data()
    return inputs.double(), targets


def loader(seed: int) -> DataLoader[Any]:
    return DataLoader(TensorDataset(*tiny_data(seed=seed)), batch_size=128)


def in_order(changed: int | None = None) -> DataLoader[Any]:
    """Batches of 16 of 96 rows, one of which may be another."""
    inputs, targets = tiny_data()
    if changed is not None:
        inputs[changed] += 1.0
    return DataLoader(TensorDataset(inputs, targets), batch_size=16)


Call = Callable[..., Any]
Fields = dict[str, Any]  # a function stands for what it makes
IMP = {"method": "imp", "rate": 0.5}
OTHERS: list[tuple[Call, Fields, Call, Fields, str]] = [
    (train, {}, train, {"ticket": lambda: random_ticket(2)}, "the ticket"),
    (train, {}, train, {"seed": 1}, "the seed"),
    (train, {}, train, {"epochs": 6}, "epochs"),
    (train, {}, train, {"lr": 0.05}, "lr"),
    (train, {}, train, {"optimiser": "adam"}, "optimiser"),
    (train, {}, train, {"train_data": other_labels}, "the data"),
    (train, {}, train, {"train_data": lambda: tiny_data(90)}, "the data"),
    (train, {}, train, {"batch_size": 32}, "the data"),
    (train, {}, train, {"loss": lambda: loss}, "the loss"),
    (train, {}, mine, {}, "the call"),
    (train, {"train_data": lambda: loader(0)}, train, {"train_data": lambda: loader(1)}, "the data"),
    (train, {"train_data": in_order}, train, {"train_data": lambda: in_order(-1)}, "rows of the data"),
    (mine, {}, mine, {"density": 0.1}, "the density"),
    (mine, {}, mine, {"seed": 1}, "the seed"),
    (mine, {}, mine, {"model": lambda: tiny_net(1)}, "the model's first weights"),
    (mine, {}, mine, {"model": lambda: tiny_net(norm=False)}, "the model"),
    (mine, {}, mine, {"model": lambda: tiny_net().double(), "train_data": doubles}, "the model"),
    (mine, {}, mine, {"slack": 3.0}, "slack"),
    (mine, {}, mine, {"exclude": ("0.*",)}, "exclude"),
    (mine, {}, mine, {"initialiser": "kaiming-normal"}, "the model's first weights"),
    (mine, {}, mine, {"method": "edge-popup"}, "the method"),
    (mine, {}, mine, {"method": "snip", "epochs": None}, "the method"),
    (mine, {}, train, {}, "the call"),
    (mine, IMP, mine, {**IMP, "rate": 0.4}, "rate"),
    (mine, {"method": "edge-popup"}, mine, {"method": "edge-popup", "rung": "global"}, "rung"),
]


@pytest.mark.parametrize(("first", "given", "second", "changed", "text"), OTHERS)
def test_another_calls_checkpoint_is_refused_and_left_as_it_is(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    first: Call,
    given: Fields,
    second: Call,
    changed: Fields,
    text: str,
) -> None:
    monkeypatch.setenv("GEMMINER_CHECKPOINT_SECONDS", "0")
    path = tmp_path / "file"
    own, other = ({n: v() if callable(v) else v for n, v in fields.items()} for fields in (given, changed))
    with pytest.raises(KeyboardInterrupt):
        first(checkpoint=path, monitor=Kill(), **own)
    before = path.read_bytes()
    with pytest.raises(UsageError, match=rf"of another call \({text}: .* delete it to begin anew, or give") as caught:
        second(checkpoint=path, **other)
    assert "\n" not in str(caught.value)
    assert path.read_bytes() == before
    if text in ("the ticket", "the data", "the density", "rung"):  # and the call it is of goes on, to the same bits
        assert same(first(checkpoint=path, **own), first(**own))
        assert not path.exists()


def test_a_file_of_a_version_that_looked_at_no_rows_is_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GEMMINER_CHECKPOINT_SECONDS", "0")
    path = tmp_path / "file"
    with pytest.raises(KeyboardInterrupt):
        train(checkpoint=path, monitor=Kill(), train_data=in_order())
    state = torch.load(path)
    del state["of"]["rows of the data"]
    torch.save(state, path)
    assert same(train(checkpoint=path, train_data=in_order()), train(train_data=in_order()))
    assert not path.exists()


@pytest.mark.parametrize("call", [mine, train])
def test_what_is_no_checkpoint_is_refused_and_left_as_it_is(call: Call, tmp_path: Path) -> None:
    file = tmp_path / "file"
    contents: list[tuple[Any, str]] = [
        (b"my notes", "damaged .* or no checkpoint at all: give another file"),
        (b"", "damaged .* or no checkpoint at all"),
        ({"weight": torch.ones(2)}, "is not a checkpoint of gemminer"),
        ([1, 2], "is not a checkpoint of gemminer"),
        (
            {"phase": "search", "rule": {}, "model": {}, "rows": []},
            "of an older version and does not say what it is of",
        ),
    ]
    for content, text in contents:
        if isinstance(content, bytes):
            file.write_bytes(content)
        else:
            torch.save(content, file)
        before = file.read_bytes()
        with pytest.raises(GemminerError, match=text) as caught:
            call(checkpoint=file)
        assert "\n" not in str(caught.value)
        assert file.read_bytes() == before
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "mine").write_text("kept")
    for path in (folder, Path("/dev/null")):
        with pytest.raises(UsageError, match="cannot hold a checkpoint: give the name of a file"):
            call(checkpoint=path)
    assert [p.name for p in folder.iterdir()] == ["mine"]


def test_a_call_that_fails_before_its_first_epoch_leaves_nothing_behind(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with pytest.raises(UsageError, match="floor"):
        mine(checkpoint=path, floor=300)
    assert not path.exists()
    mine(checkpoint=path, method="snip", epochs=None)
    assert not path.exists()


def test_what_a_checkpoint_is_of_is_said_from_its_start(tmp_path: Path) -> None:
    path, seen = tmp_path / "file", []

    class Look(gemminer.Monitor):
        def begin(self, phase: str, start: int, stop: int) -> None:
            seen.append(torch.load(path)["of"]["the ticket"])

    train(checkpoint=path, monitor=Look())
    assert seen == [random_ticket(1).digest[:12]]


def test_a_search_with_a_budget_of_time_is_measured_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GEMMINER_CHECKPOINT_SECONDS", "0")
    path, lengths = tmp_path / "file", iter([5, 9])
    monkeypatch.setattr("gemminer.runs.experiment.Experiment.affordable", lambda *_: next(lengths))
    with pytest.raises(KeyboardInterrupt):
        mine(checkpoint=path, epochs=None, budget="3s", monitor=Kill())
    assert mine(checkpoint=path, epochs=None, budget="3s") == mine(epochs=5)
    assert next(lengths) == 9
