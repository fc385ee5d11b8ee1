"""bf16: every product of the model in bfloat16, its weights, scores and the loss in float32."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.optimizer import register_optimizer_step_post_hook

import gemminer
from gemminer import methods, sparse
from gemminer.core.errors import UsageError
from gemminer.core.progress import Monitor
from gemminer.data import TensorBatches
from gemminer.sparse.training import chain, crossover
from gemminer.training import engine, precision
from gemminer.training.task import Task
from tests.conformance import models
from tests.helpers import EXACT, Notes, drawn_ticket, mined, tiny_data, tiny_net

EMULATED = "this processor emulates bf16, so what is computed densely is slower than in fp32"
BF16, FP32 = torch.bfloat16, torch.float32


def own_options(method: str) -> dict[str, Any]:
    return {"epochs": 2} if methods.get(method).trains else {}


@contextlib.contextmanager
def watched(net: nn.Module) -> Iterator[dict[bool, set[torch.dtype]]]:
    """The types of what linear layers put out, while it lasts, by the mode of the model."""
    seen: dict[bool, set[torch.dtype]] = {}

    def look(module: nn.Module, args: Any, output: Tensor) -> None:
        if torch.is_tensor(output):
            seen.setdefault(module.training, set()).add(output.dtype)

    handles = [m.register_forward_hook(look) for m in net.modules() if isinstance(m, nn.Linear)]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


# --- what runs in bfloat16 ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", EXACT)
@pytest.mark.parametrize("name", models.ALL)
def test_every_method_searches_in_it(method: str, name: str) -> None:
    model = models.build(name)
    task = dataclasses.replace(models.task_of(model), precision="bf16", engine="dense")
    before = {n: p.dtype for n, p in model.named_parameters()}
    ticket = mined(methods.get(method).find, task, 0.3, models.options_of(method), 0)
    assert ticket.kept == round(0.3 * ticket.prunable)
    assert {n: p.dtype for n, p in model.named_parameters()} == before
    assert {t.dtype for t in ticket.initial.values() if t.is_floating_point()} == {FP32}


@pytest.mark.parametrize("method", EXACT)
def test_layers_put_out_bfloat16_in_search_training_and_evaluation(method: str) -> None:
    """SynFlow scores in float64, which autocast leaves alone, and some methods never run the model."""
    net, data = tiny_net(), tiny_data()
    with watched(net) as seen:
        ticket = gemminer.mine(net, data, 0.3, method=method, precision="bf16", **own_options(method))
    exact = {torch.float64} if method == "synflow" else set()
    # FLOPs are counted in float32 first, where a product still shows whose weight it reads.
    assert set().union(*seen.values()) - {FP32} == {BF16} | exact
    assert ticket.provenance["precision"] == "bf16"
    with watched(net) as seen:
        result = gemminer.train(net, ticket, data, data, epochs=2, precision="bf16")
    assert seen[True] - {FP32} == seen[False] == {BF16}
    assert result.test is not None
    assert {p.dtype for p in net.parameters()} == {FP32}


def test_fp32_is_what_it_was() -> None:
    net, data = tiny_net(), tiny_data()
    with watched(net) as seen:
        ticket = gemminer.mine(net, data, 0.3, epochs=1)
        gemminer.train(net, ticket, data, data, epochs=1, precision="fp32")
    assert set().union(*seen.values()) == {FP32}
    assert ticket.provenance["precision"] == "fp32"


def test_scores_and_the_optimisers_state_are_float32() -> None:
    seen: list[torch.dtype] = []

    def hook(optimiser: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        for p, state in optimiser.state.items():
            seen.extend([p.dtype, *(t.dtype for t in state.values() if torch.is_tensor(t))])

    handle = register_optimizer_step_post_hook(hook)
    try:
        net, data = tiny_net(), tiny_data()
        ticket = gemminer.mine(net, data, 0.3, epochs=1, precision="bf16")
        gemminer.train(net, ticket, data, epochs=1, lr=0.01, optimiser="adam", precision="bf16")
    finally:
        handle.remove()
    assert set(seen) == {FP32}


def test_inside_a_mask_too() -> None:
    net, data = tiny_net(), tiny_data()
    within = drawn_ticket(net, 0.5)
    with watched(net) as seen:
        ticket = gemminer.mine(net, data, 0.2, epochs=2, within=within, precision="bf16")
    assert BF16 in seen[True]
    assert not any(bool((mask & ~within.masks[n]).any()) for n, mask in ticket.masks.items())


# --- what the loss gets --------------------------------------------------------------------------------------------


def test_a_loss_and_a_metric_of_ones_own_get_float32() -> None:
    """Whatever they are made of: a square in bfloat16 would have three digits."""
    net, (inputs, targets) = nn.Linear(6, 3), tiny_data()
    wanted = F.one_hot(targets, 3).float()
    got: set[Any] = set()

    def loss(output: Tensor, target: Tensor) -> Tensor:
        got.add((output.dtype, target.dtype, torch.is_autocast_enabled("cpu")))
        return (output - target).square().mean()

    def metric(output: Tensor, target: Tensor) -> Tensor:
        got.add((output.dtype, target.dtype, torch.is_autocast_enabled("cpu")))
        return -(output - target).square().mean()

    data = (inputs, wanted)
    ticket = gemminer.mine(net, data, 0.5, epochs=1, loss=loss, metric=metric, validation_data=data, precision="bf16")
    gemminer.train(net, ticket, data, data, epochs=1, loss=loss, metric=metric, precision="bf16")
    assert got == {(FP32, FP32, True)}


def test_parts_of_an_output_are_float32_and_of_its_own_class() -> None:
    @dataclasses.dataclass
    class Own:
        loss: Tensor

    own = Own(torch.ones(1, dtype=BF16))
    value = {"logits": torch.ones(2, dtype=BF16), "ids": torch.ones(2).long(), "more": [torch.ones(1, dtype=BF16), own]}
    found = precision.in_float32(value)
    assert (found["logits"].dtype, found["ids"].dtype, found["more"][0].dtype) == (FP32, torch.int64, FP32)
    assert found["more"][1] is own


def test_a_step_of_ones_own_runs_under_the_same_autocast() -> None:
    net, data = tiny_net(), tiny_data()
    seen = set()

    def step(model: nn.Module, batch: Any) -> Tensor:
        output = model(batch[0])
        seen.add((output.dtype, torch.is_autocast_enabled("cpu")))
        return (output - F.one_hot(batch[1], 3).to(output.dtype)).square().mean()

    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*data), batch_size=32)
    gemminer.mine(net, loader, 0.3, epochs=1, step=step, precision="bf16", validation_data=loader)
    assert seen >= {(BF16, True)}
    assert seen <= {(BF16, True), (FP32, False)}  # the second: where FLOPs are counted
    # What it returns is taken as float32, so that a batch's part in a step is multiplied in it.
    task = Task(net, models.task_of(models.build("Plain")).train, step=step, precision="bf16")
    assert task.loss_of(data, None).dtype == FP32


# --- which engine, and what is said ----------------------------------------------------------------------------------


def test_one_note_says_that_it_is_emulated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "native", lambda: False)
    net, data, monitor = tiny_net(), tiny_data(), Notes()
    ticket = gemminer.mine(net, data, 0.05, epochs=2, precision="bf16", monitor=monitor)
    assert len([note for note in monitor.notes if EMULATED in note]) == 1
    assert any(EMULATED in note for note in ticket.provenance["notes"])
    gemminer.check(net, ticket, data, data, seeds=2, epochs=1, precision="bf16", monitor=(checked := Notes()))
    assert len([note for note in checked.notes if EMULATED in note]) == 1


def test_layers_are_chosen_by_times_of_the_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "WORTH", 0)
    asked: list[str] = []
    monkeypatch.setattr(crossover, "of_layer", lambda layer, precision: asked.append(precision) or 0.25)
    net = nn.Sequential(nn.Linear(6, 300), nn.ReLU(), nn.Linear(300, 300), nn.Linear(300, 3))
    task = Task(net, TensorBatches(torch.randn(8, 6), torch.zeros(8).long(), batch_size=8), engine="auto")
    for name in precision.PRECISIONS:
        assert set(engine.choose(dataclasses.replace(task, precision=name)).values()) <= {0.25, 1.0}
    assert set(asked) == {"fp32", "bf16"}


def test_kept_weights_are_computed_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Search, training and evaluation: every chain of the sparse engine stores bfloat16, and learns as dense layers."""
    kept: set[torch.dtype] = set()
    launch = chain.Runner.launch
    monkeypatch.setattr(chain.Runner, "launch", lambda self, *args: (kept.add(self.kept), launch(self, *args))[1])
    net, data = tiny_net(), tiny_data()
    accuracy = {}
    for name in ("dense", "sparse"):
        ticket = gemminer.mine(net, data, 0.3, epochs=4, precision="bf16", engine=name, validation_data=data)
        result = gemminer.train(net, ticket, data, data, epochs=4, lr=0.1, precision="bf16", engine=name)
        accuracy[name] = result["test"]
        assert kept == (set() if name == "dense" else {BF16})
    assert abs(accuracy["dense"] - accuracy["sparse"]) < 0.2


