"""`gemminer export`: each format of a run, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import gemminer
from gemminer import data, models, sparse
from gemminer.cli import main
from gemminer.core.ticket import Ticket

pytestmark = pytest.mark.filterwarnings("ignore")  # PyTorch's exporter warns of itself

SHORT = ["--model", "lenet-300-100", "--model-option", "width=0.1", "--epochs", "1", "--limit-train", "200"]
QUICK = ["--no-checks", "--no-dense", "--device", "cpu", "--threads", "1", "-q"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "lenet"
    assert main(["mine", *SHORT, *QUICK, "--density", "0.05", "--out", str(out)]) == 0
    return out


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """What a command that ends with 2 says, in one line."""

    def call(*argv: Any) -> str:
        capsys.readouterr()
        assert main(["export", *map(str, argv)]) == 2
        said = capsys.readouterr().err.strip()
        assert "\n" not in said
        return said

    return call


def exported(capsys: pytest.CaptureFixture[str], *argv: Any) -> dict[str, Any]:
    capsys.readouterr()
    assert main(["export", *map(str, argv), "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert Path(found["out"]).stat().st_size == found["bytes"]
    return found


def lenet(folder: Path) -> nn.Module:
    model = models.build("lenet-300-100", in_channels=1, classes=10, image_size=8, width=0.1)
    model.load_state_dict(load_file(folder / "trained.safetensors"))
    return model.eval()


def in_onnxruntime(path: str, images: Tensor) -> Tensor:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {session.get_inputs()[0].name: images.numpy()})[0])


def test_every_format_gives_what_the_trained_network_gives(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = next(iter(data.load("digits").test.epoch(0)))[0][:20]
    with torch.no_grad():
        want = lenet(run)(images)
    made = exported(capsys, run, "--to", "onnx")
    assert made["out"] == str(run / "model.onnx")
    assert made["difference"] < 1e-5
    torch.testing.assert_close(in_onnxruntime(made["out"], images), want)
    known = {entry.key: entry.value for entry in onnx.load(made["out"]).metadata_props}
    assert known["gemminer_ticket"] == Ticket.load(run).digest

    made = exported(capsys, run / "ticket.safetensors", "--to", "compact")  # the ticket's own path does as well
    assert made["out"] == str(run / "compact.pt2")
    with torch.no_grad():
        torch.testing.assert_close(torch.export.load(made["out"]).module()(images), want)

    made = exported(capsys, run, "--to", "program", "--out", run / "here" / "gem.program")
    torch.testing.assert_close(sparse.Program.load(made["out"])(images), want)

    made = exported(capsys, run, "--to", "dense")
    plain = models.build("lenet-300-100", in_channels=1, classes=10, image_size=8, width=0.1)
    plain.load_state_dict(load_file(made["out"]))
    with torch.no_grad():
        assert torch.equal(plain.eval()(images), want)
    with safe_open(made["out"], framework="pt") as file:
        assert json.loads(file.metadata()["gemminer"])["ticket"] == Ticket.load(run).digest


def test_again_replaces_what_is_ours_and_nothing_else(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], refused: Callable[..., str]
) -> None:
    for to in ("compact", "program", "dense"):
        first = exported(capsys, run, "--to", to)
        assert exported(capsys, run, "--to", to)["bytes"] == first["bytes"]
    for to in ("onnx", "compact", "program", "dense"):
        theirs = tmp_path / f"theirs.{to}"
        theirs.write_bytes(b"thesis")
        assert "was not written by gemminer" in refused(run, "--to", to, "--out", theirs)
        assert theirs.read_bytes() == b"thesis"
    before = (run / "ticket.safetensors").read_bytes()
    for name in ("ticket.safetensors", "trained.safetensors"):
        assert "the run's own" in refused(run, "--to", "dense", "--out", run / name)
    assert (run / "ticket.safetensors").read_bytes() == before
    assert main(["mine", *SHORT, *QUICK, "--density", "0.05", "--out", str(run), "--resume"]) == 0  # files beside it


def test_options_of_a_format(
    run: Path, capsys: pytest.CaptureFixture[str], refused: Callable[..., str], tmp_path: Path
) -> None:
    small = exported(capsys, run, "--to", "onnx")
    whole = exported(capsys, run, "--to", "onnx", "--no-compact", "--batch", "3", "--out", tmp_path / "whole.onnx")
    assert whole["bytes"] > small["bytes"]
    assert in_onnxruntime(whole["out"], torch.randn(3, 1, 8, 8)).shape == (3, 10)
    assert "--to dense takes no --batch" in refused(run, "--to", "dense", "--batch", "1")
    assert "--to compact takes no --no-compact" in refused(run, "--to", "compact", "--no-compact")
    assert "unknown format 'onx'; did you mean 'onnx'?" in refused(run, "--to", "onx")
    assert "--to" in refused(run)


def test_a_run_without_weights_or_with_those_of_another_is_refused(run: Path, refused: Callable[..., str]) -> None:
    trained = run / "trained.safetensors"
    with safe_open(trained, framework="pt") as file:
        facts, weights = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    name = next(iter(Ticket.load(run).masks))
    save_file({**weights, name: torch.ones_like(weights[name])}, trained, metadata=facts)
    assert "is not of the ticket beside it: pruned weights of" in refused(run, "--to", "onnx")
    facts = {"gemminer": json.dumps({**json.loads(facts["gemminer"]), "ticket": "0" * 64})}
    save_file(weights, trained, metadata=facts)
    assert "has the weights of another ticket" in refused(run, "--to", "onnx")
    save_file({"w": torch.ones(2)}, trained)
    assert "of another model" in refused(run, "--to", "onnx")
    trained.write_bytes(b"no tensors")
    assert "cannot read the trained weights" in refused(run, "--to", "dense")
    trained.unlink()
    assert "there are no trained weights" in refused(run, "--to", "program")
    assert "there is no ticket" in refused(run / "nowhere", "--to", "onnx")
    assert not (run / "model.onnx").exists()


NETS = """
from torch import nn


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.head = nn.Linear(64, 24), nn.Linear(24, 10)
        self.one, self.two = nn.Linear(24, 24), nn.Linear(24, 24)
        self.two.weight = self.one.weight

    def forward(self, x):
        return self.head(self.two(self.one(self.first(x.flatten(1)).relu()).relu()).relu())
"""


def test_a_model_from_outside_whose_run_python_made(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    refused: Callable[..., str],
) -> None:
    (tmp_path / "exported_nets.py").write_text(NETS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    from exported_nets import Tied  # type: ignore[import-not-found]

    torch.manual_seed(0)
    net, loaded, out = Tied(), data.load("digits", limit_train=200), tmp_path / "run"
    ticket = gemminer.mine(net, loaded.train, 0.2, epochs=1, out=out)
    gemminer.train(net, ticket, loaded.train, loaded.test, epochs=1, out=out)
    assert "say which --model and --data" in refused(out, "--to", "onnx")
    where = ["--model", "exported_nets:Tied", "--data", "digits"]
    images = next(iter(loaded.test.epoch(0)))[0][:9]
    with torch.no_grad():
        want = net.eval()(images)
    made = exported(capsys, out, "--to", "onnx", *where)
    torch.testing.assert_close(in_onnxruntime(made["out"], images), want)
    made = exported(capsys, out, "--to", "dense", *where)
    state = load_file(made["out"])
    assert set(state) == set(net.state_dict())  # a tied weight under both of its names
    plain = Tied()
    plain.load_state_dict(state)
    with torch.no_grad():
        assert torch.equal(plain(images), want)
