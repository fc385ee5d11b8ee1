"""Mine, train, check and whole recipes, on networks small enough to take seconds."""

from __future__ import annotations

import dataclasses
import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision.models
from conftest import tiny_data, tiny_net
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, TensorDataset

import gemminer
from gemminer import api, methods
from gemminer.core.draw import Draw
from gemminer.core.errors import GemminerError, UsageError
from gemminer.core.progress import Monitor
from gemminer.core.prunable import prunable_weights
from gemminer.core.ticket import Ticket
from gemminer.data import TensorBatches
from gemminer.runs import checks, experiment, folder, record, settings
from gemminer.runs.checks import altered_ticket
from gemminer.runs.execute import check_ticket, prepare, run_recipe, train_ticket
from gemminer.runs.experiment import Experiment, wants_channels_last
from gemminer.runs.recipe import Recipe, make
from gemminer.runs.settings import default_epochs, device_of, options_of
from gemminer.training import evaluate, task
from gemminer.training.rules import KeepMask
from gemminer.training.settings import Settings
from gemminer.training.task import Task

Snapshot = Callable[[nn.Module], object]
Pair = tuple[Tensor, Tensor]


def states() -> tuple[Any, ...]:
    legacy = np.random.get_state()  # noqa: NPY002
    return torch.get_rng_state().tolist(), legacy[1].tolist(), legacy[2], random.getstate()


class Notes(Monitor):
    def __init__(self) -> None:
        self.notes: list[str] = []
        self.rows: list[dict[str, Any]] = []

    def note(self, text: str) -> None:
        self.notes.append(text)

    def epoch(self, row: dict[str, Any]) -> None:
        self.rows.append(row)


# --- mine ------------------------------------------------------------------------------------------------------


def test_mining_leaves_everything_as_it_was(net: nn.Sequential, pair: Pair, snapshot: Snapshot) -> None:
    net[1].eval()
    F.cross_entropy(net(pair[0]), pair[1]).backward()
    before, generators = snapshot(net), states()
    loader = DataLoader(TensorDataset(*pair), batch_size=16, shuffle=True)
    ticket = gemminer.mine(net, loader, 0.1, epochs=4)
    assert snapshot(net) == before
    assert states() == generators
    assert (ticket.kept, ticket.prunable) == (32, 324)
    facts = ticket.provenance
    assert (facts["method"], facts["seed"], facts["asked"], facts["realised"]) == ("gem-miner", 0, 0.1, 32 / 324)
    assert facts["options"]["epochs"] == 4
    assert "rows" not in facts
    assert ticket.draw == Draw("signed-constant", 0)


@pytest.mark.parametrize("form", ["pair", "numpy", "dataset", "loader"])
def test_every_form_of_data(pair: Pair, form: str) -> None:
    data: Any = {
        "pair": pair,
        "numpy": (pair[0].numpy(), pair[1].numpy()),
        "dataset": TensorDataset(*pair),
        "loader": DataLoader(TensorDataset(*pair), batch_size=64),
    }[form]
    assert gemminer.mine(tiny_net(), data, density=0.1, epochs=2).kept == 32


def test_a_gem_is_accurate_before_any_weight_is_trained(pair: Pair) -> None:
    """And better than the same number of weights at random: the point of it all."""
    notes = Notes()
    wide = nn.Sequential(nn.Linear(6, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 3))
    ticket = gemminer.mine(wide, pair, 0.2, epochs=30, lr=0.5, batch_size=16, monitor=notes, validation_data=pair)
    assert notes.rows[-1]["validation"] > 0.95
    assert notes.rows[0]["phase"] == "search"
    ticket.apply(wide)
    assert float((wide(pair[0]).argmax(1) == pair[1]).double().mean()) > 0.95
    random_ticket = gemminer.mine(wide, pair, 0.2, method="uniform", initialiser="signed-constant")
    random_ticket.apply(wide)
    assert float((wide(pair[0]).argmax(1) == pair[1]).double().mean()) < 0.9


def test_seeds_vary_everything_and_zero_is_one_of_them(pair: Pair) -> None:
    def mined(seed: int) -> Ticket:
        return gemminer.mine(tiny_net(), pair, 0.2, epochs=2, seed=seed, batch_size=32)

    first, again, other = mined(0), mined(0), mined(1)
    assert first == again
    assert first.masks["0.weight"].ne(other.masks["0.weight"]).any()
    assert first.initial["0.weight"].ne(other.initial["0.weight"]).any()  # the weights
    assert first.initial["0.bias"].equal(other.initial["0.bias"])  # what is not drawn is the model's
    scores = [
        methods.gem_miner.GemMinerRule(prunable_weights(tiny_net()), methods.gem_miner.Options(), {}, s).p.tolist()
        for s in (0, 1)
    ]
    assert scores[0] != scores[1]
    net = tiny_net()

    def order(seed: int) -> list[list[int]]:
        bench = api._experiment(
            net,
            (torch.arange(96.0).reshape(-1, 1).expand(96, 6), pair[1]),
            None,
            batch_size=32,
            seed=seed,
            loss=F.cross_entropy,
            metric=task.accuracy,
            monitor=None,
            settings=Settings(),
        )
        trained = experiment.reseeded(bench.task.train, seed, "training batches", 0)
        return [[int(x[0, 0]) for x, _ in b.epoch(0)] for b in (bench.task.train, trained)]

    orders = [o for seed in (0, 1) for o in order(seed)]
    assert len({tuple(o) for o in orders}) == 4  # search and training, seeds 0 and 1


