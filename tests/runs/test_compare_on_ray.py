"""A comparison on a real Ray cluster of three nodes, one of which is lost, against one process; no folder is shared."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from gemminer import api
from gemminer.core.errors import UsageError
from gemminer.runs.grid import Cell
from gemminer.runs.watch import Watch
from tests.runs.helpers import plan

SCRIPT = """
import sys
from ray.cluster_utils import Cluster
from gemminer import api
from tests.runs.helpers import plan
from tests.runs.test_compare_on_ray import ASKED, Losing

if __name__ == "__main__":
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
    watch = Losing(lambda: cluster.remove_node(nodes[0], allow_graceful=False))
    done = api.compare(plan(**ASKED), sys.argv[1], workers=0, threads=1, backend=f"ray:{cluster.address}", watch=watch)
    print("done", len(done.records), done.failures, watch.lost, flush=True)
    cluster.shutdown()
"""
ASKED: dict[str, Any] = {"method": ["uniform", "snip"], "seed": "0-2", "checks": []}


class Losing(Watch):
    """Loses a machine when the first cell is finished: the other is in the middle of one then."""

    def __init__(self, lose: Any) -> None:
        self.lose, self.lost = lose, False

    def finished(self, cell: Cell, record: Any) -> None:
        if not self.lost:
            self.lost = True
            self.lose()


@pytest.mark.slow
def test_a_cluster_that_loses_a_machine_gives_one_processes_tables(tmp_path: Path) -> None:
    where = tmp_path / "ray"
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    run = subprocess.run([sys.executable, str(script), str(where)], capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines()[-1] == "done 9 {} True"
    assert len(run.stdout.splitlines()) == 1  # what Ray says is not on stdout
    api.compare(plan(**ASKED), tmp_path / "one", workers=0, threads=1)
    for name in ("table.csv", "summary.csv"):
        assert (where / name).read_text() == (tmp_path / "one" / name).read_text()
    cells = sorted((where / "cells").iterdir())
    assert len(cells) == 9
    assert {f.name for f in cells[0].iterdir()} >= {"record.json", "metrics.jsonl", "trained.safetensors"}


def test_parts_and_then_the_page(tmp_path: Path) -> None:
    asked = plan(method=["uniform", "snip"], checks=[], dense=False, seed="0-1")
    first = api.compare(asked, tmp_path / "parts", workers=0, threads=1, part="1/3")
    assert (len(first.records), first.failures) == (2, {})
    assert {f.name for f in (tmp_path / "parts").iterdir()} == {"compare.json", "cells"}
    assert api.draw(tmp_path / "parts").name == "report.html"
    rows = (tmp_path / "parts/table.csv").read_text().splitlines()
    assert sum(",finished," in row or row.endswith(",finished") for row in rows) == 2
    for part in ("2/3", "3/3"):
        api.compare(asked, tmp_path / "parts", workers=0, threads=1, part=part)
    api.draw(tmp_path / "parts")
    api.compare(asked, tmp_path / "whole", workers=0, threads=1)
    for name in ("table.csv", "table.md", "summary.csv"):
        assert (tmp_path / "parts" / name).read_text() == (tmp_path / "whole" / name).read_text()
    for odd in ("0/3", "4/3", "3", "a/b", "1/0"):
        with pytest.raises(UsageError, match="a part is a number of how many, as 3/10"):
            api.compare(asked, tmp_path / "odd", workers=0, part=odd)
