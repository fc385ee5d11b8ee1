"""Two processes that search, train and check together come to what one does with both their batches."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

import gemminer
from gemminer import methods
from gemminer.cli import main
from gemminer.core.errors import GemminerError, UsageError
from gemminer.core.ticket import Ticket
from gemminer.runs import record
from gemminer.training.ranks import Ranks
from tests.helpers import EXACT, drawn_ticket, tiny_data, tiny_net
from tests.processes import together

TRAIN, TEST = tiny_data(90), tiny_data(40, seed=1)  # 90: the last step has 16 examples on one rank and 10 on the other
Found = dict[str, Any]


class InHalves(nn.BatchNorm1d):
    """Batch norm over each 16 examples alone: what the ranks' norms see of a global batch of 32."""

    def forward(self, inputs: Tensor) -> Tensor:
        return (
            torch.cat([super(InHalves, self).forward(part) for part in inputs.split(16)])
            if self.training
            else (super().forward(inputs))
        )


def net(seed: int = 0, norm: type[nn.Module] | None = None) -> nn.Sequential:
    made = tiny_net(seed, norm=norm is not None)
    if norm is InHalves:
        own = InHalves(16)
        made[1] = own
    return made


def found(ticket: Ticket, model: nn.Module, result: Any) -> Found:
    return {"digest": ticket.digest, "test": result.test, "lr": result.rate["lr"], "state": dict(model.state_dict())}


def call(
    how: dict[str, Any], method: str, data: Any = TRAIN, norm: type[nn.Module] | None = None, **more: Any
) -> Found:
    """A search and a training; on ranks other than the first the model's own weights are others."""
    seed = distributed.get_rank() if distributed.is_initialized() else 0
    epochs = {"epochs": 3} if methods.get(method).trains else {}
    given = {"validation_data": TEST, **how, **more}
    ticket = gemminer.mine(net(seed, norm), data, 0.2, method=method, **given, **epochs)
    model = net(seed, norm)
    given.pop("validation_data")
    return found(ticket, model, gemminer.train(model, ticket, data, TEST, epochs=3, **given))


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 12))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(x)


def without_layers(how: dict[str, Any], density: float, **options: Any) -> Found:
    """A network of residual blocks, of which one is removed."""

    def residual() -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(distributed.get_rank() if distributed.is_initialized() else 0)
            return nn.Sequential(nn.Linear(6, 12), *(Residual() for _ in range(3)), nn.Linear(12, 3))

    options = {"criterion": "snip", "remove": 1, "batches": 2, "epochs": 3, **options}
    ticket = gemminer.mine(residual(), TRAIN, density, method="layers", **how, **options)
    assert len(ticket.removed) == 1
    model = residual()
    return found(ticket, model, gemminer.train(model, ticket, TRAIN, TEST, epochs=3, **how))


def every_method(how: dict[str, Any]) -> dict[str, Found]:
    return {
        **{name: call(how, name) for name in EXACT},
        "layers": without_layers(how, 1.0),
        "layers, then gem-miner": without_layers(how, 0.2, then="gem-miner"),
    }


def ways(how: dict[str, Any]) -> dict[str, Found]:
    """Other ways to give models and data."""
    plain = TensorDataset(*TRAIN)
    size = how["batch_size"]
    dicts = [{"x": x, "label": y} for x, y in zip(*TRAIN, strict=True)]

    def step(model: nn.Module, batch: Any) -> Tensor:
        return nn.functional.cross_entropy(model(batch["x"]), batch["label"])

    return {
        "a loader": call(how, "gem-miner", DataLoader(plain, batch_size=size)),
        "kept weights": call(how, "gem-miner", engine="sparse"),
        "norms": call(how, "gem-miner", norm=InHalves if how["batch_size"] == 32 else nn.BatchNorm1d),
        "a step": {
            "digest": gemminer.mine(net(), dicts, 0.2, epochs=2, step=step, **how).digest,
        },
    }


def checks(how: dict[str, Any]) -> dict[str, Any]:
    ticket = drawn_ticket(net(), 0.2)
    names = ["shuffle", "reinit", "uniform"]
    checked = gemminer.check(net(), ticket, TRAIN, TEST, seeds=2, epochs=2, names=names, **how)
    return {name: (c.mean, c.difference) for name, c in checked.checks.items()}


def sentence(work: Callable[[], Any]) -> str:
    try:
        work()
    except GemminerError as error:
        return str(error)
    return ""


