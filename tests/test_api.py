"""Mine, train and check from Python, on networks small enough to take seconds."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, TensorDataset

import gemminer
from gemminer import methods
from gemminer.cli import main
from gemminer.core.draw import Draw
from gemminer.core.errors import GemminerError, UsageError
from gemminer.core.progress import Monitor
from gemminer.core.prunable import prunable_weights
from gemminer.core.ticket import Ticket
from gemminer.runs import called, recipe, settings
from gemminer.training import shards, task
from gemminer.training.rules import KeepMask
from tests.helpers import Notes, Pair, Snapshot, states, tiny_data, tiny_net

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
        bench = called.experiment_of(
            net,
            (torch.arange(96.0).reshape(-1, 1).expand(96, 6), pair[1]),
            batch_size=32,
            seed=seed,
            metric=task.accuracy,
            monitor=None,
        )
        trained = shards.reseeded(bench.task.train, seed, "training batches", 0)
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
        ({"rigde": 1}, "unknown argument of gemminer.mine with gem-miner 'rigde'; did you mean 'ridge'"),
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
    for module in (called, settings):
        monkeypatch.setattr(module, "default_epochs", lambda examples: 1)
    ticket = gemminer.mine(tiny_net(), pair, 0.2, method="uniform")
    work: dict[str, Callable[[], object]] = {
        "mine": lambda: gemminer.mine(tiny_net(), pair, 0.1, epochs=0),
        "train": lambda: gemminer.train(tiny_net(), ticket, pair, epochs=0),
        "check": lambda: gemminer.check(tiny_net(), ticket, pair, pair, epochs=0, seeds=1, names=["shuffle"]),
    }
    with pytest.raises(UsageError, match="epochs must be 1 or more"):
        work[call]()


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


def test_a_training_finds_its_rate_unless_it_is_given(pair: Pair) -> None:
    net = tiny_net()
    ticket = gemminer.mine(net, pair, 0.25, method="uniform")
    found, given = (gemminer.train(net, ticket, pair, epochs=2, **fields)["rate"] for fields in ({}, {"lr": 0.1}))
    assert (found["steps"] > 0, found["max_norm"] is None) == (True, False)
    assert (given["lr"], given["steps"], given["max_norm"]) == (0.1, 0, None)


def test_the_cost_of_a_training_by_hand(pair: Pair) -> None:
    net = tiny_net()
    ticket = gemminer.mine(net, pair, 0.25, method="uniform")
    cost = gemminer.train(net, ticket, pair, epochs=2, lr=0.1)["cost"]
    # 3 passes of 2 FLOPs for each of 324 weights, 96 examples, 2 epochs; a quarter of each layer.
    assert cost["flops_dense"] == 3 * 2 * 324 * 96 * 2
    assert cost["flops_sparse"] == cost["flops_dense"] / 4
    assert cost["epochs"] == 2
    assert cost["seconds"] > 0


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"lr": -1.0}, "lr, the learning rate"),
        ({"learning_rate": 1.0}, "unknown argument of gemminer.train 'learning_rate'; did you mean 'lr'"),
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
    assert set(verdict.checks) == set(recipe.DEFAULT_CHECKS)


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


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"seeds": 0}, "seeds must be a whole number of at least 1"),
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


# --- and besides -----------------------------------------------------------------------------------------------


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


def test_the_package_imports_the_engine_only_when_asked() -> None:
    script = "import gemminer; print(gemminer.sparse.sparsify.__name__)"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout == "sparsify\n"
    with pytest.raises(AttributeError, match="no attribute 'sparze'"):
        _ = gemminer.sparze


def test_the_package_is_light_beside_torch() -> None:
    """What `import gemminer` loads that `import torch` does not: of others' packages these, and nothing else."""
    script = """if True:
        import sys, torch
        before = set(sys.modules)
        import gemminer
        print(*{name.split(".")[0] for name in set(sys.modules) - before} - sys.stdlib_module_names)
        print(*set(sys.modules) - before)
    """
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    packages, modules = (set(line.split()) for line in run.stdout.splitlines())
    light = {"gemminer", "safetensors", "pydantic", "pydantic_core", "annotated_types", "typing_inspection"}
    assert packages <= light | {"torch"}
    late = {"torch.utils.flop_counter", "torch._dynamo", "torch._inductor", "torch.onnx"}
    assert not (late | {"gemminer.runs.record", "gemminer.runs.answer"}) & modules
    rooms = ("gemminer.reporting.", "gemminer.sparse", "gemminer.bench")
    assert {name for name in modules if name.startswith(rooms)} == {"gemminer.reporting.calls"}  # which asks for them


