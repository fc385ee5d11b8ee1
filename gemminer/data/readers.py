"""Readers of the named data sets: files on this machine -> uint8 tensors, with splits that never vary.

Each reader returns a `Raw`. Nothing here draws from a seed of the user's: the order of a folder's files, and
every split, come from `stratified_order`, so all runs of all seeds see the same training and test images.
"""

from __future__ import annotations

import gzip
import inspect
import math
import os
import re
import struct
import warnings
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from gemminer.core.errors import GemminerError, UsageError, unknown
from gemminer.core.imports import imported, others_code
from gemminer.core.randomness import private_randomness
from gemminer.data.splits import TEST_FRACTION, split, stratified_order
from gemminer.data.tensors import Pair, Part

if TYPE_CHECKING:
    import PIL.Image

_LARGEST = 2**31  # bytes that an idx file may unpack to: the largest in use, of EMNIST, have 0.6 GB
_PIXELS = 2**26  # of an image that is to be resized to a few thousand
_FORMATS = ("JPEG", "PNG", "PPM", "BMP", "TIFF", "WEBP", "GIF")  # PIL's others may run programs, or fetch files
FOLDER_SIZE = 64  # images of folder:PATH and caltech101 are resized to this unless the name ends in @SIZE


@dataclass(frozen=True)
class Raw:
    """A data set as it was read: images uint8 (n, channels, size, size), labels int64 (n,)."""

    train: Part
    test: Part | None
    classes: int  # 0: to be seen from the training labels
    class_names: tuple[str, ...] = ()
    validation: Part | None = None  # only where the files themselves set one apart
    scale: float | None = 255.0  # the stored value of white; None: inputs are taken as they are


@dataclass(frozen=True)
class Request:
    """The data set that a reader is asked for; `limit_*` spares it the decoding of images that nobody will use."""

    name: str
    path: str = ""
    size: int = FOLDER_SIZE
    root: Path | None = None
    download: bool = False
    limit_train: int | None = None
    limit_test: int | None = None


@dataclass(frozen=True)
class Source:
    """A row of the registry: how to read a data set, its default augmentation, one sentence about it."""

    read: Callable[[Request], Raw]
    augment: str
    description: str


# --- where files are ------------------------------------------------------------------------------


