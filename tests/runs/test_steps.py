"""What a run's steps leave in its folder."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import safe_open
from torch import nn

import gemminer
from gemminer.cli import main
from gemminer.core.ticket import Ticket


def about(path: Path) -> dict[str, str]:
    with safe_open(path, "pt") as file:
        found: dict[str, str] = json.loads(file.metadata()["gemminer"])
    return found


def test_trained_weights_say_which_ticket_they_are_of(tmp_path: Path) -> None:
    asked = ["--model", "lenet-300-100", "--method", "erk", "--epochs", "1", "--limit-train", "100", "--no-dense"]
    assert main(["mine", *asked, "--no-checks", "-q", "--out", str(tmp_path / "run")]) == 0
    assert main(["train", str(tmp_path / "run"), "-q", "--out", str(tmp_path / "again.safetensors")]) == 0
    expected = {"format": "gemminer.weights/1", "ticket": Ticket.load(tmp_path / "run/ticket.safetensors").digest}
    assert about(tmp_path / "run/trained.safetensors") == expected
    assert about(tmp_path / "again.safetensors") == expected
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    data = (torch.randn(16, 4), torch.arange(16) % 2)
    ticket = gemminer.mine(net, data, density=0.5, method="erk", out=tmp_path / "called")
    gemminer.train(net, ticket, data, epochs=1, out=tmp_path / "called")
    assert about(tmp_path / "called/trained.safetensors")["ticket"] == ticket.digest
