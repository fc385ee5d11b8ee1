"""What two tickets have in common."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from gemminer.cli import main
from gemminer.core.errors import UsageError
from gemminer.core.overlap import Overlap
from gemminer.core.ticket import Ticket


def tickets() -> tuple[Ticket, Ticket]:
    net = nn.Sequential(nn.Linear(4, 2, bias=False), nn.Linear(2, 3, bias=False))
    first = {"0.weight": torch.tensor([[1, 1, 0, 0], [1, 0, 0, 0]]).bool(), "1.weight": torch.zeros(3, 2).bool()}
    second = {"0.weight": torch.tensor([[1, 0, 1, 0], [1, 0, 1, 1]]).bool(), "1.weight": torch.zeros(3, 2).bool()}
    return Ticket(first, net.state_dict()), Ticket(second, net.state_dict())


def test_rows_are_those_counted_by_hand() -> None:
    one, other = tickets()
    assert one.overlap(other) == (
        Overlap("0.weight", 8, 3, 5, 2),
        Overlap("1.weight", 6, 0, 0, 0),
        Overlap("all", 14, 3, 5, 2),
    )
    first, empty, _ = one.overlap(other)
    assert first.jaccard == 2 / 6
    assert first.by_chance == 15 / 8
    assert empty.jaccard == 1.0
    assert empty.by_chance == 0.0
    assert one.overlap(one)[0].jaccard == 1.0


def test_tickets_of_different_models_are_refused() -> None:
    other = Ticket({"weight": torch.ones(2, 2).bool()}, nn.Linear(2, 2).state_dict())
    with pytest.raises(UsageError, match=r"of different models: they differ in '0\.weight'"):
        tickets()[0].overlap(other)


def test_inspect_shows_two(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = [str(t.save(tmp_path / f"{i}.safetensors")) for i, t in enumerate(tickets())]
    assert main(["inspect", *paths]) == 0
    assert "0.3333" in capsys.readouterr().out
    assert main(["inspect", *paths, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["layers"]
    assert rows[-1] == {
        "name": "all",
        "size": 14,
        "kept": 3,
        "other": 5,
        "both": 2,
        "jaccard": 2 / 6,
        "by_chance": 15 / 14,
    }