@pytest.mark.parametrize("initialiser", ["default", "keep", "kaiming-normal"])
def test_initial_weights(pair: Pair, initialiser: str) -> None:
    net = tiny_net()
    ticket = gemminer.mine(net, pair, 0.2, epochs=2, initialiser=initialiser)
    kept = torch.equal(ticket.initial["0.weight"], net[0].weight)
    assert kept == (initialiser == "keep")
    kind = {"default": "signed-constant", "keep": None, "kaiming-normal": "kaiming-normal"}[initialiser]
    assert (ticket.draw.kind if ticket.draw else None) == kind


@pytest.mark.parametrize("method", ["random", "uniform", "erk"])
def test_random_methods(pair: Pair, method: str) -> None:
    ticket = gemminer.mine(tiny_net(), pair, 0.25, method=method)
    assert ticket.kept == 81
    assert ticket != gemminer.mine(tiny_net(), pair, 0.25, method=method, seed=1)
    densities = [layer.density for layer in ticket.per_layer()]
    if method == "uniform":
        assert [layer.kept for layer in ticket.per_layer()] == [24, 48, 9]
    if method == "erk":
        assert densities[2] > densities[0] > densities[1]  # (3+12)/36, (6+16)/96, (16+12)/192
    with pytest.raises(UsageError, match="has no epochs to set"):
        gemminer.mine(tiny_net(), pair, 0.25, method=method, epochs=3)


@pytest.mark.parametrize("error", [RuntimeError("broken"), KeyboardInterrupt()], ids=repr)
def test_an_error_inside_gives_the_model_back(pair: Pair, snapshot: Snapshot, error: BaseException) -> None:
    net, calls = tiny_net(), [0]

    def loss(output: Tensor, target: Tensor) -> Tensor:
        calls[0] += 1
        if calls[0] == 5:
            raise error
        return F.cross_entropy(output, target)

    before, generators = snapshot(net), states()
    with pytest.raises((type(error), GemminerError)):
        gemminer.mine(net, pair, 0.1, epochs=3, loss=loss, batch_size=32)
    assert snapshot(net) == before
    assert states() == generators


def test_a_layer_that_keeps_nothing_is_named(pair: Pair) -> None:
    notes = Notes()
    ticket = gemminer.mine(tiny_net(), pair, 2 / 324, epochs=4, monitor=notes)  # two weights for three layers
    empty = [layer.name for layer in ticket.per_layer() if layer.kept == 0]
    assert empty
    assert len(notes.notes) == 1
    assert notes.notes[0].startswith(f"warning: nothing is kept of {', '.join(empty)}; the option floor=1")


def test_a_floor_keeps_something_of_every_layer(pair: Pair) -> None:
    notes = Notes()
    for seed in range(5):
        ticket = gemminer.mine(tiny_net(), pair, 4 / 324, epochs=4, monitor=notes, seed=seed, floor=1)
        assert ticket.kept == 4
        assert all(layer.kept for layer in ticket.per_layer())
    assert notes.notes == []


