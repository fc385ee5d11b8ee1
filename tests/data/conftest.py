"""No test finds the machine's own data sets, and none may move a global random stream."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.data.helpers import global_streams


@pytest.fixture(autouse=True)
def untouched(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """No test finds the machine's own data sets by chance, and none may move a global random stream."""
    monkeypatch.delenv("GEMMINER_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    before = global_streams()
    yield
    assert global_streams() == before
