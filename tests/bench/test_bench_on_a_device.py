"""benchmarks/device_check.py, which compares a GPU with the CPU, run on the CPU itself."""

from __future__ import annotations

import functools
import json
from typing import Any

import pytest
import torch
from torch import nn

from benchmarks import device_check
from benchmarks.device_check import Row, Side


def rows(capsys: pytest.CaptureFixture[str], *argv: str, code: int = 0) -> dict[str, dict[str, Any]]:
    assert device_check.main(["--device", "cpu", "--quick", "--json", *argv]) == code
    *parts, machine = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert machine["torch"] == torch.__version__.partition("+")[0]
    return {row["part"]: row for row in parts}


@pytest.mark.slow
def test_a_cpu_comes_to_what_it_comes_to(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))  # without a C++ compiler
    found = rows(capsys)
    assert list(found) == list(device_check.PARTS)
    for part, row in found.items():
        assert row["fine"], row
        assert bool(row["left_out"]) == (part == "waits of the host"), row
        if part in ("drawn tickets", "scores of a batch", "search", "training", "checks"):
            assert all(difference == 0 for difference, _ in row["differences"].values()), row


def test_a_device_that_computes_otherwise_is_told(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = {part: device_check.PARTS[part] for part in ("scores of a batch", "training")}
    monkeypatch.setattr(device_check, "PARTS", parts)
    made = device_check.network

    def network(side: Side, name: str | None = None) -> nn.Module:
        net = made(side, name)
        if not side.reference:
            net.register_forward_hook(lambda module, given, output: output * 1.5)
        return net

    monkeypatch.setattr(device_check, "network", network)
    found = rows(capsys, code=1)
    assert not found["training"]["fine"]
    assert found["training"]["differences"]["zeros"] == [0, 0]


def test_parts_that_fail_or_are_not_begun(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(side: Side) -> Any:
        raise RuntimeError("no kernel\nand a trace")

    monkeypatch.setattr(device_check, "PARTS", {"search": (failing, device_check.searched_alike)})
    assert rows(capsys, code=1)["search"]["failed"] == "RuntimeError: no kernel"
    assert rows(capsys, "--minutes", "0")["search"]["left_out"] == "the time is over"
    assert device_check.main(["--device", "cpu", "--quick"]) == 1
    assert "| failed: RuntimeError: no kernel |" in capsys.readouterr().out


def test_a_difference_that_is_no_number_is_not_fine() -> None:
    assert Row("x", differences={"loss": (0.1, 0.1)}).fine
    assert not Row("x", differences={"loss": (0.2, 0.1)}).fine
    assert not Row("x", differences={"loss": (float("nan"), 0.1)}).fine


def test_without_a_gpu_it_says_so(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_check, "the_gpu", lambda: None)
    assert device_check.main([]) == 2
    assert capsys.readouterr().err.strip() == (
        "there is no GPU here (CUDA or MPS): --device cpu runs it against the CPU itself"
    )
