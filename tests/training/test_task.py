"""Losses and metrics of every layout of outputs and batches."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import gemminer
from gemminer import methods
from gemminer.core.errors import GemminerError, UsageError
from gemminer.data import TensorBatches
from gemminer.training.task import Task, accuracy, cross_entropy
from tests.helpers import EXACT, tiny_data, tiny_net


def test_cross_entropy_and_accuracy_of_every_layout() -> None:
    source = torch.Generator().manual_seed(0)
    logits, tokens = torch.randn(4, 5, 7, generator=source), torch.randint(7, (4, 5), generator=source)
    by_hand = -torch.log_softmax(logits, -1).gather(-1, tokens.unsqueeze(-1)).mean()
    right = (logits.argmax(-1) == tokens).double().mean()
    for output in (logits, logits.transpose(1, 2)):  # classes last, as in text; second, as in images
        assert torch.allclose(cross_entropy(output, tokens), by_hand)
        assert accuracy(output, tokens).numel() == 20
        assert accuracy(output, tokens).mean() == right
    assert torch.allclose(cross_entropy(logits[:, 0], tokens[:, 0]), F.cross_entropy(logits[:, 0], tokens[:, 0]))
    assert accuracy(torch.eye(3), torch.tensor([0, 1, 1])).tolist() == [1.0, 1.0, 0.0]


def test_probabilities_as_targets() -> None:
    logits = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    soft = torch.full((4, 3), 1 / 3)
    assert torch.allclose(cross_entropy(logits, soft), -torch.log_softmax(logits, 1).mean())


class Pair(NamedTuple):
    ids: Tensor
    mask: Tensor


def test_batches_of_any_structure_are_placed() -> None:
    task = Task(nn.Linear(2, 2), TensorBatches(*tiny_data()), channels_last=True)
    image, flat = torch.rand(2, 3, 4, 4), torch.rand(2, 3)
    placed = task.place({"a": [image, flat], "b": (image, "text"), "c": 7, "d": Pair(flat, image)})
    assert placed["a"][0].is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(placed["a"][0], image)
    assert type(placed["a"]) is list
    assert type(placed["b"]) is tuple
    assert (placed["b"][1], placed["c"]) == ("text", 7)
    assert type(placed["d"]) is Pair
    assert placed["d"].mask.is_contiguous(memory_format=torch.channels_last)
    task.channels_last = False
    assert task.place(image) is image


def test_a_loss_that_does_not_fit_is_one_sentence() -> None:
    inputs, targets = tiny_data()
    task = Task(tiny_net(), TensorBatches(inputs, targets))
    with pytest.raises(GemminerError) as caught:
        task.loss_of(inputs, targets + 1)  # classes 1..3 of 3
    assert "the loss does not fit the model and data" in str(caught.value)
    assert "output (96, 3) of torch.float32, targets (96,) of torch.int64" in str(caught.value)
    with pytest.raises(GemminerError, match="targets list"):
        task.loss_of(inputs, [1, 2])
    assert float(task.loss_of(inputs, targets).detach()) > 0


# --- a step of one's own ---------------------------------------------------------------------------------------


def plain_step(model: nn.Module, batch: Any) -> Tensor:
    inputs, targets = batch
    return F.cross_entropy(model(inputs), targets)


def step_accuracy(model: nn.Module, batch: Any) -> Tensor:
    return (model(batch[0]).argmax(1) == batch[1]).double()


@pytest.mark.parametrize("method", EXACT)
def test_a_step_that_computes_the_same_gives_the_same_ticket(method: str) -> None:
    how = {"epochs": 2} if methods.get(method).trains else {}
    loader: Any = DataLoader(TensorDataset(*tiny_data()), batch_size=32, shuffle=True)
    for data in (tiny_data(), loader):
        want = gemminer.mine(tiny_net(), data, 0.3, method=method, batch_size=32, **how)
        got = gemminer.mine(tiny_net(), data, 0.3, method=method, batch_size=32, step=plain_step, **how)
        assert got == want
        assert got.provenance["live"] == want.provenance["live"]


@pytest.mark.parametrize("method", EXACT)
def test_a_step_inside_a_mask(method: str) -> None:
    how = {"epochs": 1} if methods.get(method).trains else {}
    half = gemminer.mine(tiny_net(), tiny_data(), 0.5, method="random")
    want = gemminer.mine(tiny_net(), tiny_data(), 0.2, method=method, within=half, **how)
    assert gemminer.mine(tiny_net(), tiny_data(), 0.2, method=method, within=half, step=plain_step, **how) == want


@pytest.mark.parametrize("engine", ["dense", "sparse"])
def test_a_training_by_steps_is_the_plain_one(engine: str) -> None:
    data, nets = tiny_data(), [tiny_net(), tiny_net()]
    ticket = gemminer.mine(nets[0], data, 0.3, method="erk", engine=engine)
    how: dict[str, Any] = {"epochs": 3, "engine": engine}
    want = gemminer.train(nets[0], ticket, data, data, **how)
    got = gemminer.train(nets[1], ticket, data, data, step=plain_step, metric=step_accuracy, **how)
    assert (got.test, got.classes, got.rate["lr"]) == (want.test, want.classes, want.rate["lr"])
    assert got.cost["flops_sparse"] == want.cost["flops_sparse"]
    for one, other in zip(nets[0].state_dict().values(), nets[1].state_dict().values(), strict=True):
        assert torch.equal(one, other)


class Autoencoder(nn.Module):
    """Its step takes its parts one by one, and asks for modes and gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU())
        self.decoder = nn.Linear(16, 6)
        self.seen: list[tuple[bool, bool, int]] = []

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.decoder(self.encoder(x))
        return out


