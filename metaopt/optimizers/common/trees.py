"""A state seen tensor by tensor.

A state holds trees like the parameters in containers of its own, e.g. a tuple with a tree for each
decay. Never the other way round, a container in place of a parameter: libraries that wrap each
parameter, as flax.nnx does, would take it apart.

Where a tree is ``Stacked``, what belongs to the tensors of a stack comes as one ``Stack``, and ``each``
applies a function of one tensor to all of them.
"""

import operator
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from metaopt.core import Params, PyTree
from metaopt.optimizers.common.packing import Alike
from metaopt.optimizers.common.stacking import Stacked


class Stack(NamedTuple):
    """What belongs to the tensors of a stack."""

    of_tensors: PyTree  # of arrays with a leading axis over the tensors


def by_tensor(container: PyTree, params: Params) -> list[Any]:
    """For each leaf of the parameters the container with that leaf of every tree, or a Stack of containers."""
    structure = jax.tree.structure(params)
    outer = jax.tree.structure(container, is_leaf=_is_like(structure))
    trees = jax.tree.leaves(container, is_leaf=_is_like(structure))
    columns = [structure.flatten_up_to(tree) for tree in trees]
    leaves = [outer.unflatten([column[i] for column in columns]) for i in range(structure.num_leaves)]
    return [Stack(leaf) if stacked else leaf for leaf, stacked in zip(leaves, _is_stack(params), strict=True)]


def from_tensors(of_tensors: Sequence[Any], container: PyTree, params: Params) -> PyTree:
    """The inverse of ``by_tensor``: a container like ``container``, of trees like the parameters."""
    structure = jax.tree.structure(params)
    outer = jax.tree.structure(container, is_leaf=_is_like(structure))
    leaves = [outer.flatten_up_to(bare(x)) for x in of_tensors]
    columns = zip(*leaves, strict=True) if leaves else [()] * outer.num_leaves
    return outer.unflatten([structure.unflatten(column) for column in columns])


def bare(of_tensor: Any) -> Any:
    """What belongs to a tensor, or to the tensors of a stack, without a Stack around it."""
    return of_tensor.of_tensors if isinstance(of_tensor, Stack) else of_tensor


def alike(tensor: jax.Array | Stack) -> Alike:
    """The shape of a tensor, or that of the tensors of a stack and their number."""
    shape = bare(tensor).shape
    return Alike(shape[1:], shape[0]) if isinstance(tensor, Stack) else Alike(shape)


def each(f: Callable[..., Any], *of_tensor: Any) -> Any:
    """``f`` of what belongs to one tensor; for Stacks of it, a Stack of what ``f`` gives for each of the tensors."""
    if isinstance(of_tensor[0], Stack):
        return Stack(jax.vmap(f)(*(x.of_tensors for x in of_tensor)))
    return f(*of_tensor)


def tensors(params: Params) -> list[Alike]:
    """For each leaf of the parameters the shape of its tensor, or that of the tensors of a stack and their number."""
    return [alike(p) for p in by_tensor(params, params)]


def split(rows: PyTree, of_tensors: Sequence[Alike]) -> list[Any]:
    """What belongs to each tensor, or a Stack of it, of arrays with a row for each."""
    parts, begin = [], 0
    for tensor in of_tensors:
        place = begin if tensor.num is None else slice(begin, begin + tensor.num)
        part = jax.tree.map(operator.itemgetter(place), rows)
        parts.append(part if tensor.num is None else Stack(part))
        begin += tensor.count
    return parts


def join(of_tensors: Sequence[Any]) -> PyTree:
    """The inverse of ``split``."""
    as_rows = [bare(x) if isinstance(x, Stack) else jax.tree.map(lambda leaf: leaf[None], x) for x in of_tensors]
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *as_rows)


def _is_stack(params: Params) -> list[bool]:
    """For each leaf, whether it is a stack."""
    num_stacks = len(params.stacks) if isinstance(params, Stacked) else 0
    return [False] * (len(jax.tree.leaves(params)) - num_stacks) + [True] * num_stacks


def _is_like(structure: Any) -> Any:
    return lambda tree: jax.tree.structure(tree) == structure
