"""Iterative magnitude pruning against the published procedure."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_pre_hook

from gemminer.core.errors import UsageError
from gemminer.core.model_state import named_state
from gemminer.data import TensorBatches
from gemminer.methods import edge_popup, imp
from gemminer.training.checkpoint import Checkpoint
from tests.helpers import tiny_data, tiny_net
from tests.methods.iterative import EPOCHS, Kill, assert_resumes, flat, search, task_of


def test_rounds_are_those_of_the_literature() -> None:
    d = 268_336
    for density, rounds in ((0.1334, 9), (0.0372, 15), (0.0144, 19), (0.0059, 23)):
        counts = imp.round_counts(d, density, 0.2)
        assert len(counts) == rounds
        assert counts[:-1] == [round(d * 0.8**k) for k in range(1, rounds)]
        assert counts[-1] == round(density * d)
        assert counts == sorted(counts, reverse=True)
    assert imp.round_counts(100, 1.0, 0.2) == [100]


@pytest.mark.parametrize("invert", [False, True])
@pytest.mark.parametrize("rewind", imp.REWINDS)
def test_masks_are_nested_from_round_to_round(rewind: str, invert: bool) -> None:
    """The ticket of n rounds is what a longer search has after n rounds: each is inside the one before."""
    tickets = [search("imp", 0.8**n, rewind=rewind, invert=invert) for n in (1, 2, 3, 4)]
    assert [t.kept for t in tickets] == [round(324 * 0.8**n) for n in (1, 2, 3, 4)]
    for outer, inner in itertools.pairwise(tickets):
        assert bool((flat(outer.masks) >= flat(inner.masks)).all())
    rows = tickets[-1].provenance["rows"]
    assert [sum(row["layers_kept"]) for row in rows[::EPOCHS]] == [324, *(t.kept for t in tickets[:-1])]


def reference(rounds: int, k: int | None) -> dict[str, Tensor]:
    """IMP written out: plain loops, torch's SGD, a threshold; k None keeps the weights, 0 goes back to the start."""
    model = tiny_net()
    batches = TensorBatches(*tiny_data(), batch_size=16)
    steps = len(batches)
    named = {n: p for n, p in model.named_parameters() if p.dim() == 2}
    masks = {n: torch.ones_like(p) for n, p in named.items()}
    back = {n: t.detach().clone() for n, t in model.state_dict().items()}
    for number in range(1, rounds + 1):
        if k is not None and number > 1:
            model.load_state_dict(back)
        optimiser = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
        model.train()
        for step in range(EPOCHS * steps):
            if number > 1 and step < (k or 0):
                continue
            if step % steps == 0 or (number > 1 and step == k):
                stream = list(batches.epoch(step // steps))
            drops = sum(step // steps >= e for e in (round(EPOCHS * 8 / 15), round(EPOCHS * 12 / 15)))
            optimiser.param_groups[0]["lr"] = 0.1 * 0.1**drops
            x, y = stream[step % steps]
            optimiser.zero_grad()
            with torch.no_grad():
                for n, p in named.items():
                    p *= masks[n]
            F.cross_entropy(model(x), y).backward()
            for n, p in named.items():
                assert p.grad is not None
                p.grad *= masks[n]
            optimiser.step()
            if number == 1 and step + 1 == k:
                back = {n: t.detach().clone() for n, t in model.state_dict().items()}
        size = torch.cat([(p.detach() * masks[n]).abs().reshape(-1) for n, p in named.items()])
        cut = size.sort(descending=True).values[round(324 * 0.8**number) - 1]
        masks = {n: ((p.detach() * masks[n]).abs() >= cut).float() for n, p in named.items()}
    return {**{f"mask/{n}": m.bool() for n, m in masks.items()}, **(back if k is not None else model.state_dict())}


@pytest.mark.parametrize(("rewind", "k"), [("cold", 0), ("warm", 9), ("warm", 12), ("lr", None)])
def test_imp_is_the_published_procedure(rewind: str, k: int | None) -> None:
    """6 steps an epoch, so k = 9 is in the middle of the second and k = 12 at its end."""
    ticket, expected = search("imp", 0.8**3, lr=0.1, rewind=rewind, rewind_steps=k or 0), reference(3, k)
    for name, mask in ticket.masks.items():
        assert torch.equal(mask, expected[f"mask/{name}"]), name
    for name, value in ticket.initial.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-6)
    facts = ticket.provenance
    assert facts["at_initialisation"] == (rewind == "cold")
    assert facts["epochs"] == pytest.approx(3 * EPOCHS - 2 * (k or 0) / 6)


@pytest.mark.parametrize(
    ("schedule", "due"),
    [
        ({"schedule": "cosine"}, [0.0962, 0.0946, 0.0926]),  # 0.1 * (1 + cos(pi * k / 40)) / 2 for k = 5, 6, 7
        ({"schedule": "cosine-by-epoch"}, [0.1, 0.1, 0.1]),
        ({"schedule": "multistep", "milestones": (1, 2)}, [0.1, 0.1, 0.1]),
    ],
    ids=lambda value: value["schedule"] if isinstance(value, dict) else "",
)
def test_a_later_round_goes_on_with_the_rate_of_the_step_it_rewinds_to(
    schedule: dict[str, Any], due: list[float]
) -> None:
    """Ten steps an epoch, four epochs, rewound to step 5: a round has 35 steps, the last 35 of the first's."""
    rates: list[float] = []
    hook = register_optimizer_step_pre_hook(lambda optimiser, *_: rates.append(optimiser.param_groups[0]["lr"]))
    try:
        inputs, targets = tiny_data()
        task = dataclasses.replace(task_of(), train=TensorBatches(inputs[:80], targets[:80], batch_size=8))
        search("imp", 0.8**3, task, rewind="warm", rewind_steps=5, lr=0.1, **schedule)
    finally:
        hook.remove()
    first, second, third = rates[:40], rates[40:75], rates[75:]
    assert [round(rate, 4) for rate in second[:3]] == due
    assert second == third == first[5:]


@pytest.mark.parametrize("begun", [5, 10, 25])
def test_every_round_goes_on_from_the_step_that_the_weights_are_of(begun: int) -> None:
    """Ten steps an epoch, four epochs, weights of step k: each round, the first too, has the last 40 - k steps."""
    rates: list[float] = []
    hook = register_optimizer_step_pre_hook(lambda optimiser, *_: rates.append(optimiser.param_groups[0]["lr"]))
    inputs, targets = tiny_data()
    task = dataclasses.replace(task_of(), train=TensorBatches(inputs[:80], targets[:80], batch_size=8), begun=begun)
    schedule = {"schedule": "cosine", "lr": 0.1}
    try:
        cold = search("imp", 0.8**3, task, **schedule)
        rounds, n = list(rates), 40 - begun
        warm = search("imp", 0.8**3, task, rewind="warm", rewind_steps=5, **schedule)
        later = search("imp", 0.8**3, task, rewind="warm", rewind_steps=30, **schedule)
    finally:
        hook.remove()
    whole = [imp.Options(epochs=4, lr=0.1, schedule="cosine").lr_at(step / 10) for step in range(40)]
    assert len(rounds) == 3 * n
    for start in range(0, 3 * n, n):
        assert rounds[start : start + n] == pytest.approx(whole[begun:], abs=1e-12)
    assert warm == cold  # whose weights are later than what it rewinds to
    assert (cold.provenance["rewind_step"], warm.provenance["rewind_step"]) == (begun, begun)
    assert cold.provenance["epochs"] == pytest.approx(3 * (4 - begun / 10))
    assert later.provenance["rewind_step"] == 30
    assert len(rates) == 6 * n + n + 2 * 10
    before = named_state(tiny_net())
    assert torch.equal(cold.initial["0.weight"], before["0.weight"])
    assert not torch.equal(later.initial["0.weight"], before["0.weight"])


def test_weights_of_a_step_behind_all_rounds_are_refused() -> None:
    with pytest.raises(UsageError, match="step 24 of a training, and this one has 24 steps"):
        search("imp", 0.5, task_of(begun=24))


@pytest.mark.parametrize("rewind", ["cold", "warm"])
def test_imp_resumes_from_the_middle_of_a_schedule(rewind: str, tmp_path: Path) -> None:
    """6 steps an epoch: begun in the second, rewound to the third."""
    file = tmp_path / "c.pt"
    how = {"rewind": rewind, "rewind_steps": 15 if rewind == "warm" else 0}
    expected = search("imp", 0.8**3, task_of(begun=9), **how)
    for after in range(1, 3 + 2 * (3 if rewind == "cold" else 2)):
        with pytest.raises(KeyboardInterrupt):
            search("imp", 0.8**3, task_of(begun=9, monitor=Kill(after), checkpoint=Checkpoint(file, every=0.0)), **how)
        assert search("imp", 0.8**3, task_of(begun=9, checkpoint=Checkpoint(file, every=0.0)), **how) == expected
        file.unlink()


def test_the_rate_is_found_in_the_first_round_for_all() -> None:
    ticket = search("imp", 0.8**3, lr="auto")
    own, rows = ticket.provenance["rate"], ticket.provenance["rows"]
    assert own["steps"] > 0
    assert [n for n, row in enumerate(rows) if "rate" in row] == [0]
    again = search("imp", 0.8**3, lr=own["lr"], max_norm=own["max_norm"])
    assert again == ticket
    assert "rate" not in again.provenance


def test_warm_rewinding_goes_to_the_published_fraction_by_default() -> None:
    assert imp.WARM * 150 * 391 == 1000
    ticket = search("imp", 0.8, rewind="warm")  # 24 steps of training: the first
    assert ticket.provenance["rewind_step"] == 1
    before = named_state(tiny_net())
    assert not torch.equal(ticket.initial["0.weight"], before["0.weight"])


@pytest.mark.parametrize("rewind", imp.REWINDS)
def test_imp_resumes_without_repeating_a_finished_round(rewind: str, tmp_path: Path) -> None:
    k = 9 if rewind == "warm" else 0
    epochs = 3 * EPOCHS - 2 * (k // 6)
    assert_resumes("imp", 0.8**3, tmp_path, epochs, rewind=rewind, rewind_steps=k)


def test_imp_does_not_go_on_with_another_searchs_checkpoint(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path / "c.pt", every=0.0)
    with pytest.raises(KeyboardInterrupt):
        search("imp", 0.5, task_of(monitor=Kill(3), checkpoint=checkpoint))
    with pytest.raises(UsageError, match="another search"):
        search("imp", 0.4, task_of(checkpoint=checkpoint))


def test_seconds_add_up_over_rounds() -> None:
    seconds = [row["seconds"] for row in search("imp", 0.8**3).provenance["rows"]]
    assert seconds == sorted(seconds)
    assert len(seconds) == 3 * EPOCHS


@pytest.mark.parametrize(
    ("kind", "fields", "word"),
    [
        (edge_popup.Options, {"rung": "layers"}, "rung"),
        (edge_popup.Options, {"ridge": -1.0}, "ridge"),
        (edge_popup.Options, {"clip": -1.0}, "clip"),
        (edge_popup.Options, {"rung": "gradual", "repair": 1.0}, "repair"),
        (edge_popup.Options, {"rung": "ridge", "freeze_every": 5, "epochs": 5}, "epochs"),
        (imp.Options, {"rewind": "hot"}, "rewind"),
        (imp.Options, {"rewind_steps": -1}, "rewind_steps"),
        (imp.Options, {"rate": 1.0}, "rate"),
    ],
)
def test_settings_that_cannot_be_are_refused(kind: type[Any], fields: dict[str, Any], word: str) -> None:
    with pytest.raises(UsageError, match=word):
        kind(**fields)


def test_a_step_to_rewind_to_must_be_inside_a_round() -> None:
    with pytest.raises(UsageError, match="24 steps"):
        search("imp", 0.5, rewind="warm", rewind_steps=24)


def test_options_do_not_leak_into_the_settings_they_extend() -> None:
    assert dataclasses.asdict(imp.Options())["weight_decay"] == 1e-4
    assert dataclasses.asdict(edge_popup.Options())["weight_decay"] == 5e-4
