"""The commands and code of the README, the docs and the notebook are run as they stand there."""

from __future__ import annotations

import copy
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tools import notebook

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
# Lightning asks PyTorch for a name that is on its way out.
WARNINGS = "error,ignore::FutureWarning:lightning.pytorch.utilities._pytree"
ENVIRONMENT = {**os.environ, "PYTHONWARNINGS": WARNINGS, "OMP_NUM_THREADS": "1"}


def blocks(page: Path, language: str) -> list[Any]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL)


CODE = [(page.name, code) for page in PAGES for code in blocks(page, "python")]


@pytest.mark.parametrize("code", [c for _, c in CODE], ids=[f"{name}-{i}" for i, (name, _) in enumerate(CODE)])
def test_python_of_the_docs_runs(code: str, tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, timeout=300
    )
    assert run.returncode == 0, run.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    "page", [page for page in PAGES if blocks(page, 'python title="([^"]+)"')], ids=lambda p: p.name
)
def test_scripts_of_the_docs_run_as_their_page_says(page: Path, tmp_path: Path) -> None:
    for name, code in blocks(page, 'python title="([^"]+)"'):
        (tmp_path / name).write_text(code)
    lines = [line for block in blocks(page, "sh") for line in block.splitlines()]
    assert lines
    for line in lines:
        program, *rest = shlex.split(line)
        assert program == "torchrun"
        command = [sys.executable, "-m", "torch.distributed.run", *rest]
        run = subprocess.run(command, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, timeout=300)
        assert run.returncode == 0, run.stderr
        assert run.stdout, line


# --- a cluster: batch files as SLURM runs them, on this machine ---------------------------------------------------

CLUSTERS = ROOT / "docs/clusters.md"
# `srun` runs a command once a node, which are two here, and `scontrol` names them.
SLURM = {
    "srun": 'for node in $(seq "$SLURM_NNODES"); do "$@" & done; for job in $(jobs -p); do wait $job || exit 1; done',
    "scontrol": '[ "$*" = "show hostnames here,there" ] && printf "127.0.0.1\\nthere\\n"',
    "gemminer": f'exec "{sys.executable}" -m gemminer "$@"',
    "torchrun": f'exec "{sys.executable}" -m torch.distributed.run "$@"',
}


def files(folder: Path) -> None:
    """The page's files, and in bin/ what a cluster has."""
    (folder / "bin").mkdir()
    for name, code in SLURM.items():
        path = folder / "bin" / name
        path.write_text(f"#!/bin/bash\n{code}\n")
        path.chmod(0o755)
    for language in ("toml", "bash"):
        for name, code in blocks(CLUSTERS, f'{language} title="([^"]+)"'):
            (folder / name).write_text(code)


def directives(file: Path) -> dict[str, str]:
    return dict(re.findall(r"^#SBATCH --([a-z-]+)=(.+)$", file.read_text(), flags=re.MULTILINE))


def submitted(file: Path, **variables: str) -> str:
    path = f"{file.parent / 'bin'}{os.pathsep}{os.environ['PATH']}"
    run = subprocess.run(
        ["bash", "-e", file.name],
        cwd=file.parent,
        env={**ENVIRONMENT, "PATH": path, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path[1:]]), **variables},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stderr
    return run.stdout


@pytest.mark.slow
def test_a_job_array_runs_a_comparison_and_draws_it(tmp_path: Path) -> None:
    files(tmp_path)
    asked = directives(tmp_path / "compare.sbatch")
    first, last = map(int, asked["array"].split("-"))
    one = {"SLURM_CPUS_PER_TASK": asked["cpus-per-task"], "SLURM_ARRAY_TASK_COUNT": str(last - first + 1)}
    for task in range(first, last + 1):
        submitted(tmp_path / "compare.sbatch", SLURM_ARRAY_TASK_ID=str(task), **one)
        assert not (tmp_path / "runs/grid/report.html").exists()
    submitted(tmp_path / "draw.sbatch")
    table = (tmp_path / "runs/grid/table.csv").read_text().splitlines()
    assert len(table) == 1 + 2 * 2 + 2  # two methods and the dense network, two seeds
    assert all("finished" in row for row in table[1:])
    assert (tmp_path / "runs/grid/report.html").exists()


@pytest.mark.slow
def test_two_hosts_search_together(tmp_path: Path) -> None:
    files(tmp_path)
    nodes = directives(tmp_path / "hosts.sbatch")["nodes"]
    job = {"SLURM_JOB_ID": str(os.getpid()), "SLURM_JOB_NODELIST": "here,there", "SLURM_NNODES": nodes}
    assert submitted(tmp_path / "hosts.sbatch", **job)
    record = json.loads((tmp_path / "runs/hosts/record.json").read_text())
    assert record["hardware"]["ranks"] == int(nodes)


