"""Edge-Popup's rungs and iterative magnitude pruning: exact counts, nested masks, the published rules, resuming."""

from __future__ import annotations

import dataclasses
import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import tiny_data, tiny_net
from torch import Tensor, nn
from torch.func import functional_call

from gemminer import methods
from gemminer.core.errors import UsageError
from gemminer.core.model_state import named_state
from gemminer.core.progress import Monitor
from gemminer.core.randomness import generator
from gemminer.core.ticket import Ticket
from gemminer.data import TensorBatches
from gemminer.methods import edge_popup, imp
from gemminer.training.checkpoint import Checkpoint
from gemminer.training.task import Task

EPOCHS = 4


def task_of(model: nn.Module | None = None, batch_size: int = 16, **fields: Any) -> Task:
    return Task(model or tiny_net(), TensorBatches(*tiny_data(), batch_size=batch_size), **fields)


def search(method: str, density: float, task: Task | None = None, **fields: Any) -> Ticket:
    row = methods.get(method)
    return row.find(task or task_of(), density, row.options(**{"epochs": EPOCHS, **fields}), 0)


def flat(masks: Any) -> Tensor:
    return torch.cat([m.reshape(-1) for m in masks.values()])


class Kill(Monitor):
    """Ctrl-C after so many epochs of the whole search."""

    def __init__(self, after: int) -> None:
        self.left, self.seen = after, list[str]()

    def epoch(self, row: dict[str, Any]) -> None:
        self.seen.append(f"{row['phase']}/{row['epoch']}")
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt


def assert_resumes(method: str, density: float, path: Path, epochs: int, **fields: Any) -> None:
    """Killed after any number of epochs and resumed, the ticket is the same, and no finished epoch is repeated."""
    whole = Kill(0)
    expected = search(method, density, task_of(monitor=whole), **fields)
    assert len(whole.seen) == epochs
    for after in range(1, epochs):
        file = path / f"{after}.pt"
        first, second = Kill(after), Kill(0)
        with pytest.raises(KeyboardInterrupt):
            search(method, density, task_of(monitor=first, checkpoint=Checkpoint(file, every=0.0)), **fields)
        found = search(method, density, task_of(monitor=second, checkpoint=Checkpoint(file, every=0.0)), **fields)
        assert found == expected
        numbers = [[{**row, "seconds": 0} for row in t.provenance["rows"]] for t in (found, expected)]
        assert numbers[0] == numbers[1]
        # The epoch the kill fell in was not saved yet; all before it were.
        assert first.seen[:-1] + second.seen == whole.seen


# --- edge-popup -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rung", edge_popup.RUNGS)
@pytest.mark.parametrize("freeze_every", [0, 1])
def test_every_rung_keeps_the_exact_count(rung: str, freeze_every: int) -> None:
    for density in (0.5, 0.1, 0.0123):
        ticket = search("edge-popup", density, rung=rung, freeze_every=freeze_every)
        assert ticket.kept == round(density * 324)
        if rung == "layer":
            assert all(abs(layer.kept - density * layer.prunable) < 1 for layer in ticket.per_layer())


def test_the_rungs_are_four_different_methods() -> None:
    tickets = {search("edge-popup", 0.1, rung=rung, epochs=8, ridge=0.01).digest for rung in edge_popup.RUNGS}
    assert len(tickets) == 4


def test_gradual_rungs_thin_out_and_freeze_for_good() -> None:
    parameters = {n: p for n, p in tiny_net().named_parameters() if p.dim() == 2}
    options = edge_popup.Options(epochs=4, rung="gradual")
    rule = edge_popup.Popup(parameters, options, {0: 200, 2: 50}, 50, seed=0)
    assert [int(flat(m).sum()) for m in (rule.open, rule.on)] == [324, 200]
    closed: list[Tensor] = []
    on: list[int] = []
    for step in range(4):
        rule.after_backward()
        with torch.no_grad():
            for s in rule.scores.values():
                s.copy_(torch.randn(s.shape, generator=generator(step)))  # scores that want everything to return
        rule.after_step(step)
        closed.append(~flat(rule.open))
        on.append(int(flat(rule.on).sum()))
        assert not bool((flat(rule.on) & closed[-1]).any())
        assert all(bool((later >= earlier).all()) for earlier, later in itertools.pairwise(closed))
    assert [int(c.sum()) for c in closed] == [124, 124, 274, 274]
    assert on == [50] * 4  # what the next freeze will leave


