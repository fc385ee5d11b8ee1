"""What every method must do, whichever it is: the list of methods is the registry's."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from gemminer import methods
from gemminer.core.errors import UsageError
from gemminer.core.model_state import named_state
from gemminer.core.prunable import prunable_weights
from gemminer.core.ticket import Ticket
from gemminer.data import TensorBatches
from gemminer.sparse.training.convert import densify, sparsify
from gemminer.training.task import Task
from tests.conformance.models import ALL, build, options_of, task_of
from tests.helpers import EXACT, mined

DENSITY = 0.3

METHODS = EXACT
OTHERS = tuple(name for name in methods.names() if name not in EXACT)


def search(method: str, model: nn.Module, seed: int = 0, density: float = DENSITY, **fields: Any) -> Ticket:
    return mined(methods.get(method).find, task_of(model), density, options_of(method, **fields), seed)


@functools.cache
def found(method: str, name: str = "Plain", seed: int = 0) -> Ticket:
    return search(method, build(name), seed)


def snapshot(model: nn.Module) -> object:
    """All that a lender would miss: values and where they live, gradients, flags, modes, random states."""
    tensors = [(n, t.data_ptr(), t.dtype, t.detach().numpy().tobytes()) for n, t in named_state(model).items()]
    flags = [
        (n, id(p), p.requires_grad, None if p.grad is None else p.grad.tolist()) for n, p in model.named_parameters()
    ]
    modes = [(n, m.training, len(m._forward_hooks)) for n, m in model.named_modules()]
    kind, keys, *rest = np.random.get_state()  # noqa: NPY002 - it must not move
    return tensors, flags, modes, torch.get_rng_state().tolist(), (kind, keys.tolist(), rest), random.getstate()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ALL)
class TestEveryModel:
    def test_the_count_is_exact_and_the_masks_are_the_models(self, method: str, name: str) -> None:
        ticket = found(method, name)
        shapes = {n: tuple(p.shape) for n, p in prunable_weights(build(name)).items()}
        assert {n: tuple(m.shape) for n, m in ticket.masks.items()} == shapes
        assert ticket.kept == round(DENSITY * ticket.prunable)

    def test_the_model_is_left_as_it_was_and_the_search_repeats(self, method: str, name: str) -> None:
        model = build(name)
        before = snapshot(model)
        again = search(method, model)
        assert snapshot(model) == before
        assert again == found(method, name)

    def test_the_ticket_starts_where_it_says(self, method: str, name: str) -> None:
        ticket, state = found(method, name), named_state(build(name))
        same = list(ticket.initial) == list(state) and all(torch.equal(ticket.initial[n], t) for n, t in state.items())
        assert same == ticket.provenance.get("at_initialisation", True)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["Recurrent", "Gpt"])
def test_the_forward_computes_with_the_effective_weights(method: str, name: str) -> None:
    """RNN modules hold their weights in a list of their own, and GPT-2's are stored transposed."""
    model = build(name)
    ticket = found(method, name)
    assert len(ticket.masks) == {"Recurrent": 2 + 4 * 2 + 2 + 1, "Gpt": 2}[name]
    ticket.apply(model)
    inputs, targets = next(iter(task_of(model).train.epoch(0)))
    sparse = sparsify(model, ticket, engine="sparse")
    assert torch.allclose(sparse(inputs), model(inputs), atol=1e-5)
    optimiser = torch.optim.AdamW(sparse.parameters(), lr=0.1)
    for _ in range(2):
        optimiser.zero_grad()
        task_of(sparse).loss(sparse(inputs), targets).backward()
        optimiser.step()
    trained = densify(sparse)
    for n, mask in ticket.masks.items():
        assert trained[n][~mask].count_nonzero() == 0
    before = {n: p.detach().clone() for n, p in model.named_parameters() if n in ticket.masks}
    model.load_state_dict(trained)
    assert torch.allclose(sparse(inputs), model(inputs), atol=1e-5)
    assert any(not torch.equal(before[n], p) for n, p in model.named_parameters() if n in before)


