"""A compiled program: runs, saves and loads without the network's Python class.

Nothing crosses images in eval mode, so a thread takes a group of images through the whole program, in a scratch
array that fits its second-level cache. The threads are Python's, as the kernels hold no lock on the interpreter:
no second OpenMP pool beside PyTorch's, and calls from several threads at a time are fine.

On disk: one safetensors file; values and biases are one vector each, indices are differences of 7 bits a byte,
operations are JSON in the metadata, with a checksum. Loading validates everything a kernel would follow.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save
from torch import Tensor

from gemminer.core import numbers
from gemminer.core.errors import GemminerError, UsageError, in_words
from gemminer.core.files import as_path, atomic
from gemminer.sparse.inference.layout import Layout, Plan
from gemminer.sparse.inference.operations import (
    Apply,
    Array,
    Attention,
    Constant,
    Dense,
    Entries,
    Gather,
    Norm,
    Operation,
    Planar,
    Planes,
    Pool,
    Sum,
)
from gemminer.sparse.inference.validation import (
    CODES,
    FLOATS,
    MOST,
    as_map,
    check_floats,
    check_operations,
    need,
    whole,
)
from gemminer.sparse.threads import MOST as MOST_THREADS
from gemminer.sparse.threads import require_compiler, run_on_threads

Images = TypeVar("Images", Tensor, Array)

FORMAT = "gemminer.program/1"
SECOND = "gemminer.program/2"  # with operations that the first did not have
LANES = (64, 32, 16, 8, 4, 2, 1)
# Bytes that the maps of a group may take: most of a second-level cache of a megabyte; or, as each group reads the
# weights again, four times the weights' bytes (VGG-16 at 1.4%: 8 images instead of 1, twice as fast).
CACHE_FLOATS = int(0.9 * 2**20) // 4
ENTRY_FLOATS = 2


class Program:
    """A network compiled for inference on kept weights: images (N, ...) float32 -> logits (N, ...).

    Takes and gives NumPy arrays or CPU tensors. Made by `compile` or `Program.load`.

    Args:
        inputs: the shape of one image: (C, H, W) or (features,).
        outputs: the shape of one image's result.
        operations: what is computed, in order, the last one's value being the result.

    Raises:
        GemminerError: operations that do not fit together.
    """

    def __init__(self, inputs: tuple[int, ...], outputs: tuple[int, ...], operations: tuple[Operation, ...]) -> None:
        self.inputs, self.outputs, self.operations = tuple(inputs), tuple(outputs), tuple(operations)
        check_operations(self.inputs, self.outputs, self.operations)
        self._plan = Plan(as_map(self.inputs), self.operations)
        check_floats(self._plan.place(1)[1])
        self._most_lanes: int | None = None
        self._layouts: dict[int, Layout] = {}

    @property
    def entries(self) -> int:
        """The number of weights in multiply-adds: kept weights that matter, residual adds included."""
        return sum(len(e) for op in self.operations if isinstance(op, Sum) for e in op.entries)

    @property
    def dense(self) -> dict[str, str]:
        """Part of the network -> why PyTorch computes it, from dense weights: empty where kernels compute all of it."""
        return {op.part: op.why for op in self.operations if isinstance(op, Dense)}

    def __repr__(self) -> str:
        counts = f"{len(self.operations)} operations, {self.entries} entries"
        counts += f", dense: {in_short(self.dense)}" if self.dense else ""
        return f"Program({self.inputs} -> {self.outputs}, {counts})"

    def __call__(self, images: Images, *, threads: int | None = None) -> Images:
        """Logits of a batch, on `threads` threads: torch.get_num_threads() by default.

        Half-precision tensors (float16, bfloat16) are computed in float32 and come back in their own type.

        Raises:
            UsageError: images of another shape, type or device, or no thread.
        """
        if isinstance(images, Tensor) and images.device.type != "cpu":
            raise UsageError(f"a compiled program runs on the CPU: move the images there from {images.device}")
        if isinstance(images, Tensor) and images.dtype in (torch.float16, torch.bfloat16):
            return torch.as_tensor(self(images.detach().float(), threads=threads)).to(images.dtype)
        batch = images.detach().numpy() if isinstance(images, Tensor) else images
        if not isinstance(batch, np.ndarray) or batch.dtype != np.float32:
            kind = getattr(images, "dtype", type(images).__name__)
            raise UsageError(f"images must be float32, an array or a tensor, not {kind}")
        if batch.shape[1:] != self.inputs or batch.ndim == 0:
            raise UsageError(f"images must have shape (N, {', '.join(map(str, self.inputs))}), not {batch.shape}")
        threads = torch.get_num_threads() if threads is None else threads
        threads = numbers.whole("threads", threads, least=1)
        require_compiler()
        threads = min(threads, MOST_THREADS)
        rows = np.ascontiguousarray(batch).reshape(len(batch), math.prod(self.inputs))
        logits = np.empty((len(batch), math.prod(self.outputs)), np.float32)
        self._run(rows, logits, threads)
        logits = logits.reshape(len(batch), *self.outputs)
        return torch.from_numpy(logits) if isinstance(images, Tensor) else logits

    def _run(self, rows: Array, logits: Array, threads: int) -> None:
        count = len(rows)
        layout = self._layout(self._lanes(count, threads))
        groups = -(-count // layout.lanes)
        if threads == 1 or groups <= 1:
            layout.run(rows, logits, 0, count)
            return
        # A few pieces for each thread, taken one by one: a core that other programs use does fewer.
        piece = -(-groups // min(groups, 4 * threads)) * layout.lanes
        begins = itertools.count(0, piece)

        def work(thread: int) -> None:
            while (begin := next(begins)) < count:
                layout.run(rows, logits, begin, min(count, begin + piece))

        run_on_threads(work, max(1, min(threads, groups)))

    def _lanes(self, count: int, threads: int) -> int:
        """The number of images in a group: as many as fit the cache, but no fewer groups than threads."""
        if self._most_lanes is None:
            most = min(FLOATS, max(CACHE_FLOATS, 4 * ENTRY_FLOATS * self.entries))
            fits = (lanes for lanes in LANES if self._plan.place(lanes)[1] <= most)
            self._most_lanes = next(fits, 1)
        share = -(-count // threads)
        return next(lanes for lanes in LANES if lanes <= max(1, min(share, self._most_lanes)))

    def _layout(self, lanes: int) -> Layout:
        if lanes not in self._layouts:
            self._layouts[lanes] = Layout(self._plan, lanes)
        return self._layouts[lanes]

    def save(self, path: str | Path) -> Path:
        """Write one safetensors file in place of any, atomically; its size grows with the number of kept weights."""
        path = Path(path)
        steps, values, biases, rows = [np.empty(0, np.int64)], [np.empty(0, np.float32)], [np.empty(0, np.float32)], []
        for op in self.operations:
            boxes = []
            for e in op.entries if isinstance(op, Sum) else ():
                box, step, value = _pack(e, _channels(self.inputs, self.operations, e.source))
                boxes.append(box)
                steps.append(step)
                values.append(value)
            if isinstance(op, Gather):
                steps.append(_unsigned(np.diff(op.index, prepend=0)))
            if isinstance(op, Dense):
                biases += [constant.reshape(-1).numpy().astype(np.float32) for constant in op.constants]
            if isinstance(op, Sum | Constant):
                biases.append(op.bias if isinstance(op, Sum) else op.data.reshape(-1))
            rows.append(_as_json(op, boxes))
        header = {
            "format": SECOND if any(isinstance(op, Planar) for op in self.operations) else FORMAT,
            "inputs": self.inputs,
            "outputs": self.outputs,
            "operations": rows,
        }
        index = _to_bytes(np.concatenate(steps))
        tensors = {"value": np.concatenate(values), "index": index, "bias": np.concatenate(biases)}
        header["sha256"] = _checksum(header, tensors)
        with atomic(path) as temporary:
            temporary.write_bytes(save(tensors, metadata={"gemminer": json.dumps(header, separators=(",", ":"))}))
        return path

    @classmethod
    def load(cls, path: str | Path) -> Program:
        """Read a program; raises GemminerError with one sentence on a missing, truncated, damaged or foreign file."""
        path = as_path("a program's file", path)
        try:
            return cls._load(path)
        except (OSError, SafetensorError) as error:
            if not path.is_file():
                raise GemminerError(f"there is no program file {path}") from None
            raise GemminerError(f"{path} is not a compiled program, or it is truncated: {error}") from None
        except GemminerError as error:
            raise GemminerError(f"{path}: {error}") from None
        except Exception as error:  # whatever bytes may do to those who read them
            raise GemminerError(f"{path} is a damaged program ({in_words(error)})") from None

    @classmethod
    def _load(cls, path: Path) -> Program:
        with safe_open(path, framework="np") as file:
            facts = file.metadata() or {}
            if "gemminer" not in facts:
                raise GemminerError("it is a safetensors file, but not a compiled program")
            header = json.loads(facts["gemminer"])
            if not isinstance(header, dict):
                raise GemminerError("it is a damaged program: its header is no JSON object")
            if header.get("format") not in (FORMAT, SECOND):
                raise GemminerError(f"it has format {header.get('format')!r:.50}; this version reads {SECOND!r}")
            tensors = {name: file.get_tensor(name) for name in ("value", "index", "bias")}
        if _checksum(header, tensors) != header.pop("sha256", None):
            raise GemminerError("it is damaged: its checksum differs from the one saved with it")
        if [(t.dtype, t.ndim) for t in tensors.values()] != [(np.float32, 1), (np.uint8, 1), (np.float32, 1)]:
            raise GemminerError("it is a damaged program: its vectors have other types")
        return cls(*_from_json(header, tensors["value"], _from_bytes(tensors["index"]), tensors["bias"]))


def in_short(dense: dict[str, str]) -> str:
    """Why parts of a network are computed dense, each reason once.

    >>> in_short({"a": "x, which is not known", "b": "x, which is not known", "c": "y"})
    'x, which is not known (a, b); y (c)'
    """
    reasons: dict[str, list[str]] = {}
    for part, why in dense.items():
        reasons.setdefault(why, []).append(part)
    more = {why: f" and {len(parts) - 2} more" if len(parts) > 2 else "" for why, parts in reasons.items()}
    return "; ".join(f"{why} ({', '.join(parts[:2])}{more[why]})" for why, parts in reasons.items())


# on disk


def _channels(inputs: tuple[int, ...], operations: tuple[Operation, ...], value: int) -> int:
    return as_map(inputs)[0] if value == 0 else operations[value - 1].shape[0]


def _checksum(header: dict[str, Any], tensors: dict[str, Array]) -> str:
    facts = {key: value for key, value in header.items() if key != "sha256"}
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for name in ("value", "index", "bias"):
        digest.update(f"{name} {tensors[name].dtype} {tensors[name].shape}\n".encode())
        digest.update(tensors[name].tobytes())
    return digest.hexdigest()


def _pack(e: Entries, channels: int) -> tuple[list[int], Array, Array]:
    """[least dy, least dx, height, width] of the entries' window, differences of their indices, values in order."""
    if not len(e):
        return [0, 0, 1, 1], np.empty(0, np.int64), e.value
    y0, x0, y1, x1 = int(e.dy.min()), int(e.dx.min()), int(e.dy.max()), int(e.dx.max())
    height, width = y1 - y0 + 1, x1 - x0 + 1
    index = ((e.row.astype(np.int64) * channels + e.channel) * height + e.dy - y0) * width + e.dx - x0
    order = np.argsort(index, kind="stable")
    return [y0, x0, height, width], np.diff(index[order], prepend=0), e.value[order]