def refused(how: dict[str, Any]) -> dict[str, str]:
    rank = distributed.get_rank()
    sharded = net()
    with contextlib.suppress(ImportError):
        from torch.distributed.fsdp import fully_shard

        fully_shard(sharded, mesh=distributed.device_mesh.init_device_mesh("cpu", (2,)))
    return {
        "unsaid": sentence(lambda: gemminer.mine(net(), TRAIN, 0.2, epochs=1)),
        "sharded": sentence(lambda: gemminer.mine(sharded, TRAIN, 0.2, epochs=1, distributed=True)),
        "other density": sentence(lambda: gemminer.mine(net(), TRAIN, 0.2 + 0.1 * rank, epochs=1, distributed=True)),
        "other method": sentence(
            lambda: gemminer.mine(net(), TRAIN, 0.2, method=["snip", "edge-popup"][rank], distributed=True)
        ),
        "no group": sentence(lambda: gemminer.mine(net(), TRAIN, 0.2, epochs=1, distributed=3)),  # type: ignore[arg-type]
    }


def in_a_folder(out: str) -> dict[str, Any]:
    rank, how = distributed.get_rank(), {"distributed": True, "batch_size": 16, "out": out}
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda row: said.append(row.getMessage())  # type: ignore[method-assign]
    logging.getLogger("gemminer").addHandler(handler)
    model = DistributedDataParallel(net(rank))
    ticket = gemminer.mine(model, TRAIN, 0.006, epochs=3, **how)
    result = gemminer.train(model, ticket, TRAIN, TEST, epochs=2, **how)
    checked = gemminer.check(net(), ticket, TRAIN, TEST, epochs=2, seeds=2, names=["shuffle"], **how)
    again = gemminer.train(net(), ticket, TRAIN, TEST, epochs=2, **how)
    alone = gemminer.mine(net(), TRAIN, 0.2, epochs=1, distributed=False, seed=rank)  # each its own
    return {
        "ticket": ticket.digest,
        "test": result.test,
        "state": dict(model.module.state_dict()),
        "checked": checked.checks,
        "again": again == result,
        "alone": alone.digest,
        "said": said,
    }


def own_parts() -> str:
    plain = TensorDataset(*TRAIN)
    loader = DataLoader(plain, batch_size=16, sampler=DistributedSampler(plain, shuffle=False))
    tickets = {
        gemminer.mine(net(), loader, 0.2, method=name, distributed=True, **epochs).digest
        for name, epochs in (("gem-miner", {"epochs": 2}), ("snip", {}), ("grasp", {}))
    }
    return " ".join(sorted(tickets))


def means() -> dict[str, Any]:
    """Of 3 examples on one rank and 301 on the other, a number that bf16 has not."""
    rank = distributed.get_rank()
    examples, ranks = [3, 301][rank], Ranks()
    both, one, none, still = (torch.zeros(2, requires_grad=True) for _ in range(4))
    half = torch.zeros(2, dtype=torch.bfloat16, requires_grad=True)
    still.requires_grad_(False)
    both.grad, still.grad, half.grad = torch.tensor([1.0, rank]), torch.full((2,), 7.0), torch.ones(2).bfloat16()
    one.grad = torch.tensor([304.0, 608.0]) if rank else None
    parameters = [both, one, none, still, half]
    value = ranks.mean(torch.tensor([2.0, 4.0][rank]), examples, parameters)
    grads = [None if p.grad is None else p.grad.tolist() for p in parameters]
    labelled = ranks.mean(torch.tensor([torch.nan, 4.0][rank]), torch.tensor(rank))  # this rank has no labels
    return {"value": float(value), "grads": grads, "labelled": float(labelled), "of none": float(ranks.mean(value, 0))}


def all_of_it(out: str) -> dict[str, Any]:
    how = {"distributed": True, "batch_size": 16}
    return {
        "methods": every_method(how),
        "ways": ways(how),
        "checks": checks(how),
        "refused": refused(how),
        "folder": in_a_folder(out),
        "own parts": own_parts(),
        "means": means(),
    }


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("ranks")
    results = together(all_of_it, folder / "processes", str(folder / "run"))
    results[0]["path"] = folder / "run"
    return results


@pytest.fixture(scope="module")
def one() -> dict[str, Any]:
    torch.set_num_threads(1)
    how = {"batch_size": 32}
    return {"methods": every_method(how), "ways": ways(how), "checks": checks(how)}


def same(one: Any, other: Any, *, bits: bool) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        if isinstance(value, dict):
            same(value, other[name], bits=bits)
        elif isinstance(value, Tensor) and not bits:
            assert torch.allclose(value, other[name], atol=1e-5), name
        elif isinstance(value, Tensor):
            assert torch.equal(value, other[name]), name
        else:
            assert value == (other[name] if bits else pytest.approx(other[name])), name


def test_all_ranks_come_to_the_same_bit_for_bit(both: list[dict[str, Any]]) -> None:
    for part in ("methods", "ways", "checks"):
        same(both[0][part], both[1][part], bits=True)


@pytest.mark.parametrize("method", [*EXACT, "layers", "layers, then gem-miner"])
def test_one_process_with_the_global_batch_finds_the_same_ticket(
    both: list[dict[str, Any]], one: dict[str, Any], method: str
) -> None:
    same(both[0]["methods"][method], one["methods"][method], bits=False)