def _home() -> Path:
    """The folder for downloads and files if the caller names no root."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    return Path(os.environ.get("GEMMINER_DATA") or cache / "gemminer").expanduser()


def _find(request: Request, places: Sequence[str], marker: str, *system: str) -> Path | None:
    """The first folder base/place that has a file or folder `marker*`; an explicit root is the only base."""
    folders = [(request.root or _home()) / place for place in places]
    folders += [Path(folder) for folder in system if request.root is None]
    return next((f for f in folders if (f / marker).exists() or (f / f"{marker}.gz").exists()), None)


def _missing(request: Request, put: str, place: str, apt: str = "", download: bool = True) -> GemminerError:
    where = (request.root or _home()) / place
    ways = [f"run 'apt-get install {apt}'"] if apt else []
    ways.append(f"put {put} in {where}")
    ways += ["pass --download (download=True)"] if download else []
    listed = ways[0] if len(ways) == 1 else ", ".join(ways[:-1]) + " or " + ways[-1]
    return GemminerError(f"{request.name} is not on this machine: {listed}")


def _torchvision(request: Request, name: str, root: Path, **options: Any) -> Any:
    """An instance of torchvision.datasets.`name`; any failure is raised as one sentence."""
    import torchvision.datasets

    try:
        return getattr(torchvision.datasets, name)(str(root), download=request.download, **options)
    except Exception as error:  # no network, a checksum, a pickle: all kinds come out of it
        reason = " ".join(str(error).split()) or type(error).__name__
        done = "downloaded to" if request.download else "read from"
        raise GemminerError(
            f"{request.name} could not be {done} {root} ({reason}); delete what is there and fetch it again"
        ) from None


# --- readers --------------------------------------------------------------------------------------


def _digits(request: Request) -> Raw:
    with private_randomness():  # scikit-learn's import draws from Python's generator
        from sklearn.datasets import load_digits

    bunch = load_digits()
    images = torch.from_numpy(bunch.images.astype(np.uint8)).unsqueeze(1)  # values 0..16
    labels = torch.from_numpy(bunch.target.astype(np.int64))
    train, test = split(labels, TEST_FRACTION)
    return Raw((images[train], labels[train]), (images[test], labels[test]), 10, _DIGITS, scale=16.0)


def _idx(path: Path, sizes: int) -> Tensor:
    """A uint8 tensor of so many sizes from an idx file, plain or .gz.

    The format (yann.lecun.com/exdb/mnist): bytes 0, 0, 8 (unsigned bytes), the number of sizes, each size as a
    big-endian int32, the data. Raises GemminerError for anything else, before more than the header is unpacked where
    the header tells.
    """
    start = 4 + 4 * sizes
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            head = file.read(start)
            if head[:4] != bytes([0, 0, 8, sizes]) or len(head) < start:
                kind = "images" if sizes == 3 else "labels"
                raise GemminerError(f"{path} is not an idx file of {kind}; delete it and fetch it again")
            shape = struct.unpack(f">{sizes}I", head[4:])
            size = math.prod(shape)
            if not 0 < size <= _LARGEST:
                says = (
                    "holds no examples" if size == 0 else f"says that it holds {size:,} bytes, more than {_LARGEST:,}"
                )
                raise GemminerError(f"{path} {says}; delete it and fetch it again")
            data = bytearray(file.read(size + 1))  # what more there is tells of damage
    except (OSError, EOFError, zlib.error) as error:
        raise GemminerError(f"{path} cannot be read ({error}); delete it and fetch it again") from None
    if len(data) != size:
        found = f"{len(data)} bytes of data" if len(data) < size else "more data"
        raise GemminerError(f"{path} is damaged: {found} where its header says {size}; delete it and fetch it again")
    return torch.frombuffer(data, dtype=torch.uint8).reshape(shape)


def _idx_pair(folder: Path, part: str) -> Pair:
    files = []
    for name in (f"{part}-images-idx3-ubyte", f"{part}-labels-idx1-ubyte"):
        found = [path for path in (folder / name, folder / f"{name}.gz") if path.exists()]
        if not found:
            raise GemminerError(f"{folder} lacks {name}.gz; put all four idx files there")
        files.append(found[0])
    images, labels = _idx(files[0], 3), _idx(files[1], 1)
    if len(images) != len(labels) or int(labels.max()) > 9:
        raise GemminerError(f"{files[0]} and {files[1].name} do not belong together; fetch all four again")
    return images.unsqueeze(1), labels.long()


_FIRST_LABELS = {(5, 0, 4, 1, 9, 2, 1, 3, 1, 4): "MNIST", (9, 0, 0, 3, 0, 2, 7, 2, 5, 5): "FashionMNIST"}


def _mnist_like(kind: str, names: tuple[str, ...], *system: str, apt: str = "") -> Callable[[Request], Raw]:
    def read(request: Request) -> Raw:
        places = (request.name, f"{kind}/raw", ".")  # torchvision unpacks to KIND/raw
        folder = _find(request, places, "train-images-idx3-ubyte", *system)
        if folder is None and request.download:
            _torchvision(request, kind, request.root or _home())
            folder = _find(request, places, "train-images-idx3-ubyte")
        if folder is None:
            raise _missing(request, "the four idx .gz files", request.name, apt)
        train = _idx_pair(folder, "train")
        first = tuple(train[1][:10].tolist())
        if _FIRST_LABELS.get(first, kind) != kind:  # the files of both are named alike
            raise GemminerError(f"{folder} holds {_FIRST_LABELS[first]}, not {kind}: choose another root")
        return Raw(train, _idx_pair(folder, "t10k"), 10, names)

    return read


def _cifar(kind: str, folder: str) -> Callable[[Request], Raw]:
    def read(request: Request) -> Raw:
        root = request.root or _home()
        root = root.parent if root.name == folder else root
        if not request.download and not (root / folder).is_dir():
            raise _missing(request, f"the folder {folder} of its python version", ".")
        parts = [_torchvision(request, kind, root, train=train) for train in (True, False)]
        images = [torch.from_numpy(part.data).permute(0, 3, 1, 2).contiguous() for part in parts]
        labels = [torch.tensor(part.targets) for part in parts]
        names = tuple(parts[0].classes)
        return Raw((images[0], labels[0]), (images[1], labels[1]), len(names), names)

    return read


Listed = list[tuple[str, str]]  # file, class name


# Folders that programs leave beside images: of zip files made on macOS, of Synology, Python and Windows.
_JUNK = {"__macosx", "@eadir", "__pycache__", "#recycle", "#snapshot", "$recycle.bin", "lost+found"}
_JUNK.add("system volume information")


def _is_junk(file: str, folder: Path) -> bool:
    """Whether a file below `folder` is hidden, or in a folder that is hidden or known to be no user's."""
    return any(part.startswith(".") or part.lower() in _JUNK for part in Path(file).relative_to(folder).parts)