@pytest.mark.parametrize("method", METHODS)
class TestEveryMethod:
    @pytest.mark.parametrize("density", [1.0, 0.517, 0.05])
    def test_other_counts_are_exact(self, method: str, density: float) -> None:
        ticket = search(method, build("Plain"), density=density)
        assert ticket.kept == round(density * ticket.prunable)

    def test_odd_densities_of_tiny_layers_are_exact(self, method: str) -> None:
        """Layers of 6, 2, 1 and 2 weights, where every layer's share is rounded: exactly round(density * d)."""
        layers = (nn.Linear(3, 2), nn.Linear(2, 1, bias=False), nn.Linear(1, 1), nn.Linear(1, 2))
        data = TensorBatches(torch.randn(12, 3), torch.arange(12) % 2, batch_size=6)
        own = {"classifier": 0.0} if method == "smart-ratio" else {}
        for density in (1 / 11, 0.13, 0.2272, 0.3181, 0.5, 0.77, 0.9544, 1.0)[
            :: 2 if methods.get(method).trains else 1
        ]:
            task = Task(nn.Sequential(*layers), data)
            ticket = mined(methods.get(method).find, task, density, options_of(method, **own), 0)
            assert (ticket.prunable, ticket.kept) == (11, round(density * 11)), density

    def test_all_seeds_count_or_none(self, method: str) -> None:
        """A product of seeds never varies at 0: either every seed gives its own ticket, or the method is not random."""
        assert len({found(method, seed=seed).digest for seed in range(3)}) in (1, 3)

    def test_inverted_it_is_another_ticket_of_the_same_size(self, method: str) -> None:
        upright, inverted = found(method), search(method, build("Plain"), invert=True)
        assert inverted.kept == upright.kept
        assert inverted != upright

    def test_the_ticket_survives_the_disk(self, method: str, tmp_path: Path) -> None:
        ticket = found(method)
        loaded = Ticket.load(ticket.save(tmp_path / "t.safetensors"))
        assert loaded == ticket
        assert loaded.provenance == ticket.provenance

    def test_its_costs_can_be_read(self, method: str) -> None:
        ticket = found(method)
        facts = ticket.provenance
        rows = facts.get("rows", [])
        assert facts.get("epochs", len(rows)) >= 0
        assert 0 < facts.get("live", ticket.density) <= 1
        assert all(len(row["layers_kept"]) == len(ticket.masks) for row in rows)
        assert all(a["seconds"] <= b["seconds"] for a, b in itertools.pairwise(rows))

    @pytest.mark.parametrize("density", [0, -0.1, 1.01, float("nan"), float("inf"), 1e-9, "0.5"])
    def test_a_density_that_cannot_be_is_refused(self, method: str, density: Any) -> None:
        with pytest.raises(UsageError, match="density"):
            search(method, build("Plain"), density=density)

    def test_excluded_weights_have_no_mask(self, method: str) -> None:
        task = dataclasses.replace(task_of(build("Plain")), exclude=("head.*",))
        ticket = mined(methods.get(method).find, task, DENSITY, options_of(method), 0)
        assert list(ticket.masks) == ["conv.weight", "hidden.weight"]
        assert ticket.kept == round(DENSITY * (36 + 128))


@pytest.mark.parametrize("method", OTHERS)
class TestEveryMethodThatRemovesLayers:
    """Its count cannot be exact: it keeps at most what is asked for, and one layer fewer removed would be more."""

    @pytest.mark.parametrize("density", [0.9, 0.6, 0.45])
    def test_it_stays_within_the_density_and_no_layer_is_removed_in_vain(self, method: str, density: float) -> None:
        ticket = search(method, build("Residual"), density=density)
        kept = round(density * ticket.prunable)
        sizes = [sum(m.numel() for n, m in ticket.masks.items() if n.startswith(f"{r}.")) for r in ticket.removed]
        assert ticket.kept <= kept < ticket.kept + max(sizes)
        assert ticket.kept == ticket.prunable - sum(sizes)

    @pytest.mark.parametrize("name", [name for name in ALL if name != "Residual"])
    def test_a_network_without_such_layers_is_told_so(self, method: str, name: str) -> None:
        with pytest.raises(UsageError, match="no removable layer: "):
            search(method, build(name))

    def test_the_model_is_left_as_it_was_and_the_search_repeats(self, method: str) -> None:
        model = build("Residual")
        before, modules = snapshot(model), list(model.modules())
        ticket = search(method, model, density=0.6)
        assert snapshot(model) == before
        assert list(model.modules()) == modules
        assert ticket == search(method, build("Residual"), density=0.6)
        assert all(torch.equal(ticket.initial[n], t) for n, t in named_state(model).items())

    def test_all_seeds_count_or_none(self, method: str) -> None:
        assert len({search(method, build("Residual"), seed=seed, density=0.6).digest for seed in range(3)}) in (1, 3)

    def test_inverted_it_is_another_ticket(self, method: str) -> None:
        upright, inverted = (search(method, build("Residual"), density=0.6, invert=invert) for invert in (False, True))
        assert len(upright.removed) == len(inverted.removed)
        assert inverted != upright

    def test_the_ticket_survives_the_disk(self, method: str, tmp_path: Path) -> None:
        ticket = search(method, build("Residual"), density=0.6)
        loaded = Ticket.load(ticket.save(tmp_path / "t.safetensors"))
        assert (loaded, loaded.removed, loaded.provenance) == (ticket, ticket.removed, ticket.provenance)

    def test_excluded_weights_keep_their_layers(self, method: str) -> None:
        task = dataclasses.replace(task_of(build("Residual")), exclude=("wide.*",))
        ticket = mined(methods.get(method).find, task, 0.6, options_of(method, least=0), 0)
        assert all(name.startswith("small.") for name in ticket.removed)
        assert not any(name.startswith("wide.") for name in ticket.masks)

    @pytest.mark.parametrize("density", [0, -0.1, 1.01, float("nan"), float("inf"), 1e-9, "0.5"])
    def test_a_density_that_cannot_be_is_refused(self, method: str, density: Any) -> None:
        with pytest.raises(UsageError, match="density"):
            search(method, build("Residual"), density=density)
