"""From a file to its arrays; what container it is, its content says."""

import hashlib
from pathlib import Path
from typing import NamedTuple

from metaopt.errors import UserError
from metaopt.importers import msgpack_file, numpy_file, pickle_file, safetensors_file, torch_file
from metaopt.importers.arrays import Arrays

# The length in front of a safetensors file can begin like the two after it, not the other way round.
CONTAINERS = (torch_file, numpy_file, safetensors_file, pickle_file, msgpack_file)
MAX_BYTES = 2**26  # the largest release, VeLO, has 2**23.2


class File(NamedTuple):
    """The entries of a file, and where they are from."""

    arrays: Arrays  # an entry of another type is left for ``arrays.check`` to name
    container: str
    sha256: str


def read(path: Path) -> File:
    """Reads a file of any container.

    Raises:
      UserError: naming the file, if it is of no known container, damaged or hostile.
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
        arrays = container.read(data)
    except UserError as error:
        raise UserError(f"{path} ({container.FORMAT}): {error}") from error
    except Exception as error:  # of the libraries: damage has no end of kinds
        raise UserError(f"{path} is damaged, or no {container.FORMAT} file: {type(error).__name__}") from error
    return File(arrays, container.FORMAT, hashlib.sha256(data).hexdigest())
