"""ONNX files: each is run in ONNX Runtime and held against PyTorch."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from onnxruntime import quantization
from torch import Tensor, nn

import gemminer
from gemminer import export
from gemminer.core.errors import GemminerError, UsageError
from gemminer.core.ownership import ours
from gemminer.core.ticket import Ticket
from tests.export.conftest import NETWORKS, Ticketed
from tests.helpers import drawn_ticket, tiny_net

pytestmark = pytest.mark.filterwarnings("ignore")  # PyTorch's exporter warns of itself

Ticketing = Callable[[str], Ticketed]
Masked = Callable[[nn.Module, Ticket, Tensor], Tensor]


def run(path: Path, inputs: Tensor) -> Tensor:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {session.get_inputs()[0].name: inputs.numpy()})[0])


def weights(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer}


def facts(path: Path) -> dict[str, str]:
    return {entry.key: entry.value for entry in onnx.load(path).metadata_props}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_gives_what_pytorch_gives_for_batches_of_any_size(
    name: str, ticketed: Ticketing, masked: Masked, tmp_path: Path, snapshot: Callable[[nn.Module], object]
) -> None:
    model, ticket, images = ticketed(name)
    before, path = snapshot(model), tmp_path / "net.onnx"
    made = export.onnx(model, path, images[:2], ticket)
    assert snapshot(model) == before
    assert made.difference is not None
    assert made.difference < 1e-5
    assert (made.path, made.bytes) == (path, path.stat().st_size)
    assert "PyTorch's in ONNX Runtime 1." in str(made)
    for count in (1, 2, 7):
        torch.testing.assert_close(run(path, images[:count]), masked(model, ticket, images[:count]))
    onnx.checker.check_model(onnx.load(path), full_check=True)
    graph = onnx.load(path).graph
    assert [x.name for x in graph.output] == ["output"]
    assert [x.type.tensor_type.shape.dim[0].dim_param for x in (*graph.input, *graph.output)] == ["batch", "batch"]
    version = gemminer.__version__
    assert facts(path) == {
        "gemminer_version": version,
        "gemminer_density": f"{ticket.density:.6g}",
        "gemminer_ticket": ticket.digest,
    }
    assert ours(path)
    dense = sum(p.numel() for p in model.parameters())
    assert sum(w.size for w in weights(path).values()) < dense  # dead units are gone


def test_without_compact_every_zero_is_there(ticketed: Ticketing, masked: Masked, tmp_path: Path) -> None:
    model, ticket, images = ticketed("lenet-300-100")
    export.onnx(model, tmp_path / "net.onnx", images[:2], ticket, compact=False)
    torch.testing.assert_close(run(tmp_path / "net.onnx", images), masked(model, ticket, images))
    found = weights(tmp_path / "net.onnx")
    for name, mask in ticket.masks.items():
        want = model.get_parameter(name).detach() * mask
        assert any(w.shape == want.shape and np.array_equal(w, want.numpy()) for w in found.values()), name


def moved_zeros(before: Path, after: Path) -> dict[str, int]:
    """Of each weight that was quantised: how many of its zeros are something else now."""
    held, floats, found = weights(after), weights(before), {}
    for name, q in held.items():
        plain = name.removesuffix("_quantized")
        if plain != name and q.ndim > 1:
            w = floats[plain] if plain in floats else floats[plain.removesuffix("_Transposed")].T
            point = held[f"{plain}_zero_point"].astype(int)
            axis = next((a for a, size in enumerate(q.shape) if point.size == size > 1), 0)
            at_zero = q == point.reshape([-1 if a == axis else 1 for a in range(q.ndim)])
            found[plain] = int((~at_zero[w == 0]).sum())
    return found


class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, images: Tensor) -> None:
        self.left = iter([{"input": images.numpy()}])

    def get_next(self) -> Any:
        return next(self.left, None)


def quantised(kind: str, path: Path, out: Path, images: Tensor) -> None:
    if kind == "dynamic":
        quantization.quantize_dynamic(path, out, weight_type=quantization.QuantType.QInt8)
    elif kind == "dynamic, unsigned":
        quantization.quantize_dynamic(path, out, weight_type=quantization.QuantType.QUInt8)
    else:
        quantization.quantize_static(path, out, Reader(images), per_channel=kind == "static, by channel")


@pytest.mark.parametrize("name", ["lenet-300-100", "resnet20"])
def test_int8_afterwards_keeps_every_zero(name: str, ticketed: Ticketing, masked: Masked, tmp_path: Path) -> None:
    model, ticket, images = ticketed(name)
    path, out = tmp_path / "net.onnx", tmp_path / "int8.onnx"
    export.onnx(model, path, images[:2], ticket, compact=False)
    want = masked(model, ticket, images)
    for kind in ("dynamic", "dynamic, unsigned", "static", "static, by channel"):
        quantised(kind, path, out, images)
        moved = moved_zeros(path, out)
        assert len(moved) >= len(ticket.masks), kind
        assert not any(moved.values()), (kind, moved)
        assert float((run(out, images) - want).abs().max()) < 0.2 * float(want.abs().max()), kind


class Inputs(nn.Module):
    """Two inputs by name, and a result that is no tensor alone."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(6, 4), nn.Linear(6, 4)

    def forward(self, left: Tensor, right: Tensor, scale: float = 2.0) -> Any:
        y = self.one(left) + scale * self.two(right)
        return {"sum": y, "hidden": (y.relu(), y.tanh()), "cache": object()}


