"""Damage done to the files of tickets and programs at random, most of it with right checksums, and what must hold.

python -m tests.mutations programs 30000     # or tickets; --seed N for one of them alone

A file that cannot be is a GemminerError; one that can be reads its own memory only: a program's kernels run between
pages that nobody may touch, and give what their definition gives.
"""

from __future__ import annotations

import argparse
import copy
import ctypes
import hashlib
import json
import math
import mmap
import random
import struct
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load
from torch import nn

from gemminer.core.draw import Draw
from gemminer.core.errors import GemminerError
from gemminer.core.model_state import named_state
from gemminer.core.prunable import prunable_weights
from gemminer.core.ticket import Ticket, _facts_checksum
from gemminer.sparse.inference import kernels
from gemminer.sparse.inference.compiler import compile
from gemminer.sparse.inference.layout import Array, Layout, Pool
from gemminer.sparse.inference.program import Program, _checksum

# Numbers that arithmetic goes wrong with, and things that are no numbers.
ODD: tuple[Any, ...] = (0, 1, 2, 3, 7, -1, -2, 2**15, 2**24, 2**30, 2**31 - 1, 2**31, -(2**31), 2**32 + 1, 2**40,
                        2**62, 2**63, 2**64 + 3, 10**400, 0.5, 1e308, math.nan, math.inf, -math.inf, None,
                        True, "", "3", "x" * 99, [], {}, [[]], [2, 2], {"a": 1})  # fmt: skip
FLOATS = (0.0, -0.0, 1.0, 1e-45, 3e38, math.nan, math.inf, -math.inf, 65504.0)
TYPES = ("F32", "F16", "BF16", "F64", "I64", "U64", "I32", "U32", "I16", "I8", "U8", "BOOL", "F8_E4M3", "F8_E5M2",
         "F8_E8M0", "F4", "F6_E2M3", "C64", "X9", "")  # fmt: skip

Tensors = dict[str, tuple[str, list[Any], bytes]]  # type, shape and bytes as the file has them


# --- files of safetensors, by hand -------------------------------------------------------------------------------


def unpacked(file: bytes) -> tuple[dict[str, Any], Tensors]:
    """The header in a file's metadata, and its tensors."""
    (size,) = struct.unpack("<Q", file[:8])
    head, data = json.loads(file[8 : 8 + size]), file[8 + size :]
    meta = json.loads(head.pop("__metadata__")["gemminer"])
    return meta, {n: (t["dtype"], t["shape"], data[slice(*t["data_offsets"])]) for n, t in head.items()}


def packed(meta: dict[str, Any], tensors: Tensors) -> bytes:
    head: dict[str, Any] = {"__metadata__": {"gemminer": json.dumps(meta)}}
    at = 0
    for name, (kind, shape, data) in tensors.items():
        head[name] = {"dtype": kind, "shape": shape, "data_offsets": [at, at + len(data)]}
        at += len(data)
    text = json.dumps(head).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + b"".join(data for _, _, data in tensors.values())


# --- damage ------------------------------------------------------------------------------------------------------


def _places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _places(item, (*path, key))
    elif isinstance(value, list):
        for k, item in enumerate(value):
            yield from _places(item, (*path, k))


