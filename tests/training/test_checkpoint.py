"""Checkpoints: whole or not there, and as often as asked."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from gemminer.core.errors import GemminerError, UsageError
from gemminer.training import checkpoint as checkpoints
from gemminer.training.checkpoint import Checkpoint


def test_a_checkpoint_on_a_full_disk_is_one_sentence(tmp_path: Path, full_disk: None) -> None:
    checkpoint = Checkpoint(tmp_path / "c.pt")
    checkpoint.path.write_text("old")
    with pytest.raises(GemminerError, match=r"cannot write .*c\.pt") as caught:
        checkpoint.save({"w": torch.ones(64, 64)})
    assert "\n" not in str(caught.value)
    assert checkpoint.path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["c.pt"]


def test_checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(checkpoints.time, "monotonic", lambda: now[0])
    checkpoint = Checkpoint(tmp_path / "c.pt", every=2.0)
    assert checkpoint.load() is None
    assert checkpoint.due()
    checkpoint.save({"epoch": 3, "w": torch.arange(4), "rows": [{"loss": 0.5, "validation": None}]})
    assert not checkpoint.due()
    now[0] += 2.0
    assert checkpoint.due()
    state = checkpoint.load()
    assert state is not None
    assert state["epoch"] == 3
    assert state["rows"] == [{"loss": 0.5, "validation": None}]
    assert torch.equal(state["w"], torch.arange(4))
    checkpoint.path.write_bytes(checkpoint.path.read_bytes()[:50])
    with pytest.raises(GemminerError, match=r"damaged .* delete it to begin anew") as caught:
        checkpoint.load()
    assert "\n" not in str(caught.value)
    checkpoint.clear()
    checkpoint.clear()
    assert checkpoint.load() is None


def test_how_often_checkpoints_are_written_can_be_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert Checkpoint(tmp_path / "c").every == 2.0
    monkeypatch.setenv("GEMMINER_CHECKPOINT_SECONDS", "0")
    checkpoint = Checkpoint(tmp_path / "c")
    checkpoint.save({})
    assert checkpoint.due()
    for bad in ("often", "-1", "nan"):
        monkeypatch.setenv("GEMMINER_CHECKPOINT_SECONDS", bad)
        with pytest.raises(UsageError, match="GEMMINER_CHECKPOINT_SECONDS"):
            Checkpoint(tmp_path / "c")
