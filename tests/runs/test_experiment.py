"""One network and its data: memory format, and figures before training."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import gemminer
from gemminer import methods
from gemminer.core.draw import Draw
from gemminer.core.errors import GemminerError, UsageError
from gemminer.core.ticket import Ticket
from gemminer.data import TensorBatches
from gemminer.runs.building import build, wants_channels_last
from gemminer.training import engine, rate
from gemminer.training.evaluate import recalibrate
from gemminer.training.settings import Settings
from gemminer.training.task import Task
from tests.helpers import EXACT, Notes, Pair, Snapshot, drawn_ticket, states, tiny_data, tiny_net


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


class Asked:
    """A loader that counts how often it is begun, and the batches that it gave."""

    def __init__(self, *tensors: Tensor) -> None:
        self.batches, self.begun, self.given = list(zip(*(t.split(8) for t in tensors), strict=True)), 0, 0

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        self.begun += 1
        for batch in self.batches:
            self.given += 1
            yield batch


class InPlace(nn.Module):
    """Writes into its inputs, as a first activation in place does."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(2, 4, 3), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.conv(x.mul_(0.5)).flatten(1))


def test_each_loader_is_asked_once_for_the_first_look() -> None:
    images, labels = torch.rand(24, 2, 4, 4), torch.arange(24) % 3
    before = images.clone()
    loaders = [Asked(images, labels) for _ in range(3)]
    made = build(InPlace(), loaders[0], validation=loaders[1], test=loaders[2])
    assert [(loader.begun, loader.given) for loader in loaders] == [(1, 1)] * 3
    engine.choose(made.task)
    assert (loaders[0].begun, loaders[0].given) == (1, 1)
    assert torch.equal(images, before)  # a look changes no batch


class Promising(Asked):
    """Promises another number of batches than it gives: `said` times as many."""

    def __init__(self, said: float, *tensors: Tensor) -> None:
        super().__init__(*tensors)
        self.said = said

    def __len__(self) -> int:
        return round(self.said * len(self.batches))


@pytest.mark.parametrize("said", [1.0, 0.5, 4.0])
@pytest.mark.parametrize("method", ["gem-miner", "imp", "edge-popup", "train"])
def test_flops_are_those_of_the_batches_that_came(said: float, method: str) -> None:
    loader = Promising(said, *tiny_data(96))
    made = build(tiny_net(), loader)
    step = 3 * made.flops.dense * made.task.train.examples / len(made.task.train)
    loader.given = 0
    if method == "train":
        made = dataclasses.replace(made, settings=Settings(epochs=3))
        cost = made.train(drawn_ticket(tiny_net(), 0.5), 0, "train")["cost"]
        assert cost["epochs"] == 3
        assert cost["flops_sparse"] == pytest.approx(cost["flops_dense"] / 2, rel=0.2)
    else:
        options = methods.get(method).options(epochs=3)
        cost = made.search(method, 0.5, options, Draw(), lambda ticket: None)["cost"]
    looks = rate.HELD if method in ("imp", "train") else 0  # the batches that a trial ends with, read once
    assert cost["flops_dense"] == pytest.approx(step * (loader.given - looks))


def test_a_budget_is_of_the_batches_that_come(monkeypatch: pytest.MonkeyPatch) -> None:
    honest, lying = (build(tiny_net(), Promising(said, *tiny_data(96))) for said in (1.0, 10.0))
    ticks = itertools.count()
    monkeypatch.setattr("gemminer.runs.experiment.time.monotonic", lambda: next(ticks) / 1000)
    assert honest.affordable(1.0) == lying.affordable(1.0) > 10
    assert lying.affordable(0.1) < honest.affordable(0.1)  # there is no time to see


