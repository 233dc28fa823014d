"""From an update rule in float32 to a well-behaved Optax transformation.

Every family goes through this door, so the checks, the dtypes and the wording of
errors exist once.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax


def transformation(
    init: Callable[[Any], Any],
    update: Callable[..., tuple[Any, Any]],
    *,
    name: str,
    needs_value: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """Wraps a float32 update rule as an Optax transformation.

    Args:
      init: ``params -> state``. It is given float32 zeros of the shapes of the
        parameters, so it can depend on nothing else.
      update: ``(grads, state, params, value) -> (updates, state)`` on float32
        trees; ``updates`` are added to the parameters.
      name: the family's name, for error messages.
      needs_value: whether the rule reads the current loss.

    Returns:
      A transformation that keeps its accumulators in float32 and returns updates
      in the dtype of each parameter. It ignores extra arguments it does not know,
      so it composes with the rest of Optax.

    Raises:
      ValueError: from ``update`` at trace time, if ``params`` or a needed ``value``
        is missing or if ``grads`` and ``params`` are trees of different shape.
    """

    def init_fn(params):
        return init(jax.tree.map(lambda p: jnp.zeros(p.shape, jnp.float32), params))

    def update_fn(updates, state, params=None, *, value=None, **extra_args):
        del extra_args
        if params is None:
            raise ValueError(f"{name} needs the parameters: call update(grads, state, params)")
        if needs_value and value is None:
            raise ValueError(f"{name} needs the current loss: call update(grads, state, params, value=loss)")
        check_same_tree(updates, params)
        value = None if value is None else jnp.asarray(value, jnp.float32)
        updates, state = update(_float32(updates), state, _float32(params), value)
        return jax.tree.map(lambda u, p: u.astype(p.dtype), updates, params), state

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _float32(tree):
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), tree)


def check_same_tree(grads: Any, params: Any) -> None:
    """Raises a ValueError naming the first path at which two trees differ."""
    ours = {jax.tree_util.keystr(path): jnp.shape(g) for path, g in jax.tree.leaves_with_path(grads)}
    theirs = {jax.tree_util.keystr(path): jnp.shape(p) for path, p in jax.tree.leaves_with_path(params)}
    for path in [*theirs, *ours]:
        if path not in ours:
            raise ValueError(f"grads and params differ: params{path} has no gradient")
        if path not in theirs:
            raise ValueError(f"grads and params differ: grads{path} has no parameter")
        if ours[path] != theirs[path]:
            raise ValueError(f"grads and params differ at {path or 'the root'}: shapes {ours[path]} and {theirs[path]}")
    if jax.tree.structure(grads) != jax.tree.structure(params):
        raise ValueError(
            "grads and params hold the same leaves in different containers: "
            f"{jax.tree.structure(grads)} and {jax.tree.structure(params)}"
        )
