"""Damaged files of data sets: refused in one sentence that names the file, or read as what they say."""

from __future__ import annotations

import gzip
import io
import random
import shutil
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

from gemminer import data
from gemminer.core.errors import GemminerError
from tests.data.helpers import everything, idx
from tests.mutations.damage import damage_bytes, one_line

IMAGES = {"PNG": "png", "JPEG": "jpg", "PPM": "ppm", "BMP": "bmp", "TIFF": "tif", "WEBP": "webp", "GIF": "gif.png"}
NAMES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")


def files(folder: Path) -> dict[str, bytes]:
    made: dict[str, bytes] = {}
    for name, array in zip(NAMES, (np.arange(480).reshape(30, 4, 4), np.arange(30) % 10) * 2, strict=True):
        made[name] = idx(array % 256)
        made[f"{name}.gz"] = gzip.compress(made[name], mtime=0)
    pixels = np.random.RandomState(0).randint(0, 256, (9, 12, 3), np.uint8)
    for kind, ending in IMAGES.items():
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, kind)
        made[f"image.{ending}"] = file.getvalue()
    deep = io.BytesIO()
    Image.fromarray(pixels[..., 0].astype(np.uint16) * 256).save(deep, "PNG")
    return {**made, "deep.png": deep.getvalue()}


def damaged(file: bytes, source: random.Random) -> bytes:
    """Damage of bytes, half of it with right checksums, and often to the sizes in the header."""
    if file.startswith(b"\x1f\x8b"):
        return (
            damage_bytes(file, source)
            if source.random() < 0.3
            else gzip.compress(_bytes(gzip.decompress(file), source))
        )
    if file.startswith(b"\x89PNG") and source.random() < 0.7:
        return _png(file, source)
    return _bytes(file, source)


def _bytes(file: bytes, source: random.Random) -> bytes:
    if source.random() < 0.5:
        return damage_bytes(file, source)
    head = bytearray(file)
    at = source.randrange(min(40, len(head)))
    new = struct.pack(source.choice(["<I", ">I", "<H", ">H", "B"]), source.choice([0, 1, 2, 127, 128, 255]))
    new = source.choice([new, b"\xff" * 4, b"\x7f\xff\xff\xff", b"\x80\0\0\0", b"\0\x01\0\0", b"\0\0\0\x01"])
    head[at : at + len(new)] = new
    return bytes(head)


def _png(file: bytes, source: random.Random) -> bytes:
    """A PNG file with one chunk's content damaged, left out or doubled, its checksum right."""
    at, chunks = 8, []
    while at < len(file):
        size = int.from_bytes(file[at : at + 4], "big")
        chunks.append((file[at + 4 : at + 8], file[at + 8 : at + 8 + size]))
        at += size + 12
    k, kind = source.randrange(len(chunks)), source.random()
    name, content = chunks[k]
    if kind < 0.1:
        del chunks[k]
    elif kind < 0.2:
        chunks.insert(k, chunks[k])
    elif name == b"IDAT" and kind < 0.6:
        chunks[k] = name, zlib.compress(_bytes(zlib.decompress(content), source))
    elif content:
        chunks[k] = name, _bytes(content, source)
    packed = (struct.pack(">I", len(c)) + n + c + struct.pack(">I", zlib.crc32(n + c)) for n, c in chunks)
    return file[:8] + b"".join(packed)


def try_data(path: Path) -> str:
    """Load a data set that has the file; the sentence of a refusal, which names the file, or what was read."""
    root = path.parent / "root"
    shutil.rmtree(root, ignore_errors=True)
    try:
        if "-idx" in path.name:
            root.mkdir()
            for name in NAMES:
                ending = path.suffix if path.suffix == ".gz" else ""
                shutil.copy(path.with_name(f"{name}{ending}"), root)
            found = data.load("mnist", root=root, validation=0)
        else:
            (root / "a").mkdir(parents=True)
            for name in (path.name, f"other{path.suffix}"):
                shutil.copy(path, root / "a" / name)
            found = data.load(f"folder:{root}@8", validation=0)
    except GemminerError as error:
        sentence = one_line(error)
    else:
        assert everything(found.train)
        return "read"
    assert str(root) in sentence
    return sentence.replace(str(root), "")