class Backwards(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        raise ValueError("no way back")


class Stuck(nn.Module):
    def __init__(self, forward: bool) -> None:
        super().__init__()
        self.body, self.fails = nn.Linear(6, 3), forward

    def forward(self, x: Tensor) -> Tensor:
        if self.fails and torch.is_grad_enabled():
            raise ValueError("no way forth")
        return Backwards.apply(self.body(x))


@pytest.mark.parametrize(("forward", "said"), [(True, "no way forth"), (False, "no way back")])
def test_a_model_that_fails_in_a_trial_step_is_one_sentence(forward: bool, said: str) -> None:
    net = Stuck(forward)
    with pytest.raises(GemminerError, match=f"^the model fails in a training step: {said}$"):
        gemminer.mine(net, tiny_data(), 0.5, budget="2s")


def test_before_does_not_depend_on_statistics_of_another_network(pair: Pair) -> None:
    """Batch-norm statistics of the dense net used with a ticket: a hazard of the field."""
    ticket = gemminer.mine(tiny_net(), pair, 0.3, epochs=4)
    found = []
    for mean in (0.0, 50.0):
        net = tiny_net()
        net[1].running_mean.fill_(mean)
        moved = ticket.replace(initial={**ticket.initial, "1.running_mean": net[1].running_mean})
        bench = build(net, TensorBatches(*pair), test=TensorBatches(*pair, shuffle=False))
        found.append(bench.before(moved))
        assert float(net[1].running_mean[0]) == mean
    assert found[0] == found[1]
    with pytest.raises(UsageError, match="no test data to measure on"):
        build(tiny_net(), TensorBatches(*pair)).before(ticket)


def frozen_net(norm: nn.Module) -> nn.Sequential:
    net = nn.Sequential(nn.Conv2d(2, 8, 3), norm, nn.ReLU(), nn.Dropout(0.5), nn.Flatten(), nn.Linear(128, 3))
    norm.running_mean.fill_(0.3)  # type: ignore[operator, union-attr]
    norm.eval()
    return net


@pytest.mark.parametrize("engine", ["dense", "sparse"])
@pytest.mark.parametrize("kind", [nn.BatchNorm2d, nn.SyncBatchNorm, nn.InstanceNorm2d])
def test_a_frozen_norm_stays_frozen(kind: type[nn.Module], engine: str) -> None:
    """Searched (with a validation, which estimates statistics anew), trained and checked, on either engine."""
    net = frozen_net(kind(8, track_running_stats=True, affine=True))
    data, notes = (torch.randn(24, 2, 6, 6) + 1, torch.arange(24) % 3), Notes()
    how: dict[str, Any] = {"epochs": 2, "batch_size": 8, "engine": engine}
    ticket = gemminer.mine(net, data, 0.5, initialiser="keep", validation_data=data, monitor=notes, **how)
    result = gemminer.train(net, ticket, data, data, **how)
    gemminer.check(net, ticket, data, data, seeds=1, names=["shuffle"], **how)
    assert net[1].running_mean.tolist() == pytest.approx([0.3] * 8)
    assert not net[1].training
    assert result["test"] >= 0
    assert any("the statistics of 1 stay as they are" in note for note in notes.notes)
    experiment = build(net, data, test=data, batch_size=8)
    experiment.before(ticket)
    assert ticket.initial["1.running_mean"].tolist() == pytest.approx([0.3] * 8)
    net[1].train()
    gemminer.train(net, ticket, data, **how)
    assert net[1].running_mean.tolist() != pytest.approx([0.3] * 8)


def test_instance_norm_statistics_are_estimated_anew() -> None:
    norm = nn.InstanceNorm2d(2, track_running_stats=True)
    images = torch.randn(24, 2, 6, 6) * 3 + 1
    task = Task(nn.Sequential(norm, nn.Flatten(), nn.Linear(72, 3)), TensorBatches(images, torch.arange(24) % 3))
    recalibrate(task)
    assert torch.allclose(norm.running_mean, images.mean((0, 2, 3)), atol=1e-5)
    assert norm.momentum == 0.1


def test_dropout_left_in_evaluation_mode_is_on_in_training_and_said() -> None:
    data, notes = (torch.randn(24, 6), torch.arange(24) % 3), Notes()
    net = nn.Sequential(nn.Linear(6, 16), nn.Dropout(0.5), nn.Linear(16, 3))
    ticket, found = gemminer.mine(net, data, 0.5, epochs=1), []
    for on in (True, False):
        net[1].train(on)
        gemminer.train(net, ticket, data, epochs=2, monitor=notes)
        found.append(net[2].weight.detach().clone())
    assert torch.equal(*found)
    assert notes.notes == ["1 drops in training though left in evaluation mode: set p to 0 to turn it off"]
    net.eval()  # as a whole: nothing is said
    gemminer.train(net, ticket, data, epochs=1, monitor=notes)
    assert len(notes.notes) == 1


@pytest.mark.parametrize("off", [torch.no_grad, torch.inference_mode, lambda: torch.set_grad_enabled(False)])
def test_gradients_are_recorded_though_the_caller_turned_them_off(off: Any) -> None:
    net, data = tiny_net(), tiny_data()
    want = {name: gemminer.mine(net, data, 0.2, method=name, **short(name)) for name in EXACT}
    trained = tiny_net()
    gemminer.train(trained, want["snip"], data, data, epochs=1)
    with off():
        inside = tuple(t.clone() for t in data)
        for name, ticket in want.items():
            assert gemminer.mine(net, inside, 0.2, method=name, **short(name)) == ticket
        gemminer.train(net, want["snip"], DataLoader(TensorDataset(*inside), batch_size=128), inside, epochs=1)
        gemminer.train(net, want["snip"], inside, inside, epochs=1)
        gemminer.check(net, want["snip"], inside, inside, epochs=1, seeds=1)
        assert not torch.is_grad_enabled()
        assert torch.is_inference_mode_enabled() is (off is torch.inference_mode)
    torch.set_grad_enabled(True)
    assert torch.equal(net[0].weight, trained[0].weight)
    assert net[0].weight.requires_grad


def short(method: str) -> dict[str, Any]:
    return {"epochs": 1} if methods.get(method).trains else {"rounds": 2} if method == "synflow" else {}


@pytest.mark.parametrize("default", [torch.float64, torch.bfloat16])
def test_a_global_default_type_changes_no_ticket(default: torch.dtype) -> None:
    net, data = tiny_net(), tiny_data()
    want = {name: gemminer.mine(net, data, 0.2, method=name, **short(name)) for name in EXACT}
    torch.set_default_dtype(default)
    try:
        for name, ticket in want.items():
            assert gemminer.mine(net, data, 0.2, method=name, **short(name)) == ticket, name
        gemminer.train(net, want["snip"], data, data, epochs=1)
        assert net[0].weight.dtype == torch.float32
    finally:
        torch.set_default_dtype(torch.float32)


def test_new_tensors_on_the_meta_device_are_refused() -> None:
    net, data = tiny_net(), tiny_data()
    torch.set_default_device("meta")
    try:
        with pytest.raises(UsageError, match="new tensors are made on the meta device"):
            gemminer.mine(net, data, 0.2)
    finally:
        torch.set_default_device(None)


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(12, 12), nn.BatchNorm1d(12)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.norm(self.linear(x)))


