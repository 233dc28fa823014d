"""Loops over the tiles of a tensor, for functions whose temporaries would not fit into memory.

A per-parameter network makes many arrays of the size of its tensor; computed tile by tile they stay
small. If an axis is cut into n tiles, tile i holds its slices i, i + n, i + 2 n, ...: where a tensor
is sharded over devices, along this axis or another, so is each of its tiles.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from metaopt.core import PyTree

# Most elements of a tile. On a CPU the temporaries of a tile should fit into the cache, which halves
# the time of a matrix of half a million elements; elsewhere a tile should keep the device busy.
MAX_TILE, MAX_TILE_ON_CPU = 2**20, 2**16
MAX_RECURRENT_TILE = 2**16  # a recurrent network makes about a kilobyte for every element
SLICE_MULTIPLE = 8  # a tile has a multiple of this many slices where sizes allow: devices share it evenly


def largest_tile() -> int:
    """Most elements of a tile on this machine."""
    return MAX_TILE_ON_CPU if jax.default_backend() == "cpu" else MAX_TILE


class Tiling(NamedTuple):
    axis: int  # axis that the tensor is cut along
    num: int  # number of tiles of equal size


def means(
    f: Callable[[PyTree], Sequence[jax.Array]],
    inputs: PyTree,
    shape: tuple[int, ...],
    axes: Sequence[int] | None = None,
) -> list[jax.Array]:
    """The mean of every array of ``f(inputs)`` over ``axes``, which keep size 1.

    Args:
      f: function that works element by element; its arrays are broadcastable to ``shape``.
        Broadcasting repeats every element equally often, so the mean of an array that was averaged
        over an axis is its mean over the tensor.
      inputs: tree of arrays broadcastable to ``shape``.
      shape: shape of the tensor.
      axes: axes to average over; None for all.

    Returns:
      One array for each array of ``f``.
    """
    axes = _non_negative(axes, shape)
    tiling = _choose(shape, axes, MAX_TILE)

    def tile_means(tile: PyTree) -> list[jax.Array]:
        return [jnp.mean(x, axis=axes, keepdims=True) for x in f(tile)]

    if tiling.num == 1:
        return tile_means(inputs)

    def add(i: jax.Array, total: list[jax.Array]) -> list[jax.Array]:
        return [x + y / tiling.num for x, y in zip(total, tile_means(_input_tile(inputs, tiling, i)), strict=True)]

    zeros = [jnp.zeros(x.shape, x.dtype) for x in jax.eval_shape(tile_means, inputs)]
    return jax.lax.fori_loop(0, tiling.num, add, zeros)


def elementwise(
    f: Callable[[PyTree], jax.Array], inputs: PyTree, shape: tuple[int, ...], axes: Sequence[int] | None = None
) -> jax.Array:
    """``f(inputs)``, computed tile by tile.

    Args:
      f: function that works element by element, with a result of ``shape``.
      inputs: tree of arrays broadcastable to ``shape``.
      shape: shape of the tensor.
      axes: axes that the tensor may be cut along; None for all.
    """
    return elementwise_with_state(lambda tile, state: (f(tile), state), inputs, (), shape, axes, MAX_TILE)[0]


def elementwise_with_state(
    f: Callable[[PyTree, PyTree], tuple[jax.Array, PyTree]],
    inputs: PyTree,
    state: PyTree,
    shape: tuple[int, ...],
    axes: Sequence[int] | None = None,
    max_tile: int = MAX_RECURRENT_TILE,
) -> tuple[jax.Array, PyTree]:
    """``f(inputs, state)``, a result of ``shape`` and the new state, computed tile by tile.

    A tile of the new state is written over the old one: if the old state is donated, there is never
    a second copy of it.

    Args:
      f: function that works element by element.
      inputs: tree of arrays broadcastable to ``shape``.
      state: tree of arrays (*shape, ...).
      shape: shape of the tensor.
      axes: axes that the tensor may be cut along; None for all.
      max_tile: most elements of a tile; twice as many where that divides the axis better.

    Returns:
      The result and the new state.
    """
    tiling = _choose(shape, _non_negative(axes, shape), max_tile)
    if tiling.num == 1:
        return f(inputs, state)
    axis, num = tiling

    # A tile is written one turn after it was read. In the same turn XLA would fuse the writing with
    # another reading and, to keep both, copy the whole state in every turn.
    def body(i: jax.Array, carry: tuple) -> tuple:
        out, state, unwritten = carry
        state = _write(state, axis, jnp.maximum(i - 1, 0), unwritten)
        result, new = f(_input_tile(inputs, tiling, i), _read(state, axis, i))
        unwritten = jax.tree.map(lambda x, old: x.astype(old.dtype), new, unwritten)
        return _write(out, axis, i, result), state, unwritten

    out, state = _split((jnp.zeros(shape, jnp.float32), state), tiling)
    out, state, unwritten = jax.lax.fori_loop(0, num, body, (out, state, _read(state, axis, 0)))
    return _join((out, _write(state, axis, num - 1, unwritten)), axis)


def _input_tile(inputs: PyTree, tiling: Tiling, i: jax.Array) -> PyTree:
    """Tile i of every input; inputs of size 1 along the axis are in every tile."""

    def tile(x: jax.Array) -> jax.Array:
        return x if x.shape[tiling.axis] == 1 else _read(_split(x, tiling), tiling.axis, i)

    return jax.tree.map(tile, inputs)


def _split(tree: PyTree, tiling: Tiling) -> PyTree:
    """Arrays with their axis split into two, slices of a tile and tiles."""
    axis, num = tiling
    return jax.tree.map(lambda x: x.reshape(*x.shape[:axis], -1, num, *x.shape[axis + 1 :]), tree)


def _join(tree: PyTree, axis: int) -> PyTree:
    """The inverse of ``_split``."""
    return jax.tree.map(lambda x: x.reshape(*x.shape[:axis], -1, *x.shape[axis + 2 :]), tree)


def _read(split: PyTree, axis: int, i: jax.Array | int) -> PyTree:
    """Tile i of arrays as ``_split`` returns them."""
    return jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, i, axis + 1, keepdims=False), split)


def _write(split: PyTree, axis: int, i: jax.Array | int, tile: PyTree) -> PyTree:
    """Arrays as ``_split`` returns them, with tile i replaced."""

    def write(x: jax.Array, y: jax.Array) -> jax.Array:
        return jax.lax.dynamic_update_index_in_dim(x, y.astype(x.dtype), i, axis + 1)

    return jax.tree.map(write, split, tile)


def _non_negative(axes: Sequence[int] | None, shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(range(len(shape))) if axes is None else tuple(a % len(shape) for a in axes)


def _choose(shape: tuple[int, ...], axes: tuple[int, ...], max_tile: int) -> Tiling:
    """The axis, one of ``axes``, that a tensor is cut along, and the number of tiles.

    The last axis is avoided where another is long enough: its slices are single elements, scattered
    in memory.
    """
    limit = min(max_tile, largest_tile())
    size = math.prod(shape)
    if size <= limit:
        return Tiling(0, 1)
    long_enough = [a for a in axes if size <= limit * shape[a]]
    axis = long_enough[0] if long_enough else max(axes, key=lambda a: shape[a])
    divisors = [n for n in range(1, shape[axis] + 1) if shape[axis] % n == 0 and size <= 2 * limit * n]
    even = [n for n in divisors if shape[axis] // n % SLICE_MULTIPLE == 0]
    return Tiling(axis, min(even or divisors or [shape[axis]]))
