"""Programs: their inputs, and files small on disk, whole or refused."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from torch import nn

from gemminer import models
from gemminer.core.errors import GemminerError, UsageError
from gemminer.core.ticket import Ticket
from gemminer.sparse.inference.compiler import compile
from gemminer.sparse.inference.program import Program, _from_bytes, _to_bytes
from tests.sparse.inference.helpers import RESNET20, assert_equal, images, masked


def test_no_images_and_no_copies_of_the_input() -> None:
    model = masked(models.build("lenet-5", in_channels=1, image_size=28))
    program = compile(model, input_shape=(1, 28, 28))
    assert program(torch.zeros(0, 1, 28, 28)).shape == (0, 10)
    x = images(28, 1, 28, 3).permute(3, 1, 2, 0)
    assert not x.is_contiguous()
    assert_equal(program, model, x)
    assert_equal(program, model, images(4, 1, 28, 28).to(memory_format=torch.channels_last)[::2])
    array = x.numpy()
    assert isinstance(program(array), np.ndarray)
    np.testing.assert_array_equal(program(array), program(x).numpy())


def test_calls_from_several_threads() -> None:
    model = masked(models.build("resnet20", image_size=16, width=0.5))
    program = compile(model, input_shape=(3, 16, 16))
    batches = [images(20, 3, 16, 16, seed=s) for s in range(8)]
    want = [program(x, threads=2) for x in batches]
    with ThreadPoolExecutor(4) as pool:
        got = list(pool.map(lambda x: program(x, threads=2), batches * 3))
    assert all(torch.equal(a, b) for a, b in zip(got, want * 3, strict=True))


# files


@pytest.fixture(scope="module")
def resnet20() -> nn.Module:
    return masked(models.build("resnet20"), tuple(d / 100 for d in RESNET20), dead=0)


def test_a_file_is_small_and_loads_fast(resnet20: nn.Module, tmp_path: Path) -> None:
    path = compile(resnet20, input_shape=(3, 32, 32)).save(tmp_path / "net.safetensors")
    assert sum(int((p != 0).sum()) for n, p in resnet20.named_parameters() if p.ndim > 1) > 3700
    assert path.stat().st_size < 60_000
    times = []
    for _ in range(3):
        begun = time.perf_counter()
        program = Program.load(path)
        times.append(time.perf_counter() - begun)
    assert min(times) < 0.5
    assert_equal(program, resnet20, images(2, 3, 32, 32))


def test_size_goes_with_kept_weights(tmp_path: Path) -> None:
    sizes = []
    for density in (0.1, 0.2, 0.4):
        model = masked(models.build("lenet-300-100", in_channels=1, image_size=28), density, dead=0)
        sizes.append(compile(model, input_shape=(1, 28, 28)).save(tmp_path / "net").stat().st_size)
    assert 1.5 < (sizes[2] - sizes[1]) / (sizes[1] - sizes[0]) < 2.5


FRESH = """
import sys
import numpy as np
import torch
from gemminer.sparse.inference.program import Program
torch.set_num_threads(int(sys.argv[4]))  # equal bits need as many threads
program = Program.load(sys.argv[1])
np.save(sys.argv[2], program(np.load(sys.argv[3])))
print(repr(program))
"""


def test_a_fresh_process_gives_the_same_bits(tmp_path: Path) -> None:
    model = masked(models.build("mobilenet-v2", image_size=16, width=0.25), 0.3)
    program = compile(model, input_shape=(3, 16, 16))
    x = images(5, 3, 16, 16).numpy()
    np.save(tmp_path / "x.npy", x)
    path = program.save(tmp_path / "net.safetensors")
    # The class is not there to be imported: only the file speaks.
    hide = "import sys; sys.modules['gemminer.models'] = None\n"
    paths = [str(path), str(tmp_path / "y.npy"), str(tmp_path / "x.npy"), str(torch.get_num_threads())]
    done = subprocess.run([sys.executable, "-c", hide + FRESH, *paths], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert repr(program) in done.stdout
    np.testing.assert_array_equal(np.load(tmp_path / "y.npy"), program(x))


@pytest.mark.parametrize("name", ["lenet-5", "resnet50", "wideresnet-28-2"])
def test_saved_and_loaded_programs_are_equal(name: str, tmp_path: Path) -> None:
    program = compile(masked(models.build(name, image_size=32, width=0.25)), input_shape=(3, 32, 32))
    again = Program.load(program.save(tmp_path / "net"))
    assert repr(again) == repr(program)
    x = images(3, 3, 32, 32)
    assert torch.equal(program(x), again(x))
    assert again.save(tmp_path / "again").read_bytes() == (tmp_path / "net").read_bytes()


OLD = (
    b'\xa8\x02\x00\x00\x00\x00\x00\x00{"__metadata__":{"gemminer":"{\\"format\\":\\"gemminer.program/1\\",\\"inputs\\":[1,3,3],'
    b'\\"outputs\\":[2],\\"operations\\":[{\\"kind\\":\\"sum\\",\\"shape\\":[2,2,2],\\"limits\\":[0.0,null],\\"entries\\":[[0,1,1,0,0'
    b',2,2,5]]},{\\"kind\\":\\"max\\",\\"shape\\":[2,1,1],\\"channel\\":null,\\"source\\":1,\\"window\\":[2,2],\\"stride\\":[2,2],\\"p'
    b'adding\\":[0,0]},{\\"kind\\":\\"sum\\",\\"shape\\":[2,1,1],\\"limits\\":[null,null],\\"entries\\":[[2,1,1,0,0,1,1,3]]}],\\"sha25'
    b'6\\":\\"8216016b447378cb3506db799f39f94403d2f0c993ecbe3a557fd87beac8f1f4\\"}"},"bias":{"dtype":"F32","shape":[4],"data_o'
    b'ffsets":[0,16]},"value":{"dtype":"F32","shape":[8],"data_offsets":[16,48]},"index":{"dtype":"U8","shape":[8],"data_off'
    b'sets":[48,56]}}     \x00\x00\x80\xbf\x00\x00\x00\x00\x00\x00\x80\xbf\x00\x00\x00\x00\x00\x00\x80\xbf\x00\x00\x80?'
    b"\x00\x00\x80\xbf\x00\x00\x80?\x00\x00\x80\xbf\x00\x00\x80\xbf\x00\x00\x80?\x00\x00\x80\xbf\x00\x02\x01\x02\x01\x00\x02\x01"
)


def test_a_program_of_the_first_format_loads_and_is_written_as_it_was(tmp_path: Path) -> None:
    """Saved before there was a second format, which only programs with its operations have."""
    (tmp_path / "old").write_bytes(OLD)
    program = Program.load(tmp_path / "old")
    model = nn.Sequential(nn.Conv2d(1, 2, 2), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(2, 2))
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.arange(p.numel()).reshape(p.shape) % 3 - 1.0)
    assert_equal(program, model, images(3, 1, 3, 3))
    assert compile(model, input_shape=(1, 3, 3)).save(tmp_path / "new").read_bytes() == OLD
    second = compile(nn.Sequential(nn.Linear(2, 2), nn.SiLU()), input_shape=(2,)).save(tmp_path / "second")
    assert b"gemminer.program/2" in second.read_bytes()


def test_indices_come_back() -> None:
    numbers = np.array([0, 1, 127, 128, 300, 2**20, 2**40, 0], np.int64)
    assert _from_bytes(_to_bytes(numbers)).tolist() == numbers.tolist()
    assert _to_bytes(numbers[:3]).tolist() == [0, 1, 127]
    assert len(_from_bytes(_to_bytes(numbers[:0]))) == 0
    with pytest.raises(GemminerError, match="end in the middle"):
        _from_bytes(np.array([1, 200], np.uint8))


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    model = masked(models.build("lenet-5", in_channels=1, image_size=16, width=0.5), 0.3)
    return compile(model, input_shape=(1, 16, 16)).save(tmp_path / "net.safetensors")


def refused(path: Path) -> str:
    with pytest.raises(GemminerError) as error:
        Program.load(path)
    text = str(error.value)
    assert "\n" not in text
    assert path.name in text
    return text


def test_missing_truncated_and_foreign_files(saved: Path, tmp_path: Path) -> None:
    assert "there is no program file" in refused(tmp_path / "none.safetensors")
    whole = saved.read_bytes()
    for cut in (0, 5, 100, len(whole) // 2, len(whole) - 1):
        saved.write_bytes(whole[:cut])
        refused(saved)
    saved.write_bytes(b"\x80\x04junk" * 50)
    refused(saved)
    save_file({"a": np.zeros(3)}, saved)
    assert "not a compiled program" in refused(saved)
    ticket = Ticket({"w": torch.tensor([True])}, {"w": torch.ones(1)})
    assert "format 'gemminer.ticket/1'" in refused(ticket.save(tmp_path / "ticket.safetensors"))


def test_every_changed_byte_is_noticed(saved: Path) -> None:
    whole = saved.read_bytes()
    for at in range(8, len(whole), max(1, len(whole) // 150)):
        saved.write_bytes(whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :])
        refused(saved)


FORGERIES: dict[str, Callable[[dict[str, Any], dict[str, Any]], None]] = {
    "index far outside": lambda header, t: t.update(index=_to_bytes(_from_bytes(t["index"]) + 10**6)),
    "not a number": lambda header, t: t["value"].__setitem__(0, np.nan),
    "source behind": lambda header, t: header["operations"][0]["entries"][0].__setitem__(0, 5),
    "window beside": lambda header, t: header["operations"][0]["entries"][0].__setitem__(3, 10**6),
    "stride 0": lambda header, t: header["operations"][0]["entries"][0].__setitem__(1, 0),
    "more entries": lambda header, t: header["operations"][0]["entries"][0].__setitem__(-1, 10**6),
    "negative shape": lambda header, t: header["operations"][0]["shape"].__setitem__(1, -3),
    "other output": lambda header, t: header.update(outputs=[11]),
    "unknown kind": lambda header, t: header["operations"][1].update(kind="median"),
    "pool beside": lambda header, t: header["operations"][1].update(source=9),
    "channels beside": lambda header, t: header["operations"][1].update(channel=[99, 99, 99]),
    "wide window": lambda header, t: header["operations"][1].update(window=[99, 99]),
    "no operations": lambda header, t: header.update(operations=[]),
    "words for numbers": lambda header, t: header.update(inputs=["a"]),
    "another version": lambda header, t: header.update(format="gemminer.program/9"),
}  # fmt: skip


@pytest.fixture
def tokens(tmp_path: Path) -> Path:
    """Gather, Norm, Apply, Attention, Constant, in this order among sums."""
    net = nn.Sequential(nn.Flatten(2), nn.TransformerEncoderLayer(4, 2, 8, activation="gelu", batch_first=True))
    return compile(Shifted(net), input_shape=(3, 2, 2)).save(tmp_path / "tokens.safetensors")


class Shifted(nn.Module):
    """A constant for each number, a gate, and a body."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.body(x * x.mean((2, 3), keepdim=True) + torch.arange(12.0).reshape(3, 2, 2))
        return out


