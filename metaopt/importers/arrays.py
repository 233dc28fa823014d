"""Arrays from untrusted bytes, and checks of the trees that files store them in."""

import math
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from metaopt.errors import UserError

Arrays = dict[str, np.ndarray]  # by path, names joined by "/"
Shapes = Mapping[str, tuple[int, ...]]

WEIGHTS = ("float32", "float16", "bfloat16")  # types that weights are read from; float32 holds all their values
NUMBERS = (
    "biufc"  # NumPy's letters of its own numeric types; files of any are read, so that ``check`` can name the entry
)
# Numeric types that NumPy knows through JAX.
EXTENSIONS = {"bfloat16", "int4", "uint4", "float8_e3m4", "float8_e4m3", "float8_e4m3fn", "float8_e4m3fnuz"}
EXTENSIONS |= {"float8_e4m3b11fnuz", "float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu", "float4_e2m1fn"}
MAX_RANK = 8
MAX_ENTRIES = 10_000  # nodes of a tree; by sharing branches, a hostile tree can have more than its file has bytes


def from_bytes(buffer: bytes | bytearray, dtype: str, shape: Any, order: Any = "C") -> np.ndarray:
    """A view of ``buffer``; it costs no memory, whatever ``shape`` claims and however often it is asked for.

    Args:
      buffer: raw bytes of the array.
      dtype: NumPy's code for the type of an element, with its byte order, e.g. "<f4", or the name of one of EXTENSIONS.
      shape: shape that the file claims; anything, as it is checked here.
      order: "C" or "F".

    Raises:
      UserError: if the buffer is not as long as ``dtype`` and ``shape`` say.
    """
    kind = jnp.dtype(dtype)
    if kind.kind not in NUMBERS and kind.name not in EXTENSIONS:
        hint = " (numpy.save writes float8 and int4 like that)" if kind.kind == "V" else ""
        raise UserError(f"it holds an array of type {kind.name}{hint}, which is no type of numbers: save it as float32")
    if not isinstance(buffer, bytes | bytearray):
        raise UserError("it holds an array that is not made of bytes")
    sizes = shape if isinstance(shape, tuple | list) and len(shape) <= MAX_RANK else [None]
    if not all(type(size) is int and size >= 0 for size in sizes):
        raise UserError(f"it holds an array whose shape is not a list of up to {MAX_RANK} sizes")
    if math.prod(shape) * kind.itemsize != len(buffer):
        raise UserError(f"it holds an array of {len(buffer)} bytes that claims to be {kind.name}{list(shape)}")
    return np.frombuffer(buffer, kind).reshape(tuple(shape), order=order)


def flatten(tree: Any) -> dict[str, Any]:
    """The leaves of a tree of dicts by path, sorted.

    >>> flatten({"nn": {"~": {"w0": 1}}})
    {'nn/~/w0': 1}
    """
    leaves: dict[str, Any] = {}
    stack, visited = [("", tree)], 0
    while stack:
        path, node = stack.pop()
        visited += 1
        if visited > MAX_ENTRIES:
            raise UserError(f"its tree has more than {MAX_ENTRIES} entries: no weights known here are so many")
        if not isinstance(node, dict):
            if path in leaves:
                raise UserError(f"it holds {path!r} twice")
            leaves[path] = node
            continue
        for name, child in node.items():
            if not isinstance(name, str):
                raise UserError(f"{path or 'its root'} has a key that is not a name but of type {type(name).__name__}")
            stack.append((f"{path}/{name}" if path else name, child))
    return dict(sorted(leaves.items()))


def widen(entry: Any) -> Any:
    """An array of float16 or bfloat16, or of another byte order, as float32; anything else as it is."""
    is_weights = isinstance(entry, np.ndarray) and entry.dtype.name in WEIGHTS
    return entry.astype(np.float32) if is_weights else entry


def size(arrays: Arrays, path: str, axis: int) -> int:
    """The size of one axis of an entry; the expected shapes of the other entries follow from it.

    Raises:
      UserError: if there is no such entry or axis, or it is empty.
    """
    if path not in arrays:
        raise UserError(f"it lacks {path!r}")
    shape = getattr(arrays[path], "shape", ())
    if len(shape) <= axis:
        raise UserError(f"{path!r} should have {axis + 1} axes or more, has {len(shape)}")
    if 0 in shape:
        raise UserError(f"{path!r} is empty, its shape is {list(shape)}")
    return shape[axis]


def check(arrays: Arrays, expected: Shapes) -> None:
    """Raises a UserError unless exactly the ``expected`` entries exist, of these shapes, float32 and finite."""
    missing = [path for path in expected if path not in arrays]
    unknown = [path for path in arrays if path not in expected]
    mismatches = [f"lacks {_some(missing)}"] if missing else []
    mismatches += [f"holds {_some(unknown)}, unknown here"] if unknown else []
    if mismatches:
        raise UserError(f"it {' and '.join(mismatches)}")
    for path, shape in expected.items():
        array = arrays[path]
        if not isinstance(array, np.ndarray):
            raise UserError(f"{path!r} is not an array but of type {type(array).__name__}")
        if (array.shape, array.dtype) != (shape, np.float32):
            hint = (
                "" if array.dtype == np.float32 else f"; weights are read from {', '.join(WEIGHTS)}: convert it first"
            )
            raise UserError(f"{path!r} should be float32{list(shape)}, is {array.dtype}{list(array.shape)}{hint}")
        if not np.all(np.isfinite(array)):
            raise UserError(f"{path!r} holds values that are not finite, NaN or infinity")


def _some(paths: list[str], most: int = 5) -> str:
    """The first few paths, shortened, and how many more there are: a hostile file may have any."""
    named = ", ".join(repr(path[:80]) for path in paths[:most])
    return named if len(paths) <= most else f"{named} and {len(paths) - most} more"
