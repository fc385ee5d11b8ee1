"""Files of every format, wherever they are, and one sentence where they are not or damaged."""

from __future__ import annotations

import gzip
import hashlib
import pickle
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision.datasets
from PIL import Image

from gemminer.core.errors import GemminerError
from gemminer.data import Augment, TensorBatches, load
from tests.data.helpers import everything, idx, one_sentence, order, write_idx
from tests.mutations.kinds import mutate

DEBIAN = Path("/usr/share/datasets/fashion-mnist/train-images-idx3-ubyte.gz")


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("place", [".", "fashion-mnist", "FashionMNIST/raw"])
def test_idx_files_wherever_they_are(tmp_path: Path, place: str, packed: bool) -> None:
    write_idx(tmp_path / place, packed=packed)
    found = load("fashion-mnist", root=tmp_path, validation=0.2, limit_test=5)
    assert (found.classes, found.in_channels, found.image_size) == (10, 1, 4)
    assert (len(everything(found.train)), len(everything(found.validation))) == (48, 12)
    assert everything(found.test) == [0, 1, 2, 3, 4]
    assert found.test is not None
    inputs, _ = next(found.test.epoch(0))
    expected = ((np.arange(16) * 7 % 256) / 255 - found.mean[0]) / found.std[0]
    assert np.allclose(inputs[0].flatten().numpy(), expected, atol=1e-5)


def test_the_environment_says_where_data_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_idx(tmp_path / "d" / "mnist")
    monkeypatch.setenv("GEMMINER_DATA", str(tmp_path / "d"))
    assert len(everything(load("mnist", validation=0).train)) == 60


IMAGES = idx(np.zeros((60, 4, 4)))
DAMAGE: dict[str, tuple[str, Callable[[bytes], bytes], str]] = {
    "cut gzip": ("train-images-idx3-ubyte.gz", lambda old: old[: len(old) // 2], "cannot be read"),
    "no gzip": ("train-images-idx3-ubyte.gz", lambda old: b"<html>404</html>", "cannot be read"),
    "bit rot": ("t10k-images-idx3-ubyte.gz", lambda old: old[:30] + b"xxxx" + old[34:], "cannot be read"),
    "cut data": (
        "train-labels-idx1-ubyte.gz",
        lambda old: gzip.compress(gzip.decompress(old)[:-1]),
        "59 bytes of data where its header says 60",
    ),
    "foreign": ("t10k-labels-idx1-ubyte.gz", lambda old: gzip.compress(b"hello world"), "is not an idx file"),
    "tiny": ("t10k-labels-idx1-ubyte.gz", lambda old: gzip.compress(b"\0\0\x08\x01"), "is not an idx file"),
    "nothing": ("t10k-labels-idx1-ubyte.gz", lambda old: gzip.compress(b""), "is not an idx file"),
    "no examples": (
        "t10k-labels-idx1-ubyte.gz",
        lambda old: gzip.compress(idx(np.zeros(0))),
        "holds no examples",
    ),
    "negative sizes": (  # whose product is right
        "train-images-idx3-ubyte.gz",
        lambda old: gzip.compress(IMAGES[:4] + struct.pack(">3i", -60, -4, 4) + IMAGES[16:]),
        "more than 2,147,483,648",
    ),
    "more than memory": (
        "train-images-idx3-ubyte.gz",
        lambda old: gzip.compress(IMAGES[:4] + struct.pack(">3I", 60, 2**31, 2**31)),
        "says that it holds 276,701,161,105,643,274,240 bytes",
    ),
    "a bomb": (
        "train-images-idx3-ubyte.gz",
        lambda old: gzip.compress(IMAGES + bytes(10**6)),
        "more data where its header says 960",
    ),
    "labels for images": (
        "train-images-idx3-ubyte.gz",
        lambda old: gzip.compress(idx(np.zeros(60))),
        "is not an idx file of images",
    ),
    "mixed up": (
        "t10k-labels-idx1-ubyte.gz",
        lambda old: gzip.compress(idx(np.zeros(9))),
        "do not belong together",
    ),
}


@pytest.mark.parametrize(("file", "damage", "says"), DAMAGE.values(), ids=DAMAGE)
def test_damaged_idx_files(tmp_path: Path, file: str, damage: Callable[[bytes], bytes], says: str) -> None:
    write_idx(tmp_path)
    (tmp_path / file).write_bytes(damage((tmp_path / file).read_bytes()))
    with pytest.raises(GemminerError, match=says) as error:
        load("fashion-mnist", root=tmp_path)
    assert one_sentence(error)
    assert file in str(error.value)


def test_a_missing_idx_file_is_named(tmp_path: Path) -> None:
    write_idx(tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(GemminerError, match=r"lacks t10k-labels-idx1-ubyte\.gz"):
        load("fashion-mnist", root=tmp_path)


def test_fashion_mnist_is_not_taken_for_mnist(tmp_path: Path) -> None:
    write_idx(tmp_path)
    labels = np.array([9, 0, 0, 3, 0, 2, 7, 2, 5, 5] * 6)  # begins as Fashion-MNIST's training labels do
    (tmp_path / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(labels)))
    assert load("fashion-mnist", root=tmp_path).classes == 10
    with pytest.raises(GemminerError, match="holds FashionMNIST, not MNIST"):
        load("mnist", root=tmp_path)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("fashion-mnist", "run 'apt-get install dataset-fashion-mnist', put the four idx .gz files in"),
        ("mnist", "put the four idx .gz files in"),
        ("cifar10", "cifar-10-batches-py"),
        ("cifar100", "cifar-100-python"),
        ("tiny-imagenet", "tiny-imagenet-200.zip"),
        ("caltech101", "101_ObjectCategories"),
    ],
)
def test_offline_one_sentence_says_what_to_do(tmp_path: Path, name: str, says: str) -> None:
    with pytest.raises(GemminerError) as error:
        load(name, root=tmp_path)
    text = str(error.value)
    assert text.startswith(f"{name} is not on this machine: ")
    assert says in text
    assert str(tmp_path) in text
    assert ("--download" in text) == (name != "tiny-imagenet")
    assert one_sentence(error)


