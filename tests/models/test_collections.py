"""timm's and torchvision's networks: sizes that fit, weights, and what cannot be."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest
import torch
import torchvision

from gemminer import models
from gemminer.core.errors import GemminerError, UsageError

GREY = {"in_channels": 1, "classes": 7, "image_size": 32}


def build(name: str, **options: Any) -> torch.nn.Module:
    return models.from_options(name, GREY, options)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("torchvision:mobilenet_v3_small", {}),
        ("torchvision:resnet18", {}),
        ("torchvision:squeezenet1_1", {}),
        ("torchvision:vit_b_16", {}),
        ("torchvision:vit_b_16", {"image_size": 32}),
        ("timm:resnet18", {"pretrained": False}),
        ("timm:test_vit.r160_in1k", {"patch_size": 8}),
        ("timm:test_convnext", {}),
    ],
)
def test_networks_take_the_datas_channels_classes_and_size(name: str, options: dict[str, Any]) -> None:
    if name.startswith("timm"):
        pytest.importorskip("timm")
    net = build(name, **options).eval()
    with torch.no_grad():
        assert net(torch.randn(2, 1, 32, 32)).shape == (2, 7)
    again = build(name, **options).state_dict()
    assert all(torch.equal(w, again[key]) for key, w in net.state_dict().items())
    assert not models.has_weights(name, options)
    assert models.has_weights(name, {"pretrained": True})


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("torchvision:resnt18", {}, "torchvision has no network 'resnt18'; did you mean 'resnet18'"),
        ("torchvision:fasterrcnn_resnet50_fpn", {}, "torchvision has no network 'fasterrcnn"),
        ("torchvision:resnet18", {"heads": 3}, "torchvision:resnet18 cannot be made: TypeError.*'heads'"),
        ("torchvision:vit_b_16", {"image_size": 30}, "cannot be made: AssertionError: Input shape indivisible"),
        ("torchvision:resnet18", {"pretrained": 3}, "pretrained is true, false or the name of weights"),
        ("torchvision:resnet18", {"pretrained": "V9"}, "no weights 'V9'; there are: IMAGENET1K_V1"),
        ("timm:resnt18", {}, "timm has no network 'resnt18'; did you mean 'resnet18'"),
        ("timm:qqqqqqqqqqqq", {}, r"timm has no network 'q*': it has \d+"),
        ("timm:resnet18", {"heads": 3}, "timm:resnet18 cannot be made: TypeError.*'heads'"),
    ],
)
def test_what_cannot_be_is_one_sentence(name: str, options: dict[str, Any], says: str) -> None:
    if name.startswith("timm"):
        pytest.importorskip("timm")
    with pytest.raises(UsageError, match=says) as error:
        build(name, **options)
    assert "\n" not in str(error.value)


def test_torchvisions_weights_are_loaded_but_for_a_stem_and_a_classifier_of_another_shape(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with torch.random.fork_rng():
        theirs = torchvision.models.mobilenet_v3_small().state_dict()
    asked = []

    def state(self: Any, **_: Any) -> dict[str, torch.Tensor]:
        asked.append(self.name)
        return theirs

    monkeypatch.setattr(torchvision.models.MobileNet_V3_Small_Weights, "get_state_dict", state)
    found = build("torchvision:mobilenet_v3_small", pretrained="IMAGENET1K_V1").state_dict()
    assert asked == ["IMAGENET1K_V1"]
    differ = {key for key, w in found.items() if w.shape != theirs[key].shape or not torch.equal(w, theirs[key])}
    assert differ == {"features.0.0.weight", "classifier.3.weight", "classifier.3.bias"}
    del theirs["features.5.block.0.0.weight"]
    with pytest.raises(GemminerError, match=r"weights MobileNet.*\(features.5.block.0.0.weight is missing\): leave"):
        build("torchvision:mobilenet_v3_small", pretrained=True)


def test_weights_that_cannot_be_had_are_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network(*_: object, **__: object) -> None:
        raise URLError("no route to host")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", no_network)
    with pytest.raises(GemminerError, match=r"cannot load the pretrained weights ResNet34.*no route to host"):
        build("torchvision:resnet34", pretrained=True)
    timm = pytest.importorskip("timm")
    monkeypatch.setattr(timm.models._builder, "load_pretrained", no_network)
    with pytest.raises(GemminerError, match=r"weights of timm:resnet18 \(URLError.*: leave pretrained out"):
        build("timm:resnet18", pretrained=True)


def test_their_options_are_those_of_their_class() -> None:
    pytest.importorskip("timm")
    rows = {row.name: row for row in models.options("timm:test_vit")}
    assert {"pretrained", "patch_size", "depth"} <= set(rows)
    assert rows["depth"].default is None, "the class's default is not the network's"
    assert not {"num_classes", "in_chans", "img_size"} & set(rows)
    assert [row.name for row in models.options("torchvision:mobilenet_v3_small")][:1] == ["pretrained"]
