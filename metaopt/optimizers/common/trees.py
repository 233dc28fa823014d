"""A state seen tensor by tensor.

A state holds trees like the parameters in containers of its own, e.g. a tuple with a tree for each
decay. Never the other way round, a container in place of a parameter: libraries that wrap each
parameter, as flax.nnx does, would take it apart.
"""

from collections.abc import Sequence
from typing import Any

import jax

from metaopt.core import Params, PyTree


def by_tensor(container: PyTree, params: Params) -> list[Any]:
    """For each tensor, in the order of ``jax.tree.leaves``, the container with that tensor's leaf of every tree."""
    structure = jax.tree.structure(params)
    outer = jax.tree.structure(container, is_leaf=_is_like(structure))
    trees = jax.tree.leaves(container, is_leaf=_is_like(structure))
    columns = [structure.flatten_up_to(tree) for tree in trees]
    return [outer.unflatten([column[i] for column in columns]) for i in range(structure.num_leaves)]


def from_tensors(of_tensors: Sequence[Any], container: PyTree, params: Params) -> PyTree:
    """The inverse of ``by_tensor``: a container like ``container``, of trees like the parameters."""
    structure = jax.tree.structure(params)
    outer = jax.tree.structure(container, is_leaf=_is_like(structure))
    columns = zip(*map(outer.flatten_up_to, of_tensors), strict=True) if of_tensors else [()] * outer.num_leaves
    return outer.unflatten([structure.unflatten(column) for column in columns])


def _is_like(structure: Any) -> Any:
    return lambda tree: jax.tree.structure(tree) == structure