def test_downloads_go_through_torchvision_and_only_when_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fetch(root: str, download: bool) -> None:
        assert download
        write_idx(Path(root) / "MNIST" / "raw", packed=False)

    monkeypatch.setattr(torchvision.datasets, "MNIST", fetch)
    with pytest.raises(GemminerError, match="not on this machine"):
        load("mnist", root=tmp_path)
    assert len(everything(load("mnist", root=tmp_path, download=True, validation=0).train)) == 60
    monkeypatch.setattr(torchvision.datasets, "MNIST", None)  # and not again once it is there
    load("mnist", root=tmp_path, download=True)


def test_a_failed_download_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(root: str, download: bool, **_: object) -> None:
        raise RuntimeError("Error downloading\n train-images: <urlopen error>")

    kinds = {"FashionMNIST": "fashion-mnist", "CIFAR10": "cifar10", "Caltech101": "caltech101"}
    for kind, name in kinds.items():
        monkeypatch.setattr(torchvision.datasets, kind, fail)
        with pytest.raises(GemminerError, match=f"{name} could not be downloaded to .*urlopen error") as error:
            load(name, root=tmp_path, download=True)
        assert one_sentence(error)


@pytest.mark.skipif(not DEBIAN.exists(), reason="Debian's dataset-fashion-mnist is not installed")
def test_the_real_fashion_mnist() -> None:
    found = load("fashion-mnist", validation=0)
    assert found.test is not None
    assert (found.train.examples, found.test.examples) == (60000, 10000)
    assert np.bincount(everything(found.test)).tolist() == [1000] * 10
    # Published and widely used statistics of the 60,000 training images.
    assert found.mean == pytest.approx((0.2860,), abs=5e-5)
    assert found.std == pytest.approx((0.3530,), abs=5e-5)
    first = load("fashion-mnist", limit_train=10, validation=0, limit_test=10)
    assert first.test is not None
    assert sorted(order(first.train)) == sorted([9, 0, 0, 3, 0, 2, 7, 2, 5, 5])
    assert order(first.test) == [9, 2, 1, 1, 6, 1, 4, 6, 5, 7]