@pytest.mark.parametrize("native", [False, True])
def test_a_processor_that_emulates_it_is_named(monkeypatch: pytest.MonkeyPatch, native: bool) -> None:
    there = {"avx512_f": True, "avx512_bf16": native, "amx_bf16": False, "cpu_name": "bf16 of old"}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {k: v for k, v in there.items() if k != "cpu_name"})
    cpu = torch.device("cpu")
    assert precision.native() is native
    assert precision.remark("bf16", cpu) == (None if native else EMULATED)
    assert precision.remark("fp32", cpu) is None
    assert precision.remark("bf16", torch.device("cuda")) is None


def test_flops_are_booked_to_weights_in_both(monkeypatch: pytest.MonkeyPatch) -> None:
    """Autocast multiplies by copies of weights, whose FLOPs would be no weight's."""
    net, data = tiny_net(), tiny_data()
    ticket = drawn_ticket(net, 0.1)
    costs = [gemminer.train(net, ticket, data, epochs=1, lr=0.1, precision=p).cost for p in precision.PRECISIONS]
    assert costs[0]["flops_sparse"] == costs[1]["flops_sparse"] < 0.2 * costs[1]["flops_dense"]


# --- what cannot be --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"precision": "fp16"}, "unknown precision 'fp16'; did you mean"),
        ({"precision": torch.bfloat16}, "unknown precision 'torch.bfloat16'"),
        ({"precision": None}, "unknown precision 'None'"),
    ],
)
def test_a_precision_that_cannot_be_is_one_sentence(given: dict[str, Any], sentence: str) -> None:
    net, data = tiny_net(), tiny_data()
    ticket = drawn_ticket(net)
    for call in (
        lambda: gemminer.mine(net, data, 0.3, **given),
        lambda: gemminer.train(net, ticket, data, **given),
        lambda: gemminer.check(net, ticket, data, data, **given),
    ):
        with pytest.raises(UsageError) as caught:
            call()
        assert str(caught.value).startswith(sentence)


