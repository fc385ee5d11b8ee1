"""The folder of a run from Python: one ticket, each step once, the same record, metrics and page as the command's."""

from __future__ import annotations

import base64
import functools
import json
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import gemminer
from gemminer.cli import main
from gemminer.core.errors import GemminerError, UsageError
from gemminer.core.files import read_rows
from gemminer.reporting import page
from gemminer.runs import record
from tests.helpers import Notes, Pair, drawn_ticket, tiny_data, tiny_net

Work = Callable[..., Any]
TEST = tiny_data(48, seed=1)


@pytest.fixture
def mine(pair: Pair) -> Work:
    return lambda out, **given: gemminer.mine(tiny_net(), pair, **{"density": 0.2, "epochs": 3, "out": out, **given})


@pytest.fixture
def train(pair: Pair) -> Work:
    return lambda out, ticket, **given: gemminer.train(
        given.pop("net", None) or tiny_net(), ticket, pair, TEST, **{"epochs": 2, "out": out, **given}
    )


@pytest.fixture
def check(pair: Pair) -> Work:
    return lambda out, ticket, **given: gemminer.check(
        tiny_net(), ticket, pair, TEST, **{"epochs": 2, "seeds": 2, "names": ["shuffle"], "out": out, **given}
    )


def test_three_calls_make_one_record(tmp_path: Path, mine: Work, train: Work, check: Work) -> None:
    out = tmp_path / "gem"
    ticket = mine(out)
    assert {f.name for f in out.iterdir()} == {
        "ticket.safetensors", "record.json", "metrics.jsonl", "report.html", "state"
    }  # fmt: skip
    found = record.read(out)
    assert (found.accuracy.n, found.verdict, list(found.cost)) == (0, None, ["search"])

    result = train(out, ticket)
    found = record.read(out)
    assert found.accuracy.after_values == (result.test,)
    assert found.accuracy.before is not None
    assert found.rates["train:0"].lr == result.rate["lr"]

    verdict = check(out, ticket)
    found = record.read(out)
    assert (found.accuracy.n, found.verdict, list(found.checks)) == (2, verdict.verdict, ["shuffle"])
    assert found.accuracy.after_values[0] == result.test  # the training there was is the check's first
    assert (found.method, found.seed, found.density.kept) == ("gem-miner", 0, ticket.kept)
    assert found.engine is not None
    assert (found.engine.asked, found.recipe_hash, found.recipe) == ("auto", None, {})
    phases = [row["phase"] for row in read_rows(out / "metrics.jsonl")]
    assert (
        phases == ["search"] * 3 + ["train:0"] * 2 + ["train:1"] * 2 + ["check:shuffle:0"] * 2 + ["check:shuffle:1"] * 2
    )
    assert not list((out / "state").glob("*.pt"))
    check(out, ticket, names=["uniform"])
    assert list(record.read(out).checks) == ["shuffle", "uniform"]  # what an earlier call found stays


def test_with_and_without_a_folder_the_results_are_the_same(
    tmp_path: Path, pair: Pair, mine: Work, train: Work, check: Work
) -> None:
    out = tmp_path / "gem"
    ticket, plain = mine(out), mine(None)
    assert ticket.digest == plain.digest
    nets = [tiny_net(), tiny_net()]
    results = [train(where, ticket, net=net) for where, net in zip((out, None), nets, strict=True)]
    assert results[0].test == results[1].test
    for one, other in zip(nets[0].state_dict().values(), nets[1].state_dict().values(), strict=True):
        assert torch.equal(one, other)
    assert check(out, ticket).checks == check(None, ticket).checks


