"""Recurrent networks that run on every coordinate of every tensor.

The units of a network are a new last axis behind the tensor's own axes, so the recurrent state of
a tensor is sharded like the tensor.
"""

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from metaopt.core import Params, PyTree
from metaopt.nn.lstm import LSTMState
from metaopt.optimizers.common import tiling, trees

MAX_TOGETHER = tiling.MAX_RECURRENT_TILE  # most elements of stacks that are computed together

Output = tuple[jax.Array, PyTree]  # the result of a tensor and its new state


class Tensor(NamedTuple):
    """A tensor, or a stack, and what belongs to it."""

    inputs: tuple  # the tensor itself, and arrays that broadcast to it
    state: PyTree


def map_coordinates(
    f: Callable[..., tuple[jax.Array, PyTree]], inputs: Sequence[PyTree], state: Sequence[PyTree]
) -> tuple[Params, Any]:
    """Applies a recurrent function to every coordinate of every tensor, large tensors tile by tile.

    A stack of tensors is one tensor here, and small stacks are computed together: what is done for each is
    compiled for each.

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
    states = trees.by_tensor(state, inputs[0])
    tensors = [Tensor(x, trees.bare(old)) for x, old in zip(of_tensors, states, strict=True)]
    outputs: dict[int, Output] = {}
    for indices in _groups(tensors, [isinstance(old, trees.Stack) for old in states]):
        if len(indices) == 1:
            outputs[indices[0]] = _apply_to_tensor(f, tensors[indices[0]])
        else:
            outputs |= zip(indices, _apply_together(f, [tensors[i] for i in indices]), strict=True)
    results = structure.unflatten([outputs[i][0] for i in range(len(tensors))])
    return results, trees.from_tensors([outputs[i][1] for i in range(len(tensors))], state, inputs[0])


def zeros_lstm(params: Params, hidden: int, layers: int) -> tuple[LSTMState, ...]:
    """The states of an LSTM for every coordinate: for each layer trees like the parameters of (*shape, hidden)."""

    def zeros(p: jax.Array) -> jax.Array:
        return jnp.zeros((*p.shape, hidden))

    return tuple(LSTMState(jax.tree.map(zeros, params), jax.tree.map(zeros, params)) for _ in range(layers))


def _groups(tensors: Sequence[Tensor], is_stack: Sequence[bool]) -> list[list[int]]:
    """Small stacks together, any other tensor alone."""
    sizes = [tensor.inputs[0].size for tensor in tensors]
    together: list[list[int]] = []
    for i in range(len(tensors)):
        small = is_stack[i] and sizes[i] < MAX_TOGETHER
        if small and together and sum(sizes[j] for j in together[-1]) + sizes[i] <= MAX_TOGETHER:
            together[-1].append(i)
        elif small:
            together.append([i])
    grouped = {i for group in together for i in group}
    return together + [[i] for i in range(len(tensors)) if i not in grouped]


def _apply_together(f: Callable[..., Output], tensors: Sequence[Tensor]) -> list[Output]:
    """The coordinates of all tensors as those of one vector."""
    shapes = [tensor.inputs[0].shape for tensor in tensors]
    vectors = [_reshape(tensor, shape, (math.prod(shape),)) for tensor, shape in zip(tensors, shapes, strict=True)]
    inputs, state = jax.tree.map(lambda *parts: jnp.concatenate(parts), *vectors)
    outputs, begin = f(*inputs, *state), 0
    parts = []
    for shape in shapes:
        end = begin + math.prod(shape)
        part = jax.tree.map(operator.itemgetter(slice(begin, end)), outputs)
        parts.append(_reshape(part, (end - begin,), shape))
        begin = end
    return parts


def _reshape(tree: PyTree, old: tuple[int, ...], new: tuple[int, ...]) -> PyTree:
    """Arrays whose first axes broadcast to ``old``, with those axes in the shape ``new``; further axes stay."""

    def reshape(x: jax.Array) -> jax.Array:
        further = x.shape[len(old) :]
        return jnp.broadcast_to(x, (*old, *further)).reshape(*new, *further)

    return jax.tree.map(reshape, tree)


def _apply_to_tensor(f: Callable[..., Output], tensor: Tensor) -> Output:
    inputs, state = tensor
    shape = inputs[0].shape

    def with_all_axes(x: jax.Array | float) -> jax.Array:
        """Tiles are cut along an axis, which every input needs to have."""
        return jnp.reshape(x, (1,) * (len(shape) - jnp.ndim(x)) + jnp.shape(x))

    def apply_to_tile(inputs: tuple, state: PyTree) -> tuple[jax.Array, PyTree]:
        return f(*inputs, *state)

    return tiling.elementwise_with_state(apply_to_tile, jax.tree.map(with_all_axes, inputs), state, shape)
