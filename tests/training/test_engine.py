"""The engine of a step: chosen, refused, and with the results of the dense one."""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import gemminer
from gemminer.cli import main
from gemminer.core.errors import UsageError
from gemminer.core.progress import Monitor
from gemminer.data import TensorBatches
from gemminer.runs.execute import run_recipe, train_ticket
from gemminer.runs.recipe import make
from gemminer.sparse.training.convert import passed_over
from gemminer.sparse.training.modules import SparseLayer
from gemminer.training import engine
from gemminer.training.checkpoint import Checkpoint
from gemminer.training.task import Task
from tests.helpers import Notes, tiny_data, tiny_net


def wide() -> tuple[nn.Module, TensorBatches]:
    """A step of some 0.8 GFLOP, more than `auto` asks for."""
    net = nn.Sequential(nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 32, 3, padding=1))
    net.extend([nn.ReLU(), nn.Flatten(), nn.Linear(32 * 256, 10)])
    source = torch.Generator().manual_seed(0)
    images = torch.randn(64, 3, 16, 16, generator=source)
    return net, TensorBatches(images, torch.arange(64) % 10, batch_size=64)


def masks_of(net: nn.Module, density: float) -> dict[str, torch.Tensor]:
    source = torch.Generator().manual_seed(1)
    named = net.named_parameters()
    return {n: torch.rand(p.shape, generator=source) < density for n, p in named if n.endswith("weight")}


def test_auto_takes_kept_weights_only_where_a_step_is_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gemminer.sparse.training.crossover.crossovers", lambda *asked: dict.fromkeys(KINDS, 0.5))
    net, batches = wide()
    masks = masks_of(net, 0.02)
    found = engine.kept_only(Task(net, batches), masks)
    assert found is not None
    assert sum(isinstance(m, SparseLayer) for m in found.modules()) == 3
    assert engine.kept_only(Task(net, batches, engine="dense"), masks) is None
    assert engine.kept_only(Task(net, batches), masks_of(net, 0.9)) is None  # nothing pays
    small = tiny_net()
    task = Task(small, TensorBatches(*tiny_data(), batch_size=16))
    assert engine.kept_only(task, masks_of(small, 0.02)) is None  # a step too short to gain by it
    task.engine = "sparse"
    assert engine.kept_only(task, masks_of(small, 0.02)) is not None


def test_a_search_makes_its_networks_vectors_shorter_in_place() -> None:
    conv = nn.Conv2d(4, 4, 3, padding=1, bias=False)
    twin = nn.Conv2d(4, 4, 3, padding=1, bias=False)
    twin.weight = conv.weight  # two modules, one weight
    model = nn.Sequential(conv, nn.BatchNorm2d(4), nn.ReLU(), twin, nn.Flatten(), nn.Linear(64, 3)).double()
    names = ["0.weight", "5.weight"]
    source = torch.Generator().manual_seed(0)
    wide = {n: torch.rand(model.get_parameter(n).shape, generator=source) < 0.8 for n in names}
    narrow = {n: mask & (torch.rand(mask.shape, generator=source) < 0.5) for n, mask in wide.items()}
    x = torch.randn(5, 4, 4, 4, generator=source, dtype=torch.float64)
    held, _ = engine.search_network(model, wide, names)
    held(x).sum().backward()
    results = []
    for before in (held, None):
        net, weights = engine.search_network(model, narrow, names, before)
        assert (net is held) == (before is held)
        for n, w in zip(names, weights, strict=True):
            w.data = model.get_parameter(n).detach()[narrow[n]]
        loss = net(x).square().sum()
        loss.backward()
        results.append([loss.detach(), *(w.grad for w in weights)])
    for ours, fresh in zip(*results, strict=True):
        torch.testing.assert_close(ours, fresh)
    other, weights = engine.search_network(model, {"5.weight": narrow["5.weight"]}, names, held)
    assert other is not held  # the convolutions are dense again
    assert [w.dim() for w in weights] == [4, 1]


KINDS = ("conv 16", "conv 64", "conv 256", "point", "linear 512", "linear 2048")


@pytest.mark.parametrize("options", [{}, {"optimiser": "adamw", "lr": 1e-3}])
def test_training_on_kept_weights_only_ends_where_masked_training_does(options: dict[str, Any]) -> None:
    data = tiny_data()
    ends, results = [], []
    for name in ("dense", "sparse"):
        net = tiny_net()
        ticket = gemminer.mine(net, data, density=0.2, method="erk", initialiser="keep")
        results.append(gemminer.train(net, ticket, data, data, epochs=4, engine=name, **options))
        ends.append(net.state_dict())
        for weight, mask in ticket.masks.items():
            assert not net.state_dict()[weight][~mask].any()
    assert results[0]["test"] == pytest.approx(results[1]["test"], abs=0.02)
    for weight in ticket.masks:  # not biases in front of a norm, whose gradient is zero but for rounding
        value = ends[0][weight]
        torch.testing.assert_close(ends[1][weight], value, rtol=1e-3, atol=1e-4)