def _unpack(
    source: int, stride: tuple[int, int], box: list[Any], extent: tuple[int, int], steps: Array, value: Array
) -> Entries:
    """Entries of `extent` = (rows, channels); every index is looked at before its parts are made 32-bit numbers."""
    y0, x0 = whole(box[0], -MOST), whole(box[1], -MOST)
    height, width = whole(box[2], 1, MOST - max(0, y0)), whole(box[3], 1, MOST - max(0, x0))
    rows, channels = extent
    places = max(1, rows) * max(1, channels) * height * width
    need(places < CODES, "too large a window")
    index = np.cumsum(steps)
    # A step is below 2^56, so a sum that wraps around falls.
    need(not len(index) or (bool((np.diff(index, prepend=0) >= 0).all()) and int(index[-1]) < places), "an index")
    index, dx = np.divmod(index, width)
    index, dy = np.divmod(index, height)
    row, channel = np.divmod(index, max(1, channels))
    row, channel, dy, dx = (part.astype(np.int32) for part in (row, channel, dy + y0, dx + x0))
    return Entries(source, stride, row, channel, dy, dx, value)


def _to_bytes(numbers: Array) -> Array:
    """Whole numbers, 7 bits a byte, lowest first; the top bit says that more follow."""
    parts = []
    left = numbers.astype(np.int64)
    more = np.ones(len(left), bool)
    while more.any():
        larger = left >= 128
        parts.append(np.where(more, (left & 127) | (larger << 7), -1))
        left, more = left >> 7, more & larger
    table = np.stack(parts, 1).reshape(-1) if parts else np.empty(0)
    return table[table >= 0].astype(np.uint8)


