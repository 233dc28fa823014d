"""Small tensors of all shapes as the rows of one array.

A network over every tensor is compiled once for each shape, which takes longer than most trainings need
it. Here it is compiled once for all small tensors: each is cut into rows of WIDTH elements, the last one
padded with ones, and the rows of all of them are one batch. (Of zeros some inputs are infinite, and an
infinity that nobody reads still makes derivatives NaN.)
"""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from metaopt.core import PyTree
from metaopt.optimizers.common import tiling

WIDTH = 128  # elements of a row


class Alike(NamedTuple):
    """A tensor, or a stack of them."""

    shape: tuple[int, ...]  # of one tensor
    num: int | None = None  # the number of tensors in a stack

    @property
    def count(self) -> int:
        """The number of tensors."""
        return self.num or 1

    @property
    def full_shape(self) -> tuple[int, ...]:
        """The shape of the array that holds the tensor or the stack."""
        return self.shape if self.num is None else (self.num, *self.shape)


class Packing:
    """The places of tensors in a pack.

    Args:
      tensors: the tensors, and stacks of them, with numbers of rows that do not fall.

    Attributes:
      ranks: the rank of each tensor, those of a stack one by one, in the order of all arrays with a row for
        each tensor.
    """

    def __init__(self, tensors: Sequence[Alike]):
        self._tensors = tensors
        shapes = [x.shape for x in tensors for _ in range(x.count)]
        self.ranks = [len(shape) for shape in shapes]
        self._sizes = [math.prod(shape) for shape in shapes]
        self._num_rows = [num_rows(shape) for shape in shapes]
        # Tensors with equally many rows are a block: a sum over each is one reduction, without a scatter.
        self._blocks = [(rows, len(list(group))) for rows, group in itertools.groupby(self._num_rows)]

    def pack(self, arrays: Sequence[jax.Array]) -> jax.Array:
        """(rows, WIDTH) elements of arrays broadcastable to the tensors and stacks."""
        padded = []
        for x, tensors in zip(arrays, self._tensors, strict=True):
            elements = jnp.broadcast_to(x, tensors.full_shape).reshape(tensors.count, -1)
            num_padding = num_rows(tensors.shape) * WIDTH - elements.shape[1]
            padded.append(jnp.pad(elements, ((0, 0), (0, num_padding)), constant_values=1).ravel())
        return jnp.concatenate(padded).reshape(-1, WIDTH)

    def unpack(self, rows: jax.Array) -> list[jax.Array]:
        """The tensors and stacks in (rows, WIDTH) elements."""
        arrays, begin = [], 0
        for tensors in self._tensors:
            end = begin + tensors.count * num_rows(tensors.shape)
            elements = rows[begin:end].reshape(tensors.count, -1)[:, : math.prod(tensors.shape)]
            arrays.append(elements.reshape(tensors.full_shape))
            begin = end
        return arrays

    def means(self, arrays: Sequence[jax.Array]) -> jax.Array:
        """The mean over each tensor of arrays (rows, WIDTH); (tensors, arrays)."""
        last = [size - (rows - 1) * WIDTH for size, rows in zip(self._sizes, self._num_rows, strict=True)]
        counts = [n for rows, n_last in zip(self._num_rows, last, strict=True) for n in [WIDTH] * (rows - 1) + [n_last]]
        is_element = np.arange(WIDTH, dtype=np.int32) < jnp.array(counts, jnp.int32)[:, None]
        of_rows = jnp.stack([jnp.sum(jnp.where(is_element, x, 0.0), axis=1) for x in arrays], axis=1)
        sums, begin = [], 0
        for rows, num in self._blocks:
            block = of_rows[begin : begin + num * rows]
            sums.append(jnp.sum(block.reshape(num, rows, -1), axis=1))
            begin += num * rows
        return jnp.concatenate(sums) / jnp.array(self._sizes, jnp.float32)[:, None]

    def spread(self, of_tensors: PyTree) -> PyTree:
        """For arrays (tensors, ...) the entry of every row's tensor, (rows, ...)."""

        def spread_array(x: jax.Array) -> jax.Array:
            parts, begin = [], 0
            for rows, num in self._blocks:
                parts.append(jnp.repeat(x[begin : begin + num], rows, axis=0))
                begin += num
            return jnp.concatenate(parts)

        return jax.tree.map(spread_array, of_tensors)


def map_rows(f: Callable[[PyTree], jax.Array], rows: PyTree) -> jax.Array:
    """``f`` of every row of the arrays in a tree, vectorized over many rows at a time.

    There are always at least two turns of the loop: what goes into a loop is computed once, where the
    compiler would otherwise repeat the packing in each of its uses.
    """
    num = len(jax.tree.leaves(rows)[0])
    turns = max(2, -(-num * WIDTH // tiling.largest_tile()))
    in_a_turn = -(-num // turns)

    def split(x: jax.Array) -> jax.Array:
        padded = jnp.pad(x, [(0, in_a_turn * turns - num), *[(0, 0)] * (x.ndim - 1)], constant_values=1)
        return padded.reshape(turns, in_a_turn, *x.shape[1:])

    results = jax.lax.map(jax.vmap(f), jax.tree.map(split, rows))
    return results.reshape(-1, *results.shape[2:])[:num]


def num_rows(shape: tuple[int, ...]) -> int:
    """The number of rows that a tensor takes."""
    return -(-math.prod(shape) // WIDTH)
