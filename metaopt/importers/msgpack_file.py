"""The msgpack files of flax: trees of arrays as ``flax.serialization.to_bytes`` writes them.

Source: google/flax, flax/serialization.py; the record that may contain theta is
ParameterCheckpoint of google/learned_optimization.
"""

import itertools
from typing import Any

import msgpack
import numpy as np

from metaopt.errors import UserError
from metaopt.importers.arrays import MAX_ENTRIES, flatten, from_bytes

FORMAT = "flax msgpack"
ARRAY, SCALAR = 1, 3  # flax's extension types
# The parser allocates as many items as a header claims: these bound the claims.
LIMITS = {"max_array_len": 32, "max_map_len": MAX_ENTRIES}
# Fields of a record, by name, or by number where it was saved as a tuple.
RECORDS = ({"params", "gen_id", "step"}, {"0", "1", "2"})
NAMED_TUPLE = {"name", "fields", "values"}  # keys of a named tuple, as flax wrote them before 0.3


def recognizes(data: bytes) -> bool:
    """Whether the file begins with a map that is not empty."""
    return bool(data) and (0x81 <= data[0] <= 0x8F or data[0] in (0xDE, 0xDF))


def read(data: bytes) -> dict[str, Any]:
    """The entries of theta, without the record that contains it."""
    branches = itertools.count()

    def count_and_convert(branch: dict[str, Any]) -> dict[str, Any]:
        if next(branches) > MAX_ENTRIES:
            raise UserError(f"its tree has more than {MAX_ENTRIES} entries: no weights known here are so many")
        return _dict_from_named_tuple(branch)

    hooks = {"ext_hook": _array, "object_hook": count_and_convert}
    tree = msgpack.unpackb(data, raw=False, strict_map_key=True, **hooks, **LIMITS)
    if set(tree) in RECORDS:
        tree = tree.get("params", tree.get("0"))
    return flatten(tree)


def _array(code: int, data: bytes) -> np.ndarray:
    if code not in (ARRAY, SCALAR):
        raise UserError(f"it holds data of the extension type {code}, flax writes arrays as {ARRAY}")
    shape, dtype, buffer = msgpack.unpackb(data, raw=True, **LIMITS)
    return from_bytes(buffer, dtype.decode(), shape)


def _dict_from_named_tuple(branch: dict[str, Any]) -> dict[str, Any]:
    """A named tuple as a dict; any other branch as it is."""
    if set(branch) != NAMED_TUPLE:
        return branch
    return {branch["fields"][i]: value for i, value in branch["values"].items()}
