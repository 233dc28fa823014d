"""PyTorch's zip files, read without torch: a pickle, and a file with the raw bytes of each storage.

Source: pytorch/pytorch, torch/serialization.py and torch/_utils.py.
"""

import io
import math
import zipfile
from typing import Any

import numpy as np

from metaopt.errors import UserError
from metaopt.importers import pickle_file
from metaopt.importers.arrays import flatten, from_bytes

FORMAT = "torch zip"
STORAGES = {"torch.DoubleStorage": "f8", "torch.FloatStorage": "f4", "torch.HalfStorage": "f2"}
STORAGES |= {"torch.LongStorage": "i8", "torch.IntStorage": "i4"}
BYTE_ORDERS = {b"little": "<", b"big": ">"}


def recognizes(data: bytes) -> bool:
    """Whether the file is a zip archive."""
    return data[:4] == b"PK\x03\x04"


def read(data: bytes) -> dict[str, Any]:
    """The entries of a state_dict."""
    archive = zipfile.ZipFile(io.BytesIO(data))
    entries = archive.infolist()
    # PyTorch does not compress, so no entry is larger than the file; a zip bomb is refused here.
    if any(e.compress_type != zipfile.ZIP_STORED for e in entries) or sum(e.file_size for e in entries) > len(data):
        raise UserError("it is compressed, which torch.save never does: unpack it first")
    folders = [e.filename.removesuffix("data.pkl") for e in entries if e.filename.endswith("data.pkl")]
    if len(folders) != 1:
        raise UserError(f"it holds {len(folders)} files data.pkl, a file of torch.save holds one")
    (folder,) = folders
    order = archive.read(f"{folder}byteorder") if f"{folder}byteorder" in archive.namelist() else b"little"
    storages: dict[str, np.ndarray] = {}

    def storage(identifier: Any) -> np.ndarray:
        """The storage that a persistent identifier of the pickle refers to."""
        kind, storage_type, key, _, count = identifier
        if kind != "storage" or not isinstance(storage_type, pickle_file.Name) or not isinstance(key, str):
            raise UserError("it refers to something outside of its pickle that is not a storage")
        if storage_type.name not in STORAGES:
            raise UserError(f"it calls {storage_type.name!r} the type of a storage")
        if key not in storages:
            dtype = STORAGES[storage_type.name]
            raw = from_bytes(archive.read(f"{folder}data/{key}"), BYTE_ORDERS[order] + dtype, (count,))
            storages[key] = raw.astype(dtype)
        return storages[key]

    table = {
        "torch._utils._rebuild_tensor_v2": _tensor,
        "collections.OrderedDict": pickle_file.OrderedDict,
        **dict.fromkeys(STORAGES),
    }
    return flatten(pickle_file.run(archive.read(f"{folder}data.pkl"), table, storage))


def _tensor(storage: np.ndarray, offset: int, shape: tuple, strides: tuple, *_: Any) -> np.ndarray:
    """A view of a storage that is checked to stay inside it."""
    numbers = (offset, *shape, *strides)
    if not isinstance(storage, np.ndarray) or not all(type(n) is int and n >= 0 for n in numbers):
        raise UserError("it holds a tensor whose shape or strides are not sizes")
    last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    # A stride of zero repeats elements: the storage is small, a copy of the tensor could be huge.
    if 0 in shape or math.prod(shape) > storage.size or last >= storage.size:
        raise UserError(f"it holds a tensor of shape {list(shape)} that does not fit its storage of {storage.size}")
    steps = [stride * storage.itemsize for stride in strides]
    return np.lib.stride_tricks.as_strided(storage[offset:], shape, steps, writeable=False)