def _of(header: dict[str, Any], kind: str) -> dict[str, Any]:
    found: dict[str, Any] = next(op for op in header["operations"] if op["kind"] == kind)
    return found


TOKEN_FORGERIES: dict[str, Callable[[dict[str, Any], dict[str, Any]], None]] = {
    "another function": lambda header, t: _of(header, "apply").update(function="system"),
    "a function of fewer": lambda header, t: _of(header, "apply").update(function="silu"),
    "no function": lambda header, t: _of(header, "apply").update(function=7),
    "an operand behind": lambda header, t: _of(header, "apply")["planes"][0].__setitem__(0, 99),
    "an operand before": lambda header, t: _of(header, "apply")["planes"][0].__setitem__(0, -1),
    "a channel beside": lambda header, t: _of(header, "apply")["planes"][0].__setitem__(2, [0, 1, 9]),
    "fewer channels": lambda header, t: _of(header, "apply")["planes"][0].__setitem__(1, 2),
    "another size": lambda header, t: _of(header, "apply").update(shape=[3, 4, 1]),
    "three operands": lambda header, t: _of(header, "apply")["planes"].append([0, 3, None]),
    "no heads": lambda header, t: _of(header, "attention").update(heads=0),
    "heads that do not divide": lambda header, t: _of(header, "attention").update(heads=3),
    "half a head": lambda header, t: _of(header, "attention").update(heads=2.0),
    "a scale that is none": lambda header, t: _of(header, "attention").update(scale=float("nan")),
    "no values": lambda header, t: _of(header, "attention")["planes"].pop(),
    "fewer keys": lambda header, t: _of(header, "attention")["planes"][1].__setitem__(1, 2),
    "an eps below zero": lambda header, t: _of(header, "norm").update(eps=-1.0),
    "a norm of fewer": lambda header, t: _of(header, "norm")["shape"].__setitem__(0, 3),
    "an order beside": lambda header, t: _of(header, "gather")["planes"][0].__setitem__(1, 1),
    "a longer order": lambda header, t: _of(header, "gather").update(shape=[9, 9, 9]),
    "a longer constant": lambda header, t: _of(header, "constant").update(shape=[999, 2, 2]),
    "a constant that is none": lambda header, t: t["bias"].__setitem__(slice(None), np.inf),
}


