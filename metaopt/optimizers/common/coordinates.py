"""Recurrent networks that run on every coordinate of every tensor.

The units of a network are a new last axis behind the tensor's own axes, so the recurrent state of
a tensor is sharded like the tensor.
"""

import collections
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from metaopt.core import Params, PyTree
from metaopt.nn.lstm import LSTMState
from metaopt.optimizers.common import tiling, trees
from metaopt.optimizers.common.grouping import MAX_PACKED

FEWEST_ALIKE = 8  # tensors that are stacked

Prepare = Callable[..., PyTree]  # of the inputs of a tensor


def map_coordinates(
    f: Callable[..., tuple[jax.Array, PyTree]],
    inputs: Sequence[PyTree],
    state: Sequence[PyTree],
    prepare: Prepare | None = None,
) -> tuple[Params, Any]:
    """Applies a recurrent function to every coordinate of every tensor, large tensors tile by tile.

    Args:
      f: ``(*inputs, *state) -> (result, new state)`` of one tensor, coordinate by coordinate.
      inputs: trees; the first holds the tensors. In place of a tensor, the others hold numbers and
        arrays that broadcast to its shape, alone or in a subtree.
      state: containers of trees that hold, in place of a tensor, an array (*shape of the tensor, ...).
      prepare: function of the inputs of a whole tensor; what it returns is one more input of ``f``, the
        last before the state.

    Returns:
      The tree of results and the new state.
    """

    def apply_to_tensor(tensor: tuple[tuple, PyTree]) -> tuple[jax.Array, PyTree]:
        of_tensor, old = tensor
        of_tensor = of_tensor if prepare is None else (*of_tensor, prepare(*of_tensor))
        return _apply_to_tensor(f, of_tensor, old)

    structure = jax.tree.structure(inputs[0])
    inputs_by_tensor = zip(*map(structure.flatten_up_to, inputs), strict=True)
    tensors = list(zip(inputs_by_tensor, trees.by_tensor(state, inputs[0]), strict=True))
    outputs: dict[int, tuple] = {}
    for indices in _alike(tensors):
        if len(indices) == 1:
            outputs[indices[0]] = apply_to_tensor(tensors[indices[0]])
            continue
        stacked = jax.tree.map(lambda *xs: jnp.stack(xs), *(tensors[i] for i in indices))
        of_stack = jax.vmap(apply_to_tensor)(stacked)
        for place, i in enumerate(indices):
            outputs[i] = jax.tree.map(lambda x, place=place: x[place], of_stack)
    results = structure.unflatten([outputs[i][0] for i in range(len(tensors))])
    return results, trees.from_tensors([outputs[i][1] for i in range(len(tensors))], state, inputs[0])


def zeros_lstm(params: Params, hidden: int, layers: int) -> tuple[LSTMState, ...]:
    """The states of an LSTM for every coordinate: for each layer trees like the parameters of (*shape, hidden)."""

    def zeros(p: jax.Array) -> jax.Array:
        return jnp.zeros((*p.shape, hidden))

    return tuple(LSTMState(jax.tree.map(zeros, params), jax.tree.map(zeros, params)) for _ in range(layers))


def _alike(tensors: Sequence[tuple[tuple, PyTree]]) -> list[list[int]]:
    """Many small tensors with inputs of equal shapes together, any other alone.

    What is done for a tensor is compiled for each again. To stack a few, or large ones, takes longer than
    it saves: their states are copied.
    """
    groups = collections.defaultdict(list)
    for i, tensor in enumerate(tensors):
        is_small = tensor[0][0].size <= MAX_PACKED
        groups[str(jax.tree.map(jnp.shape, tensor)) if is_small else i].append(i)
    result = []
    for indices in groups.values():
        result += [indices] if len(indices) >= FEWEST_ALIKE else [[i] for i in indices]
    return result


def _apply_to_tensor(f: Callable[..., tuple], inputs: tuple, state: PyTree) -> tuple[jax.Array, PyTree]:
    shape = inputs[0].shape

    def with_all_axes(x: jax.Array | float) -> jax.Array:
        """Tiles are cut along an axis, which every input needs to have."""
        return jnp.reshape(x, (1,) * (len(shape) - jnp.ndim(x)) + jnp.shape(x))

    def apply_to_tile(inputs: tuple, state: PyTree) -> tuple[jax.Array, PyTree]:
        return f(*inputs, *state)

    return tiling.elementwise_with_state(apply_to_tile, jax.tree.map(with_all_axes, inputs), state, shape)
