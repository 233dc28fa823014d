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

Places = tuple[jax.Array | np.int32, ...]  # of the tensors of a stack


class Stacked(NamedTuple):
    """A tree of tensors some of which are in stacks."""

    alone: PyTree  # the tree, with None in place of the tensors in stacks
    stacks: dict[str, Any]  # an array for each label and shape


class Stacking:
    """Which tensors of a tree are in which stack.

    Args:
      tree: tensors, or anything with their shapes.
      labels: for each tensor, in the order of ``jax.tree.leaves``, what those of a stack have in common
        besides the shape; None for nothing.
      stacks: whether there are stacks at all.

    Attributes:
      members: for each leaf of the stacked tree the index of its tensor, or the indices of the tensors of a stack.
      first_members: the same, of a stack the first.
    """

    def __init__(self, tree: PyTree, labels: Sequence[str] | None = None, stacks: bool = True):
        self._structure = jax.tree.structure(tree)
        self._shapes = [x.shape for x in jax.tree.leaves(tree)]
        self._stacks = _choose(self._shapes, labels or [""] * len(self._shapes)) if stacks else {}
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
        places, stacks = _opaque(tree.stacks)
        for name, members in self._stacks.items():
            tensors |= {i: _take(stacks[name], place) for i, place in zip(members, places, strict=False)}
        return self._structure.unflatten([tensors[i] for i in range(len(self._shapes))])

    def _gather(self, tensors: Sequence[Any], stack: Callable[[Sequence[Any], tuple[int, ...]], Any]) -> PyTree:
        if not self._stacks:
            return self._structure.unflatten(tensors)
        alone, stacks = set(self._alone), {}
        for name, members in self._stacks.items():
            stacks[name] = stack([tensors[i] for i in members], self._shapes[members[0]])
        return Stacked(self._structure.unflatten([x if i in alone else None for i, x in enumerate(tensors)]), stacks)


def _choose(shapes: Sequence[tuple[int, ...]], labels: Sequence[str]) -> dict[str, list[int]]:
    """The tensors of each stack, by its name; a stack has at most MAX_GROUP elements."""
    alike = collections.defaultdict(list)
    for i, (label, shape) in enumerate(zip(labels, shapes, strict=True)):
        if math.prod(shape) <= MAX_STACKED:
            alike[f"{label} {shape}".strip()].append(i)
    stacks = {}
    for name, indices in alike.items():
        if len(indices) < FEWEST:
            continue
        num = -(-len(indices) * math.prod(shapes[indices[0]]) // MAX_GROUP)
        cuts = [len(indices) * i // num for i in range(num + 1)]
        parts = [indices[begin:end] for begin, end in zip(cuts, cuts[1:], strict=False)]
        stacks |= {name if num == 1 else f"{name} {i}": part for i, part in enumerate(parts)}
    return stacks


def _stack(arrays: Sequence[Any], shape: tuple[int, ...]) -> jax.Array:
    """Arrays of one shape, broadcastable to ``shape``, as one."""
    if isinstance(arrays[0], float):
        return jnp.array(arrays, jnp.float32).reshape(len(arrays), *[1] * len(shape))
    padding = (1,) * (len(shape) - arrays[0].ndim)
    return jnp.concatenate([x.reshape(1, *padding, *x.shape) for x in arrays])


def _take(stack: jax.Array, place: jax.Array | np.int32) -> jax.Array:
    """One tensor of a stack."""
    return jax.lax.dynamic_index_in_dim(stack, place, keepdims=False, allow_negative_indices=False)


@jax.custom_jvp
def _opaque(stacks: dict[str, jax.Array]) -> tuple[Places, dict[str, jax.Array]]:
    """The stacks and the numbers 0, 1, 2, ..., such that on a CPU the compiler knows nothing about them.

    It would compile a slice at each place by itself, in 10 ms, and repeat in it what has computed the
    stack. Slices of an array it does not know at places it does not know are compiled once for each shape.
    """
    places = tuple(np.int32(i) for i in range(max(map(len, stacks.values()))))

    def known(stacks: dict[str, jax.Array]) -> tuple[Places, dict[str, jax.Array]]:
        return places, stacks

    def unknown(stacks: dict[str, jax.Array]) -> tuple[Places, dict[str, jax.Array]]:
        # A loop of one turn or two, in each of which places are set and the first tensor of a stack, i // 2 = 0,
        # is written over itself.
        some = next(iter(stacks.values()))
        num_turns = 1 + (jax.lax.bitcast_convert_type(some[(0,) * some.ndim], jnp.int32) & 1)

        def rewrite(x: jax.Array, first: jax.Array) -> jax.Array:
            return jax.lax.dynamic_update_index_in_dim(x, _take(x, first), 0, axis=0)

        def turn(carry: tuple) -> tuple:
            i, _, stacks = carry
            return i + 1, places, {name: rewrite(x, i // 2) for name, x in stacks.items()}

        start = (jnp.int32(0), (np.int32(0),) * len(places), stacks)
        return jax.lax.while_loop(lambda carry: carry[0] < num_turns, turn, start)[1:]

    @jax.custom_batching.custom_vmap
    def either(stacks: dict[str, jax.Array]) -> tuple[Places, dict[str, jax.Array]]:
        return jax.lax.platform_dependent(stacks, cpu=unknown, default=known)

    @either.def_vmap
    def either_of_batch(axis_size: int, in_batched: Sequence[Any], stacks: dict[str, jax.Array]) -> tuple[Any, Any]:
        """Known places: each member of a batch would have its own."""
        del axis_size
        return known(stacks), (jax.tree.map(lambda _: False, places), in_batched[0])

    return either(stacks)


@_opaque.defjvp
def _opaque_jvp(primals: tuple, tangents: tuple) -> tuple:
    places, stacks = _opaque(*primals)
    no_tangents = tuple(np.zeros((), jax.dtypes.float0) for _ in places)
    return (places, stacks), (no_tangents, *tangents)