def test_a_search_goes_on_from_its_checkpoint(pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GEMMINER_CHECKPOINT_SECONDS", "0")
    path = tmp_path / "search.pt"

    class Stopping(Notes):
        def epoch(self, row: dict[str, Any]) -> None:
            super().epoch(row)
            if row["epoch"] == 3:
                raise KeyboardInterrupt

    def search(monitor: Monitor | None = None, checkpoint: Path | None = path) -> Ticket:
        return gemminer.mine(tiny_net(), pair, 0.1, epochs=5, monitor=monitor, checkpoint=checkpoint)

    with pytest.raises(KeyboardInterrupt):
        search(Stopping())
    assert path.exists()
    notes = Notes()
    resumed = search(notes)
    assert [row["epoch"] for row in notes.rows] == [3, 4, 5]
    assert resumed == search(checkpoint=None)
    assert not path.exists()


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"density": 0}, "density is the fraction of weights kept"),
        ({"density": 1.1}, "density is the fraction of weights kept"),
        ({"density": 1e-9}, "keeps none of 324 weights"),
        ({"method": "gemminer"}, "unknown method 'gemminer'; did you mean 'gem-miner'"),
        ({"rigde": 1}, "unknown option of gem-miner 'rigde'; did you mean 'ridge'"),
        ({"ridge": "big"}, "ridge: .* not 'big'"),
        ({"ridge": -1.0}, "lambda .ridge. must be 0 or more"),
        ({"epochs": 4, "freeze_every": 4}, "leave no time to freeze"),
        ({"initialiser": "kaiming"}, "unknown initialiser"),
        ({"exclude": ["head.*"]}, "matches no prunable weight"),
        ({"batch_size": 0}, "batch size must be a whole number of at least 1"),
        ({"train_data": "digits"}, "data must be a DataLoader"),
        ({"train_data": (torch.ones(3, 6), torch.ones(2))}, "3 inputs but 2 targets"),
        ({"model": "resnet20"}, "model must be a torch.nn.Module, not a str"),
        ({"model": nn.LayerNorm(6)}, "nothing to prune"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_what_cannot_be_mined(pair: Pair, fields: dict[str, Any], text: str) -> None:
    with pytest.raises(UsageError, match=text) as caught:
        gemminer.mine(**{"model": tiny_net(), "train_data": pair, "density": 0.1, "epochs": 2, **fields})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("call", ["mine", "train", "check"])
def test_no_epochs_at_all_are_refused(pair: Pair, call: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (api, settings):
        monkeypatch.setattr(module, "default_epochs", lambda examples: 1)
    ticket = gemminer.mine(tiny_net(), pair, 0.2, method="uniform")
    work: dict[str, Callable[[], object]] = {
        "mine": lambda: gemminer.mine(tiny_net(), pair, 0.1, epochs=0),
        "train": lambda: gemminer.train(tiny_net(), ticket, pair, epochs=0),
        "check": lambda: gemminer.check(tiny_net(), ticket, pair, pair, epochs=0, seeds=1, names=["shuffle"]),
    }
    with pytest.raises(UsageError, match="epochs must be 1 or more"):
        work[call]()


# --- models nobody has seen ------------------------------------------------------------------------------------


class Words(nn.Module):
    """A token-level language model: an encoder from PyTorch, the head tied to the embedding."""

    def __init__(self, tokens: int = 11, width: int = 16) -> None:
        super().__init__()
        self.table = nn.Embedding(tokens, width)
        layer = nn.TransformerEncoderLayer(width, 2, 32, dropout=0.1, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(width, tokens, bias=False)
        self.head.weight = self.table.weight

    def forward(self, ids: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(ids.shape[1])
        return self.head(self.encoder(self.table(ids), mask=mask, is_causal=True))


def test_a_language_model(snapshot: Snapshot) -> None:
    """Counting on from a number, modulo 11: each token follows from the one before."""
    ids = (torch.arange(64).unsqueeze(1) + torch.arange(9)) % 11
    data = (ids[:, :-1].contiguous(), ids[:, 1:].contiguous())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Words()
    before = snapshot(model)
    ticket = gemminer.mine(model, data, 0.5, epochs=5, batch_size=16, seed=0)
    assert snapshot(model) == before
    d = 2 * (4 * 16 * 16 + 2 * 16 * 32) + 11 * 16  # attention, feed-forward, and the table, which is the head too
    assert (ticket.prunable, ticket.kept) == (d, round(0.5 * d))
    assert "encoder.layers.0.self_attn.in_proj_weight" in ticket.masks
    result = gemminer.train(model, ticket, data, data, epochs=15, batch_size=16, lr=0.01, optimiser="adamw")
    assert result["test"] > 0.9
    assert result["cost"]["flops_sparse"] < result["cost"]["flops_dense"]
    for name, mask in ticket.masks.items():
        assert dict(model.named_parameters())[name][~mask].count_nonzero() == 0


def test_a_regression_with_its_own_loss_and_metric() -> None:
    source = torch.Generator().manual_seed(0)
    inputs = torch.randn(128, 4, generator=source)
    data = (inputs, inputs[:, :1] - 0.5 * inputs[:, 1:2])
    model = nn.Sequential(nn.Linear(4, 48), nn.ReLU(), nn.Linear(48, 1))

    def negative_error(output: Tensor, target: Tensor) -> Tensor:
        return -(output - target).square()

    common: dict[str, Any] = {"loss": F.mse_loss, "metric": negative_error, "batch_size": 32}
    ticket = gemminer.mine(model, data, 0.3, epochs=10, optimiser="adam", lr=0.05, **common)
    assert ticket.kept == 72
    result = gemminer.train(model, ticket, data, data, epochs=20, lr=0.02, **common)
    variance = float(data[1].var())
    assert -0.1 * variance < result["test"] < 0
    verdict = gemminer.check(model, ticket, data, data, epochs=3, lr=0.02, seeds=2, names=["shuffle"], **common)
    assert set(verdict.checks) == {"shuffle"}
    assert verdict.checks["shuffle"].mean < 0


def test_a_resnet18_of_torchvision(snapshot: Snapshot) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = torchvision.models.resnet18(num_classes=10)
    source = torch.Generator().manual_seed(0)
    data = (torch.randn(32, 3, 32, 32, generator=source), torch.arange(32) % 10)
    before = snapshot(model)
    ticket = gemminer.mine(model, data, 0.01, epochs=2, batch_size=16)
    assert snapshot(model) == before
    total = sum(m.weight.numel() for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear)))
    assert (ticket.prunable, ticket.kept) == (total, round(0.01 * total))
    assert "layer2.0.downsample.0.weight" in ticket.masks  # the shortcut that lists by hand forget
    gemminer.train(model, ticket, data, epochs=1, batch_size=16)
    named = dict(model.named_parameters())
    assert all(named[name][~mask].count_nonzero() == 0 for name, mask in ticket.masks.items())


# --- memory format ---------------------------------------------------------------------------------------------


class Flattening(nn.Module):
    def __init__(self, view: bool) -> None:
        super().__init__()
        self.conv, self.head, self.view = nn.Conv2d(2, 4, 3, padding=1), nn.Linear(64, 3), view
        self.drop = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x).relu()
        return self.head(self.drop(x.view(len(x), -1) if self.view else x.flatten(1)))


@pytest.mark.parametrize("view", [True, False])
def test_channels_last_only_where_the_model_can(view: bool, snapshot: Snapshot) -> None:
    model, data = Flattening(view), (torch.rand(24, 2, 4, 4), torch.arange(24) % 3)
    before, generators = snapshot(model), states()
    assert wants_channels_last(Task(model, TensorBatches(*data, batch_size=8))) is not view
    assert snapshot(model) == before
    assert states() == generators
    assert gemminer.mine(model, data, 0.2, epochs=2, batch_size=8).kept == round(0.2 * (72 + 192))
    assert gemminer.train(model, gemminer.mine(model, data, 0.2, epochs=1), data, data, epochs=1)["test"] >= 0
    assert not wants_channels_last(Task(tiny_net(), TensorBatches(*tiny_data())))


def test_a_model_may_take_batches_of_one_size_only() -> None:
    model = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.Flatten(), nn.Unflatten(0, (3, 4)), nn.Flatten(0, 1))
    model.append(nn.Linear(64, 3))
    data = TensorBatches(torch.rand(24, 2, 4, 4), torch.arange(24) % 3, batch_size=12)
    assert wants_channels_last(Task(model, data))
    assert gemminer.mine(model, data, 0.2, epochs=2).kept == round(0.2 * (72 + 192))