def write_cifar(root: Path, kind: type[Any], monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    """Files as CIFAR's python version has them; torchvision is told their checksums."""
    folder = root / kind.base_folder
    folder.mkdir()

    def write(name: str, content: dict[str, Any]) -> str:
        (folder / name).write_bytes(pickle.dumps(content))
        return hashlib.md5((folder / name).read_bytes()).hexdigest()

    lists: dict[str, list[list[str]]] = {"train_list": [], "test_list": []}
    for part, rows in lists.items():
        for name, _ in getattr(kind, part):
            pixels = np.arange(10 * 3072).reshape(10, 3072) % 251
            rows.append([name, write(name, {"data": pixels.astype(np.uint8), key: list(range(10))})])
        monkeypatch.setattr(kind, part, rows)
    names = {kind.meta["key"]: [f"class {i}" for i in range(10)]}
    monkeypatch.setattr(kind, "meta", kind.meta | {"md5": write(kind.meta["filename"], names)})


@pytest.mark.parametrize(
    ("name", "kind", "key", "count"),
    [
        ("cifar10", torchvision.datasets.CIFAR10, "labels", 50),
        ("cifar100", torchvision.datasets.CIFAR100, "fine_labels", 10),
    ],
)
def test_cifar(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, kind: type[Any], key: str, count: int
) -> None:
    write_cifar(tmp_path, kind, monkeypatch, key)
    found = load(name, root=tmp_path / kind.base_folder, validation=0)  # the folder itself will do, too
    assert (found.classes, found.in_channels, found.image_size, found.augment) == (10, 3, 32, "crop4+flip")
    assert found.class_names[3] == "class 3"
    assert isinstance(found.train, TensorBatches)
    assert isinstance(found.test, TensorBatches)
    assert found.train.examples == count
    assert found.train.augment == Augment(4, True)
    assert found.test.augment is None
    # The format is planar: red rows, then green, then blue.
    assert found.test.inputs[0, 1, 2, 3].item() == (1024 + 2 * 32 + 3) % 251
    assert load(name, root=tmp_path, augment="none").augment == "none"
    (tmp_path / kind.base_folder / kind.test_list[0][0]).write_bytes(b"x")
    with pytest.raises(GemminerError, match=r"could not be read from .*corrupted") as error:
        load(name, root=tmp_path)
    assert one_sentence(error)


def write_images(folder: Path, colours: list[int], size: tuple[int, int] = (64, 64), kind: str = "JPEG") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for index, colour in enumerate(colours):
        Image.new("RGB", size, (colour, 0, 255 - colour)).save(folder / f"{folder.name}_{index}.{kind}")


def test_tiny_imagenet(tmp_path: Path) -> None:
    root = tmp_path / "tiny-imagenet-200"
    for number, wnid in enumerate(["n01443537", "n01629819"]):
        write_images(root / "train" / wnid / "images", [40 * number] * 10)
    grey = root / "train" / "n01443537" / "images" / "grey.JPEG"  # the real one has some, too
    Image.new("L", (64, 64), 9).save(grey)
    write_images(root / "val" / "images", [40, 0, 40])
    wnids = ["n01629819", "n01443537", "n01629819"]
    rows = [f"images_{i}.JPEG\t{wnid}\t0\t0\t63\t63" for i, wnid in enumerate(wnids)]
    notes = root / "val" / "val_annotations.txt"
    notes.write_text("\n".join(rows) + "\n")
    found = load("tiny-imagenet", root=tmp_path, validation=0)
    assert (found.classes, found.in_channels, found.image_size, found.train.examples) == (2, 3, 64, 21)
    assert isinstance(found.test, TensorBatches)
    reds = found.test.inputs[:, 0, 5, 5].float()
    assert everything(found.test) == [0, 1, 1]
    assert torch.allclose(reds, 40.0 * found.test.targets, atol=3)  # JPEG is not exact
    # In stratified order, a few of the first are of both classes though the files come sorted.
    assert set(everything(load("tiny-imagenet", root=root, limit_train=4, validation=0).train)) == {0, 1}
    for text, says in (("", "is damaged"), ("alone\n", "is damaged"), ("x.JPEG\tn9\t0\n", "a class 'n9'")):
        notes.write_text(text)
        with pytest.raises(GemminerError, match=says):
            load("tiny-imagenet", root=tmp_path)


def test_caltech101(tmp_path: Path) -> None:
    root = tmp_path / "caltech101" / "101_ObjectCategories"
    for number, name in enumerate(["BACKGROUND_Google", "accordion", "yin_yang"]):
        write_images(root / name, [number] * 10, size=(90, 60), kind="jpg")
    found = load("caltech101", root=tmp_path, validation=0)
    assert found.class_names == ("accordion", "yin_yang")
    assert (found.train.examples, everything(found.test)) == (16, [0, 0, 1, 1])
    assert found.image_size == 64
    assert load("caltech101@32", root=tmp_path).image_size == 32


def test_folders_of_images(tmp_path: Path) -> None:
    for name, colour in (("cat", 10), ("dog", 200)):
        write_images(tmp_path / "flat" / name, [colour] * 10, size=(30, 20), kind="png")
    (tmp_path / "flat" / ".thumbnails").mkdir()  # without images: no class
    flat = load(f"folder:{tmp_path / 'flat'}@16", validation=0)
    assert (flat.classes, flat.image_size, flat.augment) == (2, 16, "none")
    assert (flat.train.examples, everything(flat.test)) == (16, [0, 0, 1, 1])
    assert isinstance(flat.train, TensorBatches)
    assert torch.equal(flat.train.inputs[:, 0, 0, 0] == 200, flat.train.targets == 1)
    assert load(f"folder:{tmp_path / 'flat'}").image_size == 64
    few = load("folder:flat", root=tmp_path, limit_train=6, limit_test=2)
    assert (few.train.examples, everything(few.test)) == (5, [0, 1])


def test_the_centre_of_an_image_is_cut_out_at_its_shorter_side(tmp_path: Path) -> None:
    wide = np.zeros((10, 30, 3), np.uint8)
    wide[:, 10:20] = 255
    (tmp_path / "a").mkdir()
    for index in range(2):
        Image.fromarray(wide).save(tmp_path / "a" / f"{index}.png")
    found = load(f"folder:{tmp_path}@10", validation=0)
    assert isinstance(found.train, TensorBatches)
    assert found.train.inputs.unique().tolist() == [255]


def test_folders_with_parts(tmp_path: Path) -> None:
    for part, count in (("train", 8), ("val", 3)):
        for name, colour in (("ant", 0), ("bee", 250)):
            write_images(tmp_path / part / name, [colour] * count, size=(8, 8), kind="png")
    name = f"folder:{tmp_path}@8"
    two = load(name, validation=0.25)  # without PATH/test, PATH/val is the test set
    assert [len(everything(p)) for p in (two.train, two.validation, two.test)] == [12, 4, 6]
    # A test folder without 'ant': its 'bee' is class 1 all the same.
    write_images(tmp_path / "test" / "bee", [250] * 5, size=(8, 8), kind="png")
    three = load(name, validation=0.25)
    assert everything(three.test) == [1] * 5
    assert [len(everything(p)) for p in (three.train, three.validation)] == [16, 6]
    assert load(name, validation=0).validation is None
    write_images(tmp_path / "test" / "wasp", [1], size=(8, 8), kind="png")
    with pytest.raises(GemminerError, match="a class 'wasp' that the training folder does not have"):
        load(name)


def test_bad_folders(tmp_path: Path) -> None:
    with pytest.raises(GemminerError, match="there is no folder"):
        load(f"folder:{tmp_path / 'nowhere'}")
    (tmp_path / "empty").mkdir()
    with pytest.raises(GemminerError, match="cannot be read as CLASS/IMAGE"):
        load(f"folder:{tmp_path / 'empty'}")
    (tmp_path / "empty" / "cat").mkdir()
    with pytest.raises(GemminerError, match="no images in folders by class"):
        load(f"folder:{tmp_path / 'empty'}")
    (tmp_path / "empty" / "cat" / "a.png").write_bytes(b"not an image")
    with pytest.raises(GemminerError, match="too few images"):
        load(f"folder:{tmp_path / 'empty'}")
    (tmp_path / "empty" / "cat" / "b.png").write_bytes(b"nor this")
    with pytest.raises(GemminerError, match=r"the image .*\.png cannot be read") as error:
        load(f"folder:{tmp_path / 'empty'}")
    assert one_sentence(error)


def png(width: int, height: int) -> bytes:
    """A PNG of one byte of data whose header says so many pixels."""
    parts = [
        (b"IHDR", struct.pack(">2I5B", width, height, 8, 0, 0, 0, 0)),
        (b"IDAT", zlib.compress(b"0")),
        (b"IEND", b""),
    ]
    made = (struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in parts)
    return b"\x89PNG\r\n\x1a\n" + b"".join(made)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (png(9000, 9000), r"9000x9000 pixels, more than 67,108,864\)"),
        (png(10**5, 10**5), "cannot be read"),  # PIL calls it a bomb, by an error of its own
        (png(2**31, 2**31), "cannot be read"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EOF\n", "cannot be read"),  # PIL would run a program
    ],
)
@pytest.mark.filterwarnings("error")
def test_images_that_are_too_large_or_none(tmp_path: Path, content: bytes, says: str) -> None:
    write_images(tmp_path / "a", [1, 2, 3], kind="png")
    (tmp_path / "a" / "bad.png").write_bytes(content)
    with pytest.raises(GemminerError, match=rf"the image .*bad\.png.*{says}") as error:
        load(f"folder:{tmp_path}")
    assert one_sentence(error)