def short_of(removed: tuple[str, ...]) -> tuple[nn.Sequential, Ticket]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), Residual(), Residual(), Residual(), nn.Linear(12, 3))
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.BatchNorm1d):
                module.bias.uniform_(-1, 1)
    ticket = drawn_ticket(net, 0.5)
    masks = {n: m & (not n.startswith(tuple(f"{r}." for r in removed))) for n, m in ticket.masks.items()}
    return net, ticket.replace(masks=masks, removed=removed)


@pytest.mark.parametrize("engine_name", ["dense", "sparse"])
def test_a_ticket_that_removes_layers_is_trained_without_them(engine_name: str, snapshot: Snapshot) -> None:
    """As the network that never had them, to the bit; the model has its modules, and zeros in them, afterwards."""
    net, ticket = short_of(("2", "4"))
    modules, data, how = list(net), tiny_data(), {"epochs": 3, "lr": 0.1, "batch_size": 32, "engine": engine_name}
    short, rest = ticket.shallow(net), ticket.shortened()
    result, same = (gemminer.train(m, t, data, data, **how) for m, t in ((net, ticket), (short, rest)))
    assert list(net) == modules
    state = net.state_dict()
    assert all(torch.equal(t, state[n]) for n, t in short.state_dict().items())
    assert not any(p.any() for n, p in net.named_parameters() if n.startswith(("2.", "4.")))
    assert result["test"] == same["test"] > 0.8
    assert torch.equal(net.eval()(data[0]), short.eval()(data[0]))
    before, built_for = snapshot(net), build(net, TensorBatches(*data, batch_size=32), test=TensorBatches(*data))
    built_short = build(short, TensorBatches(*data, batch_size=32), test=TensorBatches(*data))
    assert built_for.before(ticket) == built_short.before(rest)
    assert snapshot(net) == before


def test_what_fails_in_training_leaves_the_model_with_all_its_layers() -> None:
    net, ticket = short_of(("3",))
    modules = list(net)
    with pytest.raises(GemminerError, match="no longer finite"):
        gemminer.train(net, ticket, tiny_data(), epochs=2, lr=0.1, loss=lambda out, y: out.sum() * float("nan"))
    assert list(net) == modules