@pytest.mark.parametrize("way", ["a loader", "kept weights", "a step"])
def test_other_models_and_data_do_too(both: list[dict[str, Any]], one: dict[str, Any], way: str) -> None:
    same(both[0]["ways"][way], one["ways"][way], bits=False)


def test_norms_see_a_ranks_own_batch(both: list[dict[str, Any]], one: dict[str, Any]) -> None:
    assert both[0]["ways"]["norms"]["digest"] == one["ways"]["norms"]["digest"]
    statistics = [both[rank]["ways"]["norms"]["state"]["1.running_mean"] for rank in range(2)]
    assert torch.equal(*statistics)  # the first rank's


def test_checks_are_those_of_one_process(both: list[dict[str, Any]], one: dict[str, Any]) -> None:
    assert both[0]["checks"] == {name: pytest.approx(pair) for name, pair in one["checks"].items()}


def test_what_cannot_be_shared_is_refused_on_every_rank(both: list[dict[str, Any]]) -> None:
    for rank in both:
        said = rank["refused"]
        for way in ("distributed=True", "--distributed", "a process group", "distributed=False"):
            assert way in said["unsaid"]
        assert "no rank of FSDP has a whole weight" in said["sharded"]
        assert "rank 1 was called with other arguments (the density: 0.3" in said["other density"]
        assert "rank 1 was called with other arguments (the method: edge-popup" in said["other method"]
        assert "distributed is True, False or a process group, not 3" in said["no group"]
        assert not any("\n" in text for text in said.values())


def test_the_first_rank_writes_and_speaks_for_all(both: list[dict[str, Any]]) -> None:
    first, second = (rank["folder"] for rank in both)
    assert {k: v for k, v in first.items() if k in ("ticket", "test", "checked")} == {
        k: v for k, v in second.items() if k in ("ticket", "test", "checked")
    }
    same(first["state"], second["state"], bits=True)
    assert first["again"]
    assert second["again"]
    assert first["alone"] != second["alone"]
    assert first["said"]  # nothing is kept of a layer
    assert not second["said"]
    kept = record.read(both[0]["path"])
    assert kept.accuracy.after_values[0] == first["test"]
    assert kept.hardware["ranks"] == 2
    assert (both[0]["path"] / "report.html").exists()
    assert len((both[0]["path"] / "metrics.jsonl").read_text().splitlines()) == 3 + 2 + 2 + 2 + 2


def test_a_mean_is_over_examples_and_a_gradient_that_nobody_has_stays_none(both: list[dict[str, Any]]) -> None:
    for rank in both:
        found = rank["means"]
        assert found["value"] == pytest.approx((3 * 2 + 301 * 4) / 304)
        assert found["grads"] == [[1.0, pytest.approx(301 / 304)], [301.0, 602.0], None, [7.0, 7.0], [1.0, 1.0]]
        assert found["labelled"] == 4.0
        assert found["of none"] != found["of none"]


def test_data_that_each_rank_has_a_part_of_is_not_divided_again(both: list[dict[str, Any]]) -> None:
    assert both[0]["own parts"] == both[1]["own parts"]
    plain = TensorDataset(*TRAIN)
    # A DistributedSampler gives each of two ranks every second example.
    blocks = [[*range(k, min(k + 32, 90), 2), *range(k + 1, min(k + 32, 90), 2)] for k in range(0, 90, 32)]
    joined = DataLoader(plain, batch_sampler=blocks)
    tickets = {
        gemminer.mine(net(), joined, 0.2, method=name, **epochs).digest
        for name, epochs in (("gem-miner", {"epochs": 2}), ("snip", {}), ("grasp", {}))
    }
    assert " ".join(sorted(tickets)) == both[0]["own parts"]


def test_processes_that_nobody_has_told_of_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with pytest.raises(UsageError, match=r"the 2 processes cannot find each other .*MASTER_ADDR.*start them with"):
        gemminer.mine(tiny_net(), TRAIN, 0.2, distributed=True)


@pytest.mark.parametrize(
    ("rank", "world", "flag", "said"),
    [
        ("3", "", "", True),  # a cluster's job has a rank, whatever is typed in it
        ("3", "1", "--distributed", True),
        ("3", "8", "", True),
        ("0", "8", "--distributed", True),
        ("3", "8", "--distributed", False),
    ],
)
def test_the_command_line_is_silent_only_where_another_rank_says_it(
    rank: str, world: str, flag: str, said: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("WORLD_SIZE", world)
    assert main(["mine", "--model", "lenet-300-100", "--density", "2", *flag.split()]) == 2
    assert ("density is the fraction" in capsys.readouterr().err) == said


def test_one_process_alone_says_so(caplog: pytest.LogCaptureFixture) -> None:
    gemminer.mine(tiny_net(), TRAIN, 0.2, method="magnitude", distributed=True)
    assert "one process runs this, alone" in caplog.text
