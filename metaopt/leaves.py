"""The leaves of theta by their dotted paths, "network.w0": the names that a checkpoint keeps them under."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from metaopt.core import Theta
from metaopt.errors import UserError


def flatten(theta: Theta) -> dict[str, np.ndarray]:
    """The leaves of theta by their dotted path; of a single array, by "theta".

    Raises:
      UserError: if two leaves have the same path, e.g. {"a.b": x, "a": {"b": y}}.
    """
    arrays: dict[str, np.ndarray] = {}
    for path, leaf in jax.tree.leaves_with_path(theta):
        name = jax.tree_util.keystr(path, simple=True, separator=".") or "theta"
        if name in arrays:
            raise UserError(f"theta has two entries that are both called {name!r}: rename one of its keys")
        arrays[name] = np.asarray(leaf)
    return arrays


def unflatten(arrays: dict[str, np.ndarray], expected: Theta, source: Path) -> Theta:
    """Arrays by path in the structure of theta, every name, shape and dtype checked.

    Args:
      arrays: as ``flatten`` returns.
      expected: theta, or its shapes.
      source: where they were read, for messages.

    Raises:
      UserError: naming the first array that does not fit.
    """
    structure = jax.tree.structure(expected)
    indices = flatten(structure.unflatten(range(structure.num_leaves)))
    leaves = jax.tree.leaves(expected)
    named = {path: leaves[int(i)] for path, i in indices.items()}
    for path in [*named, *arrays]:
        if path not in arrays:
            raise UserError(f"{source}: the weights lack {path!r}")
        if path not in named:
            raise UserError(f"{source}: the weights hold {path!r}, which the family does not have")
        ours, theirs = (named[path].shape, named[path].dtype), (arrays[path].shape, arrays[path].dtype)
        if ours != theirs:
            raise UserError(f"{source}: {path!r} should be {ours[1]}{list(ours[0])}, is {theirs[1]}{list(theirs[0])}")
    return structure.unflatten([jnp.asarray(arrays[path]) for path in named])
