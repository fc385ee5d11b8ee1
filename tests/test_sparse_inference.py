"""Compiled programs: equal to eager evaluation, small on disk, whole or refused."""

from __future__ import annotations

import copy
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
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from torch import Tensor, nn

from gemminer import models
from gemminer.core.errors import GemminerError, UsageError
from gemminer.core.model_state import named_state
from gemminer.core.randomness import generator
from gemminer.core.ticket import Ticket
from gemminer.sparse.inference.compiler import compile
from gemminer.sparse.inference.layout import Sum
from gemminer.sparse.inference.program import Program, _from_bytes, _to_bytes

# Published by the Rare Gems authors for ResNet-20 at 1.44% (percent kept, layer by layer).
RESNET20 = (34.49, 7.16, 8.25, 8.68, 7.16, 6.94, 6.38, 4.10, 3.21, 3.15, 2.71, 2.27, 1.83, 0.68, 0.63, 0.37, 0.66,
            0.33, 0.70, 25.94)  # fmt: skip


def masked(
    model: nn.Module, density: float | tuple[float, ...] = 0.1, *, dead: float = 0.2, seed: int = 0
) -> nn.Module:
    """Random masks with dead filters, weights scaled so that signals live, and statistics as after training."""
    source = generator("inference test", str(seed))
    layers = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    densities = density if isinstance(density, tuple) else (density,) * len(layers)
    with torch.no_grad():
        for layer, kept in zip(layers, densities, strict=True):
            w = layer.weight
            w *= torch.rand(w.shape, generator=source) < kept
            w[torch.rand(len(w), generator=source) < dead] = 0
            w *= (w.numel() / max(1, int((w != 0).sum()))) ** 0.5
        for norm in (m for m in model.modules() if isinstance(m, nn.BatchNorm2d | nn.BatchNorm1d)):
            norm.running_mean.normal_(generator=source).mul_(0.3)  # type: ignore[union-attr]
            norm.running_var.uniform_(0.5, 1.5, generator=source)  # type: ignore[union-attr]
            if norm.affine:
                norm.weight.uniform_(0.5, 1.5, generator=source)
                norm.bias.normal_(generator=source).mul_(0.3)
    return model.eval()


def images(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=generator("inference images", str(seed)))


def assert_equal(program: Program, model: nn.Module, x: Tensor, tolerance: float = 1e-5, **options: Any) -> None:
    """Equal to eager in float64 within `tolerance` of the largest output."""
    with torch.no_grad():
        want = copy.deepcopy(model).double().eval()(x.double())
    got = program(x, **options)
    assert got.dtype == torch.float32
    assert got.shape == want.shape
    scale = want.abs().max().item()
    assert scale > 0 or len(x) == 1  # of one image nothing may be left behind a ReLU, of many something is
    assert (got.double() - want).abs().max().item() <= tolerance * scale


class Net(nn.Module):
    """A forward in a line, with the modules it needs."""

    def __init__(self, forward: Callable[..., Tensor], **modules: nn.Module) -> None:
        super().__init__()
        self.body = forward
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self, x)


CONVOLUTIONAL = [name for name in models.names() if name != "transformer"]


@pytest.mark.parametrize("name", CONVOLUTIONAL)
def test_every_network_equals_eager(name: str) -> None:
    channels, size = (1, 28) if name.startswith("lenet") else (3, 32)
    model = masked(models.build(name, in_channels=channels, image_size=size, width=0.25))
    program = compile(model, input_shape=(channels, size, size))
    for batch in (1, 3):
        assert_equal(program, model, images(batch, channels, size, size), threads=1 + batch % 2)


@pytest.mark.parametrize("batch", [1, 2, 3, 16, 17, 128, 512])
@pytest.mark.parametrize("threads", [1, 2])
def test_batch_sizes(batch: int, threads: int) -> None:
    model = masked(models.build("resnet20", image_size=9, width=0.5), 0.2)
    program = compile(model, input_shape=(3, 9, 9))
    assert_equal(program, model, images(batch, 3, 9, 9), threads=threads)


@pytest.mark.parametrize("lanes", [1, 2, 4, 8, 16, 32, 64])
def test_every_size_of_group(lanes: int) -> None:
    model = masked(models.build("mobilenet-v2", image_size=12, width=0.25), 0.4)
    program = compile(model, input_shape=(3, 12, 12))
    program._most_lanes = lanes
    assert_equal(program, model, images(lanes + 1, 3, 12, 12), threads=1)
    assert max(program._layouts) == lanes