def _listing(folder: Path, leave_out: str = "") -> Listed:
    """The images below folder/CLASS/, sorted by class name; one that is hidden or has no images is no class."""
    from torchvision.datasets import ImageFolder

    try:
        tree = ImageFolder(str(folder), allow_empty=True)
    except OSError as error:
        raise GemminerError(f"{folder} cannot be read as CLASS/IMAGE files: {error}") from None
    found = [
        (file, tree.classes[label])
        for file, label in tree.samples
        if tree.classes[label] != leave_out and not _is_junk(file, folder)
    ]
    if not found:
        raise GemminerError(f"{folder} has no images in folders by class (CLASS/IMAGE.jpg or .png)")
    return found


def _decode(files: Sequence[str], size: int) -> Tensor:
    """Images as uint8 RGB (n, 3, size, size): shorter side resized (bilinear), centre cropped."""
    from PIL import Image, ImageOps

    try:
        images = np.empty((len(files), 3, size, size), np.uint8)
    except MemoryError:
        raise GemminerError(
            f"{len(files)} images of {size}x{size} pixels do not fit into memory: take fewer or smaller ones"
        ) from None

    def read(index: int) -> None:
        try:
            with Image.open(files[index], formats=_FORMATS) as image:
                square = ImageOps.fit(_colours(image), (size, size), method=Image.Resampling.BILINEAR)
        except Exception as error:  # any kind comes out of PIL for damaged files
            why = f" ({error})" if isinstance(error, GemminerError) else ""
            raise GemminerError(f"the image {files[index]} cannot be read{why}: replace or delete it") from None
        images[index] = np.asarray(square).transpose(2, 0, 1)

    # What PIL warns of (a damaged EXIF, many pixels) is no fault of what it reads, or is refused here.
    with warnings.catch_warnings(), ThreadPoolExecutor() as pool:  # PIL decodes outside the interpreter's lock
        warnings.simplefilter("ignore")
        for _ in pool.map(read, range(len(files))):
            pass
    return torch.from_numpy(images)


def _colours(image: PIL.Image.Image) -> PIL.Image.Image:
    """An image in RGB; one of 16 bits keeps its upper eight, as PIL does for 16 bits of colour, but not of grey."""
    from PIL import Image

    if image.width * image.height > _PIXELS:
        raise GemminerError(f"it has {image.width}x{image.height} pixels, more than {_PIXELS:,}")
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise GemminerError("it has 32 bits a pixel, which are no colours")
    return image.convert("RGB")


def _labels(listed: Listed, classes: Sequence[str], where: Path) -> Tensor:
    number = {name: index for index, name in enumerate(classes)}
    strange = sorted({name for _, name in listed} - set(number))
    if strange:
        raise GemminerError(f"{where} has a class {strange[0]!r} that the training folder does not have")
    return torch.tensor([number[name] for _, name in listed])


