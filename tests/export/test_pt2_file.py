"""Exported programs: run without gemminer and without the network's class."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from gemminer import export
from gemminer.core.errors import UsageError
from gemminer.core.ownership import ours
from gemminer.core.ticket import Ticket
from tests.export.conftest import NETWORKS, Ticketed

ALONE = """
import sys, torch
net = torch.export.load(sys.argv[1]).module()
torch.save(net(torch.load(sys.argv[2])), sys.argv[3])
print(any(name.split(".")[0] == "gemminer" for name in sys.modules))
"""


@pytest.mark.parametrize("name", NETWORKS)
def test_a_program_gives_what_the_network_gives(
    name: str,
    ticketed: Callable[[str], Ticketed],
    masked: Callable[[nn.Module, Ticket, Tensor], Tensor],
    tmp_path: Path,
) -> None:
    model, ticket, images = ticketed(name)
    path = tmp_path / "net.pt2"
    made = export.pt2(model, path, images[:2], ticket)
    assert made.difference is not None
    assert made.difference < 1e-5
    net = torch.export.load(path).module()
    with torch.no_grad():
        for count in (1, 2, 7):
            torch.testing.assert_close(net(images[:count]), masked(model, ticket, images[:count]))
    assert sum(p.numel() for p in net.parameters()) < sum(p.numel() for p in model.parameters())
    with zipfile.ZipFile(path) as archive:
        (note,) = [n for n in archive.namelist() if n.endswith("gemminer.json")]
        assert json.loads(archive.read(note))["gemminer_ticket"] == ticket.digest
    assert ours(path)


def test_another_process_needs_pytorch_alone(
    ticketed: Callable[[str], Ticketed],
    masked: Callable[[nn.Module, Ticket, Tensor], Tensor],
    tmp_path: Path,
) -> None:
    model, ticket, images = ticketed("lenet-300-100")
    path, given, found = (tmp_path / name for name in ("net.pt2", "images.pt", "found.pt"))
    export.pt2(model, path, images[:1], ticket)
    torch.save(images, given)
    command = [sys.executable, "-I", "-c", ALONE, *map(str, (path, given, found))]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert ended.stdout.strip() == "False", ended.stderr
    torch.testing.assert_close(torch.load(found), masked(model, ticket, images))


def test_without_compact_the_layers_keep_their_sizes(ticketed: Callable[[str], Ticketed], tmp_path: Path) -> None:
    model, ticket, images = ticketed("lenet-300-100")
    export.pt2(model, tmp_path / "net.pt2", images[:1], ticket, compact=False, batch=1)
    program = torch.export.load(tmp_path / "net.pt2")
    found = dict(program.module().named_parameters())
    for name, mask in ticket.masks.items():
        assert found[name].shape == mask.shape
        assert not found[name][~mask].any()
    with pytest.raises(UsageError, match="another model"):
        export.pt2(nn.Linear(2, 2), tmp_path / "net.pt2", torch.randn(2, 2), ticket)
