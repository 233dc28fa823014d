"""safetensors: names, shapes and raw bytes."""

from metaopt import tensors
from metaopt.importers.arrays import Arrays

FORMAT = "safetensors"


def recognizes(data: bytes) -> bool:
    """Whether the file begins with the length of its JSON header."""
    return data[8:9] == b"{" and int.from_bytes(data[:8], "little") <= len(data) - 8


def read(data: bytes) -> Arrays:
    """The arrays by name, sorted."""
    return tensors.load(data)