@pytest.mark.parametrize("forgery", TOKEN_FORGERIES)
def test_forged_files_of_the_second_format_are_refused(forgery: str, tokens: Path) -> None:
    forge(tokens, TOKEN_FORGERIES[forgery])
    refused(tokens)


@pytest.mark.parametrize("forgery", FORGERIES)
def test_forged_files_are_refused(forgery: str, saved: Path) -> None:
    """With a right checksum: nothing a kernel follows may point outside."""
    forge(saved, FORGERIES[forgery])
    refused(saved)


def forge(saved: Path, change: Callable[[dict[str, Any], dict[str, Any]], None]) -> None:
    from gemminer.sparse.inference.program import _checksum

    with safe_open(saved, framework="np") as file:
        header = json.loads(file.metadata()["gemminer"])
    tensors = load_file(saved)
    change(header, tensors)
    header["sha256"] = _checksum(header, tensors)
    save_file(tensors, saved, metadata={"gemminer": json.dumps(header)})


def test_saving_is_atomic(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program, whole = Program.load(saved), saved.read_bytes()

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(GemminerError, match="No space left"):
        program.save(saved)
    assert saved.read_bytes() == whole
    assert list(saved.parent.iterdir()) == [saved]


# what is refused


def test_wrong_images_are_refused_in_a_sentence() -> None:
    program = compile(nn.Sequential(nn.Flatten(), nn.Linear(8, 2)), input_shape=(2, 2, 2))
    with pytest.raises(UsageError, match=r"shape \(N, 2, 2, 2\), not \(4, 8\)"):
        program(torch.zeros(4, 8))
    with pytest.raises(UsageError, match=r"float32.*not torch\.float64"):
        program(torch.zeros(4, 2, 2, 2, dtype=torch.float64))
    with pytest.raises(UsageError, match=r"float32.*not list"):
        program([1.0])  # type: ignore[type-var]
    with pytest.raises(UsageError, match="threads must be a whole number of at least 1"):
        program(torch.zeros(4, 2, 2, 2), threads=0)
    with pytest.raises(UsageError, match="move the images there"):
        program(torch.zeros(4, 2, 2, 2, device="meta"))
    with pytest.raises(UsageError, match="example_input"):
        compile(nn.Linear(2, 2))
    broken = nn.Linear(2, 2)
    nn.init.constant_(broken.weight, float("nan"))
    with pytest.raises(GemminerError, match="not a finite number"):
        compile(broken, input_shape=(2,))


def test_torch_keeps_its_threads() -> None:
    threads = torch.get_num_threads()
    program = compile(nn.Sequential(nn.Flatten(), nn.Linear(8, 2)), input_shape=(2, 2, 2))
    program(torch.zeros(300, 2, 2, 2), threads=3)
    assert torch.get_num_threads() == threads
