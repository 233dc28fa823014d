"""From an update rule in float32 to a well-behaved Optax transformation.

All families use ``transformation``, so checks, dtypes and the wording of errors exist once.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from metaopt.core import Params, PyTree


def transformation(
    init: Callable[[Params], Any],
    update: Callable[..., tuple[Params, Any]],
    *,
    name: str,
    needs_value: bool = False,
    reads: Sequence[str] = (),
) -> optax.GradientTransformationExtraArgs:
    """Wraps a float32 update rule as an Optax transformation.

    Args:
      init: ``params -> state``. It is given float32 zeros of the shapes of the
        parameters, so it can depend on nothing else.
      update: ``(grads, state, params, value, **reads) -> (updates, state)`` on
        float32 trees; ``updates`` are added to the parameters.
      name: the family's name, for error messages.
      needs_value: whether the rule reads the current loss.
      reads: further keywords of ``update`` that are passed on; None where not given.

    Returns:
      A transformation that keeps its accumulators in float32 and returns updates
      in the dtype of each parameter. It ignores extra arguments it does not know,
      so it composes with the rest of Optax. A gradient that is None counts as zero
      and its parameter stays where it is.

    Raises:
      ValueError: from ``update`` at trace time, if ``params`` or a needed ``value``
        is missing or if ``grads`` and ``params`` are trees of different shape.
    """

    def init_fn(params: Params) -> Any:
        return _narrow(init(jax.tree.map(lambda p: jnp.zeros(p.shape, jnp.float32), params)))

    def update_fn(updates, state, params=None, *, value=None, **extra_args):
        grads = updates  # Optax's name for what comes in
        if params is None:
            raise ValueError(f"{name} needs the parameters: call update(grads, state, params)")
        if needs_value and value is None:
            raise ValueError(f"{name} needs the current loss: call update(grads, state, params, value=loss)")
        some_none = any(g is None for g in jax.tree.leaves(grads, is_leaf=_is_none))
        given = _zeros_for_none(grads, grads, params) if some_none else grads
        check_same_tree(given, params)
        value = None if value is None else jnp.asarray(value, jnp.float32)
        extra = {keyword: extra_args.get(keyword) for keyword in reads}
        updates, new_state = update(_float32(given), state, _float32(params), value, **extra)
        # Where jax_enable_x64 is on, constants would widen the state from step to step.
        state = _cast_like(new_state, state)
        updates = _cast_like(updates, params)
        return (_zeros_for_none(grads, updates, updates) if some_none else updates), state

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


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


def _float32(tree: PyTree) -> PyTree:
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), tree)


def _narrow(tree: PyTree) -> PyTree:
    """A tree with float64, the dtype of constants where jax_enable_x64 is on, cast to float32."""
    return jax.tree.map(lambda x: x.astype(jnp.float32) if x.dtype == jnp.float64 else x, tree)


def _cast_like(tree: PyTree, like: PyTree) -> PyTree:
    return jax.tree.map(lambda x, y: x.astype(y.dtype), tree, like)


def _is_none(x: Any) -> bool:
    return x is None


def _zeros_for_none(grads: PyTree, values: PyTree, likes: PyTree) -> PyTree:
    """``values``, with zeros like ``likes`` wherever a gradient is None."""

    def pick(g: Any, value: PyTree, like: PyTree) -> PyTree:
        return jax.tree.map(jnp.zeros_like, like) if g is None else value

    return jax.tree.map(pick, grads, values, likes, is_leaf=_is_none)
