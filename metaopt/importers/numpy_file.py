"""One array as ``numpy.save`` writes it."""

import io

import numpy as np

from metaopt.errors import UserError
from metaopt.importers.arrays import Arrays, from_bytes

FORMAT = "numpy"
BFLOAT16 = ("<V2", "|V2")  # numpy.save writes "two bytes": there is no other such type that NumPy cannot name
HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


def recognizes(data: bytes) -> bool:
    return data[:6] == b"\x93NUMPY"


def read(data: bytes) -> Arrays:
    """The array, as the entry "array"."""
    file = io.BytesIO(data)
    version = np.lib.format.read_magic(file)
    if version not in HEADERS:
        raise UserError(f"it is of NumPy's format {version}, known are {', '.join(map(str, HEADERS))}")
    try:
        shape, fortran, dtype = HEADERS[version](file)
    except ValueError as error:
        if "not a valid dtype" in str(error):
            raise UserError(
                "its header names a type that NumPy cannot read, as for float8: save it as float32"
            ) from error
        raise
    code = "bfloat16" if dtype.str in BFLOAT16 else dtype.str
    # np.load would allocate the claimed shape before it reads the numbers.
    return {"array": from_bytes(data[file.tell() :], code, shape, "F" if fortran else "C")}
