"""Pickles of dicts of arrays, read without unpickling.

A pickle is a program. This runs the few instructions that rebuild dicts, tuples and
arrays, on stand-ins: nothing is imported, and a name that the file asks for is refused
unless the table of its format has it. Whatever an instruction carries has been read
from the file before anything of its size is made.
"""

import pickletools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from metaopt.errors import UserError
from metaopt.importers.arrays import flatten, from_bytes

FORMAT = "pickle"
MAX_INSTRUCTIONS = 1_000_000  # each may make an object


def recognizes(data: bytes) -> bool:
    return len(data) > 1 and data[0] == 0x80 and 2 <= data[1] <= 5  # instruction PROTO


def read(data: bytes) -> dict[str, Any]:
    """The entries of a pickled tree of NumPy or JAX arrays."""
    leaves = flatten(run(data, ARRAYS))
    return {path: leaf.value if isinstance(leaf, Array) else leaf for path, leaf in leaves.items()}


class Name(NamedTuple):
    """What a file asked to import: a table has it, but it stays a name."""

    name: str


class Dtype:
    """``numpy.dtype(code)``, to be told its byte order."""

    order = ""

    def __init__(self, code: str, *_):
        self.code = _text(code)

    def build(self, state):
        self.order = _text(state[1]).strip("|")

    @property
    def name(self) -> str:
        return self.order + self.code


class Array:
    """``numpy.ndarray``, empty until it is told what it holds."""

    value: np.ndarray | None = None

    def __init__(self, *_):
        pass

    def build(self, state):
        _, shape, dtype, fortran, buffer = state
        self.value = from_bytes(buffer, dtype.name, shape, "F" if fortran else "C")


class OrderedDict(dict):
    """``collections.OrderedDict``; what is hung on it besides items is dropped."""

    def __init__(self, items: Any = ()):
        super().__init__()
        if not isinstance(items, list | tuple) or not all(isinstance(x, list | tuple) and len(x) == 2 for x in items):
            raise UserError("it makes a dict of something else than pairs")
        _set(self, [part for pair in items for part in pair])

    def build(self, state):
        pass


def _from_buffer(buffer, dtype, shape, order) -> Array:
    array = Array()
    array.value = from_bytes(buffer, dtype.name, shape, order)
    return array


def _jax_array(constructor, arguments, state, aval_state) -> Array:
    del constructor, arguments, aval_state  # of the NumPy array inside; device and weak type
    array = Array()
    array.build(state)
    return array


Table = Mapping[str, Callable | None]  # None: may be named, not called
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
}
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
LITERALS = {"BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"}
LITERALS |= {"SHORT_BINBYTES", "BINBYTES", "BINBYTES8", "BYTEARRAY8"}
EMPTY = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple}


def run(data: bytes, table: Table, persistent: Callable[[Any], Any] | None = None) -> Any:
    """Runs the instructions of a pickle.

    Args:
      data: the file.
      table: what it may name and call, e.g. ARRAYS.
      persistent: from an identifier to the object that is kept outside of the pickle.

    Returns:
      The tree it builds.

    Raises:
      UserError: naming the instruction or the import that is refused.
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
                    raise UserError(f"it changes a {type(stack[-1]).__name__}, which is refused: arrays need no such")
                stack[-1].build(state)
            case "BINPERSID" if persistent is not None:
                stack.append(persistent(stack.pop()))
            case other:
                raise UserError(f"its instruction {other} is refused: arrays need no such")
    raise UserError("it ends too early")


def _name(name: str, table: Table) -> Name:
    if name not in table:
        raise UserError(f"it asks for {name[:80]!r}, which is refused: weights are arrays and nothing else")
    return Name(name)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise UserError("it has something else where a name should be")
    return value


def _call(function: Any, arguments: Any, table: Table) -> Any:
    called = table.get(function.name) if isinstance(function, Name) else None
    if called is None or not isinstance(arguments, tuple):
        what = function.name if isinstance(function, Name) else type(function).__name__
        raise UserError(f"it calls {what!r}, which is refused: arrays need no such")
    return called(*arguments)


def _extend(target: Any, items: list[Any]) -> None:
    if not isinstance(target, list):
        raise UserError("it appends to something that is not a list")
    target.extend(items)


def _set(target: Any, items: list[Any]) -> None:
    # Only names: the hash of nested tuples can take longer than the universe has.
    if not isinstance(target, dict) or not all(isinstance(key, str) for key in items[::2]):
        raise UserError("it has a dict with keys that are not names")
    target.update(zip(items[::2], items[1::2], strict=True))
