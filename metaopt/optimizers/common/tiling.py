"""Loops over a tensor that is too large for what is computed from it.

A per-parameter network makes many arrays of the size of the tensor. Piece by piece they
stay small. Piece i of an axis is every num-th slice from i on: where a tensor is spread
over devices, along that axis or another, so is every piece of it.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

# Elements of a piece. On a CPU what is made of it should stay in the cache, which halves the
# time of a matrix of half a million; elsewhere a piece should fill the machine.
LARGEST, LARGEST_ON_CPU = 2**20, 2**16
LARGEST_RECURRENT = 2**16  # where a recurrent network makes a kilobyte of every element
SLICES = 8  # a multiple of it in every piece, where the sizes allow: devices share it evenly


def means(
    f: Callable[[Any], Sequence[jax.Array]], tree: Any, shape: tuple[int, ...], axes: Sequence[int] | None = None
) -> list[jax.Array]:
    """The mean of every array of ``f(tree)`` over ``axes``, which stay with size 1.

    Args:
      f: element by element; its arrays are broadcastable to ``shape``. Broadcasting
        repeats every element equally often: the mean of a row is the mean over the tensor.
      tree: of arrays broadcastable to ``shape``.
      shape: of the tensor.
      axes: all where None.
    """
    axes = _non_negative(axes, shape)
    axis, num = _cut(shape, axes, LARGEST)
    mean = lambda piece: [jnp.mean(x, axis=axes, keepdims=True) for x in f(piece)]
    if num == 1:
        return mean(tree)
    total = [jnp.zeros(x.shape, x.dtype) for x in jax.eval_shape(mean, tree)]
    body = lambda i, total: [x + y / num for x, y in zip(total, mean(_piece(tree, axis, num, i)), strict=True)]
    return jax.lax.fori_loop(0, num, body, total)


def elementwise(
    f: Callable[[Any], jax.Array], tree: Any, shape: tuple[int, ...], axes: Sequence[int] | None = None
) -> jax.Array:
    """``f(tree)``, of ``shape``, for an ``f`` that works element by element; ``tree`` as for ``means``.

    ``axes`` are those a piece may be cut along.
    """
    return remembering(lambda piece, nothing: (f(piece), nothing), tree, (), shape, axes, LARGEST)[0]


def remembering(
    f: Callable[[Any, Any], tuple[jax.Array, Any]],
    tree: Any,
    memory: Any,
    shape: tuple[int, ...],
    axes: Sequence[int] | None = None,
    largest: int = LARGEST_RECURRENT,
) -> tuple[jax.Array, Any]:
    """``f(tree, memory)``, (a result of ``shape``, the new memory), piece by piece.

    A piece of the new memory is written over the old one: where the old memory is
    donated, there is never a second one.

    Args:
      f: element by element.
      tree: as for ``means``.
      memory: of arrays (*shape, ...).
      shape: of the tensor.
      axes: that a piece may be cut along; all where None.
      largest: elements of a piece; twice as many where that divides the axis better.
    """
    axis, num = _cut(shape, _non_negative(axes, shape), largest)
    if num == 1:
        return f(tree, memory)

    # A piece is written one turn after it was read. In the same turn XLA would fuse the writing
    # with another reading and, to keep both, copy the whole memory in every turn.
    def body(i, carry):
        out, memory, unwritten = carry
        memory = _write(memory, axis, jnp.maximum(i - 1, 0), unwritten)
        result, new = f(_piece(tree, axis, num, i), _read(memory, axis, i))
        unwritten = jax.tree.map(lambda x, old: x.astype(old.dtype), new, unwritten)
        return _write(out, axis, i, result), memory, unwritten

    out, memory = _split((jnp.zeros(shape, jnp.float32), memory), axis, num)
    out, memory, unwritten = jax.lax.fori_loop(0, num, body, (out, memory, _read(memory, axis, 0)))
    return _join((out, _write(memory, axis, num - 1, unwritten)), axis)


def _piece(tree: Any, axis: int, num: int, i) -> Any:
    cut = lambda x: x if x.shape[axis] == 1 else _read(_split(x, axis, num), axis, i)
    return jax.tree.map(cut, tree)


def _split(tree: Any, axis: int, num: int) -> Any:
    return jax.tree.map(lambda x: x.reshape(*x.shape[:axis], -1, num, *x.shape[axis + 1 :]), tree)


def _join(tree: Any, axis: int) -> Any:
    return jax.tree.map(lambda x: x.reshape(*x.shape[:axis], -1, *x.shape[axis + 2 :]), tree)


def _read(tree: Any, axis: int, i) -> Any:
    return jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, i, axis + 1, keepdims=False), tree)


def _write(tree: Any, axis: int, i, piece: Any) -> Any:
    write = lambda x, y: jax.lax.dynamic_update_index_in_dim(x, y.astype(x.dtype), i, axis + 1)
    return jax.tree.map(write, tree, piece)


def _non_negative(axes: Sequence[int] | None, shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(range(len(shape))) if axes is None else tuple(a % len(shape) for a in axes)


def _cut(shape: tuple[int, ...], axes: tuple[int, ...], largest: int) -> tuple[int, int]:
    """The axis that a tensor is cut along, one of ``axes``, and into how many equal pieces.

    Not the last axis where another is long enough: its slices lie one by one in memory.
    """
    limit = min(largest, LARGEST_ON_CPU if jax.default_backend() == "cpu" else LARGEST)
    whole = math.prod(shape)
    if whole <= limit:
        return 0, 1
    fine_enough = [a for a in axes if whole <= limit * shape[a]]
    axis = fine_enough[0] if fine_enough else max(axes, key=lambda a: shape[a])
    numbers = [n for n in range(1, shape[axis] + 1) if shape[axis] % n == 0 and whole <= 2 * limit * n]
    even = [n for n in numbers if shape[axis] // n % SLICES == 0]
    return axis, min(even or numbers or [shape[axis]])