# --- train -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [
        {"momentum": 0.0},
        {"weight_decay": 0.1},
        {"nesterov": True},
        {"optimiser": "adam", "lr": 0.01},
        {"optimiser": "adamw", "lr": 0.01},
        {"schedule": "multistep", "milestones": [1, 2], "gamma": 0.2},
    ],
    ids=str,
)
def test_training_keeps_zeros_and_trains_the_rest(pair: Pair, settings: dict[str, Any]) -> None:
    net = tiny_net()
    ticket = gemminer.mine(net, pair, 0.3, epochs=6, batch_size=16)
    generators = states()
    result = gemminer.train(tiny_net(5), ticket, pair, pair, epochs=3, batch_size=16, **settings)
    again = gemminer.train(net, ticket, pair, pair, epochs=3, batch_size=16, **settings)
    assert states() == generators
    assert result["test"] == again["test"] > 0.6  # whatever the model held before
    named = dict(net.named_parameters())
    for name, mask in ticket.masks.items():
        assert named[name][~mask].count_nonzero() == 0
        assert named[name][mask].ne(ticket.initial[name][mask]).any()
    assert named["0.bias"].ne(ticket.initial["0.bias"]).any()
    assert all(p.grad is None for p in net.parameters())
    float_part = float((net.eval()(pair[0]).argmax(1) == pair[1]).double().mean())
    assert float_part == pytest.approx(result["test"])
    assert gemminer.train(net, ticket, pair, epochs=1)["test"] is None


