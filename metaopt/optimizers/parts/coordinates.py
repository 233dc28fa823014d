"""Every coordinate of every tensor is one row of a recurrent network.

The rows keep the shape of their tensor and the network works on a new last axis, so
the memory of a coordinate shards like the coordinate.
"""

from collections.abc import Callable
from typing import Any

import jax

from metaopt.core import Params, PyTree


def map_coordinates(f: Callable[..., tuple], num_results: int, params: Params, *trees: PyTree) -> tuple[Any, ...]:
    """Trees of the results of ``f(p, *others)`` for each tensor p of ``params``.

    Args:
      f: returns ``num_results`` things, each an array or what the network remembers.
      num_results: how many trees come back.
      params: one array for each call.
      *trees: like ``params``, with anything in the place of a tensor.
    """
    structure = jax.tree.structure(params)
    results = [f(*row) for row in zip(*map(structure.flatten_up_to, (params, *trees)), strict=True)]
    return tuple(structure.unflatten([result[i] for result in results]) for i in range(num_results))