@pytest.mark.parametrize("width", [0.5, 1.0])
def test_the_densities_of_the_paper(width: float) -> None:
    model = masked(models.build("resnet20", width=width), tuple(d / 100 for d in RESNET20), dead=0)
    assert_equal(compile(model, input_shape=(3, 32, 32)), model, images(5, 3, 32, 32))


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


def test_nothing_crosses_images() -> None:
    """Equal groups give equal bits, whatever the other images hold and however many threads there are."""
    program = compile(masked(models.build("resnet20", image_size=16, width=0.5)), input_shape=(3, 16, 16))
    x = images(64, 3, 16, 16)
    want = program(x, threads=1)
    assert torch.equal(want, program(x, threads=2))
    broken = x.clone()
    broken[[0, 7, 33]] = torch.tensor([float("nan"), float("inf"), 1e30])[:, None, None, None]
    program(broken, threads=1)
    assert torch.equal(want, program(x, threads=1)), "what one call leaves behind does not reach the next"
    others = [i for i in range(64) if i not in (0, 7, 33)]
    assert torch.equal(want[others], program(broken, threads=2)[others])


def test_calls_from_several_threads() -> None:
    model = masked(models.build("resnet20", image_size=16, width=0.5))
    program = compile(model, input_shape=(3, 16, 16))
    batches = [images(20, 3, 16, 16, seed=s) for s in range(8)]
    want = [program(x, threads=2) for x in batches]
    with ThreadPoolExecutor(4) as pool:
        got = list(pool.map(lambda x: program(x, threads=2), batches * 3))
    assert all(torch.equal(a, b) for a, b in zip(got, want * 3, strict=True))


LAYERS: dict[str, tuple[tuple[int, ...], nn.Module]] = {
    "stride and dilation": ((4, 13, 11), nn.Conv2d(4, 6, 3, (2, 1), (3, 2), (1, 2))),
    "even kernel": ((3, 8, 9), nn.Conv2d(3, 5, 4, 3, 1)),
    "same": ((3, 7, 7), nn.Conv2d(3, 5, 4, padding="same")),
    "groups": ((6, 7, 7), nn.Conv2d(6, 9, 3, padding=1, groups=3)),
    "depthwise, stride": ((6, 7, 8), nn.Conv2d(6, 6, 5, 2, 2, groups=6)),
    "padding wider than the map": ((2, 2, 3), nn.Conv2d(2, 3, 5, padding=4)),
    "to one pixel": ((3, 4, 4), nn.Conv2d(3, 4, 4)),
    "one pixel, padded": ((3, 1, 1), nn.Conv2d(3, 4, 3, padding=1)),
    "1x1, stride": ((3, 9, 9), nn.Conv2d(3, 4, 1, 4)),
    "max pool, padded": ((3, 9, 8), nn.Sequential(nn.Conv2d(3, 4, 1), nn.MaxPool2d(3, 2, 1))),
    "max pool, ceiling": ((3, 9, 8), nn.MaxPool2d(2, 2, ceil_mode=True)),
    "max pool, overlapping": ((3, 9, 8), nn.MaxPool2d(3, 1, 1)),
    "mean pool, padded": ((3, 9, 8), nn.AvgPool2d(3, 2, 1)),
    "adaptive": ((3, 8, 6), nn.AdaptiveAvgPool2d((4, 2))),
    "norm first": ((3, 5, 5), nn.Sequential(nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 4, 3, padding=1))),
    "norm of features": ((2, 3, 3), nn.Sequential(nn.Flatten(), nn.BatchNorm1d(18), nn.Linear(18, 4))),
    "features": ((12,), nn.Sequential(nn.Linear(12, 9), nn.BatchNorm1d(9), nn.ReLU(), nn.Linear(9, 4))),
    "activations": (
        (3, 6, 6),
        nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU6(), nn.Conv2d(8, 8, 1), nn.Hardtanh(-0.5, 0.7), nn.Dropout(),
                      nn.Conv2d(8, 4, 1), nn.LeakyReLU(0.2), nn.Identity()),
    ),
    "nothing": ((3, 4, 4), nn.Identity()),
    "result is a map": ((3, 4, 4), nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU())),
    "affine, dead filters and padding": (
        (3, 6, 6),
        nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(3, 1, 1),
                      nn.Conv2d(8, 4, 3, padding=1), nn.AvgPool2d(3, 1, 1), nn.Conv2d(4, 3, 3)),
    ),
    "concatenation": (
        (3, 6, 6),
        Net(lambda m, x: torch.cat([m.a(x), x, F.relu(m.b(x))], 1), a=nn.Conv2d(3, 4, 3, padding=1),
            b=nn.Conv2d(3, 2, 1)),
    ),
    "shortcut by padding": (
        (3, 7, 7),
        Net(lambda m, x: F.relu(m.a(x) + F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 1, 2))), a=nn.Conv2d(3, 6, 3, 2, 1)),
    ),
    "slices and pads": (
        (4, 7, 7),
        Net(lambda m, x: m.a(F.pad(x[:, 1:3, 1:, 2:6:3], (1, 2, 0, 1))), a=nn.Conv2d(2, 3, 3)),
    ),
    "numbers": (
        (3, 4, 4),
        Net(lambda m, x: m.a((x - 0.5) * 2 / 3 + 1).clamp(min=-0.1) - x, a=nn.Conv2d(3, 3, 3, padding=1)),
    ),
    "same value twice": ((3, 4, 4), Net(lambda m, x: F.relu(m.a(x)) + F.relu(m.a(x)) + x, a=nn.Conv2d(3, 3, 1))),
    "value read again": (
        (3, 4, 4),
        Net(lambda m, x: (y := m.a(x)) + m.b(F.relu(m.n(y))), a=nn.Conv2d(3, 3, 1), b=nn.Conv2d(3, 3, 3, padding=1),
            n=nn.BatchNorm2d(3)),
    ),
    "in place": (
        (3, 4, 4),
        Net(lambda m, x: (y := m.a(x)) + m.b(m.r(y)) + y, a=nn.Conv2d(3, 3, 1), b=nn.Conv2d(3, 3, 1),
            r=nn.ReLU(inplace=True)),
    ),
    "means and views": (
        (3, 4, 6),
        Net(lambda m, x: m.b(m.a(x).mean((2, 3))) + m.c(x.view(x.size(0), -1)), a=nn.Conv2d(3, 5, 3), b=nn.Linear(5, 4),
            c=nn.Linear(72, 4)),
    ),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning")