def test_the_cost_of_a_training_by_hand(pair: Pair) -> None:
    net = tiny_net()
    ticket = gemminer.mine(net, pair, 0.25, method="uniform")
    cost = gemminer.train(net, ticket, pair, epochs=2)["cost"]
    # 3 passes of 2 FLOPs for each of 324 weights, 96 examples, 2 epochs; a quarter of each layer.
    assert cost["flops_dense"] == 3 * 2 * 324 * 96 * 2
    assert cost["flops_sparse"] == cost["flops_dense"] / 4
    assert cost["epochs"] == 2
    assert cost["seconds"] > 0


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"lr": -1.0}, "lr, the learning rate"),
        ({"learning_rate": 1.0}, "unknown option of training 'learning_rate'"),
        ({"optimiser": "lion"}, "optimiser: .* not 'lion'|unknown optimiser"),
        ({"nesterov": True, "optimiser": "adam"}, "nesterov needs optimiser sgd"),
        ({"model": nn.Linear(6, 3)}, "this ticket is of another model"),
    ],
    ids=str,
)
def test_what_cannot_be_trained(pair: Pair, fields: dict[str, Any], text: str) -> None:
    ticket = gemminer.mine(tiny_net(), pair, 0.25, method="uniform")
    net = tiny_net()
    before = {n: t.clone() for n, t in net.state_dict().items()}
    with pytest.raises(UsageError, match=text):
        gemminer.train(**{"model": net, "ticket": ticket, "train_data": pair, "epochs": 1, **fields})
    assert all(torch.equal(t, before[n]) for n, t in net.state_dict().items())


def test_a_training_that_diverges_leaves_the_model_as_it_was(pair: Pair) -> None:
    net = tiny_net(norm=False)
    ticket = gemminer.mine(net, pair, 0.5, method="uniform")
    before = {n: t.clone() for n, t in net.state_dict().items()}
    with pytest.raises(GemminerError, match="no longer finite"):
        gemminer.train(net, ticket, pair, epochs=5, lr=1e18, batch_size=4)
    assert all(torch.equal(t, before[n]) for n, t in net.state_dict().items())


@pytest.mark.parametrize("left_dense", [{"exclude": ("5.*",)}, {"embeddings": True}], ids=["exclude", "embeddings"])
def test_a_ticket_that_leaves_layers_dense_can_be_trained_and_checked(left_dense: dict[str, Any]) -> None:
    if "embeddings" in left_dense:
        net = nn.Sequential(nn.Embedding(6, 4), nn.Flatten(), nn.Linear(8, 3), nn.ReLU(), nn.Linear(3, 3))
        data = (torch.randint(6, (24, 2), generator=torch.Generator().manual_seed(0)), torch.arange(24) % 3)
    else:
        net, data = tiny_net(), tiny_data()
    ticket = gemminer.mine(net, data, 0.5, epochs=2, **left_dense)
    result = gemminer.train(net, ticket, data, data, epochs=1)
    assert 0 < result["cost"]["flops_sparse"] < result["cost"]["flops_dense"]
    verdict = gemminer.check(net, ticket, data, data, epochs=1, seeds=1)
    assert set(verdict.checks) == set(checks.CHECKS)


# --- check -----------------------------------------------------------------------------------------------------


def test_checks_are_paired_and_leave_the_model(pair: Pair, snapshot: Snapshot) -> None:
    net = tiny_net()
    ticket = gemminer.mine(net, pair, 0.1, epochs=6, batch_size=16)
    before, generators, notes = snapshot(net), states(), Notes()
    verdict = gemminer.check(net, ticket, pair, pair, seeds=2, epochs=2, batch_size=16, monitor=notes)
    assert snapshot(net) == before
    assert states() == generators
    assert list(verdict.checks) == ["shuffle", "reinit", "invert", "uniform", "erk"]
    assert {c.n for c in verdict.checks.values()} == {2}
    own = {c.ticket_values for c in verdict.checks.values()}
    assert len(own) == 1
    assert len(set(next(iter(own)))) == 2 or next(iter(own))[0] == 1.0  # training seeds 0 and 1 differ
    for c in verdict.checks.values():
        assert c.difference == pytest.approx(sum(a - b for a, b in zip(c.ticket_values, c.values, strict=True)) / 2)
    text = str(verdict)
    assert text.splitlines()[0].startswith(verdict.verdict)
    assert len(text.splitlines()) == 6
    searched = [row for row in notes.rows if row["phase"] == "check:invert:search"]
    assert len(searched) == 6  # the inversion is searched for once


def test_each_check_destroys_one_thing(pair: Pair) -> None:
    net = tiny_net()
    ticket = gemminer.mine(net, pair, 0.2, epochs=4)
    bench = Experiment(Task(net, TensorBatches(*pair, batch_size=32)), None, Settings(epochs=1))
    for name in checks.CHECKS:
        first, second = (altered_ticket(bench, name, ticket, index) for index in (0, 1))
        assert first != ticket
        assert (first == second) == (name == "invert")
        assert first.kept == ticket.kept  # equal density
        assert first.provenance["check"] == name
        same_masks = all(torch.equal(m, ticket.masks[n]) for n, m in first.masks.items())
        same_start = all(torch.equal(t, ticket.initial[n]) for n, t in first.initial.items())
        assert (same_masks, same_start) == ((True, False) if name == "reinit" else (False, True))
    counts = [layer.kept for layer in ticket.per_layer()]
    assert [layer.kept for layer in altered_ticket(bench, "shuffle", ticket, 0).per_layer()] == counts