def test_an_engine_that_cannot_be_is_refused_before_anything_runs(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UsageError, match="unknown engine 'sparze'"):
        gemminer.mine(tiny_net(), tiny_data(), density=0.2, engine="sparze")
    with pytest.raises(UsageError, match="runs on the CPU, not on meta"):
        engine.checked("sparse", torch.device("meta"))
    assert main(["mine", "--engine", "sparze", "--out", "nowhere"]) == 2
    assert "engine" in capsys.readouterr().err
    assert not Path("nowhere").exists()


def test_a_training_begun_with_another_engine_starts_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, net = tiny_data(), tiny_net()
    ticket = gemminer.mine(net, data, density=0.2, method="erk", initialiser="keep")

    class Killed(Monitor):
        def epoch(self, row: dict[str, Any]) -> None:
            if row["epoch"] == 3:
                raise KeyboardInterrupt

    class Told(Monitor):
        def __init__(self) -> None:
            self.notes: list[str] = []

        def note(self, text: str) -> None:
            self.notes.append(text)

    os.environ["GEMMINER_CHECKPOINT_SECONDS"] = "0"
    try:
        path = tmp_path / "state"
        with pytest.raises(KeyboardInterrupt):
            gemminer.train(net, ticket, data, data, epochs=5, engine="dense", checkpoint=path, monitor=Killed())
        with pytest.raises(UsageError, match=r"of another call \(the engine: dense there, sparse here\)"):
            gemminer.train(net, ticket, data, data, epochs=5, engine="sparse", checkpoint=path)
        # A run's own folder lets it, and what was begun with the other engine starts over.
        lenient = functools.partial(Checkpoint, free=frozenset({"the engine"}))
        monkeypatch.setattr("gemminer.runs.called.Checkpoint", lenient)
        told = Told()
        found = gemminer.train(net, ticket, data, data, epochs=5, engine="sparse", checkpoint=path, monitor=told)
    finally:
        del os.environ["GEMMINER_CHECKPOINT_SECONDS"]
    assert told.notes == ["'train' was begun with another engine: it starts over"]
    fresh = gemminer.train(net, ticket, data, data, epochs=5, engine="sparse")
    assert found["test"] == fresh["test"]