@pytest.mark.parametrize("case", LAYERS)
@pytest.mark.parametrize("dead", [0.0, 0.4])
def test_layers_equal_eager(case: str, dead: float) -> None:
    shape, model = LAYERS[case]
    for seed in range(3):
        net = masked(copy.deepcopy(model), 0.7, dead=dead, seed=seed)
        program = compile(net, input_shape=shape)
        for batch in (1, 5, 37):
            assert_equal(program, net, images(batch, *shape, seed=seed), threads=1)


@pytest.mark.parametrize("kept", ["no layer", "first only", "last only"])
def test_empty_layers(kept: str) -> None:
    model = models.build("resnet20", image_size=8, width=0.25, norm="affine", bias=True)
    layers = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    alive = {"no layer": -1, "first only": 0, "last only": len(layers) - 1}[kept]
    masked(model, tuple(0.5 * (k == alive) for k in range(len(layers))), dead=0)
    assert_equal(compile(model, input_shape=(3, 8, 8)), model, images(3, 3, 8, 8))


def test_dead_filters_are_removed_with_what_fed_only_them() -> None:
    a, b, c = nn.Conv2d(1, 2, 3, padding=1, bias=False), nn.Conv2d(2, 2, 1, bias=False), nn.Conv2d(2, 1, 3, padding=1)
    with torch.no_grad():
        b.weight[:] = torch.tensor([[1.0, 0.0], [0.0, 3.0]])[:, :, None, None]
        c.weight[:, 0] = 0  # nothing reads filter 0 of b, so nothing filter 0 of a
    model = nn.Sequential(a, nn.ReLU(), b, nn.ReLU(), c)
    program = compile(model, input_shape=(1, 5, 5))
    assert [op.shape[0] for op in program.operations] == [1, 1, 1]
    assert program.entries == 9 + 1 + 9
    assert_equal(program, model, images(2, 1, 5, 5))


def test_a_dead_branch_costs_nothing() -> None:
    """A residual block without weights is the identity: its channels are read where they lie."""
    model = models.build("resnet20", image_size=8, width=0.25)
    with torch.no_grad():
        for name, w in model.named_parameters():
            if name.startswith("layer") and name.endswith("weight"):
                w.zero_()
    program = compile(model, input_shape=(3, 8, 8))
    # The stem, two strided shortcuts, the mean and the classifier.
    assert len(program.operations) == 5
    assert_equal(program, model.eval(), images(3, 3, 8, 8))


