"""Reads the arrays of a file, whose format is recognized by its content."""

import hashlib
from pathlib import Path
from typing import NamedTuple

from metaopt.errors import UserError
from metaopt.importers import msgpack_file, numpy_archive, numpy_file, pickle_file, safetensors_file, torch_file
from metaopt.importers.arrays import Arrays, widen

# An archive of NumPy is a zip file too, so it comes before PyTorch's. safetensors comes before pickle and
# msgpack: the length it starts with can look like their first bytes, but not the other way round.
CONTAINERS = (numpy_archive, torch_file, numpy_file, safetensors_file, pickle_file, msgpack_file)
MAX_BYTES = 2**26  # the largest released file, VeLO's, has 2**23.2


class File(NamedTuple):
    """The entries of a file, its format and its hash."""

    arrays: Arrays  # entries may still be of other types, until ``arrays.check`` has seen them
    container: str
    sha256: str


def read(path: Path) -> File:
    """Reads a file of any format in CONTAINERS.

    Raises:
      UserError: naming the file, if its format is unknown, or if it is damaged or hostile.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise UserError(f"{path} is larger than any known weights ({MAX_BYTES:,} bytes)")
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    container = next((c for c in CONTAINERS if c.recognizes(data)), None)
    if container is None:
        raise UserError(f"{path} is none of the files read here: {', '.join(c.FORMAT for c in CONTAINERS)}")
    try:
        arrays = {path: widen(entry) for path, entry in container.read(data).items()}
    except UserError as error:
        raise UserError(f"{path} ({container.FORMAT}): {error}") from error
    except Exception as error:  # on damaged files, the libraries raise exceptions of any type
        raise UserError(f"{path} is damaged, or no {container.FORMAT} file: {type(error).__name__}") from error
    return File(arrays, container.FORMAT, hashlib.sha256(data).hexdigest())
