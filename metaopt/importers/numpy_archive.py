"""Arrays by name as ``numpy.savez`` and ``numpy.savez_compressed`` write them."""

import io
import zipfile

from metaopt.errors import UserError
from metaopt.importers import numpy_file
from metaopt.importers.arrays import MAX_ENTRIES, Arrays

FORMAT = "numpy archive"
MAX_BYTES = 2**26  # of all arrays, unpacked
SUFFIX = ".npy"
METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # those of NumPy


def recognizes(data: bytes) -> bool:
    """Whether the file is a zip archive whose first entry is an array."""
    name = data[30 : 30 + int.from_bytes(data[26:28], "little")]  # of the header of the first entry
    return data[:4] == b"PK\x03\x04" and name.endswith(SUFFIX.encode())


def read(data: bytes) -> Arrays:
    """The arrays by name, sorted."""
    archive = zipfile.ZipFile(io.BytesIO(data))
    entries = archive.infolist()
    # An entry is never unpacked beyond the size it claims, so that these sizes bound the memory.
    if len(entries) > MAX_ENTRIES or sum(e.file_size for e in entries) > MAX_BYTES:
        raise UserError(f"it claims more than {MAX_BYTES:,} bytes or {MAX_ENTRIES:,} entries: no weights are so many")
    arrays: Arrays = {}
    for entry in sorted(entries, key=lambda e: e.filename):
        name = entry.filename.removesuffix(SUFFIX)
        if name in arrays:
            raise UserError(f"it holds {name[:80]!r} twice")
        if name == entry.filename or entry.compress_type not in METHODS:
            raise UserError(f"its entry {entry.filename[:80]!r} is none that numpy.savez writes")
        try:
            (arrays[name],) = numpy_file.read(archive.read(entry)).values()
        except UserError as error:
            raise UserError(f"its entry {name[:80]!r}: {error}") from error
    return arrays