def crossovers_of(density: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine on which layers are faster sparse below this density, however short a step is."""
    monkeypatch.setattr("gemminer.sparse.training.crossover.crossovers", lambda *asked: dict.fromkeys(KINDS, density))
    monkeypatch.setattr(engine, "WORTH", 0.0)


class Killed(Monitor):
    """Ends a training after its second epoch, as Ctrl-C does."""

    def __init__(self, phase: str) -> None:
        self.phase = phase

    def epoch(self, row: dict[str, Any]) -> None:
        if (row["phase"], row["epoch"]) == (self.phase, 2):
            raise KeyboardInterrupt


CONV = {
    **{"model": "conv-2", "model_options": {"width": 0.25}, "density": 0.05, "epochs": 3, "train_epochs": 3},
    **{"limit_train": 100, "batch_size": 32},
    **{"checks": (), "check_seeds": 1, "dense": False},
}


def test_a_resumed_or_repeated_run_computes_the_layers_it_computed_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Timings have changed since: the record and the folder say which layers were sparse, and that holds."""
    monkeypatch.setenv("GEMMINER_CHECKPOINT_SECONDS", "0")
    crossovers_of(0.5, monkeypatch)
    whole = run_recipe(make(CONV), tmp_path / "whole", device="cpu")
    shapes = {layer.name: layer.shape for layer in whole.layers}
    assert whole.engine is not None
    assert {below for name, below in whole.engine.below.items() if len(shapes[name]) == 4} == {0.5}
    with pytest.raises(KeyboardInterrupt):
        run_recipe(make(CONV), tmp_path / "killed", device="cpu", monitor=Killed("train:0"))
    crossovers_of(0.0, monkeypatch)
    resumed = run_recipe(make(CONV), tmp_path / "killed", device="cpu", resume=True)
    assert resumed.engine == whole.engine
    names = ("ticket.safetensors", "trained.safetensors")
    first, second = ([load_file(tmp_path / run / name) for name in names] for run in ("whole", "killed"))
    assert all(torch.equal(t, b[n]) for a, b in zip(first, second, strict=True) for n, t in a.items())
    train_ticket(make(CONV), tmp_path / "whole" / names[0], tmp_path / "again.safetensors", device="cpu")
    again = load_file(tmp_path / "again.safetensors")
    assert all(torch.equal(t, again[n]) for n, t in first[1].items())
    fresh = run_recipe(make(CONV), tmp_path / "fresh", device="cpu")
    assert fresh.engine is not None
    assert {below for name, below in fresh.engine.below.items() if len(shapes[name]) == 4} == {0.0}


def test_a_resumed_call_computes_the_layers_it_computed_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GEMMINER_CHECKPOINT_SECONDS", "0")
    crossovers_of(0.5, monkeypatch)
    net, data = tiny_net(), tiny_data()
    ticket = gemminer.mine(net, data, density=0.2, method="erk")
    gemminer.train(net, ticket, data, epochs=4)
    whole = {n: t.clone() for n, t in net.state_dict().items()}
    path = tmp_path / "state.pt"
    with pytest.raises(KeyboardInterrupt):
        gemminer.train(net, ticket, data, epochs=4, checkpoint=path, monitor=Killed("train"))
    crossovers_of(0.0, monkeypatch)
    gemminer.train(net, ticket, data, epochs=4, checkpoint=path)
    assert all(torch.equal(t, whole[n]) for n, t in net.state_dict().items())


class Doubled(nn.Linear):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(input)


def hooked_net() -> nn.Sequential:
    net = tiny_net()
    net[0].weight.register_hook(torch.clone)
    net[3].register_forward_hook(lambda *_: None)
    net[5] = Doubled(12, 3)
    return net


def test_a_run_says_once_which_layers_stay_dense_for_what_they_have_of_their_own(tmp_path: Path) -> None:
    said = "computed densely under the mask: 0 (a hook on its weight's gradient); 3 (hooks); 5 (a forward of its own)"
    for wrap in (nn.Sequential, nn.DataParallel):
        net, notes = wrap(hooked_net()), Notes()
        own = said if wrap is nn.DataParallel else said.replace(" 0 ", " 0.0 ").replace("; ", "; 0.")
        ticket = gemminer.mine(net, tiny_data(), 0.2, epochs=1, engine="sparse", monitor=notes)
        assert notes.notes.count(own) == 1
        assert own in ticket.provenance["notes"]
        gemminer.train(net, ticket, tiny_data(), epochs=1, engine="sparse", monitor=notes)
        assert notes.notes.count(own) == 2
        gemminer.check(net, ticket, tiny_data(), tiny_data(), epochs=1, seeds=2, engine="sparse", monitor=notes)
        assert notes.notes.count(own) == 3  # once for all trainings
        gemminer.train(
            net, ticket, tiny_data(), epochs=1, engine="auto", monitor=notes
        )  # too small, it is dense anyway
        assert notes.notes.count(own) == 3
    plain = Notes()
    gemminer.mine(tiny_net(), tiny_data(), 0.2, epochs=1, engine="sparse", monitor=plain)
    assert not any("densely" in note for note in plain.notes)


def test_many_layers_that_stay_dense_are_one_note() -> None:
    net = nn.Sequential(*(Doubled(6, 6) for _ in range(6)))
    net[5].mask = nn.Parameter(torch.ones(()))  # type: ignore[assignment]
    assert passed_over(net, [f"{i}.weight" for i in range(1, 6)]) == (
        "computed densely under the mask: 1, 2, 3, 4 (a forward of its own); 5 (tensors or modules of its own)"
    )
    more = passed_over(nn.Sequential(*(Doubled(6, 6) for _ in range(6))), [f"{i}.weight" for i in range(6)])
    assert more == "computed densely under the mask: 0, 1, 2, 3 and 2 more (a forward of its own)"


def test_without_numbas_compiler_auto_is_dense_and_sparse_is_refused(
    net: nn.Module, pair: tuple[torch.Tensor, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NUMBA_DISABLE_JIT", "1")
    monkeypatch.setattr(engine, "WORTH", 0.0)
    assert gemminer.mine(net, pair, 0.2, method="snip", engine="auto").kept == 65
    with pytest.raises(UsageError, match="unset NUMBA_DISABLE_JIT, or use engine dense"):
        gemminer.mine(net, pair, 0.2, method="snip", engine="sparse")
    ticket = gemminer.mine(net, pair, 0.2, method="erk")
    program = gemminer.sparse.compile(net, input_shape=(6,))
    for use in (lambda: gemminer.sparse.sparsify(net, ticket), lambda: program(torch.zeros(1, 6))):
        with pytest.raises(UsageError, match="unset NUMBA_DISABLE_JIT"):
            use()