def _from_bytes(text: Array) -> Array:
    if not len(text):
        return np.empty(0, np.int64)
    last = np.flatnonzero(text < 128)
    if not len(last) or last[-1] != len(text) - 1:
        raise GemminerError("it is a damaged program: its indices end in the middle")
    first = np.concatenate([[0], last[:-1] + 1])
    place = np.arange(len(text)) - np.repeat(first, last - first + 1)
    if place.max() > 7:
        raise GemminerError("it is a damaged program: an index is too large")
    return np.add.reduceat((text & 127).astype(np.int64) << (7 * place), first)


def _unsigned(numbers: Array) -> Array:
    """0, -1, 1, -2, ... as 0, 1, 2, 3, ..."""
    return np.asarray((numbers.astype(np.int64) << 1) ^ (numbers.astype(np.int64) >> 63))


def _signed(numbers: Array) -> Array:
    return np.asarray((numbers >> 1) ^ -(numbers & 1))


# Kind in a file -> class and the fields that are plain numbers or words.
KINDS: dict[str, tuple[type[Planar], tuple[str, ...]]] = {
    "apply": (Apply, ("function",)),
    "norm": (Norm, ("eps",)),
    "attention": (Attention, ("heads", "scale")),
    "gather": (Gather, ()),
    "constant": (Constant, ()),
    "dense": (Dense, ("forms", "steps", "part", "why")),
}


