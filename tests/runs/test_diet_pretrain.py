"""A pre-training in front of any method: by mine, a recipe, the command line and compare, killed and resumed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch.optim.optimizer import register_optimizer_step_pre_hook

import gemminer
from gemminer import methods
from gemminer.cli import main
from gemminer.core.errors import UsageError
from gemminer.core.progress import Monitor
from gemminer.core.ticket import Ticket
from gemminer.runs import record
from gemminer.runs.execute import check_ticket, prepare, run_recipe, train_ticket
from gemminer.runs.recipe import make
from gemminer.training.pretraining import checksum
from gemminer.training.settings import Settings
from tests.helpers import EXACT, tiny_data, tiny_net

EASY = gemminer.Pretrain(steps=9, examples="easiest", count=40, runs=2, epochs=1, train={"lr": 0.1, "epochs": 8})
HOW: dict[str, Any] = {"epochs": 4, "batch_size": 16}
RECIPE: dict[str, Any] = {
    "model": "lenet-300-100",
    "model_options": {"width": 0.1},
    "density": 0.3,
    "epochs": 2,
    "train_epochs": 3,
    "train": {"lr": 0.1},
    "limit_train": 100,
    "validation": 0,
    "batch_size": 25,
    "checks": ("shuffle",),
    "check_seeds": 1,
    "dense": False,
    "pretrain": "easiest:40@5:runs=2:epochs=1",
}


@pytest.mark.parametrize("method", EXACT)
def test_every_method_starts_from_the_weights_of_step_k(method: str) -> None:
    own = {"epochs": 4} if methods.get(method).trains else {}
    net = tiny_net()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    found = gemminer.mine(net, tiny_data(), 0.4, method=method, batch_size=16, pretrain="all@9", **own)
    assert all(torch.equal(value, net.state_dict()[name]) for name, value in before.items())
    facts = found.provenance
    assert (facts["rewind_step"], facts["at_initialisation"], found.draw) == (9, False, None)
    assert facts["pretrain"]["steps"] == 9
    assert found.kept == round(0.4 * 324)
    again = gemminer.mine(net, tiny_data(), 0.4, method=method, batch_size=16, pretrain="all@9", **own)
    assert again == found
    cold = gemminer.mine(net, tiny_data(), 0.4, method=method, batch_size=16, **own)
    assert not torch.equal(cold.initial["0.weight"], found.initial["0.weight"])
    assert not torch.equal(cold.initial["1.running_mean"], found.initial["1.running_mean"])  # its statistics too


def test_gem_miner_keeps_the_weights_that_were_pretrained() -> None:
    """Its signed constants are where the pre-training begins; drawn again they would undo it."""
    mined = gemminer.mine(tiny_net(), tiny_data(), 0.4, **HOW, pretrain="all@1")
    cold = gemminer.mine(tiny_net(), tiny_data(), 0.4, **HOW)
    one, other = mined.initial["0.weight"], cold.initial["0.weight"]
    assert len(other.abs().unique()) == 1 < len(one.abs().unique())
    assert float((one - other).abs().max()) < 0.5 * float(other.abs().max())  # a step away from the same draw
    kept = gemminer.mine(tiny_net(), tiny_data(), 0.4, **HOW, pretrain="all@1", initialiser="keep")
    assert float((kept.initial["0.weight"] - tiny_net().state_dict()["0.weight"]).abs().max()) < 0.2


def test_arms_are_paired_by_seed() -> None:
    """Equal seeds: the same w_0 and scores, whatever the method; another order of the same data is another w_k."""
    tickets = [
        gemminer.mine(tiny_net(), tiny_data(), 0.4, method=method, batch_size=16, pretrain="random:40@9", **own)
        for method, own in (("snip", {}), ("grasp", {}))
    ]
    assert all(torch.equal(value, tickets[1].initial[name]) for name, value in tickets[0].initial.items())
    facts = [t.provenance["pretrain"]["indices"] for t in tickets]
    assert facts[0] == facts[1]


class Kill(Monitor):
    """Ctrl-C at the end of an epoch of a phase."""

    def __init__(self, phase: str = "", epoch: int = 1) -> None:
        self.at, self.seen = (phase, epoch), list[str]()

    def begin(self, phase: str, start: int, stop: int) -> None:
        self.seen.append(phase)

    def epoch(self, row: dict[str, Any]) -> None:
        if (row["phase"], row["epoch"]) == self.at:
            raise KeyboardInterrupt


def test_a_folder_keeps_scores_indices_and_costs_apart(tmp_path: Path) -> None:
    net, data = tiny_net(), tiny_data()
    ticket = gemminer.mine(net, data, 0.4, **HOW, pretrain=EASY, out=tmp_path / "run")
    found = record.read(tmp_path / "run")
    assert list(found.cost) == ["score", "pretrain", "search"]
    assert found.cost["score"].epochs >= 2  # two networks of an epoch, and finding their rates
    assert found.cost["pretrain"].epochs == 1.5
    assert found.cost["pretrain"].flops_dense == 1.5 * 96 * 3 * 2 * 324
    assert found.cost["search"].epochs == 4
    assert found.start is not None
    assert found.start.step == 9
    indices = load_file(tmp_path / "run" / "examples.safetensors")["indices"]
    assert len(indices) == 40
    assert checksum(indices) == found.start.pretrain["indices"] == ticket.provenance["pretrain"]["indices"]
    scores = gemminer.Scores.load(tmp_path / "run" / "scores.safetensors")
    assert torch.equal(scores.choose(40, "easiest"), indices)
    watch = Kill()
    again = gemminer.mine(net, data, 0.4, **HOW, pretrain=EASY, out=tmp_path / "run", monitor=watch)
    assert again == ticket
    assert not watch.seen  # nothing is computed again
    with pytest.raises(UsageError, match="the pre-training: easiest:40@9"):
        gemminer.mine(net, data, 0.4, **HOW, pretrain="all@9", out=tmp_path / "run")
    given = gemminer.mine(net, data, 0.4, **HOW, pretrain=gemminer.Pretrain(**{**vars(EASY), "scores": scores}))
    assert given == ticket
    result = gemminer.train(net, ticket, data, data, epochs=4, batch_size=16, out=tmp_path / "run")
    assert result.cost["epochs"] == 2.5
    assert "Pre-training: 9 steps on the easiest 40" in (tmp_path / "run" / "report.html").read_text()


@pytest.mark.parametrize("at", [("scores:1", 1), ("pretrain", 1), ("search", 1), ("train:0", 2)])
def test_a_recipe_that_was_killed_goes_on_to_the_same_bits(
    at: tuple[str, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GEMMINER_CHECKPOINT_SECONDS", "0")
    recipe = make(RECIPE)
    whole = run_recipe(recipe, tmp_path / "whole", device="cpu")
    with pytest.raises(KeyboardInterrupt):
        run_recipe(recipe, tmp_path / "run", device="cpu", monitor=Kill(*at))
    watch = Kill()
    found = run_recipe(recipe, tmp_path / "run", resume=True, device="cpu", monitor=watch)
    assert ("scores:0" in watch.seen) is False
    assert found.accuracy == whole.accuracy
    for name in ("ticket.safetensors", "trained.safetensors", "examples.safetensors"):
        one, other = (load_file(tmp_path / folder / name) for folder in ("whole", "run"))
        assert all(torch.equal(value, other[key]) for key, value in one.items())
    files = {p.name for p in (tmp_path / "run").iterdir()}
    assert files >= {"scores.safetensors", "examples.safetensors"}
    assert not list((tmp_path / "run" / "state").glob("*.pt"))
    overwritten = run_recipe(recipe, tmp_path / "run", overwrite=True, device="cpu")
    assert overwritten.accuracy == whole.accuracy


@pytest.fixture
def rates() -> Iterator[list[float]]:
    seen: list[float] = []
    hook = register_optimizer_step_pre_hook(lambda optimiser, *_: seen.append(optimiser.param_groups[0]["lr"]))
    yield seen
    hook.remove()


def test_pretraining_and_training_are_the_two_parts_of_one_schedule(rates: list[float], tmp_path: Path) -> None:
    """Four steps an epoch, three epochs: 5 steps before the search, 7 after it, of the ticket and of its check."""
    recipe = make({**RECIPE, "method": "snip", "epochs": None, "pretrain": "all@5"})
    run_recipe(recipe, tmp_path / "run", device="cpu")
    whole = [Settings(epochs=3, lr=0.1).lr_at(step / 4) for step in range(12)]
    assert rates == pytest.approx(whole + whole[5:])
    rates.clear()
    train_ticket(recipe, tmp_path / "run" / "ticket.safetensors", tmp_path / "again.safetensors", device="cpu")
    check_ticket(recipe, tmp_path / "run" / "ticket.safetensors", device="cpu")
    assert rates == pytest.approx(whole[5:] * 3)


def test_statistics_are_estimated_on_all_data_before_anything_is_measured(tmp_path: Path) -> None:
    """Those of w_k are of the examples it was trained on."""
    recipe = make({**RECIPE, "model": "resnet20", "model_options": {}, "method": "snip", "epochs": None, "checks": ()})
    run_recipe(recipe, tmp_path / "run", device="cpu")
    experiment = prepare(recipe, device="cpu").experiment
    ticket = Ticket.load(tmp_path / "run")
    first = experiment.before(ticket)
    spoilt = {n: v + 100 if n.endswith("running_mean") else v for n, v in ticket.initial.items()}
    assert experiment.before(ticket.replace(initial=spoilt)) == first == record.read(tmp_path / "run").accuracy.before


def test_noise_stays_in_the_pretraining(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, set[tuple[int, ...]]] = {}
    from gemminer.training import loop

    step_loss = loop.step_loss

    def watched(task: Any, batches: Any, **more: Any) -> Any:
        for _, targets in batches:
            seen.setdefault(phase[0], set()).update(zip(_keys(_), targets.tolist(), strict=True))
        return step_loss(task, batches, **more)

    phase = [""]

    class Follow(Monitor):
        def begin(self, name: str, start: int, stop: int) -> None:
            phase[0] = name

    monkeypatch.setattr(loop, "step_loss", watched)
    data = tiny_data()
    net = tiny_net()
    noisy = gemminer.Pretrain(steps=12, noise=0.5, train={"lr": 0.1, "epochs": 8})
    gemminer.mine(net, data, 0.4, method="imp", **HOW, pretrain=noisy, lr=0.1, monitor=Follow())
    true = set(zip(_keys(data[0]), data[1].tolist(), strict=True))
    assert len(seen["pretrain"] - true) > 20
    assert all(seen[name] <= true for name in seen if name != "pretrain")
    assert len(seen) > 1


def _keys(inputs: torch.Tensor) -> list[float]:
    return inputs[:, 0].tolist()


def test_from_the_command_line_with_a_file_of_scores(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    common = ["--model", "lenet-300-100", "--model-option", "width=0.1", "--limit-train", "100", "--validation", "0"]
    common += ["--batch-size", "25", "--device", "cpu", "-q", "-t", "lr=0.1"]
    file, run = str(tmp_path / "s.safetensors"), str(tmp_path / "run")
    assert main(["score", *common, "--runs", "2", "--epochs", "1", "--out", file]) == 0
    asked = ["mine", *common, "--epochs", "2", "--density", "0.3", "--no-checks", "--no-dense", "--scores", file]
    assert main([*asked, "--pretrain", "easiest:40@3", "--out", run]) == 0
    found = record.read(run)
    assert found.recipe["pretrain"] == "easiest:40@3"
    assert found.cost["score"].epochs == 2
    assert found.start is not None
    assert found.start.pretrain["scores"] == gemminer.Scores.load(file).checksum
    with safe_open(f"{run}/examples.safetensors", framework="pt") as opened:
        assert json.loads(opened.metadata()["gemminer"])["indices"] == found.start.pretrain["indices"]
    capsys.readouterr()
    for argv, word in (
        ([*asked, "--out", str(tmp_path / "b")], "--scores are for a pre-training"),
        ([*asked, "--pretrain", "easiest:400@3", "--out", str(tmp_path / "b")], "is 400, and there are 100"),
        ([*asked, "--pretrain", "easiet:40@3", "--out", str(tmp_path / "b")], "did you mean 'easiest'"),
        ([*asked, "--pretrain", "all@8", "--out", str(tmp_path / "b")], "8 steps"),
        ([*asked, "--pretrain", "easiest:40@3", "--limit-train", "90", "--out", str(tmp_path / "b")], "other examples"),
    ):
        assert main(argv) == 2, argv
        assert word in capsys.readouterr().err
        assert not (tmp_path / "b").exists()


def test_as_an_axis_of_a_comparison(tmp_path: Path) -> None:
    fields = {name: value for name, value in RECIPE.items() if name != "check_seeds"}
    asked = {**fields, "method": ["snip"], "epochs": None, "seed": "0-1", "checks": (), "dense": True}
    asked["pretrain"] = ["all@0", "all@3", "easiest:40@3:runs=1:epochs=1"]
    outcome = gemminer.compare(asked, tmp_path, workers=0, device="cpu")
    assert not outcome.failures
    assert [cell.label for cell in outcome.cells] == [
        *["dense"] * 2,
        *["snip"] * 2,
        *["snip:pretrain=all@3"] * 2,
        *["snip:pretrain=easiest:40@3:runs=1:epochs=1"] * 2,
    ]
    starts = [found.start and found.start.step for found in outcome.records.values()]
    assert starts == [None] * 4 + [3] * 4
    table = (tmp_path / "summary.csv").read_text()
    rows = [line.split(",") for line in table.splitlines()]
    at = rows[0].index("before")
    assert [bool(row[at]) for row in rows[1:]] == [True, True, False, False]  # no gems: not set beside them
    page = (tmp_path / "report.html").read_text()
    assert "snip:pretrain=easiest:40@3:runs=1:epochs=1" in page
    assert "repeats" not in page
    again = gemminer.compare(json.loads((tmp_path / "compare.json").read_text())["grid"], tmp_path, workers=0)
    assert list(again.records) == list(outcome.records)