def test_constants_are_folded_inside_and_kept_at_borders() -> None:
    dead, read = nn.Conv2d(1, 1, 3, padding=1), nn.Conv2d(1, 2, 3, padding=1)
    with torch.no_grad():
        dead.weight.zero_()
        dead.bias.fill_(2.0)  # type: ignore[union-attr]
        read.weight.fill_(1.0)
        read.weight[1, :, 0] = read.weight[1, :, 2] = read.weight[1, :, :, 0] = read.weight[1, :, :, 2] = 0.0
        read.bias.zero_()  # type: ignore[union-attr]
    program = compile(nn.Sequential(dead, read), input_shape=(1, 4, 4))
    got = program(torch.zeros(1, 1, 4, 4))
    assert got[0, 0].tolist() == [[8, 12, 12, 8], [12, 18, 18, 12], [12, 18, 18, 12], [8, 12, 12, 8]]
    assert got[0, 1].unique().tolist() == [2.0]
    assert program.entries == 8  # the centre is never padding, and all that the second filter reads


def test_a_ticket_and_train_mode_leave_the_model_alone() -> None:
    model = models.build("resnet20", image_size=8, width=0.25)
    weights = {n: p for n, p in model.named_parameters() if p.ndim > 1}
    masks = {n: torch.rand(p.shape, generator=generator("ticket", n)) < 0.2 for n, p in weights.items()}
    Ticket(masks, named_state(model)).apply(model).train()
    before = copy.deepcopy(model.state_dict())
    program = compile(model, images(2, 3, 8, 8))
    assert model.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert_equal(program, model.eval(), images(2, 3, 8, 8))


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
from gemminer.sparse.inference.program import Program
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
    paths = [str(path), str(tmp_path / "y.npy"), str(tmp_path / "x.npy")]
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


@pytest.mark.parametrize("forgery", FORGERIES)
def test_forged_files_are_refused(forgery: str, saved: Path) -> None:
    """With a right checksum: nothing a kernel follows may point outside."""
    from gemminer.sparse.inference.program import _checksum

    with safe_open(saved, framework="np") as file:
        header = json.loads(file.metadata()["gemminer"])
    tensors = load_file(saved)
    FORGERIES[forgery](header, tensors)
    header["sha256"] = _checksum(header, tensors)
    save_file(tensors, saved, metadata={"gemminer": json.dumps(header)})
    refused(saved)


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

REFUSED: dict[str, tuple[tuple[int, ...], nn.Module, str]] = {
    "layer": ((3, 4, 4), nn.Sequential(nn.Conv2d(3, 2, 1), nn.GELU()), r"GELU \(1\)"),
    "function": ((3, 4, 4), Net(lambda m, x: torch.fft.fft(x).real), "fft"),
    "transformer": ((3, 32, 32), models.build("transformer", dim=16, depth=1), "cannot"),
    "branch on data": ((3, 4, 4), Net(lambda m, x: x if x.sum() > 0 else -x), "must not branch"),
    "wrong input": ((4, 4, 4), nn.Sequential(nn.Conv2d(3, 2, 1)), r"shape \(4, 4, 4\)"),
    "product of values": ((3, 4, 4), Net(lambda m, x: x * x), "only numbers and adds"),
    "batch statistics": ((3, 4, 4), nn.BatchNorm2d(3, track_running_stats=False), "running statistics"),
    "reflection": ((3, 4, 4), nn.Conv2d(3, 2, 3, padding=1, padding_mode="reflect"), "reflect"),
    "reshape of pixels": ((4, 4, 4), Net(lambda m, x: x.reshape(-1, 1, 8, 8)), "reshape"),
    "broadcast": ((4, 4, 4), Net(lambda m, x: x + x.mean((2, 3), keepdim=True)), "broadcast"),
    "two results": ((4,), Net(lambda m, x: (x, x)), "one tensor"),  # type: ignore[arg-type, return-value]
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_it_does_not_know_is_named(case: str) -> None:
    shape, model, words = REFUSED[case]
    with pytest.raises(UsageError, match=words) as error:
        compile(model, input_shape=shape)
    assert "\n" not in str(error.value)


def test_wrong_images_are_refused_in_a_sentence() -> None:
    program = compile(nn.Sequential(nn.Flatten(), nn.Linear(8, 2)), input_shape=(2, 2, 2))
    with pytest.raises(UsageError, match=r"shape \(N, 2, 2, 2\), not \(4, 8\)"):
        program(torch.zeros(4, 8))
    with pytest.raises(UsageError, match=r"float32.*not torch\.float64"):
        program(torch.zeros(4, 2, 2, 2, dtype=torch.float64))
    with pytest.raises(UsageError, match=r"float32.*not list"):
        program([1.0])  # type: ignore[type-var]
    with pytest.raises(UsageError, match="threads must be at least 1"):
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


def test_rows_are_weights_in_float32() -> None:
    program = compile(masked(models.build("conv-2", image_size=8, width=0.1)), input_shape=(3, 8, 8))
    for op in program.operations:
        if isinstance(op, Sum):
            assert op.bias.dtype == np.float32
            assert all(e.value.dtype == np.float32 for e in op.entries)