def test_the_inversion_is_the_tickets_own_search_upside_down(pair: Pair) -> None:
    net, data = tiny_net(), TensorBatches(*pair, batch_size=32)
    bench = Experiment(Task(net, data), None, Settings(epochs=1), seed=3)
    options = methods.gem_miner.Options(epochs=3, lr=0.7)
    ticket, _ = bench.find("gem-miner", 0.2, options, Draw("signed-constant", 3))
    inverted = altered_ticket(bench, "invert", ticket, 0)
    upside_down = dataclasses.replace(options, invert=True)
    expected, _ = bench.find("gem-miner", 0.2, upside_down, Draw("signed-constant", 3))
    assert inverted == expected


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"seeds": 0}, "seeds must be 1 or more"),
        ({"names": ["shufle"]}, "unknown check 'shufle'; did you mean 'shuffle'"),
        ({"model": nn.Linear(6, 3)}, "this ticket is of another model"),
        ({"lr": math.nan}, "lr"),
    ],
    ids=str,
)
def test_what_cannot_be_checked(pair: Pair, fields: dict[str, Any], text: str) -> None:
    ticket = gemminer.mine(tiny_net(), pair, 0.25, method="uniform")
    call = {"model": tiny_net(), "ticket": ticket, "train_data": pair, "test_data": pair, "epochs": 1, **fields}
    with pytest.raises(UsageError, match=text):
        gemminer.check(**call)


def test_a_check_without_test_data_is_refused(pair: Pair) -> None:
    ticket = gemminer.mine(tiny_net(), pair, 0.25, method="uniform")
    with pytest.raises(UsageError, match="no test data"):
        gemminer.check(tiny_net(), ticket, pair, None, epochs=1, seeds=2, names=["shuffle"])


def test_an_inversion_needs_a_method(pair: Pair) -> None:
    ticket = Ticket({"0.weight": torch.ones(16, 6).bool()}, tiny_net().state_dict())
    bench = Experiment(Task(tiny_net(), TensorBatches(*pair)), None, Settings())
    with pytest.raises(UsageError, match="needs to know the ticket's method, which is None"):
        altered_ticket(bench, "invert", ticket, 0)


def test_before_does_not_depend_on_statistics_of_another_network(pair: Pair) -> None:
    """Batch-norm statistics of the dense net used with a ticket: a hazard of the field."""
    ticket = gemminer.mine(tiny_net(), pair, 0.3, epochs=4)
    found = []
    for mean in (0.0, 50.0):
        net = tiny_net()
        net[1].running_mean.fill_(mean)
        moved = ticket.replace(initial={**ticket.initial, "1.running_mean": net[1].running_mean})
        bench = Experiment(Task(net, TensorBatches(*pair)), TensorBatches(*pair, shuffle=False), Settings())
        found.append(bench.before(moved))
        assert float(net[1].running_mean[0]) == mean
    assert found[0] == found[1]
    with pytest.raises(UsageError, match="no test data to measure on"):
        Experiment(Task(tiny_net(), TensorBatches(*pair)), None, Settings()).before(ticket)


# --- options, epochs, devices ----------------------------------------------------------------------------------


def test_options_from_plain_fields() -> None:
    found = options_of(Settings, {"lr": 1, "milestones": [1, 2]}, "training")
    assert (found.lr, found.milestones) == (1.0, (1, 2))
    with pytest.raises(UsageError, match="unknown option of training 'lrr'; did you mean 'lr'"):
        options_of(Settings, {"lrr": 1}, "training")


@pytest.mark.parametrize(
    ("examples", "epochs"), [(0, 40), (100, 40), (15_000, 40), (54_000, 11), (60_000, 10), (10**7, 5)]
)
def test_default_epochs(examples: int, epochs: int) -> None:
    assert default_epochs(examples) == epochs


@pytest.mark.parametrize("name", ["cuda:99", "tpu", "", "cpu:x"])
def test_devices_this_machine_lacks(name: str) -> None:
    with pytest.raises(UsageError, match="is not on this machine: use cpu, cuda, cuda:1 or auto"):
        device_of(name)


def test_the_meta_device_is_refused() -> None:
    with pytest.raises(UsageError, match="meta"):
        device_of("meta")


def test_devices_this_machine_has() -> None:
    assert device_of("cpu") == torch.device("cpu")
    assert device_of("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")


# --- whole recipes ---------------------------------------------------------------------------------------------

