"""Every coordinate of every tensor is one row of a recurrent network.

The rows keep the shape of their tensor and the network works on a new last axis, so
the memory of a coordinate shards like the coordinate.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from metaopt.core import Params, PyTree
from metaopt.optimizers.common import tiling


def map_coordinates(
    f: Callable[..., tuple], inputs: Sequence[PyTree], memory: Sequence[PyTree]
) -> tuple[Params, tuple[PyTree, ...]]:
    """What ``f`` makes of each tensor, and what it remembers; a large tensor goes through it in pieces.

    Args:
      f: ``(*inputs, *memory) -> (result, memory)`` of one tensor, coordinate by coordinate.
      inputs: the first is the tensors; in place of a tensor the others have numbers and
        arrays that broadcast to its shape, alone or in a tree.
      memory: each has, in place of a tensor, arrays (*shape of the tensor, ...).
    """
    structure = jax.tree.structure(inputs[0])
    rows = zip(*map(structure.flatten_up_to, (*inputs, *memory)), strict=True)
    results = [_on_tensor(f, row[: len(inputs)], row[len(inputs) :]) for row in rows]
    remembered = (structure.unflatten([new[i] for _, new in results]) for i in range(len(memory)))
    return structure.unflatten([result for result, _ in results]), tuple(remembered)


def _on_tensor(f: Callable[..., tuple], inputs: tuple, memory: tuple) -> tuple[jax.Array, tuple]:
    shape = inputs[0].shape
    aligned = lambda x: jnp.reshape(x, (1,) * (len(shape) - jnp.ndim(x)) + jnp.shape(x))
    on_piece = lambda inputs, memory: f(*inputs, *memory)
    return tiling.remembering(on_piece, jax.tree.map(aligned, inputs), memory, shape)