def reconstruction(model: Any, batch: Tensor) -> Tensor:
    model.seen.append((model.training, torch.is_grad_enabled(), len(batch)))
    noisy = batch + 0.1 * torch.randn_like(batch)
    return F.mse_loss(model.decoder(model.encoder(noisy)), batch)


def by_call(model: Any, batch: Tensor) -> Tensor:
    return F.mse_loss(model(batch), batch)


@pytest.mark.parametrize("method", EXACT)
def test_every_method_without_targets(method: str) -> None:
    how = {"epochs": 1} if methods.get(method).trains else {}
    x = tiny_data()[0]
    step = by_call if method == "synflow" else reconstruction
    torch.manual_seed(0)
    ticket = gemminer.mine(Autoencoder(), x, 0.3, method=method, step=step, **how)
    assert ticket.kept == round(0.3 * 192)
    if method == "synflow":
        with pytest.raises(GemminerError, match="step never calls the model itself"):
            gemminer.mine(Autoencoder(), x, 0.3, method=method, step=reconstruction)


@pytest.mark.parametrize("engine", ["dense", "sparse"])
def test_a_self_supervised_ticket_learns_and_is_measured_without_gradients(engine: str) -> None:
    torch.manual_seed(0)
    model, x = Autoencoder(), tiny_data(256)[0]
    ticket = gemminer.mine(model, x, 0.5, epochs=2, step=reconstruction, engine=engine)
    model.seen = []
    result = gemminer.train(model, ticket, DataLoader(x, 32), x, epochs=15, step=reconstruction, engine=engine)  # type: ignore[arg-type]
    assert result.test is not None
    assert -0.3 < result.test < 0, "minus the loss"
    assert not model.encoder[0].weight[~ticket.masks["encoder.0.weight"]].any()
    if engine == "dense":
        assert model.seen[-1] == (False, False, 128)
        assert (True, True, 32) in model.seen
    judged = gemminer.check(model, ticket, x, x, seeds=1, names="shuffle", epochs=1, step=reconstruction, engine=engine)
    assert "negative reconstruction" in str(judged)


def test_steps_that_cannot_be() -> None:
    net, data = tiny_net(), tiny_data()
    says = {
        r"step must be a function of \(model, batch\), not 3": {"step": 3},
        r"metric must be a function of \(model, batch\), not 3": {"step": plain_step, "metric": 3},
        "step returns the loss itself: give step or loss": {"step": plain_step, "loss": F.mse_loss},
        "the step must return one number as a tensor with a gradient, not None": {"step": lambda model, batch: None},
        "the step has no gradient": {"step": lambda model, batch: model(batch[0]).sum().detach()},
        r"step fails on the training data's inputs \(\(96, 6\) of .*\): no good": {"step": failing},
        r"the metric fails on a batch \(\(96, 6\)": {
            "step": plain_step, "metric": accuracy, "validation_data": data,
        },
    }  # fmt: skip
    for says_, how in says.items():
        with pytest.raises(GemminerError, match=says_):
            gemminer.mine(net, data, 0.3, **how)
    with pytest.raises(GemminerError, match="let a collate_fn return the pair, or give step="):
        gemminer.mine(net, DataLoader(data[0], batch_size=8), 0.3)  # type: ignore[arg-type]


def failing(model: nn.Module, batch: Any) -> Tensor:
    raise RuntimeError("no good")


def test_a_checkpoint_is_of_its_step(tmp_path: Path) -> None:
    class Killed(gemminer.Monitor):
        def epoch(self, row: Any) -> None:
            if row["epoch"] == 2:
                raise KeyboardInterrupt

    how: dict[str, Any] = {"epochs": 3, "checkpoint": tmp_path / "search.pt"}
    with pytest.raises(KeyboardInterrupt):
        gemminer.mine(tiny_net(), tiny_data(), 0.3, step=plain_step, monitor=Killed(), **how)
    with pytest.raises(UsageError, match=r"the step: plain_step \w+ there"):
        gemminer.mine(tiny_net(), tiny_data(), 0.3, step=lambda model, batch: plain_step(model, batch), **how)
    with pytest.raises(UsageError, match="is of another call"):
        gemminer.mine(tiny_net(), tiny_data(), 0.3, **how)
    got = gemminer.mine(tiny_net(), tiny_data(), 0.3, step=plain_step, **how)
    assert got == gemminer.mine(tiny_net(), tiny_data(), 0.3, epochs=3)
