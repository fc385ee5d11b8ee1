"""The instability of a run: in a folder, training by training, with a page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from gemminer.cli import main
from gemminer.core.errors import GemminerError, UsageError
from gemminer.core.progress import Monitor
from gemminer.core.ticket import Ticket
from gemminer.reporting import instability_page
from gemminer.runs import stability_runs
from gemminer.runs.execute import run_recipe
from gemminer.runs.recipe import Recipe, make
from gemminer.runs.stability_runs import instability_of

RECIPE = {
    "method": "snip",
    "model": "lenet-300-100",
    "model_options": {"width": 0.1},
    "density": 0.3,
    "train_epochs": 3,
    "train": {"lr": 0.1},
    "limit_train": 100,
    "validation": 0,
    "batch_size": 25,
    "checks": (),
    "dense": False,
    "pretrain": "all@5",
}
HOW: dict[str, Any] = {"pairs": 2, "points": 3, "device": "cpu"}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Recipe, Path]:
    torch.set_num_threads(1)
    folder, recipe = tmp_path_factory.mktemp("runs") / "run", make(RECIPE)
    run_recipe(recipe, folder, device="cpu")
    return recipe, folder


class Kill(Monitor):
    def __init__(self, phase: str = "") -> None:
        self.phase, self.seen = phase, list[str]()

    def begin(self, phase: str, start: int, stop: int) -> None:
        self.seen.append(phase)
        if phase == self.phase:
            raise KeyboardInterrupt


def test_a_killed_question_goes_on_with_the_training_it_was_at(run: tuple[Recipe, Path], tmp_path: Path) -> None:
    recipe, folder = run
    file = folder / "ticket.safetensors"
    whole = instability_of(recipe, file, [0, 5], tmp_path / "whole", **HOW)
    assert [one.name for one in whole] == ["dense@0", "dense@5", "ticket@5"]
    with pytest.raises(KeyboardInterrupt):
        instability_of(recipe, file, [0, 5], tmp_path / "out", **HOW, monitor=Kill("train:dense@5:1"))
    watch = Kill()
    found = instability_of(recipe, file, [0, 5], tmp_path / "out", **HOW, monitor=watch)
    assert watch.seen[0] == "train:dense@5:1"
    for one, other in zip(whole, found, strict=True):
        assert [x.test_loss for x in one.lines] == [x.test_loss for x in other.lines]
        assert torch.equal(one.examples, other.examples)  # type: ignore[arg-type]
    state = {p.name for p in (tmp_path / "out" / "state").iterdir()}
    assert not [name for name in state if name.startswith("weights") or name.endswith(".pt")]
    watch = Kill()
    more = instability_of(recipe, file, [0, 5], tmp_path / "out", **{**HOW, "pairs": 3}, monitor=watch)
    assert [phase for phase in watch.seen if phase.startswith("train")] == [
        f"train:{name}:{i}" for name in ("dense@0", "dense@5", "ticket@5") for i in (4, 5)
    ]
    assert more[0].lines[0].test_loss == whole[0].lines[0].test_loss
    barriers = load_file(tmp_path / "out" / "barriers.safetensors")
    assert set(barriers) == {"dense@0", "dense@5", "ticket@5"}
    with pytest.raises(UsageError, match="another recipe"):
        instability_of(recipe.replace(seed=3), file, [0], tmp_path / "out", **HOW)


def test_step_k_of_the_dense_network_is_what_the_tickets_of_step_k_start_from(
    run: tuple[Recipe, Path], tmp_path: Path
) -> None:
    recipe, folder = run
    instability_of(recipe, None, [5], tmp_path / "out", **{**HOW, "pairs": 1})
    dense = Ticket.load(tmp_path / "out" / "state" / "begin-dense@5.safetensors")
    own = Ticket.load(folder)
    assert all(torch.equal(value, own.initial[name]) for name, value in dense.initial.items())
    assert dense.density == 1


def test_from_the_command_line_with_a_page(run: tuple[Recipe, Path], capsys: pytest.CaptureFixture[str]) -> None:
    _, folder = run
    common = ["instability", str(folder), "--pairs", "1", "--points", "3", "--device", "cpu", "-q"]
    assert main([*common, "--at", "0,5"]) == 0
    said = capsys.readouterr().out
    assert "dense@0: " in said
    assert "ticket@5: " in said
    page = (folder / "instability" / "report.html").read_text(encoding="utf-8")
    assert "Barrier against the step that is begun with" in page
    assert main([*common, "--at", "0,5", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [one["name"] for one in found["starts"]] == ["dense@0", "dense@5", "ticket@5"]
    for argv, word in (
        (["--at", "x"], "--at takes steps"),
        (["--no-ticket"], "nothing to measure"),
        (["--at", "12"], "12 steps"),
    ):
        assert main([*common, *argv]) == 2
        assert word in capsys.readouterr().err


def test_what_is_no_instability_is_said(tmp_path: Path) -> None:
    with pytest.raises(GemminerError, match="holds no instability"):
        stability_runs.read(tmp_path)
    (tmp_path / "instability.json").write_text('{"schema": "gemminer.instability/2"}')
    with pytest.raises(GemminerError, match="instability/2"):
        instability_page.write(tmp_path)