def test_what_is_there_is_not_computed_again(
    tmp_path: Path, mine: Work, train: Work, check: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, net, again = tmp_path / "gem", tiny_net(), tiny_net(seed=3)
    again.load_state_dict(net.state_dict())
    ticket = mine(out)
    result, verdict = train(out, ticket, net=net), check(out, ticket)

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("computed again")

    monkeypatch.setattr("gemminer.runs.experiment.fit", never)
    monkeypatch.setattr("gemminer.runs.experiment.find_inside", never)
    assert mine(out).digest == ticket.digest
    assert train(out, ticket, net=again) == result
    assert check(out, ticket).checks == verdict.checks
    for one, other in zip(net.state_dict().values(), again.state_dict().values(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("call", "given", "says"),
    [
        ("mine", {"density": 0.3}, "holds search of another call (the density: 0.2 there, 0.3 here)"),
        ("mine", {"epochs": 4}, "epochs: 3 there, 4 here"),
        ("mine", {"method": "edge-popup"}, "the method: gem-miner there, edge-popup here"),
        ("mine", {"loss": lambda output, target: output.square().mean()}, "the loss:"),
        ("train", {"epochs": 3}, "holds train:0 of another call (epochs: 2 there, 3 here)"),
        ("train", {"lr": 0.01}, "lr: 'auto' there, 0.01 here"),
        ("train", {"seed": 1}, "the seed: 0 there, 1 here"),
        ("check", {"momentum": 0.5}, "momentum: 0.9 there, 0.5 here"),
        ("train", {"metric": lambda output, target: -output.square().mean()}, "holds before of another call"),
        ("train", {"checkpoint": "x.pt"}, "give out or checkpoint, not both"),
    ],
)
def test_another_call_is_refused_and_changes_nothing(
    tmp_path: Path, mine: Work, train: Work, check: Work, call: str, given: dict[str, Any], says: str
) -> None:
    out = tmp_path / "gem"
    ticket = mine(out)
    train(out, ticket)
    before = {f: f.read_bytes() for f in out.rglob("*") if f.is_file()}
    work = {
        "mine": mine,
        "train": functools.partial(train, ticket=ticket),
        "check": functools.partial(check, ticket=ticket),
    }
    with pytest.raises(UsageError, match=re.escape(says)):
        work[call](out, **given)
    assert {f: f.read_bytes() for f in out.rglob("*") if f.is_file()} == before


def test_a_folder_is_of_one_ticket(tmp_path: Path, mine: Work, train: Work) -> None:
    mine(tmp_path / "gem")
    other = drawn_ticket(tiny_net(), 0.2)
    with pytest.raises(UsageError, match="holds another ticket"):
        train(tmp_path / "gem", other)
    train(tmp_path / "other", other)  # a ticket from elsewhere has a folder of its own
    found = record.read(tmp_path / "other")
    assert (found.method, list(found.cost)) == ("test", ["train"])
    with pytest.raises(UsageError, match="found elsewhere"):
        mine(tmp_path / "other")


def test_a_killed_call_goes_on(
    tmp_path: Path, pair: Pair, mine: Work, train: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GEMMINER_CHECKPOINT_SECONDS", "0")

    class Killed(gemminer.Monitor):
        def epoch(self, row: dict[str, Any]) -> None:
            if row["epoch"] == 2:
                raise KeyboardInterrupt

    out, whole = tmp_path / "gem", mine(None)
    with pytest.raises(KeyboardInterrupt):
        mine(out, monitor=Killed())
    with pytest.raises(UsageError, match="of another call"):
        mine(out, density=0.3)  # the epochs there are not lost to a slip
    notes = Notes()
    ticket = mine(out, monitor=notes)
    assert [row["epoch"] for row in notes.rows] == [2, 3]  # the epoch in which it was killed, again
    assert ticket.digest == whole.digest
    with pytest.raises(KeyboardInterrupt):
        train(out, ticket, monitor=Killed())
    assert train(out, ticket).test == train(None, ticket).test
    assert [row["epoch"] for row in read_rows(out / "metrics.jsonl")] == [1, 2, 3, 1, 2]


def test_a_call_that_failed_can_be_made_otherwise(tmp_path: Path, mine: Work, train: Work) -> None:
    ticket = mine(tmp_path / "gem")
    with pytest.raises(GemminerError, match="no longer finite"):
        train(tmp_path / "gem", ticket, lr=1e30, max_norm=None)
    assert train(tmp_path / "gem", ticket, lr=0.01).rate["lr"] == 0.01


def test_the_command_line_says_whose_run_it_is(tmp_path: Path, mine: Work, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "gem"
    mine(out)
    for command, says in (
        (["check", str(out)], "is of a model and data that Python was given: say which --model and --data"),
        (["train", str(out)], "is of a model and data that Python was given: say which --model and --data"),
        (["mine", "--out", str(out), "--resume"], "holds a run that was made from Python"),
        (["mine", "--out", str(out)], "holds a run already"),
    ):
        assert main(command) == 2
        assert says in capsys.readouterr().err
    assert main(["inspect", str(out)]) == 0


def test_a_run_of_the_command_line_is_not_pythons(tmp_path: Path, mine: Work) -> None:
    asked = [
        "--model",
        "lenet-300-100",
        "--limit-train",
        "64",
        "--epochs",
        "1",
        "--no-checks",
        "--no-dense",
    ]
    assert main(["mine", "--out", str(tmp_path / "gem"), *asked]) == 0
    with pytest.raises(UsageError, match=r"holds a run that was made by the command line: .* with out="):
        mine(tmp_path / "gem")


def test_somebodys_files_are_not_touched(tmp_path: Path, mine: Work) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match=r"is not a run's folder .* with out="):
        mine(tmp_path)
    assert [f.name for f in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.usefixtures("full_disk")
def test_a_full_disk_is_a_sentence(tmp_path: Path, mine: Work) -> None:
    with pytest.raises(GemminerError, match=r"cannot write|no space|too large"):
        mine(tmp_path / "gem")


def test_the_page_holds_record_and_metrics_and_links_the_ticket(tmp_path: Path, mine: Work) -> None:
    out = tmp_path / "gem"
    mine(out)
    text = (out / "report.html").read_text()
    links = dict(re.findall(r'<a href="([^"]+)" download="([^"]+)"', text))
    by_name = {name: link for link, name in links.items()}
    assert by_name["ticket.safetensors"] == "ticket.safetensors"
    inside = {name: base64.b64decode(link.partition("base64,")[2]).decode() for name, link in by_name.items()}
    assert inside["record.json"] == (out / "record.json").read_text()
    rows = [json.loads(line) for line in inside["metrics.jsonl"].splitlines()]
    assert rows == read_rows(out / "metrics.jsonl")
    elsewhere = page.report(out, tmp_path / "page.html").read_text()
    assert 'href="gem/ticket.safetensors"' in elsewhere


def test_progress_is_shown_and_the_users_monitor_told_and_left_open(
    pair: Pair, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    class Mine(gemminer.Monitor):
        epochs, closed = 0, False

        def epoch(self, row: dict[str, Any]) -> None:
            self.epochs += 1

        def close(self) -> None:
            self.closed = True

    monitor = Mine()
    with caplog.at_level(logging.WARNING, logger="gemminer"):
        gemminer.mine(tiny_net(), pair, 0.01, epochs=3, progress=True, monitor=monitor)
    said = capsys.readouterr()
    assert "search epoch 3" in said.err
    assert said.out == ""
    assert (monitor.epochs, monitor.closed) == (3, False)
    assert not caplog.records  # remarks are shown, and not said twice
    with pytest.raises(UsageError, match=r"monitor must be a gemminer\.Monitor"):
        gemminer.mine(tiny_net(), pair, 0.1, epochs=1, progress=True, monitor=3)  # type: ignore[arg-type]


def test_a_model_of_ones_own_class_is_named(tmp_path: Path, pair: Pair) -> None:
    class Mine(nn.Sequential): ...

    gemminer.mine(Mine(*tiny_net()), pair, 0.2, epochs=1, out=tmp_path / "gem")
    found = record.read(tmp_path / "gem")
    assert (found.model, found.data) == ("Mine", "96 examples")


def test_what_was_measured_in_one_precision_is_no_measure_in_another(pair: Pair, tmp_path: Path) -> None:
    net = tiny_net()
    ticket = gemminer.mine(net, pair, 0.2, epochs=2, precision="bf16", out=tmp_path / "run")
    gemminer.train(net, ticket, pair, pair, epochs=1, precision="bf16", out=tmp_path / "run")
    assert record.read(tmp_path / "run").precision == "bf16"
    with pytest.raises(UsageError, match=r"holds before of another call \(precision: 'bf16' there, 'fp32' here\)"):
        gemminer.train(net, ticket, pair, pair, epochs=1, out=tmp_path / "run")
