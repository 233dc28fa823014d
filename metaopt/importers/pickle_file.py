"""Pickles of dicts of arrays, read without unpickling.

A pickle is a program. Only the few instructions that build dicts, tuples and arrays are
interpreted here. Nothing is imported: a global is refused unless the table of its format has
a replacement for it. No memory is allocated for a size that the file merely claims.
"""

import pickletools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from metaopt.errors import UserError
from metaopt.importers.arrays import EXTENSIONS, flatten, from_bytes

FORMAT = "pickle"
MAX_INSTRUCTIONS = 1_000_000  # each may build an object
ML_DTYPES = "ml_dtypes."  # the module that bfloat16 is pickled as a part of
ONLY_ARRAYS = "weight files hold only dicts, tuples and arrays"


def recognizes(data: bytes) -> bool:
    """Whether the file begins with the instruction PROTO of a protocol from 2 to 5."""
    return len(data) > 1 and data[0] == 0x80 and 2 <= data[1] <= 5


def read(data: bytes) -> dict[str, Any]:
    """The entries of a pickled tree of NumPy or JAX arrays."""
    leaves = flatten(run(data, ARRAYS))
    return {path: leaf.value if isinstance(leaf, Array) else leaf for path, leaf in leaves.items()}


class Name(NamedTuple):
    """A global that a file refers to and its table allows; it is never imported."""

    name: str


class Dtype:
    """Replacement for ``numpy.dtype(code)``; ``build`` sets its byte order."""

    order = ""

    def __init__(self, code: Any, *_: Any):
        self.is_extension = isinstance(code, Name)
        self.code = code.name.removeprefix(ML_DTYPES) if isinstance(code, Name) else _text(code)

    def build(self, state: Any) -> None:
        self.order = _text(state[1]).strip("|")

    @property
    def name(self) -> str:
        return self.code if self.is_extension else self.order + self.code


class Array:
    """Replacement for ``numpy.ndarray``; ``build`` sets its value."""

    value: np.ndarray | None = None

    def __init__(self, *_: Any):
        pass

    def build(self, state: Any) -> None:
        _, shape, dtype, fortran, buffer = state
        self.value = from_bytes(buffer, dtype.name, shape, "F" if fortran else "C")


class OrderedDict(dict):
    """Replacement for ``collections.OrderedDict``; attributes that a file sets on it are dropped."""

    def __init__(self, items: Any = ()):
        super().__init__()
        if not isinstance(items, list | tuple) or not all(isinstance(x, list | tuple) and len(x) == 2 for x in items):
            raise UserError("it builds a dict from something else than pairs")
        _set(self, [key_or_value for pair in items for key_or_value in pair])

    def build(self, state: Any) -> None:
        pass


def _from_buffer(buffer: Any, dtype: Any, shape: Any, order: Any) -> Array:
    array = Array()
    array.value = from_bytes(buffer, dtype.name, shape, order)
    return array


def _jax_array(constructor: Any, arguments: Any, state: Any, aval_state: Any) -> Array:
    """A JAX array, which is pickled as a NumPy array and a state with its device and weak type."""
    del constructor, arguments, aval_state
    array = Array()
    array.build(state)
    return array


Table = Mapping[str, Callable | None]  # replacements of globals; None: may be referred to, not called
ARRAYS: Table = {
    "numpy.ndarray": None,
    "numpy.dtype": Dtype,
    "numpy.core.multiarray._reconstruct": Array,
    "numpy._core.multiarray._reconstruct": Array,
    "numpy.core.numeric._frombuffer": _from_buffer,
    "numpy._core.numeric._frombuffer": _from_buffer,
    "jax._src.array._reconstruct_array": _jax_array,
    "jax._src.device_array.reconstruct_device_array": _jax_array,  # before jax 0.4
    "collections.OrderedDict": OrderedDict,
    **{ML_DTYPES + name: None for name in EXTENSIONS},
}
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
LITERALS = {"BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"}
LITERALS |= {"SHORT_BINBYTES", "BINBYTES", "BINBYTES8", "BYTEARRAY8"}
EMPTY = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple}