def _as_json(op: Operation, boxes: list[list[int]]) -> dict[str, Any]:
    if isinstance(op, Pool):
        kind = "max" if op.largest else "mean"
        fields = {"source": op.source, "window": op.window, "stride": op.stride, "padding": op.padding}
        return {"kind": kind, "shape": op.shape, "channel": _runs(op.channel), **fields}
    if isinstance(op, Planar):
        kind, names = next((kind, names) for kind, (known, names) in KINDS.items() if type(op) is known)
        planes = [[p.source, len(p.channel), _runs(p.channel)] for p in op.planes]
        fields = {name: getattr(op, name) for name in names}
        if isinstance(op, Dense):
            fields["constants"] = [[str(c.dtype).removeprefix("torch."), *c.shape] for c in op.constants]
        return {"kind": kind, "shape": op.shape, "planes": planes, **fields}
    limits = [bound if math.isfinite(bound) else None for bound in (op.low, op.high)]
    entries = [[e.source, *e.stride, *box, len(e)] for e, box in zip(op.entries, boxes, strict=True)]
    return {"kind": "sum", "shape": op.shape, "limits": limits, "entries": entries}


def _runs(channel: Array) -> list[int] | None:
    which: list[int] = channel.tolist()
    return None if which == list(range(len(which))) else which