def test_a_double_model_is_refused() -> None:
    with pytest.raises(UsageError, match=r"bf16 runs a float32 model in bfloat16, and this is a float64 one"):
        gemminer.mine(tiny_net().double(), tiny_data(), 0.3, precision="bf16")


def test_a_device_without_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.amp, "is_autocast_available", lambda device: False)
    with pytest.raises(UsageError, match="the device cpu has no bfloat16"):
        gemminer.mine(tiny_net(), tiny_data(), 0.3, precision="bf16")
    monkeypatch.undo()
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda emulated: False)
    with pytest.raises(UsageError, match="the device cuda:1 has no bfloat16"):
        precision.checked_precision("bf16", tiny_net(), torch.device("cuda:1"))


def test_a_checkpoint_knows_its_precision(tmp_path: Path) -> None:
    class Killed(Exception):
        """The machine went down."""

    class Killing(Monitor):
        def epoch(self, row: dict[str, Any]) -> None:
            if row["epoch"] == 3:
                raise Killed

    def mine(of: str, name: str, monitor: Monitor) -> gemminer.Ticket:
        net, data = tiny_net(), tiny_data()
        return gemminer.mine(net, data, 0.3, epochs=4, precision=of, checkpoint=tmp_path / name, monitor=monitor)

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GEMMINER_CHECKPOINT_SECONDS", "0")
        with pytest.raises(Killed):
            mine("bf16", "c", Killing())
        with pytest.raises(UsageError, match=r"another call \(precision: 'bf16' there, 'fp32' here\)"):
            mine("fp32", "c", Monitor())
        assert mine("bf16", "c", Monitor()).digest == mine("bf16", "d", Monitor()).digest


def test_a_sparse_network_is_no_part_of_it() -> None:
    """`sparsify` itself takes no precision: its kernels are float32's."""
    net = tiny_net()
    ticket = drawn_ticket(net)
    output = sparse.sparsify(ticket.apply(net), ticket, engine="sparse")(tiny_data()[0])
    assert output.dtype == FP32
