"""The benchmarks print what machines need; their figures are not judged here."""

from __future__ import annotations

import copy
import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from gemminer import sparse
from gemminer.bench import BENCHES, contestants, inference, memory, networks
from gemminer.bench.measure import OURS, Setup, against_each, alternate, measurement, require_equal
from gemminer.cli import main
from gemminer.core.errors import GemminerError, UsageError
from gemminer.core.prunable import prunable_weights

FIELDS = {"bench", "model", "density", "batch", "baseline", "ratio", "low", "high", "runs", "device", "versions"}
ANCHORS = (0.5, 0.0372, 0.0144, 0.0059)


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of a hundredth of a second."""
    monkeypatch.setattr("gemminer.bench.measure.SECONDS", 0.01)


def lines(capsys: pytest.CaptureFixture[str], *argv: str) -> list[dict]:
    """What `gemminer bench` prints for LeNet-300-100."""
    assert main(["bench", *argv, "--model", "lenet-300-100", "--batch-size", "8", "--runs", "2", "--json"]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


@pytest.mark.parametrize(
    ("argv", "baselines"),
    [
        (["search"], ["dense NCHW", "fastest of dense NCHW"]),
        (["train", "--no-memory"], ["dense NCHW", "fastest of dense NCHW"]),
        (
            ["infer", "--no-compile"],
            ["PyTorch eager", "scipy CSR", "onnxruntime", "fastest of PyTorch eager and onnxruntime"],
        ),
        (["end-to-end", "--epochs", "1", "--examples", "16"], ["dense training", "imp"]),
    ],
    ids=lambda value: value[0],
)
def test_a_benchmark_prints_an_object_a_line(
    argv: list[str], baselines: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    found = lines(capsys, *argv)
    assert [line["baseline"] for line in found] == baselines
    for line in found:
        assert set(line) >= FIELDS
        assert (line["bench"], line["model"], line["batch"], line["runs"]) == (argv[0], "lenet-300-100", 8, 2)
        assert 0 < line["low"] <= line["ratio"] <= line["high"]


def test_a_convolutional_network_trains_in_both_layouts() -> None:
    found = list(BENCHES["train"](Setup("resnet20", batch=2, runs=1, memory=False)))
    assert [line.baseline for line in found][:2] == ["dense NCHW", "dense channels-last"]
    assert found[2].fastest in ("dense NCHW", "dense channels-last")
    least = min(found[:2], key=lambda line: line.baseline_ms)
    assert (found[2].fastest, found[2].ratio) == (least.baseline, least.ratio)


def test_every_batch_size_asked_for_is_measured(capsys: pytest.CaptureFixture[str]) -> None:
    sizes = {line["batch"] for line in lines(capsys, "infer", "--no-compile", "--batch-size", "1")}
    assert sizes == {1, 8}


def test_the_ratio_is_the_baselines_time_over_ours() -> None:
    found = measurement("search", Setup("x", 0.1, 8), "dense", ([3.0, 4.0, 9.0], [1.0, 2.0, 3.0]))
    assert (found.ratio, found.low, found.high) == (3.0, 2.0, 3.0)
    assert (found.baseline_ms, found.ours_ms) == (4000.0, 2000.0)


def test_the_last_line_is_against_the_fastest_rival() -> None:
    times = {"a": [6.0, 6.0], "b": [4.0, 4.0], "c": [1.0, 1.0], OURS: [2.0, 2.0]}
    *_, last = against_each("infer", Setup("x"), times, ("a", "b", "absent"), {"b": "said of b"})
    assert (last.baseline, last.fastest, last.ratio, last.note) == ("fastest of a and b", "b", 2.0, "said of b")


def test_calls_take_turns() -> None:
    calls: list[str] = []
    times = alternate({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, runs=3, seconds=1e-9)
    assert {name: len(found) for name, found in times.items()} == {"a": 3, "b": 3}
    assert "".join(calls[-12:]) == "aabb" + "bbaa" + "aabb"  # each block after one call that is not timed


def test_outputs_that_differ_stop_a_benchmark(monkeypatch: pytest.MonkeyPatch) -> None:
    one = torch.ones(2, 3)
    require_equal({"x": one, "y": one * (1 + 5e-5)}, "x")
    for wrong in (one * (1 + 2e-4), one * torch.nan):
        with pytest.raises(GemminerError, match="y and x compute different things"):
            require_equal({"x": one, "y": wrong}, "x")
    whole = sparse.compile
    monkeypatch.setattr(sparse, "compile", lambda model, images: lambda x: 1.001 * whole(model, images)(x))
    with pytest.raises(GemminerError, match="ours and PyTorch eager NCHW compute different things"):
        list(BENCHES["infer"](Setup("lenet-300-100", batch=2, runs=1, compile=False)))


def test_without_onnxruntime_one_sentence_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    argv = ["bench", "infer", "--model", "lenet-300-100", "--batch-size", "2", "--runs", "1", "--no-compile", "--json"]
    assert main(argv) == 0
    out, err = capsys.readouterr()
    found = [json.loads(line) for line in out.splitlines()]
    assert [line["baseline"] for line in found] == ["PyTorch eager", "scipy CSR", "fastest of PyTorch eager"]
    assert found[-1]["left_out"]["onnxruntime"] == "not installed: pip install 'gemminer[export]'"
    assert err == "onnxruntime was left out: not installed: pip install 'gemminer[export]'\n"


def test_a_compiler_that_fails_is_left_out_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(model: nn.Module, images: torch.Tensor) -> None:
        raise RuntimeError("no compiler\nhere")

    monkeypatch.setattr(contestants, "torch_compile", fails)
    found = list(BENCHES["infer"](Setup("lenet-300-100", batch=2, runs=1)))
    assert found[0].left_out == {"torch.compile": "RuntimeError: no compiler"}


class Grouped(nn.Module):
    """What the CSR layers must get right: stride, padding, groups, dilation, bias, a kernel that is no square."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(4, 6, (3, 5), stride=2, padding=(1, 2), groups=2)
        self.second = nn.Conv2d(6, 6, 3, dilation=2, padding=1, bias=False)
        self.last = nn.Linear(6 * 3 * 3, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.second(self.first(x)).flatten(1))


