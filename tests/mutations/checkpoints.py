"""Damaged checkpoints: refused in one sentence; bytes that went wrong are never gone on with."""

from __future__ import annotations

import copy
import functools
import io
import os
import random
import zipfile
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor

import gemminer
from gemminer.core.errors import GemminerError
from tests.helpers import drawn_ticket, tiny_data, tiny_net
from tests.mutations.damage import FLOATS, damage_bytes, damage_json, one_line

CALLS: dict[str, dict[str, Any]] = {
    "gem-miner": {"method": "gem-miner", "epochs": 4},
    "edge-popup": {"method": "edge-popup", "epochs": 4},
    "imp": {"method": "imp", "epochs": 2, "rate": 0.6},
    "sgd": {"epochs": 4},
    "adam": {"epochs": 4, "optimiser": "adam", "lr": "auto"},
}


class _Kill(gemminer.Monitor):
    """Ctrl-C in the third epoch of all."""

    def __init__(self) -> None:
        self.left = 3

    def epoch(self, row: dict[str, Any]) -> None:
        self.left -= 1
        if not self.left:
            raise KeyboardInterrupt


def _call(name: str, **given: Any) -> dict[str, Tensor]:
    """What a search or a training gives, as tensors by name."""
    model, own = tiny_net(), {**CALLS[name], **given}
    if "method" in own:
        ticket = gemminer.mine(model, tiny_data(), 0.2, **own)
        return {**{f"mask {n}": t for n, t in ticket.masks.items()}, **ticket.initial}
    gemminer.train(model, drawn_ticket(model, 0.2), tiny_data(), **own)
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


@functools.cache
def _right(name: str) -> dict[str, Tensor]:
    return _call(name)


def files(folder: Path) -> dict[str, bytes]:
    made = {}
    with mock.patch.dict(os.environ, GEMMINER_CHECKPOINT_SECONDS="0"):
        for name in CALLS:
            try:
                _call(name, checkpoint=folder / name, monitor=_Kill())
            except KeyboardInterrupt:
                made[name] = (folder / name).read_bytes()
    return made


def damaged(file: bytes, source: random.Random) -> bytes:
    """One of three damaged in its bytes, one in the pickle within (its checksum right), one in what it says."""
    kind = source.random()
    if kind < 0.3:
        return damage_bytes(file, source)
    made = io.BytesIO()
    if kind < 0.5:
        with zipfile.ZipFile(io.BytesIO(file)) as there, zipfile.ZipFile(made, "w") as new:
            chosen = source.choice([name for name in there.namelist() if name.endswith(("data.pkl", "/0", "/1"))])
            for name in there.namelist():
                content = there.read(name)
                packing = source.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED]) if name == chosen else None
                new.writestr(name, damage_bytes(content, source) if name == chosen else content, packing)
        return made.getvalue()
    state = torch.load(io.BytesIO(file), weights_only=True)
    for _ in range(source.choice([1, 1, 2, 3])):
        part = source.choice([name for name in state if name not in ("format", "of")] or [""])
        if not part:
            break
        if source.random() < 0.2:
            state = {**state, part: _near(state[part], source)}
        elif isinstance(state[part], (dict, list)):
            state = {**state, part: _deeply(state[part], source)}
        else:
            state = {**damage_json({part: state[part]}, source), **{n: v for n, v in state.items() if n != part}}
    torch.save(state, made)
    return made.getvalue()


def _deeply(value: Any, source: random.Random) -> Any:
    """The same with damage at one place, of a tensor in its shape, type or numbers."""
    value = copy.deepcopy(value)
    tensors = [(d, n) for d in _dicts(value) for n, v in d.items() if isinstance(v, Tensor)]
    if not tensors or source.random() < 0.6:
        return damage_json(value, source)
    place, name = source.choice(tensors)
    place[name] = _near(place[name], source)
    return value


def _dicts(value: Any) -> list[dict[Any, Any]]:
    if isinstance(value, dict):
        return [value, *(d for item in value.values() for d in _dicts(item))]
    return [d for item in value for d in _dicts(item)] if isinstance(value, list) else []


def _near(value: Any, source: random.Random) -> Any:
    if not isinstance(value, Tensor):
        return damage_json([value], source)
    value = value.detach()
    other = [value[None], value.reshape(-1)[:-1], value.double(), value.bool(), torch.zeros(0), value.to_sparse()]
    return source.choice(
        [*other, torch.full_like(value, source.choice(FLOATS) if value.is_floating_point() else 1), {}]
    )


def try_checkpoint(path: Path) -> str:
    """Go on from a checkpoint; the sentence of a refusal, or whether the end is that of a call nobody killed."""
    before = path.read_bytes()
    try:
        found = _call(path.name, checkpoint=path)
    except GemminerError as error:
        sentence = one_line(error)
    else:
        right = _right(path.name)
        same = all(torch.equal(found[name], right[name]) for name in right)
        return "the right end" if same else "another end"
    assert path.read_bytes() == before or "no longer finite" in sentence
    return sentence
