"""Runs of networks of one's own and of libraries, from the command line; and what never imports them."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from gemminer.cli import main
from gemminer.core.ticket import Ticket
from gemminer.runs import record
from gemminer.runs.recipe import Recipe

NET = """
import pathlib
import torch
from torch import nn

pathlib.Path("imported").touch()

class Net(nn.Module):
    def __init__(self, in_channels, classes, image_size, hidden=16):
        super().__init__()
        self.first = nn.Linear(in_channels * image_size**2, hidden)
        self.last = nn.Linear(hidden, classes)

    def forward(self, x):
        return self.last(torch.relu(self.first(x.flatten(1))))
"""
QUICK = ("--data", "digits", "--limit-train", "200", "--epochs", "1", "--density", "0.2", "--no-dense", "-q")
SMALL = ("hidden_size=16", "num_hidden_layers=1", "num_attention_heads=2", "intermediate_size=16", "patch_size=4")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current folder with a module `ownnets`, not imported yet."""
    (tmp_path / "ownnets.py").write_text(NET)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "ownnets", raising=False)
    return tmp_path


def forget(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "ownnets", raising=False)
    (here / "imported").unlink(missing_ok=True)


def run(*argv: Any) -> int:
    return main([str(word) for word in argv])


def test_a_network_of_ones_own_is_mined_trained_checked_and_resumed_from_its_record(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ("mine", "--model", "ownnets:Net", "--model-option", "hidden=12", "--no-checks", *QUICK)
    assert run(*asked, "--out", "run") == 0
    found = record.read("run")
    assert (found.model, found.model_options) == ("ownnets:Net", {"hidden": 12})
    assert Ticket.load("run/ticket.safetensors").prunable == 64 * 12 + 12 * 10
    assert run(*asked, "--out", "run", "--resume") == 0
    assert run("train", "run", "--out", "again.safetensors", "--epochs", 1, "-q") == 0
    assert (here / "again.safetensors").read_bytes() == (here / "run" / "trained.safetensors").read_bytes()
    capsys.readouterr()
    assert run("check", "run", "--check", "shuffle", "--seeds", 1, "-q", "--json") == 0
    assert "shuffle" in json.loads(capsys.readouterr().out)["checks"]
    (here / "recipe.json").write_text(json.dumps(found.recipe))
    assert run("mine", "--recipe", "recipe.json", "--out", "second", "-q") == 0
    assert Ticket.load("second/ticket.safetensors") == Ticket.load("run/ticket.safetensors")
    monkeypatch.chdir("/")  # elsewhere the module is not found, and the sentence says so
    forget(here, monkeypatch)
    assert run("train", here / "run", "--out", here / "no.safetensors", "-q") == 2
    assert "the model 'ownnets:Net' cannot be imported: No module named 'ownnets'" in capsys.readouterr().err


def test_what_reads_a_run_or_a_comparison_imports_no_module_that_it_names(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import gemminer

    cells = ("--model", "ownnets:Net", "--method", "uniform", "--checks", "shuffle", *QUICK)
    assert run("compare", *cells, "--workers", 0, "--out", "many") == 0
    assert run("mine", "--model", "ownnets:Net", "--no-checks", *QUICK, "--out", "run") == 0
    assert (here / "imported").exists(), "this test would see an import"
    forget(here, monkeypatch)
    assert run("inspect", "run") == 0
    assert run("inspect", "run", "run") == 0
    assert run("compare", "--draw", "many/records.jsonl.gz", "--out", "drawn") == 0
    gemminer.report("run")
    assert "ownnets:Net" in Path("drawn/report.html").read_text(encoding="utf-8")
    assert "ownnets:Net" in Path("run/report.html").read_text(encoding="utf-8")
    assert not (here / "imported").exists()
    assert "ownnets" not in sys.modules


def test_a_comparison_tries_ones_own_network_in_workers(here: Path) -> None:
    cells = ("--model", "ownnets:Net,lenet-300-100", "--method", "uniform", "--checks", "shuffle", *QUICK)
    assert run("compare", *cells, "--workers", 1, "--threads", 1, "--out", "many") == 0
    assert {found.model for found in map(record.read, Path("many/cells").iterdir())} == {"ownnets:Net", "lenet-300-100"}


@pytest.mark.parametrize(
    ("model", "options", "package"),
    [
        ("timm:resnet10t", ("pretrained=false",), "timm"),
        ("torchvision:squeezenet1_1", (), "torchvision"),
        ("hf:vit", SMALL, "transformers"),
    ],
)
def test_networks_of_libraries_are_mined_and_trained_again(
    here: Path, model: str, options: tuple[str, ...], package: str
) -> None:
    pytest.importorskip(package)
    if model.startswith("torchvision"):  # its pools leave nothing of 8x8
        (here / "big.py").write_text(
            "import torch\ndef data():\n"
            "    x = torch.arange(80 * 3072).mul(40503).div(64).long().to(torch.uint8).view(80, 3, 32, 32)\n"
            "    return (x[:64], torch.arange(64) % 4), (x[64:], torch.arange(16) % 4)\n"
        )
        sys.modules.pop("big", None)
        QUICKER = ("--data", "big:data", *QUICK[2:])
    else:
        QUICKER = QUICK
    chosen = [word for option in options for word in ("--model-option", option)]
    assert run("mine", "--model", model, *chosen, "--method", "erk", "--no-checks", *QUICKER, "--out", "run") == 0
    assert run("train", "run", "--out", "again.safetensors", "--epochs", 1, "-q") == 0
    assert (here / "again.safetensors").read_bytes() == (here / "run" / "trained.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("model", "says"),
    [
        ("torchvision:densenet121", "the model does not take the training data's inputs"),
        ("timm:nothing", "timm has no network 'nothing'"),
        ("ownnets:Nothing", "cannot be imported: module 'ownnets' has no attribute 'Nothing'"),
        ("nowhere:Net", "cannot be imported: No module named 'nowhere'"),
    ],
)
def test_what_cannot_be_is_one_sentence(here: Path, capsys: pytest.CaptureFixture[str], model: str, says: str) -> None:
    if model.startswith("timm"):
        pytest.importorskip("timm")
    assert run("mine", "--model", model, *QUICK, "--no-checks", "--out", "run") == 2
    said = capsys.readouterr()
    assert says in said.err
    assert said.err.count("\n") == 1
    assert not (here / "run").exists()
    assert run("compare", "--model", model, *QUICK, "--workers", 0, "--out", "many") == 2
    assert says in capsys.readouterr().err


def test_weights_of_a_library_are_kept_where_nothing_else_is_asked_for(here: Path) -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {name: int(value) for name, value in (option.split("=") for option in SMALL)}
    config = transformers.ViTConfig(**sizes, num_channels=1, image_size=8, num_labels=10)
    net = transformers.ViTForImageClassification(config)
    net.save_pretrained("net")
    assert run("mine", "--model", "hf:./net", "--method", "magnitude", "--no-checks", *QUICK, "--out", "run") == 0
    ticket = Ticket.load("run/ticket.safetensors")
    assert ticket.draw is None
    name = next(iter(ticket.masks))
    assert ticket.apply(net) is net
    assert bool((net.state_dict()[name] != 0).any())


def test_a_folder_is_named_after_the_network() -> None:
    assert Recipe(model="timm:resnet18").folder.name.startswith("timm_resnet18-digits-")
    assert Recipe(model="hf:./a/b").folder.parent == Path("runs")
