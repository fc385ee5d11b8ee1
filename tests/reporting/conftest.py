"""Pages of one run and of many."""

from __future__ import annotations

from pathlib import Path

import pytest

from gemminer.reporting.page import report, write
from tests.reporting.fakes import make_run
from tests.reporting.grids import make_grid


@pytest.fixture(scope="module")
def gem(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(make_run(tmp_path_factory.mktemp("report") / "gem"))


@pytest.fixture(scope="session")  # a page of 288 runs, which several files look at
def grid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("grid")
    return report(make_grid(root, ("digits", "fashion-mnist")), root / "report.html")
