"""Classifiers of transformers by name: configurations, folders, and no network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import gemminer
from gemminer import models
from gemminer.core.errors import GemminerError

transformers = pytest.importorskip("transformers")

GREY = {"in_channels": 1, "classes": 4, "image_size": 8}
SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}


def build(name: str, **options: Any) -> Any:
    return models.from_options(name, GREY, options)


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def test_a_kind_is_its_configuration_with_the_datas_sizes() -> None:
    net = build("hf:vit", patch_size=4, **SMALL)
    assert isinstance(net, transformers.ViTForImageClassification)
    assert net.training
    assert net(torch.randn(2, 1, 8, 8)).logits.shape == (2, 4)
    again = build("hf:vit", patch_size=4, **SMALL).state_dict()
    assert all(torch.equal(w, again[key]) for key, w in net.state_dict().items())
    assert not models.has_weights("hf:vit", {})
    text = build("hf:bert", vocab_size=20, num_labels=3, **SMALL)
    assert text(torch.ones(2, 5, dtype=torch.long)).logits.shape == (2, 3)
    assert type(build("hf:perceiver", num_latents=4, d_latents=16, d_model=16, num_blocks=1, task="text")).__name__ == (
        "PerceiverForSequenceClassification"
    )


def test_a_folder_of_save_pretrained_has_its_weights_and_modes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = build("hf:vit", patch_size=4, **SMALL)
    with torch.no_grad():
        first.vit.layernorm.weight.fill_(3)
    first.save_pretrained(tmp_path / "net")
    monkeypatch.chdir(tmp_path)
    for name in ("hf:./net", "hf:net", f"hf:{tmp_path / 'net'}"):
        net = build(name)
        assert net.training, "from_pretrained gives networks in evaluation mode, whose norms would stay as they are"
        assert all(torch.equal(w, net.state_dict()[key]) for key, w in first.state_dict().items())
    assert models.has_weights("hf:./net", {})
    assert not models.has_weights("hf:./net", {"pretrained": False})
    fresh = build("hf:./net", pretrained=False, num_hidden_layers=2)
    assert fresh.config.num_hidden_layers == 2
    assert fresh.vit.layernorm.weight.mean().item() == 1
    other = models.from_options("hf:./net", {**GREY, "classes": 9}, {})
    assert other.classifier.weight.shape == (9, 16)
    assert other.vit.layernorm.weight.mean().item() == 3


def test_save_pretrained_keeps_the_zeros_and_a_ticket_lies_in_the_same_folder(tmp_path: Path) -> None:
    net = build("hf:vit", patch_size=4, **SMALL)
    data = (torch.randn(16, 1, 8, 8), torch.arange(16) % 4)
    ticket = gemminer.mine(net, data, density=0.2, method="erk", batch_size=8)
    gemminer.train(net, ticket, data, epochs=1, batch_size=8)
    net.save_pretrained(tmp_path)
    ticket.save(tmp_path / "ticket.safetensors")
    found = gemminer.Ticket.load(tmp_path / "ticket.safetensors")
    assert found == ticket
    for back in (type(net).from_pretrained(tmp_path), build(f"hf:{tmp_path}")):
        found.check_fits(back)
        state = back.state_dict()
        assert all(torch.equal(w, state[key]) for key, w in net.state_dict().items())
        assert all(not state[name][~mask].any() for name, mask in found.masks.items())
        assert any(state[name][mask].any() for name, mask in found.masks.items())


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("hf:vit", {"nonsense": 3}, "hf:vit has no option 'nonsense': its options are its configuration's fields"),
        ("hf:vit", {"hidden_size": "wide"}, "hf:vit cannot be made: "),
        ("hf:vit", {"pretrained": True}, "hf:vit is a configuration and has no weights"),
        ("hf:vit", {"task": "text"}, "no classifier of text of the kind 'vit'"),
        ("hf:vit", {"task": "sound"}, "task is images or text, not 'sound'"),
        ("hf:./nowhere", {}, "cannot load hf:./nowhere: there is no such folder"),
        ("hf:./empty", {}, "hf:./empty cannot be made: ValueError: Unrecognized model"),
        (
            "hf:google/vit-base-patch16-224",
            {},
            "cannot load hf:google/vit.*an id that is in the cache",
        ),
        ("hf:./speech", {}, "no classifier of images or text of the kind 'sew'"),
        ("hf:./torn", {}, "hf:./torn"),
        ("hf:./net", {"nonsense": 3}, "hf:./net has no option 'nonsense'"),
    ],
)
def test_what_cannot_be_is_one_sentence(
    name: str, options: dict[str, Any], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    transformers.ViTConfig(**SMALL).save_pretrained("net")
    transformers.SEWConfig().save_pretrained("speech")
    transformers.ViTConfig().save_pretrained("torn")
    Path("torn/model.safetensors").write_bytes(b"no weights")
    with pytest.raises(GemminerError, match=says) as error:
        build(name, **options)
    assert "\n" not in str(error.value)


def test_its_options_are_its_configurations_fields() -> None:
    rows = {row.name: row for row in models.options("hf:vit")}
    assert rows["hidden_size"].default == 768
    assert (rows["pretrained"].default, rows["task"].choices) == (False, ("images", "text"))
