"""Loops over a tensor that is too large for what is computed from it.

A per-parameter network makes many arrays of the size of the tensor. Piece by piece they
stay small. A tensor is cut along an axis that is not its largest one: that one is what
fully sharded training splits over devices, and a piece should be spread as the tensor is.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

# Elements of a piece. On a CPU what is made of it should stay in the cache, which halves the
# time of a matrix of half a million; elsewhere a piece should fill the machine.
LARGEST, LARGEST_ON_CPU = 2**20, 2**16


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
    axis, length = _cut(shape, axes)
    mean = lambda piece: [jnp.mean(x, axis=axes, keepdims=True) for x in f(piece)]
    if not shape or length == shape[axis]:
        return mean(tree)
    num, rest = divmod(shape[axis], length)
    share = lambda size, piece: [size / shape[axis] * x for x in mean(piece)]
    add = lambda a, b: [x + y for x, y in zip(a, b, strict=True)]
    total = [jnp.zeros(x.shape) for x in jax.eval_shape(mean, tree)]
    body = lambda i, total: add(total, share(length, _slice(tree, axis, i * length, length)))
    total = jax.lax.fori_loop(0, num, body, total)
    return add(total, share(rest, _slice(tree, axis, num * length, rest))) if rest else total


def elementwise(
    f: Callable[[Any], jax.Array], tree: Any, shape: tuple[int, ...], axes: Sequence[int] | None = None
) -> jax.Array:
    """``f(tree)``, of ``shape``, for an ``f`` that works element by element; ``tree`` as for ``means``.

    ``axes`` are those a piece may be cut along.
    """
    axis, length = _cut(shape, _non_negative(axes, shape))
    if not shape or length == shape[axis]:
        return f(tree)
    num, rest = divmod(shape[axis], length)

    def write(out, start, size):
        return jax.lax.dynamic_update_slice_in_dim(out, f(_slice(tree, axis, start, size)), start, axis)

    out = jax.lax.fori_loop(0, num, lambda i, out: write(out, i * length, length), jnp.zeros(shape))
    return write(out, num * length, rest) if rest else out


def _slice(tree: Any, axis: int, start, size: int) -> Any:
    cut = lambda x: x if x.shape[axis] == 1 else jax.lax.dynamic_slice_in_dim(x, start, size, axis)
    return jax.tree.map(cut, tree)


def _non_negative(axes: Sequence[int] | None, shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(range(len(shape))) if axes is None else tuple(a % len(shape) for a in axes)


def _cut(shape: tuple[int, ...], axes: tuple[int, ...]) -> tuple[int, int]:
    """The axis that a tensor is cut along, one of ``axes``, and the length of a piece."""
    if not shape:
        return 0, 1
    limit, whole = LARGEST_ON_CPU if jax.default_backend() == "cpu" else LARGEST, math.prod(shape)
    by_size = sorted(axes, key=lambda a: (shape[a], a), reverse=True)
    fine_enough = [a for a in by_size[1:] if whole <= limit * shape[a]]
    axis = (fine_enough or by_size)[0]
    return axis, shape[axis] if whole <= limit else max(1, limit * shape[axis] // whole)
