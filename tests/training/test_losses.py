"""Which metric goes with a loss, what ignored labels count, and what losses and metrics may return."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import gemminer
from gemminer.core.errors import GemminerError, UsageError
from gemminer.training.losses import accuracy, cross_entropy, ignored_label, metric_for
from tests.helpers import Notes, drawn_ticket, tiny_data, tiny_net

CLASSES = torch.tensor([0, 1])


def mean_square(output: Tensor, target: Tensor) -> Tensor:
    return ((output[:, 0] - target) ** 2).mean()


@pytest.mark.parametrize(
    ("loss", "ignored"),
    [
        (cross_entropy, -100),
        (F.cross_entropy, -100),
        (functools.partial(F.cross_entropy, ignore_index=0, label_smoothing=0.1), 0),
        (functools.partial(functools.partial(F.cross_entropy, ignore_index=0), ignore_index=5), 5),
        (nn.CrossEntropyLoss(label_smoothing=0.1), -100),
        (nn.CrossEntropyLoss(ignore_index=7), 7),
        (nn.CrossEntropyLoss(ignore_index=7).forward, 7),
        (nn.NLLLoss(ignore_index=2), 2),
        (F.nll_loss, -100),
        (F.mse_loss, None),
        (nn.MSELoss(), None),
        (nn.BCEWithLogitsLoss(), None),
        (lambda output, target: F.cross_entropy(output, target), None),
    ],
)
def test_cross_entropy_in_every_form_is_known(loss: Any, ignored: int | None) -> None:
    assert ignored_label(loss) == ignored
    assert (
        metric_for(loss, CLASSES)[1] == "accuracy"
        if ignored is not None
        else "negative" in metric_for(loss, CLASSES)[1]
    )


@pytest.mark.parametrize(
    ("loss", "target", "name"),
    [
        (F.mse_loss, CLASSES, "negative mse_loss"),
        (nn.L1Loss(), CLASSES, "negative L1Loss"),
        (functools.partial(F.huber_loss, delta=2.0), CLASSES, "negative huber_loss"),
        (lambda output, target: output.mean(), CLASSES, "negative loss"),
        (cross_entropy, torch.tensor([[0.5, 0.5]]), "negative cross_entropy"),
        (nn.CrossEntropyLoss(), torch.tensor([[0.5, 0.5]]), "negative CrossEntropyLoss"),
    ],
)
def test_where_accuracy_has_no_meaning_the_metric_is_minus_the_loss_and_called_so(
    loss: Any, target: Tensor, name: str
) -> None:
    metric, said = metric_for(loss, target)
    assert said == name
    if not (loss is cross_entropy or isinstance(loss, nn.CrossEntropyLoss)):
        output = torch.tensor([[0.5], [2.0]])
        target = torch.tensor([[1.0], [1.0]])
        assert float(metric(output, target)) == -float(loss(output, target))


def test_what_is_reported_of_a_regression() -> None:
    inputs, _ = tiny_data()
    data = inputs, inputs[:, 0].clone()
    net, told = tiny_net(norm=False), Notes()
    ticket = gemminer.mine(net, data, 0.5, epochs=2, loss=mean_square, validation_data=data, monitor=told)
    assert [row["metric"] for row in told.rows] == ["negative mean_square"] * 2
    assert all(row["validation"] < 0 for row in told.rows)
    test = gemminer.train(net, ticket, data, data, epochs=8, loss=mean_square, lr=0.02)["test"]
    with torch.no_grad():
        assert test == pytest.approx(-float(mean_square(net(inputs), data[1])), rel=1e-5)
    common = {"loss": mean_square, "lr": 0.02, "seeds": 2, "epochs": 4, "names": ["shuffle"]}
    found = gemminer.check(net, ticket, data, data, **common)
    assert "by negative mean_square" in str(found)
    small = 1e-3  # a margin of half a point would call any gain of so small a loss none
    tiny = gemminer.check(
        net, ticket, data, data, **{**common, "loss": lambda o, t: small * mean_square(o, t), "lr": 20.0}
    )
    assert tiny.checks["shuffle"].verdict == found.checks["shuffle"].verdict


def test_numbers_are_not_taken_for_probabilities() -> None:
    inputs, targets = tiny_data()
    net = tiny_net()
    with pytest.raises(UsageError, match="the targets are numbers, neither classes nor probabilities"):
        gemminer.mine(net, (inputs, torch.randn(96, 3)), 0.2, epochs=1)
    with pytest.raises(UsageError, match=r"give a loss, for example"):
        gemminer.mine(nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 1)), (inputs, inputs[:, :1].abs()), 0.2, epochs=1)
    soft = F.one_hot(targets, 3).float() * 0.8 + 0.2 / 3
    ticket = gemminer.mine(net, (inputs, soft), 0.2, epochs=1)
    assert gemminer.train(net, ticket, (inputs, soft), (inputs, soft), epochs=1)["test"] < 0


# --- labels that the loss ignores ------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", [cross_entropy, nn.CrossEntropyLoss(ignore_index=-1), F.cross_entropy])
def test_ignored_labels_do_not_count(loss: Any) -> None:
    """Over all labels, whatever their number in a batch, and a batch without any is no loss that is not finite."""
    ignored = ignored_label(loss)
    assert ignored is not None
    inputs, targets = tiny_data(96)
    targets = targets.clone()
    targets[:16] = ignored  # in the order of the test data, a batch without a label
    targets[20:23] = ignored
    data = inputs, targets
    net = tiny_net()
    ticket = drawn_ticket(net, 0.5)
    result = gemminer.train(net, ticket, data, data, epochs=3, batch_size=16, loss=loss, lr=0.02)
    with torch.no_grad():
        right = (net.eval()(inputs).argmax(1) == targets)[targets != ignored].double()
    assert result["test"] == pytest.approx(float(right.mean()))
    with torch.no_grad():
        labelled = targets[targets != ignored]
        assert result["classes"] == pytest.approx([float(right[labelled == c].mean()) for c in range(3)])
    alone = inputs[:16], targets[:16]
    assert gemminer.mine(net, alone, 0.1, epochs=2, loss=loss).kept == 32
    with pytest.raises(GemminerError, match="no example has a label"):
        gemminer.train(net, ticket, data, alone, epochs=1, loss=loss)


def test_ignored_tokens_and_pixels_do_not_count() -> None:
    output = torch.tensor([[[2.0, 0], [0, 2], [2, 0]]])  # (N, T, C)
    assert accuracy(output, torch.tensor([[0, 1, -100]])).tolist() == [1, 1]
    assert accuracy(output.movedim(-1, 1)[..., None], torch.tensor([[[0], [-100], [1]]])).tolist() == [1, 0]
    assert accuracy(output, torch.tensor([[0, 5, 1]]), ignore_index=5).tolist() == [1, 0]


# --- what is returned ------------------------------------------------------------------------------------------


def right(output: Tensor, target: Tensor) -> Tensor:
    return (output.argmax(1) == target).double()


METRICS: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "float": lambda o, t: float(right(o, t).mean()),
    "NumPy number": lambda o, t: np.float32(right(o, t).mean()),
    "0-d": lambda o, t: right(o, t).mean(),
    "one element": lambda o, t: right(o, t).mean().reshape(1),
    "1-d": right,
    "booleans": lambda o, t: o.argmax(1) == t,
    "whole numbers": lambda o, t: (o.argmax(1) == t).long(),
    "array": lambda o, t: right(o, t).numpy(),
    "0-d array": lambda o, t: np.array(float(right(o, t).mean())),
}


@pytest.fixture(scope="module")
def ticket() -> gemminer.Ticket:
    return drawn_ticket(tiny_net(), 0.5)


@pytest.mark.parametrize("form", list(METRICS))
def test_a_metric_may_return_a_number_in_every_usual_form(ticket: gemminer.Ticket, form: str) -> None:
    data = tiny_data(90)  # 64 and 26: means over batches are weighted
    fields: dict[str, Any] = {"epochs": 1, "batch_size": 64}
    expected = gemminer.train(tiny_net(), ticket, data, data, **fields)["test"]
    found = gemminer.train(tiny_net(), ticket, data, data, metric=METRICS[form], **fields)["test"]
    assert found == pytest.approx(expected, abs=1e-6)


BAD_METRICS: list[tuple[Any, str]] = [
    (lambda o, t: (right(o, t).mean(), 1), "not a tuple of 2: return one of its parts"),
    (lambda o, t: {"acc": 1.0}, "not a dictionary of acc: return one of its values"),
    (lambda o, t: None, "not None: does the function lack its return"),
    (lambda o, t: "0.5", "not a str"),
    (lambda o, t: np.array(["a"]), "not a ndarray"),
    (lambda o, t: 1 / 0, "the metric does not fit the model and data"),
]
BAD_LOSSES: list[tuple[Any, str]] = [
    (lambda o, t: (F.cross_entropy(o, t), 1), "not a tuple of 2: return one of its parts"),
    (lambda o, t: {"loss": F.cross_entropy(o, t)}, "not a dictionary of loss: return one of its values"),
    (lambda o, t: float(F.cross_entropy(o, t)), "not a float, which has no gradient: return the tensor, without item"),
    (lambda o, t: np.float32(0), "not a float32, which has no gradient"),
    (lambda o, t: F.cross_entropy(o, t, reduction="none"), r"not 96 numbers of shape \(96,\): return their mean"),
    (lambda o, t: F.cross_entropy(o, t).detach(), "the loss has no gradient: compute it from the model's output"),
    (lambda o, t: None, "not None"),
    (nn.CrossEntropyLoss(reduction="none"), "return their mean"),
]


class Untouched(gemminer.Monitor):
    def begin(self, phase: str, start: int, stop: int) -> None:
        raise AssertionError("something was trained before it was looked at")


@pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad")
@pytest.mark.parametrize(("loss", "text"), BAD_LOSSES)
def test_what_a_loss_returns_is_looked_at_before_anything_is_trained(
    ticket: gemminer.Ticket, loss: Any, text: str
) -> None:
    data, told = tiny_data(), Untouched()
    net = tiny_net()
    before = {n: t.clone() for n, t in net.state_dict().items()}
    for call in (
        lambda: gemminer.mine(net, data, 0.2, epochs=1, loss=loss, monitor=told),
        lambda: gemminer.train(net, ticket, data, data, epochs=1, loss=loss, monitor=told),
        lambda: gemminer.check(net, ticket, data, data, epochs=1, loss=loss, monitor=told),
    ):
        with pytest.raises(UsageError, match=text) as caught:
            call()
        assert "\n" not in str(caught.value)
    assert all(torch.equal(t, before[n]) for n, t in net.state_dict().items())


@pytest.mark.parametrize(("metric", "text"), BAD_METRICS)
def test_what_a_metric_returns_is_looked_at_before_anything_is_trained(
    ticket: gemminer.Ticket, metric: Any, text: str
) -> None:
    data, told, net = tiny_data(), Untouched(), tiny_net()
    for call in (
        lambda: gemminer.mine(net, data, 0.2, epochs=1, metric=metric, validation_data=data, monitor=told),
        lambda: gemminer.train(net, ticket, data, data, epochs=1, metric=metric, monitor=told),
        lambda: gemminer.check(net, ticket, data, data, epochs=1, metric=metric, monitor=told),
    ):
        with pytest.raises(GemminerError, match=text) as caught:
            call()
        assert "\n" not in str(caught.value)


def test_a_loss_of_one_element_is_a_loss(ticket: gemminer.Ticket) -> None:
    data, ends = tiny_data(), []
    for loss in (F.cross_entropy, lambda o, t: F.cross_entropy(o, t).reshape(1)):
        net = tiny_net()
        gemminer.train(net, ticket, data, epochs=2, loss=loss)
        ends.append(net[0].weight.detach().clone())
    assert torch.equal(*ends)


def test_a_metric_that_fails_at_the_end_loses_no_weights(ticket: gemminer.Ticket) -> None:
    data, calls = tiny_data(90), [0]

    def metric(output: Tensor, target: Tensor) -> Any:
        calls[0] += 1
        return right(output, target) if calls[0] < 2 else {"at": "the end"}  # 1: the look; 2: the test

    whole, net = tiny_net(), tiny_net()
    gemminer.train(whole, ticket, data, epochs=2)
    with pytest.raises(UsageError, match=r"return one of its values; the trained weights are in the model"):
        gemminer.train(net, ticket, data, data, epochs=2, metric=metric)
    assert all(torch.equal(t, whole.state_dict()[n]) for n, t in net.state_dict().items())


def test_a_look_leaves_no_trace(ticket: gemminer.Ticket) -> None:
    """Of random numbers, running statistics, gradients and modes."""
    net = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 3)).eval()
    before, random = {n: t.clone() for n, t in net.state_dict().items()}, torch.get_rng_state()
    gemminer.mine(net, tiny_data(), 0.5, method="random")
    assert all(torch.equal(t, before[n]) for n, t in net.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
    assert not net.training
    assert all(p.grad is None for p in net.parameters())