def _from_json(
    header: dict[str, Any], value: Array, steps: Array, bias: Array
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[Operation, ...]]:
    inputs, outputs = tuple(map(whole, header["inputs"])), tuple(map(whole, header["outputs"]))
    need(len(inputs) in (1, 3), "the input's shape")
    operations: list[Operation] = []
    at = step = rows = 0  # of values, indices and biases
    for row in header["operations"]:
        c, h, w = map(whole, row["shape"])
        need(c * h * w <= FLOATS, "a shape too large")
        if row["kind"] in ("max", "mean"):
            window, stride, padding = (_two(row[key]) for key in ("window", "stride", "padding"))
            channel = np.arange(c, dtype=np.int32) if row["channel"] is None else _channels_of(row["channel"])
            pool = Pool((c, h, w), whole(row["source"]), channel, row["kind"] == "max", window, stride, padding)
            operations.append(pool)
            continue
        if row["kind"] in KINDS:
            cells = c * h * w
            fields: dict[str, Any] = {}
            if row["kind"] == "gather":
                need(step + cells <= len(steps), "an order")
                fields["index"] = np.cumsum(_signed(steps[step : step + cells]))
                step += cells
            if row["kind"] == "constant":
                need(rows + cells <= len(bias), "a constant")
                fields["data"] = bias[rows : rows + cells].reshape(c, h, w)
                rows += cells
            if row["kind"] == "dense":
                fields["constants"], rows = _constants(row["constants"], bias, rows)
            operations.append(_planar(row, (c, h, w), fields))
            continue
        if row["kind"] != "sum":
            raise GemminerError(f"it has an operation of kind {row['kind']!r:.50}, which this version does not know")
        entries = []
        for source, sy, sx, *box, count in row["entries"]:
            if whole(source) > len(operations) or step + whole(count) > len(steps) or len(box) != 4:
                raise GemminerError("it is a damaged program: its entries do not fit")
            channels = _channels(inputs, tuple(operations), source)
            part = steps[step : step + count], value[at : at + count]
            entries.append(_unpack(source, _two((sy, sx)), box, (c, channels), *part))
            at, step = at + count, step + count
        low, high = row["limits"]
        limits = (-math.inf if low is None else float(low), math.inf if high is None else float(high))
        operations.append(Sum((c, h, w), tuple(entries), bias[rows : rows + c], *limits))
        rows += c
    if (step, at, rows) != (len(steps), len(value), len(bias)):
        raise GemminerError("it is a damaged program: its vectors have other lengths")
    return inputs, outputs, tuple(operations)


_FIELDS: dict[str, type] = {"function": str, "heads": int, "forms": list, "steps": list, "part": str, "why": str}
_TYPES = {"float32": torch.float32, "int64": torch.int64, "int32": torch.int32, "bool": torch.bool}


def _constants(rows: list[Any], numbers: Array, at: int) -> tuple[tuple[Tensor, ...], int]:
    """A dense part's constants, whatever their type kept as float32 from number `at` on, and where they end."""
    made = []
    for kind, *shape in rows:
        count = math.prod(map(whole, shape))
        need(at + count <= len(numbers), "a constant")
        part = torch.from_numpy(numbers[at : at + count].copy())
        made.append(part.reshape(shape).to(_TYPES[kind]))
        at += count
    return tuple(made), at


def _planar(row: dict[str, Any], shape: tuple[int, int, int], fields: dict[str, Any]) -> Planar:
    made, names = KINDS[row["kind"]]
    planes = []
    for source, count, which in row["planes"]:
        need(whole(count) <= FLOATS, "a channel")
        channel = np.arange(count, dtype=np.int32) if which is None else _channels_of(which)
        need(len(channel) == count, "a channel")
        planes.append(Planes(whole(source), channel))
    for name in names:
        need(type(row[name]) is _FIELDS.get(name, float), f"an operation's {name}")
        fields[name] = row[name]
    if made is Dense:
        fields.update(steps=tuple(row["steps"]), forms=tuple(tuple(map(whole, form)) for form in row["forms"]))
    return made(shape=shape, planes=tuple(planes), **fields)


def _two(numbers: Any) -> tuple[int, int]:
    first, second = numbers
    return whole(first), whole(second)


def _channels_of(numbers: Any) -> Array:
    return np.array([whole(n) for n in numbers], np.int32)
