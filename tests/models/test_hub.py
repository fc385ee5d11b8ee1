"""A hub that does not answer is said at once, and what is in the cache needs none."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gemminer.core.errors import GemminerError
from gemminer.models import build
from gemminer.models.hub import cached_unless_answered

hub: Any = pytest.importorskip("huggingface_hub")


@pytest.fixture(autouse=True)
def no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """An empty cache and no hub: who waits before asking again fails. Returns the requests."""
    asked: list[Any] = []

    def head(address: str, timeout: float) -> None:
        asked.append((address, timeout))
        raise OSError("Name or service not known")

    def sleep(seconds: float) -> None:
        raise AssertionError(f"waits for {seconds} s")

    monkeypatch.setattr(hub.utils, "get_session", lambda: SimpleNamespace(head=head))
    monkeypatch.setattr(hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(time, "sleep", sleep)
    return asked


def test_an_id_that_is_not_cached_is_said_at_once(no_network: list[Any]) -> None:
    pytest.importorskip("transformers")
    with pytest.raises(GemminerError, match=r"not in the cache, and the hub does not answer: OSError: Name or service"):
        build("hf:nobody/nothing")
    assert no_network == [(hub.constants.ENDPOINT, 5)]
    assert not hub.constants.HF_HUB_OFFLINE


def test_so_are_weights_of_timm(no_network: list[Any]) -> None:
    pytest.importorskip("timm")
    with pytest.raises(GemminerError, match=r"weights of timm:resnet18 .*the hub .* does not answer: OSError"):
        build("timm:resnet18", pretrained=True)
    assert len(no_network) == 1
    build("timm:resnet18")
    assert len(no_network) == 1


def test_a_folder_and_a_kind_ask_nobody(no_network: list[Any], tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    transformers.ViTConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1).save_pretrained(tmp_path / "net")
    with pytest.raises(GemminerError, match=r"name a folder that save_pretrained wrote$"):  # it has no weights
        build(f"hf:{tmp_path / 'net'}")
    build("hf:vit", hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    assert no_network == []


def test_a_hub_that_answers_is_asked_as_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub.utils, "get_session", lambda: SimpleNamespace(head=lambda address, timeout: None))
    with cached_unless_answered() as silent:
        assert silent is None
        assert not hub.constants.HF_HUB_OFFLINE
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", True)
    with cached_unless_answered() as silent:
        assert silent == "HF_HUB_OFFLINE is set"
    assert hub.constants.HF_HUB_OFFLINE