RAY = """
import os, subprocess, sys
from ray.cluster_utils import Cluster

cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2})
code = subprocess.run(["bash", "-e", "ray.sh"], env={**os.environ, "RAY_HEAD": cluster.address}).returncode
cluster.shutdown()
sys.exit(code)
"""


@pytest.mark.slow
def test_a_ray_cluster_runs_the_pages_command(tmp_path: Path) -> None:
    files(tmp_path)
    (tmp_path / "cluster.sbatch").write_text(f"'{sys.executable}' -c '{RAY}'")
    submitted(tmp_path / "cluster.sbatch", PYTHONWARNINGS="default")
    rows = (tmp_path / "runs/on-ray/table.csv").read_text().splitlines()
    assert len(rows) == 1 + 2 * 2 + 2
    assert all("finished" in row for row in rows[1:])


# --- the notebook ------------------------------------------------------------------------------------------------

NOTEBOOK = json.loads((ROOT / "examples/first_ticket.ipynb").read_text(encoding="utf-8"))


def code_cells(book: dict[str, Any]) -> list[dict[str, Any]]:
    return [cell for cell in book["cells"] if cell["cell_type"] == "code"]


def kinds(cell: dict[str, Any]) -> list[tuple[str, list[str]]]:
    return [(output["output_type"], sorted(output.get("data", {}))) for output in cell["outputs"]]


def test_outputs_of_the_notebook_are_of_its_code() -> None:
    cells = code_cells(NOTEBOOK)
    for count, cell in enumerate(cells, start=1):
        assert cell["metadata"]["source"] == notebook.digest(cell), f"python tools/notebook.py: {cell['source'][0]}"
        assert cell["execution_count"] == count
        assert cell["outputs"], cell["source"][0]
    assert sum("image/png" in data for cell in cells for _, data in kinds(cell)) == 6
    assert (ROOT / "examples/first_ticket.ipynb").stat().st_size < 400_000


@pytest.mark.slow
def test_the_notebook_runs_and_its_figures_are_sane() -> None:
    """Every cell shows what it shows in the file; numbers may differ on another machine, what they say may not."""
    book = copy.deepcopy(NOTEBOOK)
    for cell in code_cells(book):
        cell["outputs"] = []
    threads = torch.get_num_threads()
    try:
        names = notebook.run(book)
    finally:
        torch.set_num_threads(threads)
    assert [kinds(cell) for cell in code_cells(book)] == [kinds(cell) for cell in code_cells(NOTEBOOK)]
    assert (names["ticket"].kept, names["ticket"].prunable) == (595, 11_900)
    assert names["search"].rows[-1]["validation"] > 0.6
    mean = {method: values.mean(1) for method, values in names["found"].items()}  # of sizes: before and after
    assert mean["gem-miner"][4, 0] > 80
    assert mean["gem-miner"][2, 1] > mean["erk"][2, 1] + 30
    assert mean["erk"][:, 0].max() < 30
    assert names["dense"].mean() > 94
    assert names["verdict"].verdict == "pass"


@pytest.mark.slow
def test_commands_of_the_readme_run_in_their_order(tmp_path: Path) -> None:
    lines = [
        line.split("  #")[0].strip()
        for block in blocks(PAGES[0], "sh")
        for line in block.splitlines()
        if line.startswith("gemminer ")
    ]
    assert len(lines) >= 8
    for line in lines:
        command = [sys.executable, "-m", "gemminer.cli", *shlex.split(line)[1:]]
        run = subprocess.run(command, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, timeout=600)
        assert run.returncode == 0, f"{line}\n{run.stderr}"
        assert run.stdout, line


@pytest.mark.slow
def test_make_mine_gives_a_gem_that_beats_its_checks(tmp_path: Path) -> None:
    """The main job, as a newcomer types it. One seed: the thresholds of five seeds, less what a seed may vary."""
    python = {} if (ROOT / ".venv/package").exists() else {"BIN": str(Path(sys.executable).parent)}
    overrides = [f"{k}={v}" for k, v in python.items()] + (["-o", ".venv/package"] if python else [])
    out = tmp_path / "run"
    subprocess.run(
        ["make", "mine", f"ARGS=--out {out} --json", *overrides], cwd=ROOT, check=True, capture_output=True, timeout=900
    )
    record = json.loads((out / "record.json").read_text())
    assert (record["density"]["kept"], record["density"]["prunable"]) == (1581, 268_048)
    assert record["accuracy"]["before"] >= 0.75
    assert record["accuracy"]["after"] >= 0.95
    assert record["checks"]["shuffle"]["difference"] >= 0.01
    assert record["checks"]["uniform"]["difference"] >= 0.10
    assert (out / "report.html").stat().st_size < 8_000_000