def _images(listed: Listed, labels: Tensor, order: Tensor, size: int) -> Pair:
    return _decode([listed[i][0] for i in order.tolist()], size), labels[order]


def _tree(request: Request, path: Path, leave_out: str = "") -> Raw:
    """The images of path/train, path/test and path/val, if there; without path/test the last fifth is the test set."""
    has_parts = (path / "train").is_dir()
    train = _listing(path / "train" if has_parts else path, leave_out)
    classes = sorted({name for _, name in train})
    labels = _labels(train, classes, path)
    # Files come sorted by class: in stratified order, the first n are a fair sample for limit_train.
    order = stratified_order(labels)
    parts = [part for part in ("test", "val") if has_parts and (path / part).is_dir()]
    held: list[Pair] = []  # the first is the test set, a second the validation set
    for part in parts:
        listed = _listing(path / part)
        numbers = _labels(listed, classes, path / part)
        first = stratified_order(numbers)[: request.limit_test if part == parts[0] else None]
        held.append(_images(listed, numbers, first, request.size))
    if not held:
        cut = len(order) - math.ceil(TEST_FRACTION * len(order))
        if not cut:
            raise GemminerError(f"{path} has too few images to set a test set apart")
        order, last = order[:cut], order[cut:][: request.limit_test]
        held.append(_images(train, labels, last, request.size))
    pair = _images(train, labels, order[: request.limit_train], request.size)
    validation = held[1] if len(held) > 1 else None
    return Raw(pair, held[0], len(classes), tuple(classes), validation)


def _folder(request: Request) -> Raw:
    path = (request.root or Path()) / Path(request.path).expanduser()
    if not path.is_dir():
        raise GemminerError(f"there is no folder {path}: folder:PATH wants PATH/CLASS/IMAGE")
    return _tree(request, path)


def _caltech101(request: Request) -> Raw:
    places, marker = ("caltech101", "."), "101_ObjectCategories"
    folder = _find(request, places, marker)
    if folder is None and request.download:
        _torchvision(request, "Caltech101", request.root or _home())
        folder = _find(request, places, marker)
    if folder is None:
        raise _missing(request, f"the folder {marker}", "caltech101")
    return _tree(request, folder / marker, leave_out="BACKGROUND_Google")  # as torchvision does: 101 classes


def _tiny_imagenet(request: Request) -> Raw:
    # The labels of its test images are not public: as everywhere, its validation images are the test set.
    path = _find(request, ("tiny-imagenet-200", "tiny-imagenet", "."), "val/val_annotations.txt")
    if path is None:
        raise _missing(request, "the unzipped tiny-imagenet-200.zip", "tiny-imagenet-200", download=False)
    train = _listing(path / "train")  # train/WNID/images/*.JPEG
    classes = sorted({name for _, name in train})
    notes = path / "val/val_annotations.txt"  # lines of: file, WNID, a box
    try:
        rows = [line.split() for line in notes.read_text(errors="replace").splitlines() if line.strip()]
    except OSError as error:
        raise GemminerError(f"{notes} cannot be read ({error.strerror})") from None
    if not rows or any(len(row) < 2 for row in rows):
        raise GemminerError(f"{notes} is damaged: unzip tiny-imagenet-200.zip again")
    test = [(str(path / "val/images" / row[0]), row[1]) for row in rows]
    labels, test_labels = _labels(train, classes, path), _labels(test, classes, path / "val")
    order, test_order = stratified_order(labels), stratified_order(test_labels)
    return Raw(
        _images(train, labels, order[: request.limit_train], 64),
        _images(test, test_labels, test_order[: request.limit_test], 64),
        len(classes),
        tuple(classes),
    )


# --- the registry ---------------------------------------------------------------------------------

_DIGITS = tuple("0123456789")
_FASHION = "T-shirt/top,Trouser,Pullover,Dress,Coat,Sandal,Shirt,Sneaker,Bag,Ankle boot".split(",")  # noqa: SIM905
_DEBIAN = "/usr/share/datasets/fashion-mnist"  # of Debian's package dataset-fashion-mnist

