"""The search for the smallest ticket: what it leaves, that a kill loses nothing, and that test data choose nothing."""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import gemminer
from gemminer import sparse
from gemminer.cli import main
from gemminer.core.errors import UsageError
from gemminer.core.files import read_rows
from gemminer.runs import answer, record, seeking, shipping
from gemminer.training import evaluate
from tests.helpers import Notes, Pair, tiny_data, tiny_net

Find = Callable[..., gemminer.Smallest]
HELD, TEST = tiny_data(60, seed=1), tiny_data(48, seed=2)
SHIPPED = {"program.safetensors", "ticket.safetensors", "trained.safetensors"}


@pytest.fixture
def every_format() -> None:
    """ONNX and PyTorch's exported programs are shipped too: a second or two of each."""


@pytest.fixture(autouse=True)
def _program_alone(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "every_format" not in request.fixturenames:
        monkeypatch.setattr(shipping, "FORMATS", {"program.safetensors": shipping.FORMATS["program.safetensors"]})


@pytest.fixture
def find(pair: Pair) -> Find:
    def called(out: Path, **given: Any) -> gemminer.Smallest:
        net = given.pop("net", None) or tiny_net()
        given = {"validation_data": HELD, "test_data": TEST, "epochs": 2, "within": 5, **given}
        return gemminer.smallest(net, given.pop("train_data", pair), out=out, **given)

    return called


def test_an_answer_leaves_what_it_promises(tmp_path: Path, find: Find) -> None:
    out, net = tmp_path / "gem", tiny_net()
    before = {name: t.clone() for name, t in net.state_dict().items()}
    found = find(out, net=net)
    assert {f.name for f in out.iterdir()} == SHIPPED | {
        "smallest.json", "record.json", "metrics.jsonl", "report.html", "state"
    }  # fmt: skip
    assert all(torch.equal(t, before[name]) for name, t in net.state_dict().items())
    assert answer.read(out).model_dump() == found.model_dump()
    assert found.files == {name: (out / name).stat().st_size for name in found.files}
    assert set(found.files) == SHIPPED
    assert found.verdict in ("within", "undecided")
    ticket = found.ticket
    assert ticket is not None
    assert (ticket.kept, ticket.digest) == (found.kept, gemminer.Ticket.load(out / "ticket.safetensors").digest)
    chosen = [probe for probe in found.probes if probe.chosen]
    assert [probe.density for probe in chosen] == [found.density]
    assert len(chosen[0].validation.values) == len(found.dense.values) == 3
    assert [probe.density for probe in found.probes] == sorted((p.density for p in found.probes), reverse=True)
    assert len(found.probes) <= len(found.ladder).bit_length()

    trained = load_file(out / "trained.safetensors")
    assert all(not trained[name][~mask].any() for name, mask in ticket.masks.items())
    net.load_state_dict(trained)
    program = sparse.Program.load(out / "program.safetensors")
    torch.testing.assert_close(program(TEST[0]), net.eval()(TEST[0]))
    right = float((program(TEST[0]).argmax(1) == TEST[1]).double().mean())
    assert found.test is not None
    assert found.test.values[0] == pytest.approx(right)


def test_onnx_and_the_smaller_network_are_among_what_is_shipped(tmp_path: Path, find: Find, every_format: None) -> None:
    """Each gives what the trained network gives; where one cannot be made, the answer says why and has the rest."""
    out, net = tmp_path / "gem", tiny_net()
    found = find(out, net=net, seeds=1)
    assert set(found.files) == SHIPPED | {"model.onnx", "compact.pt2"}
    assert found.files == {name: (out / name).stat().st_size for name in found.files}
    net.load_state_dict(load_file(out / "trained.safetensors"))
    want = net.eval()(TEST[0]).detach()
    torch.testing.assert_close(torch.export.load(out / "compact.pt2").module()(TEST[0]), want)
    session = onnxruntime.InferenceSession(out / "model.onnx", providers=["CPUExecutionProvider"])
    got = session.run(None, {session.get_inputs()[0].name: TEST[0].numpy()})[0]
    torch.testing.assert_close(torch.from_numpy(got), want)
    with pytest.MonkeyPatch.context() as missing:
        missing.setitem(sys.modules, "onnxscript", None)
        again = find(out, seeds=1)
    assert set(again.files) == SHIPPED | {"compact.pt2"}
    assert not (out / "model.onnx").exists()
    assert "pip install" in again.left_out["model.onnx"]
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "compact.pt2" in page
    (out / "compact.pt2").write_bytes(b"thesis")
    with pytest.raises(UsageError, match=r"compact\.pt2 was not written by gemminer"):
        find(out, seeds=1)


def test_the_folder_is_a_run_of_the_ticket(tmp_path: Path, find: Find) -> None:
    found = find(tmp_path / "gem", seeds=2)
    kept = record.read(tmp_path / "gem")
    assert found.test is not None
    assert found.dense_test is not None
    assert (kept.density.asked, kept.density.kept) == (found.density, found.kept)
    assert (kept.accuracy.after_values, kept.accuracy.dense) == (found.test.values, found.dense_test.mean)
    phases = {row["phase"] for row in read_rows(tmp_path / "gem" / "metrics.jsonl")}
    assert {"dense:0", "dense:1", f"search:{found.density:g}", f"train:{found.density:g}:1"} <= phases


def test_without_test_data_the_answer_is_the_same(tmp_path: Path, find: Find) -> None:
    one, other = find(tmp_path / "one"), find(tmp_path / "other", test_data=None)
    assert (one.verdict, one.density, one.sentence) == (other.verdict, other.density, other.sentence)
    assert (other.test, other.dense_test) == (None, None)


def test_what_chooses_never_sees_the_test_data(tmp_path: Path, find: Find, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the test data say, nothing is chosen by them: they are read when the answer stands."""
    read: list[str] = []
    real = evaluate.measure

    def spied(task: Any, batches: Any, **how: Any) -> Any:
        if batches.examples == len(TEST[0]):
            read.append(task.phase)
            assert json.loads((tmp_path / "gem/state/steps.jsonl").read_text().splitlines()[-1])["step"] != "question"
        return real(task, batches, **how)

    monkeypatch.setattr(evaluate, "measure", spied)
    noted: list[list[str]] = []
    answered = seeking.Seeking._answer

    def late(self: Any, *given: Any) -> Any:
        noted.append(list(read))
        assert self.chooser.test is None
        return answered(self, *given)

    monkeypatch.setattr(seeking.Seeking, "_answer", late)
    find(tmp_path / "gem")
    assert noted == [[]]  # none was read before the answer stood
    assert len(read) == 6  # three networks each


class Stopping(Notes):
    """Raises at the given event."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.left = at

    def _one(self) -> None:
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt

    def begin(self, phase: str, start: int, stop: int) -> None:
        self._one()

    def epoch(self, row: dict[str, Any]) -> None:
        self._one()


def figures(found: gemminer.Smallest) -> Any:
    """All but times and when and how it was made."""
    made = found.model_dump(exclude={"created", "command", "seconds", "dense_latency"})
    for probe in made["probes"]:
        del probe["latency"], probe["seconds"]
    return made


def test_stopped_anywhere_the_same_call_goes_on(tmp_path: Path, find: Find, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GEMMINER_CHECKPOINT_SECONDS", "0")
    whole, stops, source = find(tmp_path / "whole"), 0, random.Random(0)
    out = tmp_path / "stopped"
    while True:
        try:
            found = find(out, monitor=Stopping(source.randint(1, 6)))
            break
        except KeyboardInterrupt:
            stops += 1
    assert stops > 5
    assert figures(found) == figures(whole)
    for name in ("ticket.safetensors", "trained.safetensors", "program.safetensors"):
        assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    rows = [
        [(r["phase"], r["epoch"]) for r in read_rows(folder / "metrics.jsonl")] for folder in (out, tmp_path / "whole")
    ]
    assert rows[0] == rows[1]
    assert not list((out / "state").glob("*.pt"))


def test_a_finished_answer_is_returned_without_work(tmp_path: Path, find: Find) -> None:
    found, monitor = find(tmp_path / "gem"), Notes()
    again = find(tmp_path / "gem", monitor=monitor)
    assert figures(again) == figures(found)
    assert monitor.rows == []


def test_more_seeds_add_to_what_is_there(tmp_path: Path, find: Find) -> None:
    find(tmp_path / "gem", seeds=1)
    monitor = Notes()
    found = find(tmp_path / "gem", seeds=2, monitor=monitor)
    assert {row["phase"] for row in monitor.rows} <= {"dense:1", *(f"train:{d:g}:1" for d in found.ladder)} | {
        row["phase"] for row in monitor.rows if row["phase"].startswith("search")
    }
    assert "dense:0" not in {row["phase"] for row in monitor.rows}
    assert len(found.dense.values) == 2


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"within": 6}, "what may be lost: 5 there, 6 here"),
        ({"size": 2000}, "the size: not asked there, 2000 here"),
        ({"method": "snip", "epochs": None}, "the method"),
        ({"seed": 1}, "seed: 0 there, 1 here"),
        ({"train": {"lr": 0.2}}, "lr of the training"),
        ({"validation_data": tiny_data(60, seed=5)}, "the validation data"),
        ({"net": tiny_net(3)}, "the model's first weights"),
    ],
)
def test_another_question_is_refused(tmp_path: Path, find: Find, changes: dict[str, Any], said: str) -> None:
    find(tmp_path / "gem", seeds=1, epochs=1)
    with pytest.raises(UsageError, match="holds the answer to another question") as caught:
        find(tmp_path / "gem", seeds=1, **{"epochs": 1, **changes})
    assert said in str(caught.value)


