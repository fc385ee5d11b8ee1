"""Damaged tickets: refused, or whole in everything a ticket does."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load
from torch import nn

from gemminer.core.draw import Draw
from gemminer.core.errors import GemminerError
from gemminer.core.model_state import named_state
from gemminer.core.prunable import prunable_weights
from gemminer.core.ticket import Ticket, _facts_checksum
from tests.mutations.damage import Tensors, one_line, packed


def _net() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(27, 4))


def files(folder: Path) -> dict[str, bytes]:
    net = _net()
    draw = Draw("kaiming-normal", 3)
    shapes = {name: p.shape for name, p in prunable_weights(net).items()}
    masks = {
        name: torch.rand(shape, generator=torch.Generator().manual_seed(1)) < 0.3 for name, shape in shapes.items()
    }
    own = Ticket(
        masks, {**named_state(net), **draw.weights(shapes)}, {"method": "test", "seed": 3, "options": {"a": 1}}, draw
    )
    half = Ticket(masks, {n: v.to(torch.bfloat16) for n, v in own.initial.items()}, {"seed": 1})
    gone = own.replace(masks={**masks, "0.weight": torch.zeros(shapes["0.weight"], dtype=torch.bool)}, removed=["0"])
    made = [own.save(folder / "whole"), own.save(folder / "small", weights=False), half.save(folder / "half")]
    made.append(gone.save(folder / "short"))
    return {file.name: file.read_bytes() for file in made}


def sign_ticket(meta: dict[str, Any], tensors: Tensors) -> None:
    """The checksums a ticket of these facts, masks and weights would have."""
    meta["checksum"] = {"masks": "", "initial": "", "facts": _facts_checksum(meta)}
    digest = hashlib.sha256()
    for name in sorted(meta["shapes"]):
        digest.update(f"{name} {tuple(meta['shapes'][name])}\n".encode())
        digest.update(tensors[f"mask/{name}"][2])
    meta["checksum"]["masks"] = digest.hexdigest()
    state = {n.removeprefix("initial/"): v for n, v in load(packed(meta, tensors)).items() if n.startswith("initial/")}
    if meta["drawn"] and all(math.prod(meta["shapes"][n]) < 10**6 for n in meta["drawn"]):
        state |= Draw(**meta["draw"]).weights({n: torch.Size(meta["shapes"][n]) for n in meta["drawn"]})
    digest = hashlib.sha256()
    for name in sorted(state):
        digest.update(f"{name} {state[name].dtype} {tuple(state[name].shape)}\n".encode())
        digest.update(state[name].contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    meta["checksum"]["initial"] = digest.hexdigest()


def try_ticket(path: Path) -> str:
    """Load a ticket and use all of it; the sentence of its refusal, or what was done with it."""
    try:
        ticket = Ticket.load(path)
    except GemminerError as error:
        return one_line(error)
    repr(ticket)
    assert ticket.kept == sum(int(mask.sum()) for mask in ticket.masks.values())
    assert sum(layer.kept for layer in ticket.per_layer()) == ticket.kept
    assert Ticket.load(ticket.save(path.with_name("again"))) == ticket
    try:
        ticket.apply(_net())
    except GemminerError as error:
        return f"loaded: {one_line(error)}"
    return "applied"