def run(data: bytes, table: Table, persistent: Callable[[Any], Any] | None = None) -> Any:
    """Interprets the instructions of a pickle.

    Args:
      data: content of the file.
      table: globals that the file may refer to, e.g. ARRAYS.
      persistent: function from a persistent identifier to the object stored outside of the
        pickle; None if there are no such objects.

    Returns:
      The tree that the pickle builds.

    Raises:
      UserError: naming the instruction or the global that is refused.
    """
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[Any, Any] = {}

    def above_mark() -> list[Any]:
        start = marks.pop()
        items = stack[start:]
        del stack[start:]
        return items

    for number, (instruction, argument, _) in enumerate(pickletools.genops(data)):
        if number > MAX_INSTRUCTIONS:
            raise UserError(f"it has more than {MAX_INSTRUCTIONS:,} instructions: no weights known here have so many")
        match instruction.name:
            case "PROTO" | "FRAME":
                pass
            case "STOP":
                (tree,) = stack
                return tree
            case "MARK":
                marks.append(len(stack))
            case constant if constant in CONSTANTS:
                stack.append(CONSTANTS[constant])
            case literal if literal in LITERALS:
                stack.append(argument)
            case empty if empty in EMPTY:
                stack.append(EMPTY[empty]())
            case "TUPLE":
                stack.append(tuple(above_mark()))
            case "TUPLE1" | "TUPLE2" | "TUPLE3" as several:
                count = int(several[-1])
                stack[-count:] = [tuple(stack[-count:])]
            case "APPEND":
                _extend(stack[-2], [stack.pop()])
            case "APPENDS":
                items = above_mark()
                _extend(stack[-1], items)
            case "SETITEM":
                _set(stack[-3], [stack.pop(-2), stack.pop()])
            case "SETITEMS":
                items = above_mark()
                _set(stack[-1], items)
            case "MEMOIZE":
                memo[len(memo)] = stack[-1]
            case "BINPUT" | "LONG_BINPUT":
                memo[argument] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[argument])
            case "GLOBAL":
                stack.append(_name(str(argument).replace(" ", "."), table))
            case "STACK_GLOBAL":
                module, name = stack[-2:]
                stack[-2:] = [_name(f"{_text(module)}.{_text(name)}", table)]
            case "REDUCE":
                arguments, function = stack.pop(), stack.pop()
                stack.append(_call(function, arguments, table))
            case "BUILD":
                state = stack.pop()
                if not isinstance(stack[-1], Array | Dtype | OrderedDict):
                    kind = type(stack[-1]).__name__
                    raise UserError(f"it sets the state of a {kind}, which is refused: {ONLY_ARRAYS}")
                stack[-1].build(state)
            case "BINPERSID" if persistent is not None:
                stack.append(persistent(stack.pop()))
            case other:
                raise UserError(f"unsupported pickle instruction {other}: {ONLY_ARRAYS}")
    raise UserError("its pickle has no end")


def _name(name: str, table: Table) -> Name:
    if name not in table:
        raise UserError(f"it refers to {name[:80]!r}, which is refused: {ONLY_ARRAYS}")
    return Name(name)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise UserError("it has something else where a name should be")
    return value


def _call(function: Any, arguments: Any, table: Table) -> Any:
    called = table.get(function.name) if isinstance(function, Name) else None
    if called is None or not isinstance(arguments, tuple):
        what = function.name if isinstance(function, Name) else type(function).__name__
        raise UserError(f"it calls {what!r}, which is refused: {ONLY_ARRAYS}")
    return called(*arguments)


def _extend(target: Any, items: list[Any]) -> None:
    if not isinstance(target, list):
        raise UserError("it appends to something that is not a list")
    target.extend(items)


def _set(target: Any, items: list[Any]) -> None:
    # Only strings may be keys: to hash a nested tuple can take exponentially long.
    if not isinstance(target, dict) or not all(isinstance(key, str) for key in items[::2]):
        raise UserError("it has a dict with keys that are not strings")
    target.update(zip(items[::2], items[1::2], strict=True))