def test_a_runs_folder_is_refused_and_an_answers_by_runs(tmp_path: Path, find: Find, pair: Pair) -> None:
    gemminer.mine(tiny_net(), pair, 0.2, epochs=1, out=tmp_path / "run")
    with pytest.raises(UsageError, match="holds a run that was made from Python"):
        find(tmp_path / "run")
    find(tmp_path / "gem", seeds=1, epochs=1)
    with pytest.raises(UsageError, match="give another folder with out="):
        gemminer.mine(tiny_net(), pair, 0.2, epochs=1, out=tmp_path / "gem")


def test_what_cannot_be_is_refused_before_anything_is_written(tmp_path: Path, find: Find) -> None:
    with pytest.raises(UsageError, match=r"give validation_data \(--validation 0\.2\)"):
        find(tmp_path / "gem", validation_data=None)
    with pytest.raises(UsageError, match="say with within what may be lost, in units of the metric"):
        find(tmp_path / "gem", within=None, loss=nn.functional.multi_margin_loss)
    with pytest.raises(UsageError, match="smallest works in one process"):
        find(tmp_path / "gem", distributed=True)
    with pytest.raises(UsageError, match="seeds must be a whole number of at least 1"):
        find(tmp_path / "gem", seeds=0)
    with pytest.raises(UsageError, match=r"no program is as small as 60 bytes: the sparsest.*60KB is 60,000"):
        find(tmp_path / "gem", within=None, size=60)
    with pytest.raises(UsageError, match="of which there are 100, not 200"):
        find(tmp_path / "gem", within=200)
    assert not (tmp_path / "gem").exists()


