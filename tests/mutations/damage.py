"""Damage done to files at random: to their bytes, to JSON, and to files of safetensors by structure."""

from __future__ import annotations

import copy
import json
import math
import random
import struct
from collections.abc import Callable, Iterator
from typing import Any

from gemminer.core.errors import GemminerError

# Numbers that arithmetic goes wrong with, and things that are no numbers.
ODD: tuple[Any, ...] = (0, 1, 2, 3, 7, -1, -2, 2**15, 2**24, 2**30, 2**31 - 1, 2**31, -(2**31), 2**32 + 1, 2**40,
                        2**62, 2**63, 2**64 + 3, 10**400, 0.5, 1e308, math.nan, math.inf, -math.inf, None,
                        True, "", "3", "x" * 99, [], {}, [[]], [2, 2], {"a": 1})  # fmt: skip
FLOATS = (0.0, -0.0, 1.0, 1e-45, 3e38, math.nan, math.inf, -math.inf, 65504.0)
TYPES = ("F32", "F16", "BF16", "F64", "I64", "U64", "I32", "U32", "I16", "I8", "U8", "BOOL", "F8_E4M3", "F8_E5M2",
         "F8_E8M0", "F4", "F6_E2M3", "C64", "X9", "")  # fmt: skip

Tensors = dict[str, tuple[str, list[Any], bytes]]  # type, shape and bytes as the file has them


def one_line(error: GemminerError) -> str:
    assert len(str(error).splitlines()) == 1, f"not one line: {error}"
    return str(error)


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


def damaged_tensors(file: bytes, source: random.Random, sign: Callable[[dict[str, Any], Tensors], None]) -> bytes:
    """A damaged file of safetensors: nine of ten are damaged by structure and signed anew."""
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


def damaged_json(file: bytes, source: random.Random) -> bytes:
    """A damaged file of JSON, or of JSON lines: nine of ten are damaged by structure."""
    if source.random() < 0.1:
        return damage_bytes(file, source)
    try:
        lines = [json.loads(file)]
    except ValueError:
        lines = [json.loads(line) for line in file.splitlines()]
    for _ in range(source.choice([1, 1, 2, 3])):
        at = source.randrange(len(lines))
        lines[at] = damage_json(lines[at], source)
    if source.random() < 0.02:
        lines[-1] = source.choice(["[" * 10**5, {"schema": "[" * 10**5}])
    return "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines).encode()