class _TopK(torch.autograd.Function):
    """The published layer rule, as its authors wrote it: sort, keep the top k, let the gradient through."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor, k: int) -> Tensor:
        out = torch.zeros_like(scores)
        out.view(-1)[scores.flatten().sort(descending=True).indices[:k]] = 1
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


def test_edge_popup_is_the_published_rule() -> None:
    """Autograd through weight * TopK(|s|), torch's own SGD with weight decay, as many steps: the same masks."""
    model = tiny_net().double()
    x, y = tiny_data()
    task = Task(model, TensorBatches(x.double(), y, batch_size=96, shuffle=False))
    ticket = search("edge-popup", 0.25, task, epochs=6)

    weights = {n: p.detach().clone() for n, p in model.named_parameters() if p.dim() == 2}
    scores = {n: edge_popup._first_scores(w, generator(0, "scores", n)).requires_grad_() for n, w in weights.items()}
    counts = {n: w.numel() // 4 for n, w in weights.items()}
    optimiser = torch.optim.SGD(list(scores.values()), lr=0.1, momentum=0.9, weight_decay=5e-4)
    model.train()
    for epoch in range(6):
        optimiser.param_groups[0]["lr"] = 0.1 * (1 + math.cos(math.pi * epoch / 6)) / 2
        optimiser.zero_grad()
        masked = {n: w * _TopK.apply(scores[n].abs(), counts[n]) for n, w in weights.items()}
        F.cross_entropy(functional_call(model, masked, (x.double(),)), y).backward()
        optimiser.step()
    for name, s in scores.items():
        assert torch.equal(ticket.masks[name], _TopK.apply(s.abs(), counts[name]).bool()), name


def test_first_scores_are_kaiming_uniform() -> None:
    w = torch.empty(64, 16, 3, 3)
    s = edge_popup._first_scores(w, generator(0))
    reference = nn.init.kaiming_uniform_(w.clone(), a=math.sqrt(5), generator=torch.Generator().manual_seed(0))
    assert float(s.abs().max()) == pytest.approx(1 / 12, rel=1e-3)
    assert float(s.std()) == pytest.approx(float(reference.std()), rel=0.02)


def test_clipping_keeps_a_filter_without_weights_from_drawing_all_of_them() -> None:
    """Batch norm of a filter that gives zeros has a gradient of 1/sqrt(eps) = 316 times that of one of unit spread."""
    model = nn.Sequential(nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4, affine=False), nn.Flatten())
    parameters = {"0.weight": model[0].weight}
    norms = {}
    for clip in (0.0, 0.5):
        rule = edge_popup.Popup(parameters, edge_popup.Options(rung="global", clip=clip), {}, 9, seed=0)
        rule.on = {"0.weight": torch.zeros(4, 1, 3, 3, dtype=torch.bool)}
        rule.on["0.weight"][0] = True  # three filters of four are empty
        model[0].weight.data = rule.initial["0.weight"] * rule.on["0.weight"]
        inputs = torch.randn(16, 1, 6, 6, generator=torch.Generator().manual_seed(0))
        (model(inputs) * torch.arange(64.0)).sum().backward()
        rule.after_backward()
        gradient = rule.scores["0.weight"].grad
        assert gradient is not None
        norms[clip] = gradient.flatten(1).norm(dim=1)
        model[0].weight.grad, model[0].weight.data = None, rule.initial["0.weight"].clone()
    assert norms[0.0][1:].min() > 50 * norms[0.0][0]
    assert float(norms[0.5].norm()) == pytest.approx(0.5, rel=1e-4)
    torch.testing.assert_close(norms[0.5] / 0.5, norms[0.0] / norms[0.0].norm())  # its direction stays


def test_edge_popup_asks_for_a_draw_scaled_by_the_density() -> None:
    rows = [methods.get(name) for name in methods.names()]
    assert [row.name for row in rows if row.fan_scaled] == ["edge-popup"]


@pytest.mark.parametrize("rung", ["layer", "ridge"])
def test_edge_popup_resumes(rung: str, tmp_path: Path) -> None:
    assert_resumes("edge-popup", 0.1, tmp_path, EPOCHS, rung=rung)


# --- iterative magnitude pruning --------------------------------------------------------------------------------


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
    ticket, expected = search("imp", 0.8**3, rewind=rewind, rewind_steps=k or 0), reference(3, k)
    for name, mask in ticket.masks.items():
        assert torch.equal(mask, expected[f"mask/{name}"]), name
    for name, value in ticket.initial.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-6)
    facts = ticket.provenance
    assert facts["at_initialisation"] == (rewind == "cold")
    assert facts["epochs"] == pytest.approx(3 * EPOCHS - 2 * (k or 0) / 6)


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
