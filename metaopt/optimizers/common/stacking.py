"""Many small tensors of one shape as one array, a stack, with a leading axis over them.

What is done for each tensor is lowered and compiled for each again, so that a thousand of them take minutes,
whatever their size. A stack is one tensor with one more axis: its accumulators are one array each, also in
the state, and at a step only parameters and gradients are stacked and updates taken apart.
"""

import collections
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from metaopt.core import PyTree
from metaopt.optimizers.common.grouping import MAX_GROUP, MAX_STACKED

FEWEST = 8  # tensors in a stack; fewer are not worth the copies


class Stacked(NamedTuple):
    """A tree of tensors some of which are in stacks."""

    alone: PyTree  # the tree, with None in place of the tensors in stacks
    stacks: dict[str, jax.Array]  # by label and shape


class Stacking:
    """Which tensors of a tree are in which stack.

    Args:
      tree: tensors, or anything with their shapes.
      labels: for each tensor, in the order of ``jax.tree.leaves``, what those of a stack have in common
        besides the shape; None for nothing.
      fewest: the least number of tensors in a stack, infinity for no stacks.

    Attributes:
      members: for each leaf of the stacked tree the index of its tensor, or the indices of the tensors of a stack.
    """

    def __init__(self, tree: PyTree, labels: Sequence[str] | None = None, fewest: float = FEWEST):
        self._structure = jax.tree.structure(tree)
        self._shapes = [x.shape for x in jax.tree.leaves(tree)]
        self._stacks = _choose(self._shapes, labels or [""] * len(self._shapes), fewest)
        in_stacks = {i for members in self._stacks.values() for i in members}
        self._alone = [i for i in range(len(self._shapes)) if i not in in_stacks]
        self.members: list[int | list[int]] = [*self._alone, *(self._stacks[name] for name in sorted(self._stacks))]
        self.first_members = [i if isinstance(i, int) else i[0] for i in self.members]

    def stack(self, tree: PyTree) -> PyTree:
        """The tree as ``Stacked``; as it is, if there are no stacks.

        Args:
          tree: a tree like the one of tensors, of arrays of their shapes or broadcastable to them.
        """
        return self._gather(self._structure.flatten_up_to(tree), _stack)

    def zeros(self) -> PyTree:
        """What ``stack`` makes of zeros."""
        shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in self._shapes]

        def stack_shapes(tensors: Sequence[Any], shape: tuple[int, ...]) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct((len(tensors), *shape), jnp.float32)

        return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), self._gather(shapes, stack_shapes))

    def unstack(self, tree: PyTree) -> PyTree:
        """The inverse of ``stack``."""
        if not self._stacks:
            return tree
        tensors = dict(zip(self._alone, jax.tree.leaves(tree.alone), strict=True))
        for name, members in self._stacks.items():
            tensors.update(zip(members, _unstack(tree.stacks[name]), strict=True))
        return self._structure.unflatten([tensors[i] for i in range(len(self._shapes))])

    def _gather(self, tensors: Sequence[Any], stack: Callable[[Sequence[Any], tuple[int, ...]], Any]) -> PyTree:
        if not self._stacks:
            return self._structure.unflatten(tensors)
        alone, stacks = set(self._alone), {}
        for name, members in self._stacks.items():
            stacks[name] = stack([tensors[i] for i in members], self._shapes[members[0]])
        return Stacked(self._structure.unflatten([x if i in alone else None for i, x in enumerate(tensors)]), stacks)


def _choose(shapes: Sequence[tuple[int, ...]], labels: Sequence[str], fewest: float) -> dict[str, list[int]]:
    """The tensors of each stack, by its name; a stack has at most MAX_GROUP elements."""
    alike = collections.defaultdict(list)
    for i, (label, shape) in enumerate(zip(labels, shapes, strict=True)):
        if math.prod(shape) <= MAX_STACKED:
            alike[f"{label} {shape}".strip()].append(i)
    stacks = {}
    for name, indices in alike.items():
        if len(indices) < fewest:
            continue
        num = -(-len(indices) * math.prod(shapes[indices[0]]) // MAX_GROUP)
        cuts = [len(indices) * i // num for i in range(num + 1)]
        parts = [indices[begin:end] for begin, end in zip(cuts, cuts[1:], strict=False)]
        stacks |= {name if num == 1 else f"{name} {i}": part for i, part in enumerate(parts)}
    return stacks


def _stack(arrays: Sequence[jax.Array | float], shape: tuple[int, ...]) -> jax.Array:
    """Arrays of one shape, broadcastable to ``shape``, as one; ``jnp.stack`` takes more instructions."""
    padding = (1,) * (len(shape) - jnp.ndim(arrays[0]))
    flat = np.array(arrays) if isinstance(arrays[0], float) else jnp.concatenate([x.reshape(-1) for x in arrays])
    return jnp.asarray(flat, jnp.float32).reshape(len(arrays), *padding, *jnp.shape(arrays[0]))


def _unstack(stack: jax.Array) -> list[jax.Array]:
    """The tensors of a stack."""

    def tensor(place: jax.Array) -> jax.Array:
        return jax.lax.dynamic_index_in_dim(stack, place, keepdims=False, allow_negative_indices=False)

    return [tensor(place) for place in _places(jax.lax.stop_gradient(stack))]


def _places(stack: jax.Array) -> Sequence[jax.Array]:
    """0, 1, 2, ..., such that on a CPU the compiler does not see that they are constants.

    It compiles a kernel for each slice at another constant, in 10 ms, and one for all slices at places
    that it does not know.
    """
    num = len(stack)
    constants = tuple(np.int32(i) for i in range(num))

    def unknown(x: jax.Array) -> tuple[jax.Array, ...]:
        # One turn of the loop or two, all of which end with the same.
        turns = 1 + (jax.lax.bitcast_convert_type(x, jnp.int32) & 1)
        zeros = (np.int32(0),) * num

        def turn(carry: tuple) -> tuple:
            return carry[0] + 1, constants

        return jax.lax.while_loop(lambda carry: carry[0] < turns, turn, (jnp.int32(0), zeros))[1]

    def known(x: jax.Array) -> tuple[jax.Array, ...]:
        del x
        return constants

    @jax.custom_batching.custom_vmap
    def places(x: jax.Array) -> tuple[jax.Array, ...]:
        return jax.lax.platform_dependent(x, cpu=unknown, default=known)

    @places.def_vmap
    def places_of_batch(axis_size: int, in_batched: Sequence[bool], x: jax.Array) -> tuple[tuple, tuple]:
        """Constants: a place for each member of a batch would be gathered in place of sliced."""
        del axis_size, in_batched
        return known(x), (False,) * num

    return places(stack[(0,) * stack.ndim])
