"""Measurements short enough for tests."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of a hundredth of a second."""
    monkeypatch.setattr("gemminer.bench.measure.SECONDS", 0.01)