TINY = {
    "model": "lenet-300-100",
    "model_options": {"width": 0.1},
    "density": 0.1,
    "epochs": 4,
    "train_epochs": 2,
    "limit_train": 200,
    "batch_size": 32,
    "check_seeds": 2,
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Recipe, Path, record.Record]:
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("runs") / "run"
    recipe = make(TINY)
    return recipe, out, run_recipe(recipe, out, device="cpu")


def test_a_run_leaves_what_it_promises(finished: tuple[Recipe, Path, record.Record]) -> None:
    recipe, out, result = finished
    files = {p.name for p in out.iterdir()}
    assert files == {*folder.FILES, "state"} - {"report.html"}  # the page is written by the command line
    assert record.read(out) == result
    ticket = Ticket.load(out / "ticket.safetensors")
    d = ticket.prunable
    assert (result.density.asked, result.density.kept, result.density.prunable) == (0.1, round(0.1 * d), d)
    assert result.density.realised == ticket.density
    assert 0 < (result.density.live or 0) <= result.density.realised
    assert [row.kept for row in result.layers] == [layer.kept for layer in ticket.per_layer()]
    assert ticket.provenance["recipe"] == recipe.digest == result.recipe_hash
    assert make(result.recipe) == recipe
    assert set(result.checks) == set(checks.CHECKS)
    assert {c.n for c in result.checks.values()} == {2}
    assert result.checks["shuffle"].ticket_values == result.accuracy.after_values
    assert result.accuracy.n == 2
    assert result.accuracy.after == pytest.approx(sum(result.accuracy.after_values) / 2)
    for value in (result.accuracy.before, result.accuracy.dense, result.accuracy.validation):
        assert value is not None
        assert 0 <= value <= 1
    assert result.per_class is not None
    assert result.per_class.names == tuple("0123456789")
    # Each tenth of the test set is one class, so that the mean over classes is nearly that over examples.
    over_classes = [x for x in result.per_class.after if x is not None]
    assert sum(over_classes) / 10 == pytest.approx(result.accuracy.after, abs=0.01)
    assert set(result.cost) == {"search", "train"}
    assert result.cost["search"].epochs == 4
    assert result.cost["train"].epochs == 2
    assert result.cost["train"].flops_sparse == pytest.approx(0.1 * result.cost["train"].flops_dense, rel=0.5)
    assert result.cost["search"].flops_sparse < result.cost["search"].flops_dense
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    phases = list(dict.fromkeys(row["phase"] for row in rows))
    expected = ["search", "train:0", "train:1", "dense"]
    for name in checks.CHECKS:
        expected += [f"check:{name}:search"] * (name == "invert") + [f"check:{name}:{i}" for i in (0, 1)]
    assert phases == expected
    assert [row["epoch"] for row in rows if row["phase"] == "search"] == [1, 2, 3, 4]
    assert not list((out / "state").glob("*.pt"))  # checkpoints of finished steps are gone


def test_trained_weights_are_those_of_the_ticket(finished: tuple[Recipe, Path, record.Record]) -> None:
    recipe, out, result = finished
    ticket, trained = Ticket.load(out / "ticket.safetensors"), load_file(out / "trained.safetensors")
    assert set(trained) == set(ticket.initial)
    for name, mask in ticket.masks.items():
        assert trained[name][~mask].count_nonzero() == 0
        assert trained[name][mask].ne(ticket.initial[name][mask]).any()
    bench, _, _ = prepare(recipe, device="cpu")
    bench.task.model.load_state_dict(trained)
    assert bench.test is not None
    assert evaluate.mean_metric(bench.task, bench.test) == result.accuracy.after_values[0]
    alone = train_ticket(recipe, out / "ticket.safetensors", out.parent / "again.safetensors", device="cpu")
    assert alone["test"] == result.accuracy.after_values[0]
    again = load_file(out.parent / "again.safetensors")
    assert all(torch.equal(t, again[n]) for n, t in trained.items())


def test_checking_a_file_gives_the_runs_own_figures(finished: tuple[Recipe, Path, record.Record]) -> None:
    recipe, out, result = finished
    verdict = check_ticket(recipe.replace(checks=("shuffle",)), out / "ticket.safetensors", device="cpu")
    assert verdict.checks["shuffle"].values == result.checks["shuffle"].values


def test_a_finished_run_resumes_to_itself(finished: tuple[Recipe, Path, record.Record]) -> None:
    recipe, out, result = finished
    before = {name: (out / name).read_bytes() for name in ("ticket.safetensors", "trained.safetensors")}
    rows = (out / "metrics.jsonl").read_text()
    again = run_recipe(recipe, out, resume=True, device="cpu")
    assert {name: (out / name).read_bytes() for name in before} == before
    assert (out / "metrics.jsonl").read_text() == rows
    assert again.model_dump(exclude={"created"}) == result.model_dump(exclude={"created"})
    with pytest.raises(UsageError, match="holds a run already"):
        run_recipe(recipe, out, device="cpu")
    with pytest.raises(UsageError, match="another recipe"):
        run_recipe(recipe.replace(seed=1), out, resume=True, device="cpu")


