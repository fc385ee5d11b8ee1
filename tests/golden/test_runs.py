"""Two recipes, a comparison and the command line's help are what they were; files of 285e346 still load."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import gemminer
from gemminer.cli import main
from tests.golden import pins

OLD = Path(__file__).parent / "old"
PINNED = pins.load()


def differs(label: str, folder: Path) -> list[str]:
    pinned = PINNED["runs"][label]
    return pins.run_differs(pins.run(label, folder / "run", pinned["masks"]), pinned, far="resnet20" in label)


@pytest.mark.parametrize("label", list(pins.RUNS))
def test_a_recipe_gives_its_ticket_weights_and_record(label: str, tmp_path: Path) -> None:
    assert differs(label, tmp_path) == []


def test_a_comparison_of_four_cells_gives_its_tables(tmp_path: Path) -> None:
    """Batches of 64."""
    assert pins.tables_differ(pins.tables(tmp_path / "comparison"), PINNED["tables"]) == []


@pytest.mark.parametrize("name", pins.COMMANDS)
def test_help(name: str) -> None:
    """Changed on purpose? `make golden` writes it anew, and the commit says which lines and why."""
    assert pins.help_of(name) == (pins.HELP / f"{name or 'gemminer'}.txt").read_text(encoding="utf-8")


# --- files that were written at 285e346 --------------------------------------------------------------------------


def test_an_old_ticket_loads() -> None:
    """Also without its weights, which are drawn again."""
    ticket = gemminer.Ticket.load(OLD / "ticket.safetensors")
    said = json.loads((OLD / "said.json").read_text())
    assert (ticket.digest, ticket.kept, ticket.prunable) == (said["digest"], said["kept"], said["prunable"])
    assert ticket.provenance == said["provenance"]


def test_an_old_folder_is_read_and_not_gone_on_with(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its trainings had a rate of 0.1 by default, so those of the same command today are others."""
    folder = Path(shutil.copytree(OLD / "run", tmp_path / "run"))
    before = (folder / "record.json").read_bytes()
    argv = json.loads((OLD / "said.json").read_text())["argv"]
    assert main([*argv, "--out", str(folder), "--resume", "--json"]) == 2
    assert "of a version with other defaults" in capsys.readouterr().err
    assert (folder / "record.json").read_bytes() == before
    assert main(["inspect", str(folder)]) == 0
    assert gemminer.report([folder], tmp_path / "page.html").stat().st_size > 100_000
    assert main(["train", str(folder), "--epochs", "1", "--out", str(tmp_path / "w.safetensors"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["test"] > 0


def test_an_old_program_runs() -> None:
    said = json.loads((OLD / "said.json").read_text())
    images = torch.linspace(-1, 1, 3 * 64).reshape(3, 1, 8, 8)
    output = gemminer.sparse.Program.load(OLD / "lenet-300-100.program")(images)
    np.testing.assert_allclose(output.numpy(), said["output"], rtol=1e-4, atol=1e-5)
