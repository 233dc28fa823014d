"""One array as ``numpy.save`` writes it."""

import io

import numpy as np

from metaopt.errors import UserError
from metaopt.importers.arrays import Arrays, from_bytes

FORMAT = "numpy"
HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


def recognizes(data: bytes) -> bool:
    return data[:6] == b"\x93NUMPY"


def read(data: bytes) -> Arrays:
    """The array, as the entry "array"."""
    file = io.BytesIO(data)
    version = np.lib.format.read_magic(file)
    if version not in HEADERS:
        raise UserError(f"it is of NumPy's format {version}, known are {', '.join(map(str, HEADERS))}")
    shape, fortran, dtype = HEADERS[version](file)
    # np.load would allocate the claimed shape before it reads the numbers.
    return {"array": from_bytes(data[file.tell() :], dtype.str, shape, "F" if fortran else "C")}