def test_a_ticket_swapped_under_a_run_is_noticed(tmp_path: Path) -> None:
    recipe = make({**TINY, "checks": (), "dense": False, "epochs": 1, "train_epochs": 1})
    run_recipe(recipe, tmp_path / "run", device="cpu")
    ticket = Ticket.load(tmp_path / "run" / "ticket.safetensors")
    checks.shuffle(ticket, 0).save(tmp_path / "run" / "ticket.safetensors")
    with pytest.raises(GemminerError, match="is not the ticket this run found"):
        run_recipe(recipe, tmp_path / "run", resume=True, device="cpu")
    result = run_recipe(recipe, tmp_path / "run", overwrite=True, device="cpu")
    assert result.checks == {}
    assert (result.verdict, result.accuracy.dense, result.accuracy.n) == (None, None, 1)


def test_a_loss_that_is_not_finite_keeps_the_folder(tmp_path: Path) -> None:
    recipe = make({**TINY, "checks": (), "train": {"lr": 1e30, "schedule": "constant"}})
    with pytest.raises(GemminerError, match=r"no longer finite in epoch \d of 'train:0': lower the learning rate"):
        run_recipe(recipe, tmp_path / "run", device="cpu")
    assert Ticket.load(tmp_path / "run" / "ticket.safetensors").density == pytest.approx(0.1, abs=1e-3)
    assert (tmp_path / "run" / "metrics.jsonl").stat().st_size > 0
    assert not (tmp_path / "run" / "record.json").exists()


@pytest.mark.parametrize(
    "fields",
    [{"method": "gem"}, {"checks": ("none",)}, {"data": "digit"}, {"options": {"x": 1}}, {"density": 1e-9}],
    ids=str,
)
def test_what_cannot_be_is_said_before_anything_is_written(tmp_path: Path, fields: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        run_recipe(make({**TINY, **fields}), tmp_path / "run", device="cpu")
    assert list(tmp_path.iterdir()) == []


def test_warnings_survive_a_resume(tmp_path: Path) -> None:
    recipe = make({**TINY, "density": 0.0005, "checks": (), "dense": False})
    first = run_recipe(recipe, tmp_path / "run", device="cpu")
    assert first.notes, "the test needs a ticket with an empty layer"
    assert run_recipe(recipe, tmp_path / "run", resume=True, device="cpu").notes == first.notes


def test_layers_left_dense_by_a_recipe(tmp_path: Path) -> None:
    recipe = make({**TINY, "exclude": ("*3*",), "checks": ("invert", "erk"), "check_seeds": 1, "dense": False})
    names = [name for name, _ in prepare(make(TINY), device="cpu")[0].task.model.named_parameters()]
    if not any("3" in name for name in names):
        recipe = recipe.replace(exclude=(next(n for n in reversed(names) if n.endswith("weight")),))
    result = run_recipe(recipe, tmp_path / "run", device="cpu")
    assert len(result.layers) == 2
    assert set(result.checks) == {"invert", "erk"}


def test_a_recipe_with_a_random_method_and_kept_weights(tmp_path: Path) -> None:
    recipe = make({**TINY, "method": "erk", "initialiser": "keep", "checks": ("invert", "reinit"), "dense": False})
    result = run_recipe(recipe, tmp_path / "run", device="cpu")
    assert result.density.live is None
    assert result.cost["search"].epochs == 0
    assert Ticket.load(tmp_path / "run" / "ticket.safetensors").draw is None
    assert result.checks["invert"].values != result.accuracy.after_values


def test_a_rule_of_the_package_is_what_the_record_says(pair: Pair) -> None:
    """`live` in the record is the density of the network the search computed with."""
    net, seen = tiny_net(), []

    class Last(Monitor):
        def epoch(self, row: dict[str, Any]) -> None:
            seen.append(row)

    ticket = gemminer.mine(net, pair, 0.1, epochs=3, monitor=Last())
    assert ticket.provenance["live"] == seen[-1]["live"]
    assert seen[-1]["kept"] == 32 / 324
    assert sum(seen[-1]["layers_kept"]) == 32
    assert isinstance(KeepMask(net, ticket.masks), KeepMask)


class Cursed(Dataset[Any]):
    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> Any:
        raise KeyError("no such image")


def test_errors_of_the_users_data_are_the_users(snapshot: Snapshot) -> None:
    net = tiny_net()
    before = snapshot(net)
    with pytest.raises(KeyError, match="no such image"):
        gemminer.mine(net, Cursed(), 0.1, epochs=1)
    assert snapshot(net) == before