def test_images_of_16_bits_keep_their_upper_eight(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    for index, value in enumerate([0x0180, 0x4000, 0xFFFF]):
        Image.fromarray(np.full((8, 8), value, np.uint16)).save(tmp_path / "a" / f"{index}.png")
    found = load(f"folder:{tmp_path}@8", validation=0)
    assert isinstance(found.train, TensorBatches)
    assert isinstance(found.test, TensorBatches)
    assert {*found.train.inputs.unique().tolist(), *found.test.inputs.unique().tolist()} == {1, 0x40, 255}
    Image.fromarray(np.ones((8, 8), np.float32)).save(tmp_path / "a" / "deep.tif")
    with pytest.raises(GemminerError, match=r"deep\.tif cannot be read \(it has 32 bits a pixel"):
        load(f"folder:{tmp_path}@8")


def test_mutated_files_are_refused_in_one_sentence_that_names_them(tmp_path: Path) -> None:
    found, faults = mutate("data", range(200), tmp_path)
    assert not faults
    assert found["read"] > 10


@pytest.mark.parametrize("junk", [".ipynb_checkpoints", "__MACOSX", ".git", "@eaDir", "System Volume Information"])
def test_hidden_folders_and_files_are_no_classes(tmp_path: Path, junk: str) -> None:
    flat, parts = tmp_path / "flat", tmp_path / "parts"
    for name, colour in (("cat", 10), ("dog", 200)):
        for folder in (flat, parts / "train", parts / "test"):
            write_images(folder / name, [colour] * 10, size=(8, 8), kind="png")
    for folder in (flat, parts / "train", parts / "test"):
        write_images(folder / junk, [5], size=(8, 8), kind="png")  # beside the classes
        write_images(folder / "cat" / junk, [5], size=(8, 8), kind="png")  # in a class
        (folder / "cat" / "._a.png").write_bytes(b"no image: macOS keeps a file's attributes in such")
        (folder / "cat" / "Thumbs.db").write_bytes(b"x")
        (folder / "none").mkdir()
    for path, sizes in ((flat, [16, 4]), (parts, [20, 20])):
        found = load(f"folder:{path}@8", validation=0)
        assert found.class_names == ("cat", "dog")
        assert [len(everything(part)) for part in (found.train, found.test)] == sizes


def test_a_folder_below_a_hidden_one_is_read(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        write_images(tmp_path / ".cache" / "pets" / name, [9] * 10, size=(8, 8), kind="png")
    assert load(f"folder:{tmp_path / '.cache' / 'pets'}@8").classes == 2
