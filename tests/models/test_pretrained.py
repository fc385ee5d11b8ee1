"""Pretrained weights: loaded, or one sentence why not."""

from __future__ import annotations

import shutil
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
import torchvision

from gemminer import models
from gemminer.core.errors import GemminerError


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """torch.hub's folder, empty; and no network."""

    def no_network(*_: object, **__: object) -> None:
        raise URLError("no route to host")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", no_network)
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


WEIGHTS = "resnet18-f37072fd.pth"


def test_pretrained_weights_are_loaded(
    hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with torch.random.fork_rng():
        theirs = torchvision.models.resnet18().state_dict()
    torch.save(theirs, tmp_path / "there.pth")
    monkeypatch.setattr(
        torch.hub, "download_url_to_file", lambda _url, to, *_, **__: shutil.copy(tmp_path / "there.pth", to)
    )
    net = models.build("resnet18", classes=1000, pretrained=True)
    assert (hub / WEIGHTS).exists()
    assert capsys.readouterr().out == ""  # stdout is for --json
    assert all(torch.equal(w, theirs[key]) for key, w in net.state_dict().items())
    tuned = models.build("resnet18", classes=5, in_channels=1, stem="small", pretrained=True).state_dict()
    differ = {key for key, w in tuned.items() if w.shape != theirs[key].shape or not torch.equal(w, theirs[key])}
    assert differ == {"conv1.weight", "fc.weight", "fc.bias"}


def test_pretrained_weights_that_cannot_be_had(hub: Path) -> None:
    sentence = f"cannot load the pretrained weights .*{{}}.*leave pretrained out or put .*{WEIGHTS} into {hub}"
    with pytest.raises(GemminerError, match=sentence.format("no route to host")):
        models.build("resnet18", pretrained=True)
    (hub / WEIGHTS).write_bytes(b"an html page of the proxy")
    with pytest.raises(GemminerError, match=sentence.format("")):
        models.build("resnet18", pretrained=True)
    (hub / WEIGHTS).write_bytes(b"")
    with pytest.raises(GemminerError, match=sentence.format("")):
        models.build("resnet18", pretrained=True)
    torch.save({"fc.weight": torch.zeros(1000, 512)}, hub / WEIGHTS)
    with pytest.raises(GemminerError, match=sentence.format("bn1.bias is missing")):
        models.build("resnet18", pretrained=True)
