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
BYTE_ORDERS = (b"little", b"big")
# PyTorch's name of each type of storage -> NumPy's; files of any are read, so that ``arrays.check`` can name the entry.
STORAGES = {"Double": "float64", "Float": "float32", "Half": "float16", "BFloat16": "bfloat16", "Bool": "bool"}
STORAGES |= {
    "Long": "int64",
    "Int": "int32",
    "Short": "int16",
    "Char": "int8",
    "Byte": "uint8",
    "ComplexFloat": "complex64",
}
STORAGES = {f"torch.{name}Storage": dtype for name, dtype in STORAGES.items()} | {
    "torch.storage.UntypedStorage": "uint8"
}
# Types without a storage of their own: PyTorch keeps their bytes in an untyped one.
UNTYPED = ("float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu")
UNTYPED += ("uint16", "uint32", "uint64")


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
    if order not in BYTE_ORDERS:
        raise UserError(f"its byte order is {order[:20]!r}, neither little nor big")
    storages: dict[str, np.ndarray] = {}

    def storage(identifier: Any) -> np.ndarray:
        """The storage that a persistent identifier of the pickle refers to."""
        kind, storage_type, key, _, count = identifier
        if kind != "storage" or not isinstance(storage_type, pickle_file.Name) or not isinstance(key, str):
            raise UserError("it refers to something outside of its pickle that is not a storage")
        if storage_type.name not in STORAGES:
            raise UserError(f"it calls {storage_type.name!r} the type of a storage")
        if key not in storages:
            raw = from_bytes(archive.read(f"{folder}data/{key}"), STORAGES[storage_type.name], (count,))
            storages[key] = raw if order == b"little" else raw.view(f"u{raw.itemsize}").byteswap().view(raw.dtype)
        return storages[key]

    table = {
        "torch._utils._rebuild_tensor_v2": _tensor,
        "torch._utils._rebuild_tensor_v3": _untyped_tensor,
        "torch._utils._rebuild_parameter": lambda tensor, *_: tensor,
        "collections.OrderedDict": pickle_file.OrderedDict,
        **dict.fromkeys(STORAGES),
        **dict.fromkeys(f"torch.{name}" for name in UNTYPED),
    }
    return flatten(pickle_file.run(archive.read(f"{folder}data.pkl"), table, storage))


def _tensor(storage: np.ndarray, offset: int, shape: tuple, strides: tuple, *_: Any) -> np.ndarray:
    """A view of a storage that is checked to stay inside it."""
    numbers = (offset, *shape, *strides)
    if not isinstance(storage, np.ndarray) or not all(type(n) is int and n >= 0 for n in numbers):
        raise UserError("it holds a tensor whose shape or strides are not sizes")
    if 0 in shape:
        return np.zeros(shape, storage.dtype)
    last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    # A stride of zero repeats elements: the storage is small, a copy of the tensor could be huge.
    if math.prod(shape) > storage.size or last >= storage.size:
        raise UserError(f"it holds a tensor of shape {list(shape)} that does not fit its storage of {storage.size}")
    steps = [stride * storage.itemsize for stride in strides]
    raw = storage[offset:].view(f"u{storage.itemsize}")  # NumPy strides its own types only
    return np.lib.stride_tricks.as_strided(raw, shape, steps, writeable=False).view(storage.dtype)


def _untyped_tensor(storage: np.ndarray, offset: int, shape: tuple, strides: tuple, *rest: Any) -> np.ndarray:
    """A view of a storage of bytes, whose type is the third of the other arguments."""
    dtype = rest[2]
    if not isinstance(storage, np.ndarray) or not isinstance(dtype, pickle_file.Name):
        raise UserError("it holds a tensor whose storage or type is something else")
    return _tensor(storage.view(dtype.name.removeprefix("torch.")), offset, shape, strides)