def test_inputs_and_outputs_have_their_names(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, path = Inputs(), tmp_path / "net.onnx"
    example = {"right": torch.randn(2, 6), "left": torch.randn(2, 6)}
    export.onnx(model, path, example, compact=False)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    assert {x.name for x in session.get_inputs()} == {"left", "right"}
    assert [x.name for x in session.get_outputs()] == ["sum", "hidden.0", "hidden.1"]
    given = {name: torch.randn(5, 6) for name in example}
    found = session.run(["sum"], {name: x.numpy() for name, x in given.items()})[0]
    torch.testing.assert_close(torch.from_numpy(found), model(**given)["sum"].detach())
    assert facts(path) == {"gemminer_version": gemminer.__version__}  # without a ticket


class Fixed(nn.Module):
    """A network that knows the size of its batches."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.fc(x).view(2, 3) if len(x) == 2 else self.fc(x).view(4, 3) + 1
        return y


class Odd(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.fc(x)
        return y + 1 if float(y.sum()) > 0 else y


class Counting(Odd):
    """A network that gives something else each time."""

    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        Counting.calls += 1
        y: Tensor = self.fc(x) + Counting.calls
        return y


class Text(Odd):
    def forward(self, x: Tensor) -> Any:
        return "a label"


def test_a_size_of_batch(tmp_path: Path) -> None:
    example, path = torch.randn(2, 6), tmp_path / "net.onnx"
    with pytest.raises(UsageError, match=r"Fixed computes otherwise for another size of batch: give .* batch="):
        export.onnx(Fixed(), path, example, compact=False)
    assert not path.exists()
    export.onnx(Fixed(), path, example, compact=False, batch=4)
    assert run(path, torch.randn(4, 6)).shape == (4, 3)
    with pytest.raises(UsageError, match="batch must be a whole number of at least 1"):
        export.onnx(Fixed(), path, example, batch=0)


def test_what_cannot_be_is_said_in_a_sentence(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path, net = tmp_path / "net.onnx", tiny_net()
    with pytest.raises(UsageError, match=r"Odd cannot be exported by torch\.export: "):
        export.onnx(Odd(), path, torch.randn(2, 6), compact=False)
    with pytest.raises(UsageError, match="the model does not take the example"):
        export.onnx(net, path, torch.randn(2, 5, 7), compact=False)
    with pytest.raises(UsageError, match="example must be a batch"):
        export.onnx(net, path, "images")
    with pytest.raises(UsageError, match="another model"):
        export.onnx(net, path, torch.randn(2, 6), drawn_ticket(Odd(), 0.5))
    with pytest.raises(UsageError, match=r"cannot be (exported to ONNX|written with opset)"):
        export.onnx(Odd().fc, path, torch.randn(2, 6), opset=3)
    with pytest.raises(
        UsageError, match=r"cannot be made smaller: .*; compact=False \(--no-compact\) leaves it as it is"
    ):
        export.onnx(Counting(), path, torch.randn(2, 6))
    with pytest.raises(UsageError, match="gives no tensor"):
        export.onnx(Text(), path, torch.randn(2, 6), compact=False)
    assert not path.exists()
    assert capfd.readouterr() == ("", "")  # no graphs of what failed


def test_an_opset_of_ones_own(tmp_path: Path) -> None:
    export.onnx(Odd().fc, tmp_path / "net.onnx", torch.randn(2, 6), opset=18)
    assert onnx.load(tmp_path / "net.onnx").opset_import[0].version == 18


def test_what_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    net, path = nn.Linear(6, 3), tmp_path / "net.onnx"
    with monkeypatch.context() as missing:
        missing.setitem(sys.modules, "onnxscript", None)
        with pytest.raises(UsageError, match=r"pip install 'gemminer\[export\]'"):
            export.onnx(net, path, torch.randn(2, 6))
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    made = export.onnx(net, path, torch.randn(2, 6))
    assert made.difference is None
    assert str(made).endswith("not compared with PyTorch: onnxruntime is not installed")
    assert path.exists()


def test_what_differs_or_does_not_fit_on_the_disk_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, full_disk: None
) -> None:
    path = tmp_path / "net.onnx"
    path.write_bytes(b"before")
    with pytest.raises(GemminerError, match=f"cannot write {path}: no file may be so large"):
        export.onnx(nn.Linear(60, 30), path, torch.randn(2, 60))
    monkeypatch.setattr(onnxruntime.InferenceSession, "run", lambda *_: [np.ones((2, 3), np.float32)])
    with pytest.raises(GemminerError, match=r"differs from the network by .* of its largest output"):
        export.onnx(nn.Linear(6, 3), path, torch.randn(2, 6), batch=2)
    with pytest.raises(GemminerError, match="results of other shapes"):
        export.onnx(nn.Linear(6, 2), path, torch.randn(2, 6), batch=2)
    assert path.read_bytes() == b"before"


@pytest.mark.parametrize("smaller", [True, False])
def test_layers_that_a_ticket_removes_are_in_no_file(ticketed: Ticketing, tmp_path: Path, smaller: bool) -> None:
    model, ticket, images = ticketed("resnet20")
    removed = ("layer1.1", "layer2.2", "layer3.2")
    masks = {n: m & (not n.startswith(tuple(f"{r}." for r in removed))) for n, m in ticket.masks.items()}
    ticket = ticket.replace(masks=masks, removed=removed)
    ticket.apply(model)
    found = export.onnx(model, tmp_path / "short.onnx", images, ticket, compact=smaller)
    whole = export.onnx(model, tmp_path / "whole.onnx", images, dict(ticket.masks), compact=False)
    convolutions = [sum(n.op_type == "Conv" for n in onnx.load(e.path).graph.node) for e in (found, whole)]
    assert convolutions[1] - convolutions[0] >= 6
    assert torch.allclose(run(found.path, images), model.eval()(images), atol=1e-4)
