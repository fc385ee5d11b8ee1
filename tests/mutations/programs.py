"""Damaged programs: refused, or run between pages that nobody may touch, and as their definition says."""

from __future__ import annotations

import ctypes
import math
import mmap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from gemminer.core.errors import GemminerError
from gemminer.sparse.inference.compiler import compile
from gemminer.sparse.inference.dense import computed
from gemminer.sparse.inference.kernels import values_of
from gemminer.sparse.inference.layout import Layout
from gemminer.sparse.inference.operations import Apply, Array, Constant, Dense, Gather, Norm, Planar, Pool
from gemminer.sparse.inference.program import Program, _checksum
from tests.mutations.damage import Tensors, one_line


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


class _Tokens(nn.Module):
    """Squeeze and excite, tokens behind a class token, layer norm and attention."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.gate, self.token = nn.Conv2d(2, 4, 2, 2), nn.Linear(4, 4), nn.Parameter(torch.randn(1, 1, 4))
        self.norm, self.qkv, self.last = nn.LayerNorm(4), nn.Linear(4, 12), nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = nn.functional.silu(self.first(x))
        x = x * self.gate(x.mean((2, 3))).sigmoid()[:, :, None, None]
        x = torch.cat([self.token.expand(len(x), -1, -1), x.flatten(2).transpose(1, 2)], 1)
        q, k, v = self.qkv(self.norm(x)).reshape(len(x), -1, 3, 2, 2).permute(2, 0, 3, 1, 4).unbind(0)
        y = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        out: torch.Tensor = self.last(nn.functional.gelu(x + y)[:, 0])
        return out


def files(folder: Path) -> dict[str, bytes]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        pooled = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU6(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(27, 4))
        dense = nn.Sequential(nn.Conv2d(2, 4, 3), nn.GroupNorm(2, 4), nn.Softmax(1), nn.Flatten(), nn.Linear(16, 3))
        plain = nn.Sequential(nn.Linear(7, 9), nn.ReLU(), nn.Linear(9, 5))
        nets = [
            (pooled, (1, 8, 8)),
            (plain, (7,)),
            (_Branches(), (2, 9, 9)),
            (_Tokens(), (2, 6, 8)),
            (dense, (2, 4, 4)),
        ]
        with torch.no_grad():
            for net, _ in nets:
                for p in net.parameters():
                    p *= torch.rand_like(p) < 0.7
    made = [compile(net, input_shape=shape).save(folder / "made").read_bytes() for net, shape in nets]
    return {f"program{k}": file for k, file in enumerate(made)}


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
        layout.tables, layout.scratch = tuple(tables), [scratch]
        layout.run(x, y, 0, len(images))
        return y.copy()


def _shifted(x: Array, shape: tuple[int, ...], stride: tuple[int, ...], dy: int, dx: int, fill: float) -> Array:
    """x[y * stride + dy, x * stride + dx] for outputs of a shape, `fill` outside the map."""
    ys, xs = (np.arange(n) * s + d for n, s, d in zip(shape, stride, (dy, dx), strict=True))
    inside = ((ys >= 0) & (ys < x.shape[0]))[:, None] & ((xs >= 0) & (xs < x.shape[1]))
    return np.where(inside, x[np.clip(ys, 0, x.shape[0] - 1)][:, np.clip(xs, 0, x.shape[1] - 1)], fill)


def _planar(op: Planar, operands: list[Array]) -> Array:
    """What an operation on planes is, in double precision."""
    if isinstance(op, Constant):
        return op.data.astype(np.float64)
    if isinstance(op, Gather):
        return np.asarray(operands[0].reshape(-1)[op.index].reshape(op.shape))
    if isinstance(op, Dense):  # by PyTorch here and there: what goes in and where it comes out is looked at
        given = [
            torch.from_numpy(part.astype(np.float32)).reshape(f) for part, f in zip(operands, op.forms, strict=True)
        ]
        return computed(op, given).numpy().reshape(op.shape).astype(np.float64)
    if isinstance(op, Norm):
        centred = operands[0] - operands[0].mean(0)
        return np.asarray(centred / np.sqrt((centred**2).mean(0) + op.eps))
    if isinstance(op, Apply):
        # The table's own function: that it is PyTorch's, tests of its rows say.
        whole = [np.broadcast_to(part, op.shape).astype(np.float32).reshape(-1) for part in operands]
        return np.asarray(values_of(op.function, *whole), np.float64).reshape(op.shape)
    q, k, v = (torch.from_numpy(part.reshape(op.heads, len(part) // op.heads, -1)) for part in operands)
    shares = torch.softmax(op.scale * torch.einsum("hdq,hdk->hqk", q, k), -1)
    return np.asarray(torch.einsum("hqk,hdk->hdq", shares, v).reshape(op.shape).numpy())


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
        elif isinstance(op, Planar):
            out = _planar(op, [values[planes.source][planes.channel] for planes in op.planes])
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
        return one_line(error)
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
