"""safetensors: names, shapes and raw bytes, nothing to run."""

import safetensors.numpy

from metaopt.importers.arrays import Arrays

FORMAT = "safetensors"


def recognizes(data: bytes) -> bool:
    return data[8:9] == b"{" and int.from_bytes(data[:8], "little") <= len(data) - 8


def read(data: bytes) -> Arrays:
    return dict(sorted(safetensors.numpy.load(data).items()))
