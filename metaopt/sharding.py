"""Where an optimizer's state lives when the parameters are spread over devices."""

from typing import Any

import jax
import optax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P


def state_sharding(tx: optax.GradientTransformation, params: Any) -> Any:
    """The sharding of ``tx.init(params)``: every array of a tensor lies as the tensor does.

        place = state_sharding(tx, params)
        state = jax.jit(tx.init, out_shardings=place)(params)

    An axis of the state that has the length of the parameter's axis is spread like it;
    one that was averaged over, a further axis and whatever belongs to no tensor are whole on
    every device. Give a jitted step ``out_shardings`` of the parameters and of the state, and
    they stay where they are.

    Args:
      tx: any Optax transformation whose state holds trees like the parameters.
      params: arrays, or ``jax.ShapeDtypeStruct``s, with a NamedSharding each.

    Returns:
      A tree like the state, of NamedShardings.

    Raises:
      ValueError: naming the first parameter without a NamedSharding; for a mesh with
        explicit axes, which is what ``jax.make_mesh`` makes unless told otherwise.
    """
    for path, p in jax.tree.leaves_with_path(params):
        if not isinstance(getattr(p, "sharding", None), NamedSharding):
            raise ValueError(f"params{jax.tree_util.keystr(path)} has no NamedSharding: place it with jax.device_put")
    shardings = [p.sharding for p in jax.tree.leaves(params)]
    if not shardings:
        raise ValueError("there are no parameters")
    mesh = shardings[0].mesh
    if AxisType.Explicit in mesh.axis_types:
        raise ValueError(
            "learned optimizers need a mesh whose axes are Auto: pass axis_types=(AxisType.Auto, ...) to jax.make_mesh"
        )
    state = jax.eval_shape(tx.init, params)

    def of_subtree(tree):
        if not _is_like(params, tree):
            return jax.tree.map(lambda x: NamedSharding(mesh, P()), tree)
        return jax.tree.map(lambda p, part: jax.tree.map(lambda x: _spread_like(p, x), part), params, tree)

    return jax.tree.map(of_subtree, state, is_leaf=lambda tree: _is_like(params, tree))


def _is_like(params, tree) -> bool:
    """Whether a tree has, in place of every parameter, arrays of its shape or of averages over it."""
    try:
        parts = jax.tree.structure(params).flatten_up_to(tree)
    except (ValueError, TypeError):
        return False
    if parts and all(not hasattr(part, "ndim") and _is_like(params, part) for part in parts):
        return False  # as many decays as parameters: a tuple of trees that are like the parameters
    fits = lambda p, x: x.ndim >= p.ndim and all(n in (1, m) for n, m in zip(x.shape, p.shape, strict=False))
    return all(
        fits(p, x) for p, part in zip(jax.tree.leaves(params), parts, strict=True) for x in jax.tree.leaves(part)
    )


def _spread_like(p, x) -> NamedSharding:
    names = zip(p.shape, x.shape, p.sharding.spec, strict=False)  # trailing axes have none
    return NamedSharding(p.sharding.mesh, P(*(name if m == n else None for m, n, name in names)))
