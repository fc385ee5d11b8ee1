"""A ticket that starts from step k of a training is trained from position k of the schedule on, for T - k steps."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

import gemminer
from gemminer.cli import main
from gemminer.core.errors import UsageError
from gemminer.core.progress import Monitor
from gemminer.core.ticket import Ticket
from gemminer.runs import record
from gemminer.runs.execute import run_recipe
from gemminer.runs.recipe import make
from gemminer.training.settings import Settings
from tests.helpers import Notes, drawn_ticket, tiny_data, tiny_net

K, EPOCHS, STEPS = 9, 4, 6  # 96 examples in batches of 16; step 9 is in the middle of the second epoch
TRAIN = {"epochs": EPOCHS, "batch_size": 16, "lr": 0.1}
RATES = [Settings(epochs=EPOCHS, lr=0.1).lr_at(step / STEPS) for step in range(EPOCHS * STEPS)]


@pytest.fixture
def rates() -> Iterator[list[float]]:
    """The learning rate of every optimiser step that is taken."""
    seen: list[float] = []
    hook = register_optimizer_step_pre_hook(lambda optimiser, *_: seen.append(optimiser.param_groups[0]["lr"]))
    yield seen
    hook.remove()


def ends(rates: list[float], trainings: int, steps: int) -> list[tuple[float, float]]:
    """The first and the last rate of each of so many trainings of equal length."""
    assert len(rates) == trainings * steps
    return [(rates[i], rates[i + steps - 1]) for i in range(0, len(rates), steps)]


def test_train_goes_on_from_the_tickets_step(rates: list[float]) -> None:
    ticket, notes = drawn_ticket(tiny_net(), 0.5, rewind_step=K), Notes()
    result = gemminer.train(tiny_net(), ticket, tiny_data(), tiny_data(), **TRAIN, monitor=notes)
    assert ends(rates, 1, EPOCHS * STEPS - K) == [pytest.approx((RATES[K], RATES[-1]))]
    assert rates == pytest.approx(RATES[K:])
    assert result.cost["epochs"] == EPOCHS - K / STEPS
    whole = gemminer.train(tiny_net(), drawn_ticket(tiny_net(), 0.5), tiny_data(), **TRAIN)
    assert result.cost["flops_dense"] == pytest.approx(whole.cost["flops_dense"] * (1 - K / EPOCHS / STEPS))
    assert [text for text in notes.notes if "starts from step 9" in text and "15 of 24 steps" in text]
    assert rates[EPOCHS * STEPS - K :] == pytest.approx(RATES)  # without a step: the whole schedule, as ever


def test_the_batches_are_those_of_the_steps_that_are_left() -> None:
    """A training that is stopped at step k and gone on with has seen the same batches as one that begins there."""
    seen: list[list[float]] = []

    def loss(output: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        if torch.is_grad_enabled():
            seen.append(targets.tolist())
        return torch.nn.functional.cross_entropy(output, targets)

    gemminer.train(tiny_net(), drawn_ticket(tiny_net(), 0.5), tiny_data(), loss=loss, **TRAIN)
    whole = seen[-EPOCHS * STEPS :]
    seen.clear()
    gemminer.train(tiny_net(), drawn_ticket(tiny_net(), 0.5, rewind_step=K), tiny_data(), loss=loss, **TRAIN)
    assert seen[-(EPOCHS * STEPS - K) :] == whole[K:]
    assert len(seen) < len(whole)


class Kill(Monitor):
    def epoch(self, row: dict[str, Any]) -> None:
        if row["epoch"] == 3:
            raise KeyboardInterrupt


def test_a_resumed_training_goes_on_there_too(rates: list[float], tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("GEMMINER_CHECKPOINT_SECONDS", "0")
    ticket, whole, net = drawn_ticket(tiny_net(), 0.5, rewind_step=K), tiny_net(), tiny_net()
    gemminer.train(whole, ticket, tiny_data(), **TRAIN)
    rates.clear()
    with pytest.raises(KeyboardInterrupt):
        gemminer.train(net, ticket, tiny_data(), **TRAIN, checkpoint=tmp_path / "c.pt", monitor=Kill())
    first = list(rates)
    rates.clear()
    gemminer.train(net, ticket, tiny_data(), **TRAIN, checkpoint=tmp_path / "c.pt")
    assert first == pytest.approx(RATES[K : 3 * STEPS])
    assert rates == pytest.approx(RATES[2 * STEPS :])  # the third epoch was not saved
    assert all(torch.equal(a, b) for a, b in zip(whole.state_dict().values(), net.state_dict().values(), strict=True))
    other = ticket.replace(rewind_step=K + 1)
    with pytest.raises(KeyboardInterrupt):
        gemminer.train(net, ticket, tiny_data(), **TRAIN, checkpoint=tmp_path / "c.pt", monitor=Kill())
    with pytest.raises(UsageError, match="steps behind its weights: 9 there, 10 here"):
        gemminer.train(net, other, tiny_data(), **TRAIN, checkpoint=tmp_path / "c.pt")


def test_check_goes_on_from_there_with_what_is_left_of_the_ticket_too(rates: list[float]) -> None:
    ticket = drawn_ticket(tiny_net(), 0.5, rewind_step=K).replace(method="uniform", options={}, seed=0)
    names = ["shuffle", "reinit", "uniform", "erk"]
    gemminer.check(tiny_net(), ticket, tiny_data(), tiny_data(), seeds=2, names=names, **TRAIN)
    assert ends(rates, 10, EPOCHS * STEPS - K) == [pytest.approx((RATES[K], RATES[-1]))] * 10


def test_the_inverted_search_of_imp_goes_on_from_there(rates: list[float]) -> None:
    """Both its rounds and the trainings: it would rewind to step k counted from step k."""
    how = {"epochs": EPOCHS, "batch_size": 16, "lr": 0.1, "schedule": "cosine", "rewind": "warm", "rewind_steps": K}
    ticket = gemminer.mine(tiny_net(), tiny_data(), 0.64, method="imp", **how)
    rates.clear()
    gemminer.check(tiny_net(), ticket, tiny_data(), tiny_data(), seeds=1, names=["invert"], **TRAIN)
    assert ends(rates, 4, EPOCHS * STEPS - K) == [pytest.approx((RATES[K], RATES[-1]))] * 4


def test_a_training_without_a_step_left_is_refused(rates: list[float]) -> None:
    ticket = drawn_ticket(tiny_net(), 0.5, rewind_step=24)
    with pytest.raises(UsageError, match=r"step 24 of a training, and this one has 24 steps .*: train for more epochs"):
        gemminer.train(tiny_net(), ticket, tiny_data(), **TRAIN)
    assert not rates


RECIPE = {
    "method": "imp",
    "options": {"rewind": "warm", "rewind_steps": 5, "lr": 0.1},
    "train": {"lr": 0.1},
    "model": "lenet-300-100",
    "model_options": {"width": 0.1},
    "density": 0.8,
    "epochs": 2,
    "train_epochs": 3,
    "limit_train": 100,
    "validation": 0,
    "batch_size": 25,
    "checks": ("shuffle",),
    "check_seeds": 1,
    "dense": False,
}
OWN = [Settings(epochs=3, lr=0.1).lr_at(step / 4) for step in range(12)]


def _killed(folder: Path) -> None:
    class Killed(Monitor):
        def epoch(self, row: dict[str, Any]) -> None:
            if (row["phase"], row["epoch"]) == ("train:0", 3):
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_recipe(make(RECIPE), folder, device="cpu", monitor=Killed())


def _mine(folder: Path) -> None:
    file = folder.with_suffix(".json")
    file.write_text(json.dumps(RECIPE))
    assert main(["mine", "--recipe", str(file), "--out", str(folder), "--device", "cpu", "-q"]) == 0


def _resumed(folder: Path) -> None:
    _killed(folder)
    run_recipe(make(RECIPE), folder, resume=True, device="cpu")


def _train(folder: Path) -> None:
    _mine(folder)
    assert main(["train", str(folder), "--out", str(folder.with_suffix(".safetensors")), "--device", "cpu", "-q"]) == 0


def _check(folder: Path) -> None:
    _mine(folder)
    assert main(["check", str(folder), "--check", "shuffle", "--seeds", "1", "--device", "cpu", "-q"]) == 0


def _compare(folder: Path) -> None:
    fields = {name: value for name, value in RECIPE.items() if name not in ("options", "check_seeds")}
    gemminer.compare({**fields, "options": {"imp": RECIPE["options"]}}, folder, workers=0, device="cpu")


@pytest.mark.parametrize(("run", "trainings"), [(_mine, 2), (_train, 3), (_check, 4), (_compare, 2), (_resumed, 2)])
def test_by_every_road(
    run: Callable[[Path], None], trainings: int, rates: list[float], tmp_path: Path, monkeypatch: Any
) -> None:
    """Four steps an epoch: one round of 8 steps, then trainings of 12 - 5 steps each."""
    monkeypatch.setenv("GEMMINER_CHECKPOINT_SECONDS", "0")
    run(tmp_path / "run")
    later = rates[8:]
    if run is _resumed:  # killed in the last epoch of the first training, which is repeated
        assert later[:7] == pytest.approx(OWN[5:])
        later = later[:3] + later[7:]
    assert ends(later, trainings, 7) == [pytest.approx((OWN[5], OWN[-1]))] * trainings
    if run is _mine:
        assert Ticket.load(tmp_path / "run").provenance["rewind_step"] == 5
        assert record.read(tmp_path / "run").cost["train"].epochs == 3 - 5 / 4
