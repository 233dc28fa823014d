"""Recurrent networks that run on every coordinate of every tensor.

The units of a network are a new last axis behind the tensor's own axes, so the recurrent state of
a tensor is sharded like the tensor.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from metaopt.core import Params, PyTree
from metaopt.nn.lstm import LSTMState
from metaopt.optimizers.common import tiling, trees


def map_coordinates(
    f: Callable[..., tuple[jax.Array, PyTree]], inputs: Sequence[PyTree], state: Sequence[PyTree]
) -> tuple[Params, Any]:
    """Applies a recurrent function to every coordinate of every tensor, large tensors tile by tile.

    A stack of tensors is one tensor here.

    Args:
      f: ``(*inputs, *state) -> (result, new state)`` of one tensor, coordinate by coordinate.
      inputs: trees; the first holds the tensors. In place of a tensor, the others hold numbers and
        arrays that broadcast to its shape, alone or in a subtree.
      state: containers of trees that hold, in place of a tensor, an array (*shape of the tensor, ...).

    Returns:
      The tree of results and the new state.
    """
    structure = jax.tree.structure(inputs[0])
    of_tensors = zip(*map(structure.flatten_up_to, inputs), strict=True)
    states = map(trees.bare, trees.by_tensor(state, inputs[0]))
    outputs = [_apply_to_tensor(f, *tensor) for tensor in zip(of_tensors, states, strict=True)]
    results = structure.unflatten([result for result, _ in outputs])
    return results, trees.from_tensors([new for _, new in outputs], state, inputs[0])


def zeros_lstm(params: Params, hidden: int, layers: int) -> tuple[LSTMState, ...]:
    """The states of an LSTM for every coordinate: for each layer trees like the parameters of (*shape, hidden)."""

    def zeros(p: jax.Array) -> jax.Array:
        return jnp.zeros((*p.shape, hidden))

    return tuple(LSTMState(jax.tree.map(zeros, params), jax.tree.map(zeros, params)) for _ in range(layers))


def _apply_to_tensor(f: Callable[..., tuple], inputs: tuple, state: PyTree) -> tuple[jax.Array, PyTree]:
    shape = inputs[0].shape

    def with_all_axes(x: jax.Array | float) -> jax.Array:
        """Tiles are cut along an axis, which every input needs to have."""
        return jnp.reshape(x, (1,) * (len(shape) - jnp.ndim(x)) + jnp.shape(x))

    def apply_to_tile(inputs: tuple, state: PyTree) -> tuple[jax.Array, PyTree]:
        return f(*inputs, *state)

    return tiling.elementwise_with_state(apply_to_tile, jax.tree.map(with_all_axes, inputs), state, shape)