@pytest.mark.parametrize(
    ("model", "options"), [("lenet-300-100", {}), ("resnet20", {"width": 0.5})], ids=["lenet-300-100", "resnet20"]
)
def test_a_call_gives_the_commands_ticket(model: str, options: dict[str, Any], tmp_path: Path) -> None:
    """Named data and a named network in Python, with the recipe's numbers: the same ticket bit for bit."""
    argv = ["mine", "--model", model, "--data", "digits", "--density", "0.05", "--epochs", "2", "--seed", "3"]
    argv += [f"--model-option={name}={value}" for name, value in options.items()]
    argv += ["--limit-train", "300", "--no-checks", "--no-dense", "--train-epochs", "1", "--device", "cpu"]
    assert main([*argv, "--out", str(tmp_path / "run")]) == 0
    loaded = gemminer.data.load("digits", limit_train=300)
    shape = {"in_channels": loaded.in_channels, "classes": loaded.classes, "image_size": loaded.image_size}
    net = gemminer.models.build(model, **shape, **options)
    ticket = gemminer.mine(net, loaded.train, 0.05, epochs=2, seed=3, validation_data=loaded.validation)
    assert ticket == Ticket.load(tmp_path / "run" / "ticket.safetensors")


ODD: dict[str, Callable[[Path], object]] = {
    "within": lambda path: gemminer.mine(tiny_net(), tiny_data(), 0.2, within=tiny_net(), epochs=1),  # type: ignore[arg-type]
    "a long name": lambda path: gemminer.mine(tiny_net(), tiny_data(), 0.2, checkpoint=path / ("a" * 300), epochs=1),
    "NUL": lambda path: gemminer.mine(tiny_net(), tiny_data(), 0.2, checkpoint="a\0b", epochs=1),
    "nested": lambda path: gemminer.mine(
        tiny_net(), (torch.nested.nested_tensor([torch.ones(6)] * 3, layout=torch.jagged), torch.zeros(3)), 0.2
    ),
    "masked": lambda path: gemminer.mine(tiny_net(), (np.ma.masked_less(np.eye(6), 1), np.arange(6)), 0.2),
    "workers": lambda path: gemminer.compare({"method": "erk"}, path, workers="2"),
    "threads": lambda path: gemminer.compare({"method": "erk", "data": "digits"}, path, threads="2"),
    "report": lambda path: gemminer.report([path], out=3),  # type: ignore[arg-type]
    "draw": lambda path: gemminer.draw(path / "nothing", out=3),  # type: ignore[arg-type]
    "program": lambda path: gemminer.sparse.Program.load(None),  # type: ignore[arg-type]
    "too large a program": lambda path: gemminer.sparse.compile(tiny_net(), input_shape=(10**12,)),
    "no name": lambda path: gemminer.data.load(None),  # type: ignore[arg-type]
    "a device": lambda path: gemminer.draw("/dev/zero"),
    "relative": lambda path: gemminer.data.load("../x:y"),
    "too deep": lambda path: gemminer.models.describe("wideresnet-9999999994-1"),
    "root": lambda path: gemminer.data.load("mnist", root=3),  # type: ignore[arg-type]
    "validation": lambda path: gemminer.data.load("digits", validation="0.1"),  # type: ignore[arg-type]
    "crop": lambda path: gemminer.data.load("digits", augment="crop99999"),
    "width": lambda path: gemminer.models.build("lenet-300-100", width=1e9),
    "size": lambda path: gemminer.models.build("lenet-300-100", image_size=10**9),
    "classes": lambda path: gemminer.models.build("lenet-300-100", classes=10**15),
    "recipe": lambda path: gemminer.runs.recipe.load(3),  # type: ignore[arg-type]
    "record": lambda path: gemminer.runs.record.read(3),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("call", ODD.values(), ids=ODD)
def test_what_a_stranger_may_call_is_one_sentence(call: Callable[[Path], object], tmp_path: Path) -> None:
    with pytest.raises(gemminer.GemminerError) as caught:
        call(tmp_path)
    assert "\n" not in str(caught.value)


def test_remarks_reach_a_person_without_a_monitor(caplog: pytest.LogCaptureFixture) -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    model.extra = nn.Parameter(torch.randn(40, 4))  # dense: a parameter of no layer
    data = (torch.randn(32, 4), torch.randint(2, (32,)))
    gemminer.mine(model, data, 0.5, method="random")
    assert any(
        "left dense" in r.getMessage() or "stay" in r.getMessage() for r in caplog.records if r.name == "gemminer"
    )


def test_a_class_for_a_loss_is_told_to_be_made() -> None:
    data = (torch.randn(32, 4), torch.randint(2, (32,)))
    with pytest.raises(UsageError, match="not the class CrossEntropyLoss: make one"):
        gemminer.mine(nn.Linear(4, 2), data, 0.5, loss=nn.CrossEntropyLoss)  # type: ignore[arg-type]