SOURCES: dict[str, Source] = {
    "digits": Source(
        _digits,
        "none",
        "1,797 handwritten digits, 8x8 grey, 10 classes, embedded (scikit-learn); 360 are the test set",
    ),
    "fashion-mnist": Source(
        _mnist_like("FashionMNIST", tuple(_FASHION), _DEBIAN, apt="dataset-fashion-mnist"),
        "none",
        "60,000 + 10,000 pieces of clothing, 28x28 grey, 10 classes (Debian package, idx files or download)",
    ),
    "mnist": Source(
        _mnist_like("MNIST", _DIGITS),
        "none",
        "60,000 + 10,000 handwritten digits, 28x28 grey, 10 classes (idx files or download)",
    ),
    "cifar10": Source(
        _cifar("CIFAR10", "cifar-10-batches-py"),
        "crop4+flip",
        "50,000 + 10,000 photographs, 32x32 colour, 10 classes (cifar-10-batches-py or download)",
    ),
    "cifar100": Source(
        _cifar("CIFAR100", "cifar-100-python"),
        "crop4+flip",
        "50,000 + 10,000 photographs, 32x32 colour, 100 classes (cifar-100-python or download)",
    ),
    "tiny-imagenet": Source(
        _tiny_imagenet,
        "crop4+flip",
        "100,000 + 10,000 photographs, 64x64 colour, 200 classes (as unzipped; its val is the test set)",
    ),
    "caltech101": Source(
        _caltech101,
        "crop4+flip",
        "8,677 photographs, resized to 64x64 colour (caltech101@96: to 96x96), 101 classes; a fixed fifth "
        "is the test set (101_ObjectCategories or download)",
    ),
}
FOLDER = Source(
    _folder,
    "none",  # a mirror image may be of another class: what is not known is left as it is
    "any tree PATH/CLASS/IMAGE (a fixed fifth is the test set) or PATH/train, PATH/test, PATH/val, "
    "resized to 64x64 (folder:PATH@96: to 96x96)",
)
FUNCTION = "your own function: without arguments, returns (train, test) data sets or a gemminer.data.Data"


def find_source(name: str) -> tuple[Source, Request]:
    """The registry row of a name, and the request it stands for (with the path and @SIZE of 'folder:PATH@96')."""
    base, path = name, ""
    if name.startswith("folder:"):
        base, path = "folder", name.removeprefix("folder:")
    size = FOLDER_SIZE
    match = re.fullmatch(r"(.+)@(\d+)", path or base)
    if match and (path or base == f"caltech101@{match[2]}"):
        size = int(match[2])
        base, path = (base, match[1]) if path else (match[1], "")
        if not 1 <= size <= 4096:
            raise UsageError(f"the image size in {name!r} must be from 1 to 4096 pixels")
    if base == "folder" and path:
        return FOLDER, Request(name, path, size)
    if base not in SOURCES:
        raise unknown("data set", name, [*SOURCES, "folder:PATH", "package.module:function"])
    return SOURCES[base], Request(base, "", size)


# --- a user's own ---------------------------------------------------------------------------------


def is_function(name: str) -> bool:
    """Whether the name is of the kind package.module:function; raises UsageError for what is no name."""
    if not isinstance(name, str) or "\0" in name:
        raise unknown("data set", name, [*SOURCES, "folder:PATH", "package.module:function"])
    return ":" in name and not name.startswith("folder:")


def call(name: str) -> tuple[Any, str]:
    """The value `package.module:function` returns, and the first line of its documentation.

    Modules in the current folder are found, as by `python -m`. Errors in the function itself pass through.
    """
    with others_code():
        target = imported(name, "data function")
        if not callable(target):
            raise UsageError(f"{name!r} is a {type(target).__name__}, not a function that returns (train, test)")
        return target(), (inspect.getdoc(target) or name).splitlines()[0]