def _at(value: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        value = value[key]
    return value


def _near(value: Any, source: random.Random) -> Any:
    """Another value in place of this one; of a number, often one close by or of another scale."""
    if type(value) is int and source.random() < 0.8:
        return source.choice(
            [
                value + 1,
                value + 1,
                value - 1,
                value + 2,
                value - 1,
                -value,
                2 * value,
                value + 2**32,
                value * 2**16,
                value // 2,
            ]
        )
    return source.choice(ODD)


def damage_json(value: Any, source: random.Random) -> Any:
    """The same value with one place of it replaced, left out, doubled or exchanged with another."""
    value = copy.deepcopy(value)
    places = [p for p in _places(value) if p] or [()]
    numbers = [p for p in places if type(_at(value, p)) is int]
    path = source.choice(numbers if numbers and source.random() < 0.6 else places)
    if not path:
        return _near(value, source)
    parent = value
    for key in path[:-1]:
        parent = parent[key]
    key, kind = path[-1], source.random()
    if kind < 0.7:
        parent[key] = _near(parent[key], source)
    elif kind < 0.8:
        del parent[key]
    elif kind < 0.9 and isinstance(parent, list):
        parent.insert(key, copy.deepcopy(parent[key]))
    else:
        other = source.choice(list(parent) if isinstance(parent, dict) else range(len(parent)))
        parent[key], parent[other] = parent[other], parent[key]
    return value


def damage_tensor(tensors: Tensors, source: random.Random) -> Tensors:
    """The same tensors with one of them changed in its bytes, its shape, its type or its name."""
    tensors = dict(tensors)
    name = source.choice(list(tensors))
    kind, shape, data = tensors.pop(name)
    what, data = source.random(), bytearray(data)
    if what < 0.35 and data:
        for _ in range(source.choice([1, 1, 4])):
            data[source.randrange(len(data))] = source.choice([0, 1, 127, 128, 255, source.randrange(256)])
    elif what < 0.55 and kind == "F32" and data:
        at = 4 * source.randrange(len(data) // 4)
        data[at : at + 4] = struct.pack("<f", source.choice(FLOATS))
    elif what < 0.7 and data:
        item = max(1, len(data) // max(1, math.prod(shape)))
        data = data[: item * source.randrange(len(data) // item)] if source.random() < 0.5 else data + data[-item:]
        shape = [len(data) // item]
    elif what < 0.8:
        shape = source.choice([[1, *shape], [*shape, 1], shape[::-1], damage_json(shape, source), []])
    elif what < 0.9:
        kind = source.choice(TYPES)
    elif what < 0.95:
        name = source.choice([name + "x", "", "mask/", "initial/" + name, "value"])
    else:
        return tensors
    return {**tensors, name: (kind, shape, bytes(data))}


def damage_bytes(file: bytes, source: random.Random) -> bytes:
    """A file with bytes changed, cut out or doubled, no checksum mended."""
    data = bytearray(file)
    for _ in range(source.choice([1, 2, 8])):
        at, kind = source.randrange(len(data)), source.random()
        end = at + source.randrange(1, 40)
        if kind < 0.6:
            data[at] = source.randrange(256)
        elif kind < 0.8:
            del data[at:end]
        else:
            data[at:at] = data[at:end]
        if not data:
            return b""
    return bytes(data)


def damaged(files: list[bytes], sign: Callable[[dict[str, Any], Tensors], None], seed: int) -> bytes:
    """The file of number `seed`: nine of ten are damaged by structure and signed anew."""
    source = random.Random(seed)
    file = source.choice(files)
    if source.random() < 0.1:
        return damage_bytes(file, source)
    meta, tensors = unpacked(file)
    for _ in range(source.choice([1, 1, 2, 3])):
        if source.random() < 0.7:
            found = damage_json(meta, source)
            meta = found if isinstance(found, dict) else meta
        elif tensors:
            tensors = damage_tensor(tensors, source)
    try:
        sign(meta, tensors)
    except Exception:  # nothing that could be signed is left
        return packed(meta, tensors)
    return packed(meta, tensors)


# --- programs ----------------------------------------------------------------------------------------------------


class _Branches(nn.Module):
    """A stride, a residual of it, both pools and a concatenation."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 4, 3, stride=2, padding=1)
        self.short, self.last = nn.Conv2d(4, 4, 1, stride=2), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.first(x))
        y = torch.relu(self.second(x) + self.short(x))
        z = nn.functional.max_pool2d(x, 3, 2, 1)
        out: torch.Tensor = self.last(torch.cat([y, z], 1).mean((2, 3)))
        return out


def programs(folder: Path) -> list[bytes]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        pooled = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU6(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(27, 4))
        plain = nn.Sequential(nn.Linear(7, 9), nn.ReLU(), nn.Linear(9, 5))
        nets = [(pooled, (1, 8, 8)), (plain, (7,)), (_Branches(), (2, 9, 9))]
        with torch.no_grad():
            for net, _ in nets:
                for p in net.parameters():
                    p *= torch.rand_like(p) < 0.7
    return [compile(net, input_shape=shape).save(folder / "program").read_bytes() for net, shape in nets]


_NUMPY = {"F32": np.float32, "F16": np.float16, "F64": np.float64, "U8": np.uint8, "I64": np.int64, "I32": np.int32}


def sign_program(meta: dict[str, Any], tensors: Tensors) -> None:
    arrays = {n: np.frombuffer(data, _NUMPY[kind]).reshape(shape) for n, (kind, shape, data) in tensors.items()}
    meta["sha256"] = _checksum(meta, arrays)


_LIBC = ctypes.CDLL(None, use_errno=True)
_LIBC.mmap.restype = ctypes.c_void_p
_LIBC.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
_LIBC.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_LIBC.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
_GUARD = 2**35  # bytes that nobody may touch on either side: more than an offset of 32 bits reaches


@contextmanager
def guarded(arrays: list[Array], at_end: bool) -> Iterator[list[Array]]:
    """Copies of the arrays, the end (or the beginning) of each against a region that may not be touched."""
    regions, copies = [], []
    for array in arrays:
        size = -(-array.nbytes // mmap.PAGESIZE) * mmap.PAGESIZE
        whole = size + 2 * _GUARD
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000  # MAP_NORESERVE
        start = _LIBC.mmap(None, whole, 0, flags, -1, 0)
        assert start not in (None, 2**64 - 1), "no address space for guards"
        regions.append((start, whole))
        if size:
            assert _LIBC.mprotect(start + _GUARD, size, mmap.PROT_READ | mmap.PROT_WRITE) == 0
        place = start + _GUARD + (size - array.nbytes if at_end else 0)
        buffer = (ctypes.c_char * array.nbytes).from_address(place)
        view = np.frombuffer(buffer, array.dtype).reshape(array.shape) if array.nbytes else array
        view[...] = array
        copies.append(view)
    try:
        yield copies
    finally:
        for start, whole in regions:
            _LIBC.munmap(start, whole)


def run_guarded(program: Program, images: Array, lanes: int, at_end: bool) -> Array:
    """What the kernels give for images, all their arrays between guards."""
    layout = Layout(program._plan, lanes)
    logits = np.zeros((len(images), math.prod(program.outputs)), np.float32)
    arrays = [images, logits, *layout.tables, layout.memory()]
    with guarded(arrays, at_end) as (x, y, *tables, scratch):
        kernels.run(x, y, 0, len(images), lanes, *tables, scratch)
        return y.copy()


def _shifted(x: Array, shape: tuple[int, ...], stride: tuple[int, ...], dy: int, dx: int, fill: float) -> Array:
    """x[y * stride + dy, x * stride + dx] for outputs of a shape, `fill` outside the map."""
    ys, xs = (np.arange(n) * s + d for n, s, d in zip(shape, stride, (dy, dx), strict=True))
    inside = ((ys >= 0) & (ys < x.shape[0]))[:, None] & ((xs >= 0) & (xs < x.shape[1]))
    return np.where(inside, x[np.clip(ys, 0, x.shape[0] - 1)][:, np.clip(xs, 0, x.shape[1] - 1)], fill)


def defined(program: Program, image: Array) -> tuple[Array, float]:
    """What a program's definition gives for one image in double precision, and the largest number on the way."""
    values = [image.reshape((1, 1, -1) if image.ndim == 1 else image.shape).astype(np.float64)]
    most = 0.0
    for op in program.operations:
        out = np.zeros(op.shape)
        if isinstance(op, Pool):
            taps = list(zip(*(d.tolist() for d in op.taps()), strict=True))
            for o, c in enumerate(op.channel):
                fill = -math.inf if op.largest else 0.0
                cells = [_shifted(values[op.source][c], op.shape[1:], op.stride, *tap, fill) for tap in taps]
                out[o] = np.max(cells, 0) if op.largest else np.mean(cells, 0)
        else:
            size = np.zeros(op.shape)
            out += op.bias[:, None, None]
            for e in op.entries:
                for o, c, dy, dx, value in zip(e.row, e.channel, e.dy, e.dx, e.value, strict=True):
                    term = float(value) * _shifted(values[e.source][c], op.shape[1:], e.stride, dy, dx, 0.0)
                    out[o] += term
                    size[o] += abs(term)
            most = max(most, float(size.max(initial=0)))
            out = np.where(out < np.float32(op.low), np.float32(op.low), out)
            out = np.where(out > np.float32(op.high), np.float32(op.high), out)
        most = max(most, float(np.abs(out).max(initial=0)))
        values.append(out)
    return values[-1].reshape(-1), most


def try_program(path: Path) -> str:
    """Load a program and run it between guards; the sentence of its refusal, or what was done with it."""
    try:
        program = Program.load(path)
    except GemminerError as error:
        return _one_line(error)
    lanes = [n for n in (1, 2, 8, 64) if program._plan.place(n)[1] <= 2**18]
    taps = [math.prod(op.window) * op.shape[0] if isinstance(op, Pool) else 0 for op in program.operations]
    if not lanes or max(taps) > 2**14 or len(program.operations) > 100:
        return "loaded, too large to run"
    rows = np.random.default_rng(0).standard_normal((3, math.prod(program.inputs))).astype(np.float32)
    with np.errstate(all="ignore"):
        want, most = defined(program, rows[1].reshape(program.inputs))
        for k, count in enumerate(lanes):
            got = run_guarded(program, rows, count, at_end=k % 2 == 0)[1]
            got_at_begin = run_guarded(program, rows, count, at_end=k % 2 == 1)[1]
            np.testing.assert_array_equal(got, got_at_begin)
            if most < 1e6:
                np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-4 * (1 + most))
    np.testing.assert_array_equal(program(rows.reshape(3, *program.inputs)).reshape(3, -1).shape, (3, len(want)))
    return "run"


# --- tickets -----------------------------------------------------------------------------------------------------


def _net() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(27, 4))


def tickets(folder: Path) -> list[bytes]:
    net = _net()
    draw = Draw("kaiming-normal", 3)
    shapes = {name: p.shape for name, p in prunable_weights(net).items()}
    masks = {
        name: torch.rand(shape, generator=torch.Generator().manual_seed(1)) < 0.3 for name, shape in shapes.items()
    }
    own = Ticket(
        masks, {**named_state(net), **draw.weights(shapes)}, {"method": "test", "seed": 3, "options": {"a": 1}}, draw
    )
    half = Ticket(masks, {n: v.to(torch.bfloat16) for n, v in own.initial.items()}, {"seed": 1})
    files = [own.save(folder / "t"), own.save(folder / "small", weights=False), half.save(folder / "half")]
    return [file.read_bytes() for file in files]


def sign_ticket(meta: dict[str, Any], tensors: Tensors) -> None:
    """The checksums a ticket of these facts, masks and weights would have."""
    meta["checksum"] = {"masks": "", "initial": "", "facts": _facts_checksum(meta)}
    digest = hashlib.sha256()
    for name in sorted(meta["shapes"]):
        digest.update(f"{name} {tuple(meta['shapes'][name])}\n".encode())
        digest.update(tensors[f"mask/{name}"][2])
    meta["checksum"]["masks"] = digest.hexdigest()
    state = {n.removeprefix("initial/"): v for n, v in load(packed(meta, tensors)).items() if n.startswith("initial/")}
    if meta["drawn"] and all(math.prod(meta["shapes"][n]) < 10**6 for n in meta["drawn"]):
        state |= Draw(**meta["draw"]).weights({n: torch.Size(meta["shapes"][n]) for n in meta["drawn"]})
    digest = hashlib.sha256()
    for name in sorted(state):
        digest.update(f"{name} {state[name].dtype} {tuple(state[name].shape)}\n".encode())
        digest.update(state[name].contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    meta["checksum"]["initial"] = digest.hexdigest()


def try_ticket(path: Path) -> str:
    """Load a ticket and use all of it; the sentence of its refusal, or what was done with it."""
    try:
        ticket = Ticket.load(path)
    except GemminerError as error:
        return _one_line(error)
    repr(ticket)
    assert ticket.kept == sum(int(mask.sum()) for mask in ticket.masks.values())
    assert sum(layer.kept for layer in ticket.per_layer()) == ticket.kept
    assert Ticket.load(ticket.save(path.with_name("again"))) == ticket
    try:
        ticket.apply(_net())
    except GemminerError as error:
        return f"loaded: {_one_line(error)}"
    return "applied"


# --- the whole ---------------------------------------------------------------------------------------------------


def _one_line(error: GemminerError) -> str:
    assert len(str(error).splitlines()) == 1, f"not one line: {error}"
    return str(error)


KINDS: dict[str, tuple[Callable[[Path], list[bytes]], Callable[..., None], Callable[[Path], str]]] = {
    "programs": (programs, sign_program, try_program),
    "tickets": (tickets, sign_ticket, try_ticket),
}


def mutate(kind: str, seeds: range, folder: Path) -> tuple[Counter[str], dict[int, Exception]]:
    """Try the files of these numbers: what came of them, counted, and what was no GemminerError, by number."""
    make, sign, attempt = KINDS[kind]
    files, found, faults = make(folder), Counter[str](), {}
    path = folder / "file.safetensors"
    for seed in seeds:
        path.write_bytes(damaged(files, sign, seed))
        (folder / "seed").write_text(str(seed))  # which one it was, if it ends the process
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                found[attempt(path).replace(str(path), "")[:60]] += 1
        except Exception as error:
            faults[seed] = error
    return found, faults


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("count", type=int, nargs="?", default=30_000)
    parser.add_argument("--seed", type=int, default=0, help="the first")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found, faults = mutate(given.kind, range(given.seed, given.seed + given.count), Path(folder))
    for sentence, count in found.most_common(60):
        print(f"{count:7d}  {sentence}")
    for seed, error in list(faults.items())[:20]:
        print(f"FAULT {seed}: {type(error).__name__}: {error}")
        if given.count == 1:
            raise error
    print(f"{given.count} files of {given.kind}, {len(faults)} faults")
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
