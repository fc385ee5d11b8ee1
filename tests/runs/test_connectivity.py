"""Barriers along the line between two trainings, against the definitions."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

import gemminer
from gemminer.core.errors import UsageError
from gemminer.core.model_state import copied
from gemminer.data import TensorBatches
from gemminer.runs.building import build
from gemminer.runs.connectivity import Instability, Line, between, line
from gemminer.runs.experiment import Experiment
from tests.helpers import Snapshot, drawn_ticket, states, tiny_data, tiny_net

HOW: dict[str, Any] = {"epochs": 3, "batch_size": 16, "lr": 0.1}
POINTS = (0.0, 0.25, 0.5, 0.75, 1.0)


def experiment_of(norm: bool = False) -> Experiment:
    data = tiny_data()
    return build(tiny_net(norm=norm), TensorBatches(*data, batch_size=16), test=TensorBatches(*data, batch_size=16))


def ends_of(norm: bool = False) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    return copied(tiny_net(1, norm)), copied(tiny_net(2, norm))


def errors(model: nn.Module) -> tuple[float, float, Tensor]:
    inputs, targets = tiny_data()
    model.eval()
    with torch.no_grad():
        output = model(inputs)
    losses = F.cross_entropy(output, targets, reduction="none")
    return float((output.argmax(1) != targets).double().mean()), float(losses.mean()), losses


def test_a_line_is_that_of_the_weights() -> None:
    experiment, ends = experiment_of(), ends_of()
    found = line(experiment, ends, POINTS, "average")
    expected = []
    for part in POINTS:
        model = tiny_net(norm=False)
        model.load_state_dict({n: (1 - part) * a + part * ends[1][n] for n, a in ends[0].items()})
        expected.append(errors(model))
    assert found.test_error == pytest.approx([e for e, _, _ in expected])
    assert found.test_loss == pytest.approx([x for _, x, _ in expected], rel=1e-4)
    assert found.train_error == found.test_error  # the same data
    assert found.train_loss == pytest.approx(found.test_loss)
    own = expected[2][2] - (expected[0][2] + expected[4][2]) / 2
    assert found.examples is not None
    torch.testing.assert_close(found.examples, own, rtol=1e-3, atol=1e-5)
    highest = max(e for e, _, _ in expected) - (expected[0][0] + expected[4][0]) / 2
    assert found.barrier("test_error") == pytest.approx(highest)


def test_statistics_of_batch_norm_are_estimated_anew_or_the_lines_own() -> None:
    experiment, ends = experiment_of(norm=True), ends_of(norm=True)
    spoilt = tuple({n: v + 50 if n.endswith("running_mean") else v for n, v in end.items()} for end in ends)
    assert (
        line(experiment, spoilt, POINTS, "recalibrate").test_loss
        == line(  # type: ignore[arg-type]
            experiment, ends, POINTS, "recalibrate"
        ).test_loss
    )
    average = line(experiment, spoilt, POINTS, "average")  # type: ignore[arg-type]
    assert average.test_loss != line(experiment, ends, POINTS, "average").test_loss


def test_whole_numbers_are_not_interpolated() -> None:
    ends = ends_of(norm=True)
    other = {**ends[1], "1.num_batches_tracked": torch.tensor(9)}
    assert int(between(ends[0], other, 0.5)["1.num_batches_tracked"]) == 0


def test_the_model_is_left_as_it_was_and_the_same_call_gives_the_same(snapshot: Snapshot) -> None:
    net, data = tiny_net(), tiny_data()
    before, generators = snapshot(net), states()
    found = gemminer.instability(net, data, data, at=4, pairs=2, points=5, **HOW)
    assert snapshot(net) == before
    assert states() == generators
    again = gemminer.instability(net, data, data, at=4, pairs=2, points=5, **HOW)
    assert [x.test_loss for x in found.lines] == [x.test_loss for x in again.lines]
    assert found.lines[0].test_loss != found.lines[1].test_loss
    assert (found.name, found.step, len(found.points)) == ("dense@4", 4, 5)
    assert found.examples is not None
    assert len(found.examples) == 96
    assert "dense@4: " in str(found)
    assert "<table" in found._repr_html_()
    assert found.as_dict()["barriers"]["test_loss"] == list(found.barriers("test_loss"))


def test_both_ends_begin_with_the_same_weights_and_differ_in_the_order_alone() -> None:
    """Without a step that differs there is no line: batches of all examples leave rounding alone."""
    data = tiny_data()
    found = gemminer.instability(tiny_net(norm=False), data, data, pairs=1, **{**HOW, "batch_size": 96})
    assert found.barrier("test_loss") == pytest.approx(0, abs=1e-4)
    assert found.verdict == "stable"
    other = gemminer.instability(tiny_net(norm=False), data, data, pairs=1, **HOW)
    assert abs(other.lines[0].test_loss[0] - other.lines[0].test_loss[-1]) > 1e-6


def test_a_ticket_keeps_its_zeros_and_its_step(tmp_path: Path) -> None:
    ticket = drawn_ticket(tiny_net(), 0.3, rewind_step=5)
    data = tiny_data()
    found = gemminer.instability(tiny_net(), data, data, ticket=ticket, pairs=1, points=3, **HOW)
    assert (found.name, found.step) == ("ticket@5", 5)
    path = ticket.save(tmp_path / "t.safetensors")
    again = gemminer.instability(tiny_net(), data, data, ticket=path, pairs=1, points=3, **HOW)
    assert again.lines[0].test_loss == found.lines[0].test_loss


def fixed(*errors: float, metric: str = "accuracy") -> Instability:
    lines = tuple(Line((0.1, 0.1 + e, 0.1), (1.0, 1.0, 1.0), (0.0,) * 3, (0.0,) * 3) for e in errors)
    return Instability("dense@0", 0, (0.0, 0.5, 1.0), lines, metric=metric)


def test_the_verdict_is_of_the_mean_barrier() -> None:
    assert fixed(0.019, 0.02).verdict == "stable"
    assert fixed(0.03, 0.015).verdict == "unstable"
    assert fixed(0.0, metric="negative mse_loss").verdict == "not decided"
    assert fixed(-0.5).barrier() == 0  # an end is the highest point


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return zip(*tiny_data(), strict=True)


def test_a_stream_has_no_barriers_of_single_examples() -> None:
    stream = DataLoader(Stream(), batch_size=16)
    found = gemminer.instability(tiny_net(), stream, tiny_data(), pairs=1, points=3, epochs=2, lr=0.1)
    assert found.examples is None
    assert "examples" not in found.as_dict()


def test_any_loss_has_barriers() -> None:
    inputs, targets = tiny_data()
    data = inputs, F.one_hot(targets, 3).float()
    found = gemminer.instability(tiny_net(), data, data, pairs=1, points=3, loss=F.mse_loss, **HOW)
    assert found.verdict == "not decided"
    assert found.examples is not None


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"pairs": 0}, "pairs"),
        ({"points": 2}, "at least 3"),
        ({"statistics": "mean"}, "average"),
        ({"at": -1}, "at least 0"),
        ({"at": 18}, "18 steps"),
        ({"test_data": None}, "test data"),
        ({"epoch": 3}, "did you mean 'epochs'"),
    ],
)
def test_what_cannot_be_is_refused(fields: dict[str, Any], word: str) -> None:
    asked = {"test_data": tiny_data(), **HOW, **fields}
    with pytest.raises(UsageError, match=word):
        gemminer.instability(tiny_net(), tiny_data(), **asked)


def test_curves_that_there_are_not() -> None:
    with pytest.raises(UsageError, match="test_error"):
        fixed(0.0).barriers("error")
    assert dataclasses.asdict(fixed(0.0))["name"] == "dense@0"