def test_where_everything_is_within_the_sparsest_is_the_answer_and_said_to_be_the_last(
    tmp_path: Path, find: Find
) -> None:
    found = find(tmp_path / "gem", within=100, epochs=1)
    assert (found.verdict, found.density) == ("within", found.ladder[-1])
    assert found.sentence.endswith("nothing sparser was looked at.")


def test_where_nothing_is_within_that_is_said_of_the_densest_over_all_seeds(
    tmp_path: Path, find: Find, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = seeking.Seeking._train

    def worse(self: Any, what: str, ticket: Any, seed: int) -> float:
        return real(self, what, ticket, seed) - (0 if what == "dense" else 0.9)

    monkeypatch.setattr(seeking.Seeking, "_train", worse)
    found = find(tmp_path / "gem", epochs=1)
    assert (found.verdict, found.density, found.files, found.ticket) == ("none", None, {}, None)
    assert found.sentence.startswith("No density looked at stays within 5 points of the dense network: even 50%")
    assert not any(probe.chosen for probe in found.probes)
    assert len(found.probes[0].validation.values) == 3
    assert not (tmp_path / "gem" / "program.safetensors").exists()
    assert (tmp_path / "gem" / "report.html").exists()


@pytest.mark.parametrize(("size", "verdict"), [("1MB", "fits"), (1000, "fits"), (200, "none")])
def test_a_size_alone_gives_the_densest_that_fits(tmp_path: Path, find: Find, size: Any, verdict: str) -> None:
    found = find(tmp_path / "gem", within=None, size=size)
    assert found.verdict == verdict
    assert len(found.probes) <= 3
    if verdict == "fits":
        assert found.files["program.safetensors"] <= answer.bytes_of(size)
        assert found.files["program.safetensors"] == next(p.bytes for p in found.probes if p.chosen)
    if size == "1MB":
        assert found.density == found.ladder[0]


def test_both_must_hold(tmp_path: Path, find: Find) -> None:
    assert find(tmp_path / "fits", size="1MB").verdict in ("within", "undecided")
    found = find(tmp_path / "large", size=200)
    assert (found.verdict, found.density, found.files) == ("none", None, {})
    assert found.sentence.startswith("No ticket is both")


class Odd(nn.Module):
    """A network that the compiler refuses."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(6, 16), nn.Linear(16, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.two(torch.logcumsumexp(self.one(x), 1))


def test_a_network_that_cannot_be_compiled_has_the_rest(tmp_path: Path, find: Find) -> None:
    found = find(tmp_path / "gem", net=Odd(), within=100)
    assert set(found.files) == SHIPPED - {"program.safetensors"}
    assert "logcumsumexp" in found.left_out["program.safetensors"]
    assert (tmp_path / "gem" / "report.html").exists()
    with pytest.raises(UsageError, match="cannot compile logcumsumexp"):
        find(tmp_path / "size", net=Odd(), within=None, size=2000)


# --- the command line --------------------------------------------------------------------------------------------

TINY = ["--model", "lenet-300-100", "--model-option", "width=0.1", "--epochs", "1", "--limit-train", "200"]
TINY += ["--batch-size", "32", "--device", "cpu", "--threads", "1", "--seeds", "2", "--within", "20"]


def test_the_command_answers_resumes_and_refuses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "gem"
    assert main(["smallest", *TINY, "--out", str(out)]) == 0
    printed = capsys.readouterr()
    found = answer.read(out)
    assert printed.out.splitlines()[0] == found.sentence
    assert "looks" in printed.err
    assert (found.model, found.data, found.validation_examples) == ("lenet-300-100", "digits", 40)
    assert (out / "report.html").exists()

    assert main(["smallest", *TINY, "--out", str(out)]) == 2
    assert "--resume" in capsys.readouterr().err
    assert main(["smallest", *TINY, "--out", str(out), "--resume", "--json"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert (again["out"], again["density"], again["schema"]) == (str(out), found.density, "gemminer.smallest/1")
    assert main(["smallest", *TINY, "--out", str(out), "--resume", "--size", "1KB"]) == 2
    assert "another question" in capsys.readouterr().err
    assert main(["smallest", *TINY, "--validation", "0", "--out", str(tmp_path / "none")]) == 2
    assert "--validation 0.2" in capsys.readouterr().err
    assert main(["smallest", *TINY, "--size", "tiny", "--out", str(tmp_path / "none")]) == 2
    assert not (tmp_path / "none").exists()

    assert main(["check", str(out), "--check", "shuffle", "--seeds", "1", "--epochs", "1", "--threads", "1"]) == 0
    assert main(["smallest", *TINY, "--out", str(out), "--overwrite", "--within", "30"]) == 0
    assert answer.read(out).question.within == 30


def test_a_command_with_nothing_to_ship_ends_with_1(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seeking.ladder, "confirmed", lambda start, judged: (0, ("not within", judged(0))[0]))
    assert main(["smallest", *TINY, "--out", str(tmp_path / "gem")]) == 1
    assert answer.read(tmp_path / "gem").files == {}
