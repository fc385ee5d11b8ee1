"""Rivals: left out with a reason, and computing the same."""

from __future__ import annotations

import json
import sys

import pytest
import torch
from torch import nn

from gemminer.bench import BENCHES, contestants
from gemminer.bench.measure import Setup
from gemminer.cli import main


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
