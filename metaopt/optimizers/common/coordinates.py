"""Recurrent networks that run on every coordinate of every tensor.

The units of a network are a new last axis behind the tensor's own axes, so the recurrent state of
a tensor is sharded like the tensor.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from metaopt.core import Params, PyTree
from metaopt.optimizers.common import tiling


def map_coordinates(
    f: Callable[..., tuple[jax.Array, tuple]], inputs: Sequence[PyTree], states: Sequence[PyTree]
) -> tuple[Params, tuple[PyTree, ...]]:
    """Applies a recurrent function to every coordinate of every tensor, large tensors tile by tile.

    Args:
      f: ``(*inputs, *states) -> (result, new states)`` of one tensor, coordinate by coordinate.
      inputs: trees; the first holds the tensors. In place of a tensor, the others hold numbers and
        arrays that broadcast to its shape, alone or in a subtree.
      states: trees that hold, in place of a tensor, arrays (*shape of the tensor, ...).

    Returns:
      The tree of results and a tuple of trees of new states.
    """
    structure = jax.tree.structure(inputs[0])
    arguments = list(zip(*map(structure.flatten_up_to, (*inputs, *states)), strict=True))
    num_inputs = len(inputs)
    outputs = [_apply_to_tensor(f, of_tensor[:num_inputs], of_tensor[num_inputs:]) for of_tensor in arguments]
    results = structure.unflatten([result for result, _ in outputs])
    new_states = (structure.unflatten([new[i] for _, new in outputs]) for i in range(len(states)))
    return results, tuple(new_states)


def _apply_to_tensor(f: Callable[..., tuple], inputs: tuple, states: tuple) -> tuple[jax.Array, tuple]:
    shape = inputs[0].shape

    def with_all_axes(x: jax.Array | float) -> jax.Array:
        """Tiles are cut along an axis, which every input needs to have."""
        return jnp.reshape(x, (1,) * (len(shape) - jnp.ndim(x)) + jnp.shape(x))

    def apply_to_tile(inputs: tuple, states: tuple) -> tuple[jax.Array, tuple]:
        return f(*inputs, *states)

    return tiling.elementwise_with_state(apply_to_tile, jax.tree.map(with_all_axes, inputs), states, shape)