@torch.inference_mode()
def test_the_csr_network_computes_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contestants, "COLUMNS", 6 * 9 * 9 * 2)  # products of one or two images
    model, images = Grouped(), torch.randn(5, 4, 10, 10)
    torch.testing.assert_close(contestants.scipy_csr(model, images)(), model(images))


@pytest.mark.parametrize("density", ANCHORS)
def test_anchors_are_the_published_layer_densities(density: float) -> None:
    kept = networks.RESNET20_KEPT[ANCHORS.index(density)]
    sizes = [p.numel() for p in prunable_weights(networks.build("resnet20")).values()]
    assert sum(sizes) == 268_336
    assert sum(kept) / sum(sizes) == pytest.approx(density, rel=3e-3)
    assert networks.between_gems(sizes, sum(kept) / sum(sizes)) == pytest.approx(
        [k / n for k, n in zip(kept, sizes, strict=True)]
    )


@pytest.mark.parametrize("name", networks.INPUTS)
@pytest.mark.parametrize("density", [1.0, 0.3, 0.05, 0.0144, 0.002])
def test_tickets_keep_exactly_the_density(name: str, density: float) -> None:
    if name == "vgg16" and density not in (0.3, 0.0144):
        pytest.skip("14.7 million random numbers a time")
    ticket = networks.ticket_of(name, networks.build(name), density)
    assert ticket.kept == round(density * ticket.prunable)


def test_between_two_gems_each_layer_is_between_theirs() -> None:
    model = networks.build("resnet20")
    low, mid, high = (networks.ticket_of("resnet20", model, d).per_layer() for d in (0.0144, 0.025, 0.0372))
    assert all(a.kept <= b.kept <= c.kept for a, b, c in zip(low, mid, high, strict=True))
    assert low[0].density > 20 * low[-2].density  # early layers are kept, late ones are not


def test_the_network_of_infer_has_the_tickets_zeros_and_lived_in_norms() -> None:
    model = inference.network(Setup("resnet20"))
    kept = sum(int(p.count_nonzero()) for p in prunable_weights(model).values())
    assert kept == round(0.0144 * 268_336)
    assert not model.training
    assert (model.bn1.running_var - 1).abs().max() > 0.1


LINUX = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="this system tells no peak memory")


@LINUX
def test_the_memory_of_steps_is_weights_gradients_and_momentum_at_least() -> None:
    found = memory.measured(Setup("lenet-300-100", batch=8), "dense NCHW")
    assert found == pytest.approx(3 * 4 * 266_610, rel=0.3)  # a batch of 8 adds little


@LINUX
def test_memory_is_compared_with_each_layout(monkeypatch: pytest.MonkeyPatch) -> None:
    used = {"dense NCHW": 8.0, "dense channels-last": 10.0, "ours": 2.0}
    monkeypatch.setattr(memory, "measured", lambda setup, kind: used[kind] * 2**20)
    nchw, last = memory.compare(Setup("resnet20"))
    assert (nchw.baseline, nchw.memory_ratio, nchw.baseline_mib) == ("dense NCHW, peak memory", 0.25, 8.0)
    assert (last.baseline, last.memory_ratio, last.ours_mib) == ("dense channels-last, peak memory", 0.2, 2.0)


def test_memory_that_cannot_be_measured_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", shutil.which("false"))
    with pytest.raises(GemminerError, match=r"measuring the memory of resnet20 \(ours\) failed: no message"):
        memory.measured(Setup("resnet20"), "ours")


def test_training_with_a_mask_that_is_not_obeyed_stops(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sparse, "sparsify", lambda model, ticket: nn.Sequential(copy.deepcopy(model), nn.Softplus()))
    with pytest.raises(GemminerError, match="the sparse network and the masked one compute different things"):
        list(BENCHES["train"](Setup("lenet-300-100", batch=2, runs=1)))


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["serch"], "did you mean 'search'"),
        (["search", "--model", "conv-2"], "no benchmark of 'conv-2'"),
        (["train", "--batch-size", "1"], "a training step needs a batch size of 2 or more, not 1"),
        (["infer", "--batch-size", "0"], "batch must be 1 or more, not 0"),
        (["end-to-end", "--batch-size", "64", "--examples", "64"], "examples must be two batches or more, 128, not 64"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_what_cannot_be_measured(argv: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", *argv]) == 2
    assert said in capsys.readouterr().err


def test_a_setup_is_checked() -> None:
    with pytest.raises(UsageError, match="examples must be 1 or more"):
        Setup("resnet20", examples=0)
